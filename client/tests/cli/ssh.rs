//! OpenSSH's own tools for the tests: keys, agents that end with their test, and a terminal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postern_proto::IdentityKey;

use crate::home::{Home, Outcome, run, wait};

/// OpenSSH's dummy authenticator: what a security key does, without one.
pub(crate) const SK_PROVIDER: &str = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so";

/// Runs a tool to its end, and without a terminal.
#[track_caller]
pub(crate) fn tool(home: &Home, program: &str, args: &[&str]) -> Outcome {
    run(&mut tool_at(home, program, args))
}

fn tool_at(home: &Home, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("setsid");
    command.arg("-w").arg(program).args(args);
    command.env_clear().env("HOME", home.path("")).env("PATH", "/usr/bin:/bin").current_dir(home.path(""));
    command
}

/// A new Ed25519 key in a file of the home, with this passphrase.
#[track_caller]
pub(crate) fn keygen(home: &Home, file: &str, passphrase: &str) -> IdentityKey {
    let path = home.path(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    tool(home, "ssh-keygen", &["-q", "-t", "ed25519", "-N", passphrase, "-C", "alice@laptop", "-f", file])
        .expect(0);
    public(home, file)
}

/// A new key of a security key, and what else ssh-keygen is to be told.
#[track_caller]
pub(crate) fn sk_keygen(home: &Home, file: &str, args: &[&str]) -> IdentityKey {
    let fixed = ["-q", "-t", "ed25519-sk", "-w", SK_PROVIDER, "-N", "", "-C", "alice@key", "-f", file];
    tool(home, "ssh-keygen", &[&fixed[..], args].concat()).expect(0);
    public(home, file)
}

fn public(home: &Home, file: &str) -> IdentityKey {
    fs::read_to_string(home.path(&format!("{file}.pub"))).unwrap().parse().unwrap()
}

/// A program of one line, in the home.
#[track_caller]
pub(crate) fn script(home: &Home, name: &str, line: &str) -> PathBuf {
    // Nothing runs while it is open for writing, and what is open here another test's child may have for a moment.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 700 \"$2\"";
    tool(home, "sh", &["-c", write, "sh", line, name]).expect(0);
    home.path(name)
}

/// A real ssh-agent.
pub(crate) struct Agent<'a> {
    home: &'a Home,
    socket: PathBuf,
    child: Child,
}

impl<'a> Agent<'a> {
    /// Where somebody is to confirm, this program answers.
    pub(crate) fn start(home: &'a Home, ask_with: &str) -> Self {
        let socket = home.path("agent");
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-P", "/usr/lib/openssh/*", "-a"]).arg(&socket);
        command.env_clear().env("HOME", home.path("")).env("PATH", "/usr/bin:/bin");
        command.env("SSH_ASKPASS", ask_with).env("SSH_ASKPASS_REQUIRE", "force");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let agent = Self { home, socket, child: command.spawn().unwrap() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(Instant::now() < deadline, "the agent listens in time");
            thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    /// ssh-add, which talks to this agent.
    #[track_caller]
    pub(crate) fn add(&self, args: &[&str]) -> Outcome {
        let mut command = tool_at(self.home, "ssh-add", args);
        command.env("SSH_AUTH_SOCK", &self.socket);
        run(&mut command)
    }

    /// The client, with this agent.
    pub(crate) fn postern(&self, args: &[&str]) -> Command {
        let mut command = self.home.postern(args);
        command.env("SSH_AUTH_SOCK", &self.socket);
        command
    }

    /// ssh-add, where somebody types this whenever it asks: a passphrase, or what it is locked with.
    #[track_caller]
    pub(crate) fn add_typing(&self, typed: &str, args: &[&str]) -> Outcome {
        let asker = script(self.home, "asker", &format!("echo {typed}"));
        let mut command = tool_at(self.home, "ssh-add", args);
        command.env("SSH_AUTH_SOCK", &self.socket).env("SSH_ASKPASS_REQUIRE", "force");
        run(command.env("SSH_ASKPASS", asker))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Something at a socket that is no ssh-agent: it answers each message with the next of these.
pub(crate) fn false_agent(socket: &Path, answers: Vec<Vec<u8>>) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut length = [0; 4];
            if stream.read_exact(&mut length).is_ok() {
                let mut message = vec![0; u32::from_be_bytes(length) as usize];
                let _ = stream.read_exact(&mut message).and_then(|()| stream.write_all(&answer));
            }
        }
    });
}

/// SSH's `string`.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The client on a terminal of its own, by script(1).
pub(crate) struct Terminal {
    /// The file that says which terminal it is.
    name: PathBuf,
    child: Child,
    keyboard: ChildStdin,
    screen: ChildStdout,
    shown: String,
}

impl Terminal {
    /// Starts a command line of a shell there.
    pub(crate) fn start(home: &Home, line: &str) -> Self {
        let programs = Path::new(env!("CARGO_BIN_EXE_postern")).parent().unwrap();
        let mut command = Command::new("script");
        command
            .args(["-q", "-e", "-c", &format!("tty > terminal; {line}"), "/dev/null"])
            .env_clear()
            .env("HOME", home.path(""));
        command.env("PATH", format!("{}:/usr/bin:/bin", programs.display())).current_dir(home.path(""));
        command.env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("script is installed");
        let (keyboard, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { name: home.path("terminal"), child, keyboard, screen, shown: String::new() }
    }

    /// Types a line, once that has been shown since the last, and what is typed is not.
    #[track_caller]
    pub(crate) fn answer(&mut self, prompt: &str, line: &str) {
        self.answer_with(prompt, &format!("{line}\n"));
    }

    /// The same with single keys.
    #[track_caller]
    pub(crate) fn answer_with(&mut self, prompt: &str, keys: &str) {
        self.answer_to(&[prompt], keys);
    }

    /// The same, once all of these have been shown.
    #[track_caller]
    pub(crate) fn answer_to(&mut self, prompts: &[&str], keys: &str) {
        let mut seen = String::new();
        let mut byte = [0];
        while !prompts.iter().all(|prompt| seen.contains(prompt)) {
            assert_eq!(self.screen.read(&mut byte).unwrap(), 1, "{prompts:?} were not shown: {seen:?}");
            seen.push(char::from(byte[0]));
        }
        self.shown.push_str(&seen);
        let terminal = fs::read_to_string(&self.name).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let hides = || {
            let mut stty = Command::new("stty");
            let settings = stty.args(["-a", "-F", terminal.trim()]).output().unwrap();
            String::from_utf8_lossy(&settings.stdout).contains(" -echo ")
        };
        while !hides() {
            assert!(Instant::now() < deadline, "what is typed is hidden");
            thread::sleep(Duration::from_millis(2));
        }
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// The exit code, and all that was shown.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (i32, String) {
        self.screen.read_to_string(&mut self.shown).unwrap();
        (wait(&mut self.child), self.shown)
    }
}
