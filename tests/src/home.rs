//! A home of its own for a test that runs programs as a user does: ssh asks the password database where its home is, and
//! not the environment.
//!
//! It is laid over root's home, in the mount namespace that `ip netns exec` makes for each command, and is gone with that.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Host;
use crate::programs;

/// Lays `$1` over root's home with the programs in `$2` as its `bin`, and runs the rest there. The programs come first:
/// they may be in what is covered.
const ENTER: &str = r#"
home=$1 programs=$2
shift 2
mount --bind "$programs" "$home/bin"
mount --rbind "$home" ~root
HOME=~root
PATH=$HOME/bin:$PATH
export HOME PATH
cd
exec "$@"
"#;

/// What a program sees beside its files, and must not have from whoever runs the tests.
const FOREIGN: [&str; 7] = [
    "POSTERN_CONFIG",
    "POSTERN_PROFILE",
    "CREDENTIALS_DIRECTORY",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "ANSIBLE_CONFIG",
];

/// A home, gone with the test.
pub struct Home(TempDir);

impl Home {
    /// An empty one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("postern-home-").tempdir()?;
        std::fs::create_dir(folder.path().join("bin"))?;
        Ok(Self(folder))
    }

    /// A file in it, by the path that it has outside of the commands.
    #[must_use]
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(relative)
    }

    /// A command on a host, by a user whose home and folder this is, and who has `postern` in `PATH`.
    ///
    /// # Errors
    /// When the programs do not build.
    pub fn command(&self, host: &Host, words: &[&str]) -> Result<Command> {
        let mut command = host.command("sh");
        command.args(["-ec", ENTER, "home"]).arg(self.0.path()).arg(programs::directory()?).args(words);
        for name in FOREIGN {
            command.env_remove(name);
        }
        Ok(command)
    }
}
