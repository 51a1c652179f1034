//! A real ssh-agent with keys of its own, among them OpenSSH's dummy of a security key.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use postern_proto::IdentityKey;
use tempfile::TempDir;

use crate::process::{Process, succeed};
use crate::wait::{LONG, wait_for};

/// OpenSSH's dummy authenticator.
const SK_PROVIDER: &str = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so";

/// An agent, which ends when it is dropped.
pub struct SshAgent {
    files: TempDir,
    _agent: Process,
}

impl SshAgent {
    /// One without keys.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> Result<Self> {
        let files = tempfile::Builder::new().prefix("postern-agent-").tempdir()?;
        let socket = files.path().join("socket");
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-P", "/usr/lib/openssh/*", "-a"]).arg(&socket);
        let agent = Process::spawn(command)?;
        wait_for("an ssh-agent", LONG, || Ok(UnixStream::connect(&socket).ok()))?;
        Ok(Self { files, _agent: agent })
    }

    /// Where it listens: `SSH_AUTH_SOCK`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.files.path().join("socket")
    }

    /// Gives it a new Ed25519 key, which nobody else has.
    ///
    /// # Errors
    /// When the tools of OpenSSH fail.
    pub fn new_key(&self, name: &str) -> Result<IdentityKey> {
        self.keygen(name, &["-t", "ed25519"])?;
        let path = self.files.path().join(name);
        let key = self.add(&path)?;
        fs::remove_file(path)?;
        Ok(key)
    }

    /// Gives it a new key of a security key.
    ///
    /// # Errors
    /// As with [`SshAgent::new_key`].
    pub fn new_security_key(&self, name: &str) -> Result<IdentityKey> {
        self.keygen(name, &["-t", "ed25519-sk", "-w", SK_PROVIDER])?;
        self.add_with(&["-S", SK_PROVIDER], &self.files.path().join(name))
    }

    /// Gives it the key in a file.
    ///
    /// # Errors
    /// As with [`SshAgent::new_key`].
    pub fn add(&self, file: &Path) -> Result<IdentityKey> {
        self.add_with(&[], file)
    }

    fn add_with(&self, options: &[&str], file: &Path) -> Result<IdentityKey> {
        let mut add = Command::new("ssh-add");
        add.args(options).arg("-q").arg(file).env("SSH_AUTH_SOCK", self.socket());
        succeed(add, b"", LONG)?;
        let mut public = Command::new("ssh-keygen");
        public.arg("-y").arg("-f").arg(file);
        Ok(succeed(public, b"", LONG)?.text().parse()?)
    }

    fn keygen(&self, name: &str, options: &[&str]) -> Result<()> {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-N", "", "-C", name]).args(options).arg("-f").arg(self.files.path().join(name));
        succeed(keygen, b"", LONG).map(drop)
    }
}
