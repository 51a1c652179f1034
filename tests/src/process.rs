//! Processes that a test starts: their lines are collected, and they are gone when the test is, however it ends.
//!
//! A process is ended by its process id and by nothing else; a name would hit somebody else's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::wait_for;

/// A process that is running. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Lines>,
}

/// What it wrote to stdout and stderr, line by line.
#[derive(Default)]
struct Lines {
    written: Mutex<Vec<String>>,
    grew: Condvar,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects lines in a thread that ends with the stream.
    fn collect(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        let lines = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                lines.lock().push(String::from_utf8_lossy(&line).into_owned());
                lines.grew.notify_all();
            }
        });
    }
}

impl Process {
    /// Starts a process and collects the lines of its stdout and stderr.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: Command) -> Result<Self> {
        let (process, stdout) = Self::spawn_with_stdout(command)?;
        process.lines.collect(stdout);
        Ok(process)
    }

    /// Starts a process whose stdout is the caller's; the lines of its stderr are collected.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with_stdout(mut command: Command) -> Result<(Self, ChildStdout)> {
        let name = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let stderr = child.stderr.take().context("stderr was piped")?;
        let lines = Arc::new(Lines::default());
        lines.collect(stderr);
        Ok((Self { name, child, lines }, stdout))
    }

    /// What it has written so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// Waits until its lines, all from the start, hold what `pick` looks for.
    ///
    /// # Errors
    /// When they did not for `limit`; the message ends with its last lines.
    pub fn wait_for_lines<T>(
        &self,
        what: &str,
        limit: Duration,
        mut pick: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.lines.lock();
        loop {
            if let Some(found) = pick(&lines) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = lines[lines.len().saturating_sub(20)..].join("\n");
                bail!("waited {limit:?} in vain for {what} of {}; its last lines:\n{last}", self.name);
            }
            lines = self.lines.grew.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes to its stdin.
    ///
    /// # Errors
    /// When it has ended, or closed its stdin.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin was piped")?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).with_context(|| format!("stdin of {}", self.name))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("signal to {}", self.name))
    }

    /// Sends a signal to its process group, which is its own when it was started so.
    ///
    /// # Errors
    /// When it leads no group.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.pid(), signal)
            .with_context(|| format!("signal to the group of {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it runs on for `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_for(&format!("the end of {}", self.name), limit, || Ok(self.child.try_wait()?))
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process, of whomever, has ended with all its threads, and holds nothing any more; nobody need have waited
/// for it.
#[must_use]
pub fn has_ended(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    status.map_or(true, |status| status.contains("State:\tZ") && status.contains("Threads:\t1\n"))
}

/// What a process that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; 128 and the signal's number when a signal ended it, as a shell counts.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Its stdout as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a process to its end, feeding it `stdin`.
///
/// # Errors
/// When it cannot be started, or runs on for `limit` (it is killed then).
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Finished> {
    let name = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut input), Some(output), Some(errors)) = streams else { bail!("all of {name} was piped") };
    thread::scope(|scope| {
        // A process that does not read its stdin to the end is no failure here: its exit code says what it is.
        scope.spawn(move || input.write_all(stdin));
        let output = scope.spawn(|| read_all(output));
        let errors = scope.spawn(|| read_all(errors));
        let status = wait_for(&format!("the end of {name}"), limit, || Ok(child.try_wait()?));
        if status.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let read = |bytes: thread::ScopedJoinHandle<'_, _>| bytes.join().unwrap_or_default();
        let (stdout, stderr) = (read(output), String::from_utf8_lossy(&read(errors)).into_owned());
        let status = status.with_context(|| format!("its stderr:\n{stderr}"))?;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(Finished { code: code.context("it ended by itself or by a signal")?, stdout, stderr })
    })
}

/// Runs a process that has to succeed.
///
/// # Errors
/// As [`run`], and when its exit code is not 0.
pub fn succeed(command: Command, stdin: &[u8], limit: Duration) -> Result<Finished> {
    let name = format!("{command:?}");
    let finished = run(command, stdin, limit)?;
    if finished.code != 0 {
        bail!("{name} ended with {}:\n{}{}", finished.code, finished.text(), finished.stderr);
    }
    Ok(finished)
}

fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came before an error is what there is.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}
