//! A gate under test: its files, its `posternd`, the knocks it gets, and what its kernel and its log say.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::GateId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

mod firewall;
mod log;
mod processes;
mod settings;
mod usage;

pub use firewall::Grant;
pub use log::Counters;
pub use processes::Role;
pub use settings::{GROUP, KNOCK_PORTS, SERVICES, SSH, Settings, USER, Variant, WEB};
pub use usage::Usage;

use crate::knocks::{Client, random};
use crate::netns::{Family, Host};
use crate::process::{Finished, Process, has_ended, run, succeed};
use crate::programs;
use crate::wait::{LONG, wait_for};
use log::events;

/// A gate on a host. Dropping it kills its `posternd`; its rules go with the host.
pub struct Gate {
    host: Host,
    settings: Settings,
    files: TempDir,
    state: PathBuf,
    id: GateId,
    daemon: Option<Process>,
}

impl Gate {
    /// Writes the files of a gate with these clients; nothing runs yet.
    ///
    /// # Errors
    /// When the files cannot be written, or the programs do not build.
    pub fn new(host: Host, settings: Settings) -> Result<Self> {
        programs::directory()?;
        let files = tempfile::Builder::new().prefix("postern-gate-").tempdir()?;
        // What the front remembers is below it, and the front is nobody.
        fs::set_permissions(files.path(), Permissions::from_mode(0o711))?;
        let state = files.path().join("state");
        let id = GateId::from_bytes(random());
        let mut gate = Self { host, settings, files, state, id, daemon: None };
        gate.configure(settings)?;
        gate.write_clients(&[])?;
        Ok(gate)
    }

