//! A process that was taken over: gdb stops it and has it make system calls of a test's choice, as an attacker would who
//! runs code in it. What holds it back then is the kernel, and nothing of its own. And a thread that is stuck, while the
//! others of its process go on.

use std::fmt::{self, Display, Write};
use std::fs::{self, DirEntry};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use libc::c_long;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::Pid;

use crate::process::run;
use crate::wait::LONG;

/// Where what the calls point to lies in the process: far from where the kernel puts anything by itself.
const MEMORY: i64 = 0x2000_0000_0000;
const MEMORY_LEN: usize = 64 * 1024;
/// Marks the lines of gdb's output that are ours.
const MARK: &str = "postern:";

/// System calls for a process to make, in order.
#[derive(Default)]
pub struct Calls {
    memory: Vec<u8>,
    script: String,
    count: usize,
}

/// What a call returns; stands for it in the arguments of later ones.
#[derive(Clone, Copy, Debug)]
pub struct Returned(usize);

impl Display for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$returned{}", self.0)
    }
}

/// What the calls came back with: a result, or an error number.
pub struct Answers(Vec<Result<i64, i32>>);

impl Answers {
    /// That of one call.
    ///
    /// # Errors
    /// The error number.
    pub fn of(&self, call: Returned) -> Result<i64, i32> {
        self.0[call.0]
    }
}

impl Calls {
    /// Puts bytes into the process's memory; gives their address.
    pub fn bytes(&mut self, bytes: &[u8]) -> i64 {
        let at = self.memory.len().next_multiple_of(16);
        self.memory.resize(at, 0);
        self.memory.extend_from_slice(bytes);
        MEMORY + i64::try_from(at).expect("a few bytes")
    }

    /// Puts a text and a zero behind it into the process's memory; gives its address.
    pub fn text(&mut self, text: impl Display) -> i64 {
        self.bytes(format!("{text}\0").as_bytes())
    }

    /// Puts numbers of 64 bits into the process's memory; gives their address.
    pub fn words(&mut self, words: &[i64]) -> i64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// One more call, with up to six arguments.
    ///
    /// # Panics
    /// When there are more.
    pub fn call(&mut self, number: c_long, arguments: &[&dyn Display]) -> Returned {
        assert!(arguments.len() <= 6, "a system call has six arguments");
        let mut all = number.to_string();
        for index in 0..6 {
            let argument = arguments.get(index).map_or_else(|| "0".to_owned(), ToString::to_string);
            write!(all, ", {argument}").expect("memory does not fail");
        }
        let returned = Returned(self.count);
        self.count += 1;
        writeln!(self.script, "set {returned} = $call({all})").expect("memory does not fail");
        writeln!(self.script, "printf \"{MARK} %ld %d\\n\", {returned}, *$error()")
            .expect("memory does not fail");
        returned
    }

    /// Has a process make the calls. It stands still meanwhile, and goes on afterwards.
    ///
    /// # Errors
    /// When gdb cannot take it over, or it does not come to the end of the calls.
    pub fn make(&self, pid: Pid) -> Result<Answers> {
        ensure!(self.memory.len() <= MEMORY_LEN, "too much for the memory of the process");
        let files = tempfile::Builder::new().prefix("postern-gdb-").tempdir()?;
        let (script, memory) = (files.path().join("script"), files.path().join("memory"));
        fs::write(&memory, &self.memory)?;
        let restore = format!("restore {} binary {MEMORY}\n", memory.display());
        let restore = if self.memory.is_empty() { String::new() } else { restore };
        let unmap = format!("set $gone = $call({}, {MEMORY}, {MEMORY_LEN}, 0, 0, 0, 0)\n", libc::SYS_munmap);
        fs::write(&script, format!("{}{restore}{}{unmap}", prologue(), self.script))?;

        let mut gdb = Command::new("gdb");
        // Without debugging information: what it stands still for is heard of after ten seconds.
        gdb.args(["-nx", "-q", "--batch", "--readnever"]);
        gdb.args(["-iex", "set debuginfod enabled off", "-iex", "set auto-load no"]);
        gdb.args(["-p", &pid.as_raw_nonzero().to_string(), "-x"]).arg(script);
        let finished = run(gdb, b"", LONG)?;
        let said = format!("{}{}", finished.text(), finished.stderr);
        let lines = said.lines().filter_map(|line| line.strip_prefix(MARK));
        let answers = lines.map(answer).collect::<Option<Vec<_>>>().context("numbers")?;
        ensure!(answers.len() == self.count + 1, "gdb came to an early end:\n{said}");
        ensure!(answers[0] == Ok(MEMORY), "the process has no memory for the calls:\n{said}");
        Ok(Answers(answers[1..].to_vec()))
    }
}

/// Functions of the C library, which gdb knows by name only, and memory for what the calls point to.
fn prologue() -> String {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    format!(
        "set confirm off\n\
         set pagination off\n\
         set unwindonsignal on\n\
         set scheduler-locking on\n\
         set $call = (long (*)(long, long, long, long, long, long, long)) syscall\n\
         set $error = (int *(*)(void)) __errno_location\n\
         set $memory = $call({}, {MEMORY}, {MEMORY_LEN}, {protection}, {flags}, -1, 0)\n\
         printf \"{MARK} %ld %d\\n\", $memory, *$error()\n",
        libc::SYS_mmap
    )
}

fn answer(line: &str) -> Option<Result<i64, i32>> {
    let (result, error) = line.trim().split_once(' ')?;
    let (result, error): (i64, i32) = (result.parse().ok()?, error.parse().ok()?);
    Some(if result == -1 { Err(error) } else { Ok(result) })
}

/// Stops the thread of this name until its process ends, while the others go on.
///
/// # Errors
/// When there is none, or it cannot be stopped.
pub fn stop_thread(pid: Pid, name: &str) -> Result<()> {
    let is_it = |task: &DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let mut tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))?.flatten();
    let task = tasks.find(is_it).with_context(|| format!("no thread {name}"))?.file_name();
    let thread = nix::unistd::Pid::from_raw(task.to_str().context("a number")?.parse()?);
    let (tell, stopped) = mpsc::channel();
    // Of threads, too, only the one that traces another is told of it.
    thread::spawn(move || {
        let stop = || {
            ptrace::seize(thread, ptrace::Options::empty())?;
            ptrace::interrupt(thread)?;
            waitpid(thread, Some(WaitPidFlag::__WALL)).map(drop)
        };
        // Whoever is told waits for it.
        let _ = tell.send(stop());
        // Its process is gone only once its end was seen here.
        while waitpid(thread, Some(WaitPidFlag::__WALL))
            .is_ok_and(|status| !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
        {
        }
    });
    stopped.recv()?.with_context(|| format!("the thread {name} cannot be stopped"))
}
