//! A real sshd on a host, with a key of its own and one client key, and a real ssh that knows both.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::home::Home;
use crate::netns::Host;
use crate::process::{Process, succeed};
use crate::wait::LONG;

/// The name under which ssh knows the sshd's key, whatever address it is at.
const NAME: &str = "gate";

/// A running sshd, for root by key alone. Dropping it ends it; its sessions end with the host.
pub struct Sshd {
    files: TempDir,
    _sshd: Process,
}

impl Sshd {
    /// Starts it on port 22 of both families.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("postern-sshd-").tempdir()?;
        let path = |name: &str| files.path().join(name);
        for key in ["host", "client"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(path(key));
            succeed(keygen, b"", LONG)?;
        }
        let public = fs::read_to_string(path("host.pub"))?;
        fs::write(path("known_hosts"), format!("{NAME} {public}"))?;
        fs::write(path("sshd_config"), server_config(files.path())?)?;
        fs::write(path("ssh_config"), client_config(files.path()))?;

        // sshd wants /run/sshd; here it gets a /run of its own, in the mount namespace that `ip netns exec` makes.
        let mut command = host.command("sh");
        command.args(["-c", "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec \"$0\" \"$@\""]);
        command.arg(sshd_path()).args(["-D", "-e", "-f"]).arg(path("sshd_config"));
        let sshd = Process::spawn(command)?;
        sshd.wait_for_lines("sshd's ports", LONG, |lines| {
            let listening = |at| lines.iter().any(|line| line.contains(&format!("Server listening on {at}")));
            (listening("0.0.0.0") && listening("::")).then_some(())
        })?;
        Ok(Self { files, _sshd: sshd })
    }

    /// Gives whoever has this home the client's key, and lets him know the sshd under these names.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn befriend(&self, home: &Home, names: &[String]) -> Result<()> {
        let folder = home.path(".ssh");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        fs::copy(self.files.path().join("client"), folder.join("id_ed25519"))?;
        let public = fs::read_to_string(self.files.path().join("host.pub"))?;
        fs::write(folder.join("known_hosts"), format!("{} {public}", names.join(",")))?;
        Ok(())
    }

    /// An `ssh` command on a host, to run a command at an address of the sshd's.
    #[must_use]
    pub fn ssh(&self, from: &Host, address: IpAddr, options: &[String], command: &str) -> Command {
        let mut ssh = from.command("ssh");
        ssh.arg("-F").arg(self.files.path().join("ssh_config")).args(options);
        ssh.args([&format!("root@{address}"), command]).env_remove("SSH_AUTH_SOCK");
        ssh
    }
}

fn server_config(files: &Path) -> Result<String> {
    let path = |name: &str| files.join(name).display().to_string();
    // Without PAM, sshd turns away a root whose password is locked, as some systems ship it.
    let shadow = fs::read_to_string("/etc/shadow").context("/etc/shadow")?;
    let locked = shadow.lines().any(|line| line.starts_with("root:!"));
    // From 9.8 on it punishes addresses that connect and leave, which is what probing a port is.
    let penalties = if version()? >= (9, 8) { "PerSourcePenalties no\n" } else { "" };
    Ok(format!(
        "{penalties}ListenAddress 0.0.0.0\nListenAddress ::\nPort 22\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         UsePAM {}\nStrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nMaxStartups 100\nPrintMotd no\nUseDNS no\n\
         Subsystem sftp internal-sftp\n",
        path("host"),
        path("client.pub"),
        if locked { "yes" } else { "no" },
    ))
}

fn client_config(files: &Path) -> String {
    let path = |name: &str| files.join(name).display().to_string();
    format!(
        "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n\
         \x20 HostKeyAlias {NAME}\n  StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 2\n\
         \x20 ControlMaster no\n  LogLevel ERROR\n",
        path("client"),
        path("known_hosts"),
    )
}

/// The version of OpenSSH, of which client and server come together.
fn version() -> Result<(u32, u32)> {
    let mut command = Command::new("ssh");
    command.arg("-V");
    let text = succeed(command, b"", LONG)?.stderr;
    let numbers = text.strip_prefix("OpenSSH_").and_then(|rest| rest.split_once(['p', ' ', ',']));
    let (major, minor) = numbers.and_then(|(version, _)| version.split_once('.')).context(text.clone())?;
    Ok((major.parse().context(text.clone())?, minor.parse().context(text)?))
}

/// sshd starts itself anew for each connection, so it has to be called by its whole path; distributions differ.
fn sshd_path() -> PathBuf {
    let places = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"].map(PathBuf::from);
    places.iter().find(|path| path.exists()).unwrap_or(&places[0]).clone()
}