    /// Replaces the configuration file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&mut self, settings: Settings) -> Result<()> {
        self.settings = settings;
        write_private(&self.config(), &settings.to_toml(&self.id, &self.state))
    }

    /// Gives the gate another id, in the configuration file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rename(&mut self) -> Result<()> {
        self.id = GateId::from_bytes(random());
        self.configure(self.settings)
    }

    /// Changes a file of the gate: the first `from` in it becomes `to`.
    ///
    /// # Errors
    /// When it is not in it, or the file cannot be written.
    pub fn edit(&self, file: &Path, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(file)?;
        ensure!(text.contains(from), "no {from:?} in {}", file.display());
        write_private(file, &text.replacen(from, to, 1))
    }

    /// A new client that may have both services; it is not in the key file yet.
    ///
    /// # Errors
    /// When the name is none.
    pub fn client(&self, name: &str) -> Result<Client> {
        Client::new(&self.id, name, &["ssh", "web"])
    }

    /// Replaces the key file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_clients(&self, clients: &[&Client]) -> Result<()> {
        let text: String = clients.iter().map(|client| client.entry.to_toml()).collect();
        write_private(&self.keys(), &text)
    }

    /// Has it keep its state somewhere else, from its next start on.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn keep_state_in(&mut self, folder: PathBuf) -> Result<()> {
        self.state = folder;
        self.configure(self.settings)
    }

    /// The file of its replay store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("front").join("replay.redb")
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &GateId {
        &self.id
    }

    /// The directory of its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.files.path()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory().join("posternd.toml")
    }

    /// Its key file.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.directory().join("keys")
    }

    /// Where it keeps what it remembers.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where one of its ports is.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ip(family), port)
    }

    /// A `posternd` command on its host.
    ///
    /// # Errors
    /// When the programs do not build.
    pub fn posternd(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(programs::directory()?.join("posternd"));
        command.arg("--config").arg(self.config()).args(arguments);
        // iptables-legacy has one lock a machine: one a gate keeps tests from waiting for one another.
        command.env("XTABLES_LOCKFILE", self.directory().join("xtables.lock"));
        command.env("POSTERND_LOG", self.settings.log).env_remove("POSTERND_CONFIG");
        Ok(command)
    }

    /// Runs `posternd` with a command that ends by itself and has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn administer(&self, arguments: &[&str]) -> Result<Finished> {
        succeed(self.posternd(arguments)?, b"", LONG)
    }

    /// Starts `posternd run` with further arguments and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(&mut self, arguments: &[&str]) -> Result<()> {
        self.start_by(self.run_command(arguments)?)
    }

    /// The command that [`Gate::start`] runs, for a test that changes something about it.
    ///
    /// # Errors
    /// When the programs do not build.
    pub fn run_command(&self, arguments: &[&str]) -> Result<Command> {
        self.posternd(&[&["run", "--log-format", "json"], arguments].concat())
    }

    /// Starts `posternd run` by a command, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_by(&mut self, command: Command) -> Result<()> {
        self.daemon = Some(Process::spawn(command)?);
        self.wait_for_events("ready", 1).map(drop)
    }

    /// Stops `posternd` as systemd does and gives back its counters.
    ///
    /// # Errors
    /// When it does not end, or not with 0.
    pub fn stop(&mut self) -> Result<Counters> {
        self.signal(Signal::TERM)?;
        self.wait_for_end()
    }

    /// Waits until `posternd` has ended as it was told to, and gives back its counters.
    ///
    /// # Errors
    /// When it does not end, or not with 0.
    pub fn wait_for_end(&mut self) -> Result<Counters> {
        let mut daemon = self.daemon.take().context("posternd runs")?;
        let status = daemon.wait(LONG)?;
        ensure!(status.success(), "posternd ended with {status}:\n{}", daemon.lines().join("\n"));
        let last = |lines: &[String]| events(lines, "counters").pop();
        Ok(Counters::from_event(&daemon.wait_for_lines("the last counters", LONG, last)?))
    }

    /// Kills every process of Postern on the host with SIGKILL, and waits until none is left.
    ///
    /// # Errors
    /// When none was running, or one outlives it.
    pub fn kill(&mut self) -> Result<()> {
        let mut killed = self.posternd_pids()?;
        ensure!(!killed.is_empty(), "posternd runs");
        wait_for("the end of posternd", LONG, || {
            killed.extend(self.posternd_pids()?);
            killed.retain(|&pid| !has_ended(pid));
            for &pid in &killed {
                // One that has ended meanwhile is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            // The one that was started here stays a zombie until it is waited for.
            let ended = self.daemon.as_mut().map_or(Ok(true), Process::has_ended)?;
            Ok((killed.is_empty() && ended).then_some(()))
        })?;
        self.daemon = None;
        Ok(())
    }

    /// Every process of Postern on the host.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn posternd_pids(&self) -> Result<Vec<Pid>> {
        let posternd = programs::directory()?.join("posternd");
        let is_ours = |pid: &Pid| {
            fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).is_ok_and(|exe| exe == posternd)
        };
        Ok(self.host.pids()?.into_iter().filter(is_ours).collect())
    }

    /// What its processes use of the machine.
    ///
    /// # Errors
    /// When one of them ends meanwhile.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(&self.posternd_pids()?)
    }

    /// One of its processes, by name: `posternd` (the supervisor), `postern-front` or `postern-warden`.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn pid_of(&self, name: &str) -> Result<Pid> {
        let is_it = |pid: &Pid| {
            let comm = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        };
        let pids: Vec<_> = self.posternd_pids()?.into_iter().filter(is_it).collect();
        ensure!(pids.len() == 1, "{} processes {name}", pids.len());
        Ok(pids[0])
    }

    /// Sends `posternd` a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running()?.signal(signal)
    }

    /// Its `posternd`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn running(&self) -> Result<&Process> {
        self.daemon.as_ref().context("posternd runs")
    }

    /// How many lines this `posternd` has logged.
    ///
    /// # Errors
    /// When it does not run.
    pub fn lines_logged(&self) -> Result<usize> {
        Ok(self.running()?.lines().len())
    }

    /// What this `posternd` has logged with a message.
    ///
    /// # Errors
    /// When it does not run.
    pub fn events(&self, message: &str) -> Result<Vec<Value>> {
        Ok(events(&self.running()?.lines(), message))
    }

    /// Everything that this `posternd` has logged.
    ///
    /// # Errors
    /// When it does not run.
    pub fn log(&self) -> Result<Vec<Value>> {
        Ok(self.running()?.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Waits until this `posternd` has logged a message so many times.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_events(&self, message: &str, count: usize) -> Result<Vec<Value>> {
        self.running()?.wait_for_lines(&format!("{count} lines \"{message}\""), LONG, |lines| {
            Some(events(lines, message)).filter(|events| events.len() >= count)
        })
    }

    /// Has `posternd` read its key file again, and gives back its counters up to then.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<Counters> {
        let before = self.events("counters")?.len();
        self.signal(Signal::HUP)?;
        let events = self.wait_for_events("counters", before + 1)?;
        Ok(Counters::from_event(&events[before]))
    }

    /// Waits until so many datagrams have come in since the start, and each has been decided.
    ///
    /// # Errors
    /// When that does not happen; the counters as they were last are in the message.
    pub fn wait_for_received(&self, received: u64) -> Result<Counters> {
        let mut last = None;
        wait_for("the counters", LONG, || {
            let counters = self.reload()?;
            last = Some(counters.clone());
            let decided = counters.accepted + counters.refused.values().sum::<u64>();
            if counters.received >= received && decided >= received {
                return Ok(Some(counters));
            }
            // Each reload puts the guard up anew: asking all the time would be the load.
            thread::sleep(Duration::from_millis(100));
            Ok(None)
        })
        .with_context(|| format!("{received} datagrams were sent; {last:?}"))
    }

    /// A `postern` command on a host, as one of this gate's clients, which it finds at one address.
    ///
    /// # Errors
    /// When the programs do not build.
    pub fn postern(&self, from: &Host, client: &Client, family: Family) -> Result<Command> {
        let mut command = from.command(programs::directory()?.join("postern"));
        command
            .env("POSTERN_PROFILE", client.profile(&[self.host.ip(family)], &KNOCK_PORTS, &SERVICES, false)?);
        command.env_remove("POSTERN_CONFIG").env_remove("XDG_CONFIG_HOME").env_remove("HOME");
        Ok(command)
    }

    /// The same with a profile that says that the gate answers: it waits for that, and knocks again.
    ///
    /// # Errors
    /// When the programs do not build.
    pub fn answered_postern(&self, from: &Host, client: &Client, family: Family) -> Result<Command> {
        let mut command = self.postern(from, client, family)?;
        let profile = client.profile(&[self.host.ip(family)], &KNOCK_PORTS, &SERVICES, true)?;
        command.env("POSTERN_PROFILE", profile);
        Ok(command)
    }

    /// Knocks with `postern` for a service, with further arguments; it has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn knock(&self, from: &Host, client: &Client, family: Family, arguments: &[&str]) -> Result<()> {
        let mut command = self.postern(from, client, family)?;
        command.args(["knock", "-", "ssh"]).args(arguments);
        succeed(command, b"", LONG).map(drop)
    }

    /// Runs `posternd` with a command that may fail.
    ///
    /// # Errors
    /// When it does not end.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Finished> {
        run(self.posternd(arguments)?, b"", LONG)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}
