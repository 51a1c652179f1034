//! Programs from Debian packages that must not be installed for a test, since they would start with the machine and change
//! its firewall: `tests/install` fetches the packages, and here they are unpacked.
//!
//! They are laid over `/usr`, `/etc` and `/var` of the machine, in a mount namespace on one host, where `/run` is empty:
//! whatever they write is gone with that namespace, and with it goes whatever they have mounted.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::netns::Host;
use crate::process::{Finished, Process, succeed};
use crate::programs;
use crate::wait::{LONG, wait_for};

/// Where `tests/install` puts the packages, in cargo's target directory.
const FETCHED: &str = "debian";

/// Sets everything up below `$1` with the packages in `$2`, says so, and lives until its stdin ends.
const SETUP: &str = r#"
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir -p tree/usr/bin tree/usr/sbin tree/usr/lib tree/etc tree/var
for top in bin sbin lib; do ln -s usr/$top tree/$top; done
for package in "$2"/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory tree
done
for top in usr etc var; do
    mkdir -p upper/$top work/$top
    mount -t overlay overlay -o "lowerdir=$1/tree/$top:/$top,upperdir=$1/upper/$top,workdir=$1/work/$top" /$top
done
mount -t tmpfs tmpfs /run
# As the packages have it, whatever the machine has.
for name in ufw firewalld fail2ban; do
    rm -rf /etc/$name
    cp -a tree/etc/$name /etc/
done
cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/ufw.conf /etc/ufw/
chmod 640 /etc/ufw/*.rules
for program in iptables ip6tables; do
    for suffix in '' -save -restore; do
        ln -sf $program-nft$suffix /usr/sbin/$program$suffix
    done
done
echo ready
exec cat
"#;

/// The packages, on a host. Their mount namespace ends with this and with the last program in it.
pub struct Packages {
    _mountpoint: TempDir,
    holder: Process,
}

impl Packages {
    /// Unpacks them; `iptables` is iptables-nft there.
    ///
    /// # Errors
    /// When they have not been fetched, or cannot be mounted.
    pub fn on(host: &Host) -> Result<Self> {
        let target = programs::directory()?.parent().context("a profile has a directory above it")?;
        let fetched = target.join(FETCHED);
        ensure!(
            fetched.is_dir(),
            "{} is not there: `bash tests/run --install-only` fetches it",
            fetched.display()
        );
        let mountpoint = tempfile::Builder::new().prefix("postern-packages-").tempdir()?;
        let mut command = host.command("sh");
        command.args(["-ec", SETUP, "packages"]).arg(mountpoint.path()).arg(fetched);
        let mut holder = Process::spawn(command)?;
        wait_for("the packages", LONG, || {
            let lines = holder.lines();
            ensure!(!holder.has_ended()?, "the packages cannot be unpacked:\n{}", lines.join("\n"));
            Ok(lines.iter().any(|line| line == "ready").then_some(()))
        })?;
        Ok(Self { _mountpoint: mountpoint, holder })
    }

    /// A program to be run there.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.holder.pid().as_raw_nonzero().to_string();
        command.args(["--mount", "--net", "--target", &target, program]).args(arguments);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a program there that has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        succeed(self.command(program, arguments), b"", LONG)
    }
}
