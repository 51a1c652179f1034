//! A home for the client, and how it is run there.

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postern_proto::Profile;
use tempfile::TempDir;

use crate::schema::validate;

/// What a run of the client came to.
pub(crate) struct Outcome {
    args: Vec<String>,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The object that it printed, which is what the schema says of that command.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        let command = self.args.iter().find(|arg| !arg.starts_with('-')).map_or("failure", String::as_str);
        // A diagnosis that finds a fault is no failure of the command.
        let diagnosed = command == "doctor" && self.code == 1;
        let name = if self.code == 0 || diagnosed { command } else { "failure" };
        assert_eq!(validate(name, &self.stdout), "ok", "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in: {}", self.stdout))
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

/// The client without any environment.
pub(crate) fn postern(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

/// Runs to the end, with so much on stdin.
#[track_caller]
pub(crate) fn run_with(command: &mut Command, stdin: &str) -> Outcome {
    start_with(command, stdin).finish()
}

/// Runs, while the test does something else.
pub(crate) fn start(command: &mut Command) -> Running {
    start_with(command, "")
}

fn start_with(command: &mut Command, stdin: &str) -> Running {
    let mut running = start_open(command);
    // It may end without reading.
    let _ = running.stdin.take().unwrap().write_all(stdin.as_bytes());
    running
}

/// Runs, with stdin open until the end.
pub(crate) fn start_open(command: &mut Command) -> Running {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    Running { args, child, stdin, stdout: reader(stdout), stderr: reader(stderr) }
}

/// The client at work.
pub(crate) struct Running {
    args: Vec<String>,
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
}

impl Running {
    #[track_caller]
    pub(crate) fn finish(mut self) -> Outcome {
        let code = wait(&mut self.child);
        let text = |bytes: thread::JoinHandle<Vec<u8>>| String::from_utf8(bytes.join().unwrap()).unwrap();
        Outcome { args: self.args, code, stdout: text(self.stdout), stderr: text(self.stderr) }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// What the kernel says of it.
    pub(crate) fn status(&self) -> String {
        fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap()
    }

    /// Whether nobody holds its stderr open any more.
    pub(crate) fn has_left_stderr(&self) -> bool {
        self.stderr.is_finished()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    run_with(command, "")
}

/// Reads to the end, beside what else is going on.
pub(crate) fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// The exit code of a child that ends in time; one that does not is killed.
#[track_caller]
pub(crate) fn wait(child: &mut Child) -> i32 {
    let deadline = Instant::now() + Duration::from_mins(1);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().expect("the client ends by itself");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the client did not end in time");
}

/// A home of its own, gone with the test.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// A home whose configuration has one gate.
    pub(crate) fn with(name: &str, profile: &Profile) -> Self {
        let home = Self::new();
        run_with(&mut home.postern(&["import", name, "-"]), &profile.to_line()).expect(0);
        home
    }

    /// A home with this text as its configuration.
    pub(crate) fn with_text(text: &str) -> Self {
        let home = Self::new();
        fs::create_dir_all(home.config().parent().unwrap()).unwrap();
        fs::write(home.config(), text).unwrap();
        home.chmod(0o600);
        home
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path(".config/postern/config.toml")
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    pub(crate) fn mode(&self, relative: &str) -> u32 {
        fs::metadata(self.path(relative)).unwrap().permissions().mode() & 0o7777
    }

    pub(crate) fn chmod(&self, mode: u32) {
        fs::set_permissions(self.config(), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The client with this home and nothing else in its environment.
    pub(crate) fn postern(&self, args: &[&str]) -> Command {
        let mut command = postern(args);
        command.env("HOME", self.0.path()).current_dir(self.0.path());
        command
    }
}
