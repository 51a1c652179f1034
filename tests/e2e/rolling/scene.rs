//! A gate with rolling sequences, whose clock can be set, and hosts that know the keys.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::keys::SequenceKey;
use postern_proto::sequence::{Rolling, Steps};
use postern_proto::{Epoch, Protocol};
use postern_tests::gate::{SSH, Settings, WEB};
use postern_tests::knocks::{now, random};
use postern_tests::netns::{Family, Host, ip_of};
use postern_tests::probe::{Seen, probe_bound, syn};
use postern_tests::process::{Finished, run};
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};
use tempfile::TempDir;

use crate::clock_steps::{Clock, command};
use crate::world::World;

/// The first of many addresses of one host.
const FIRST: u16 = 1000;
/// Between two steps, so that none overtakes another.
const SPACING: Duration = Duration::from_millis(10);

/// A rolling sequence and what it opens.
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) range: &'static str,
    pub(super) is_bound: bool,
    pub(super) opens: (&'static str, u16),
    key: SequenceKey,
}

pub(super) struct Scene {
    pub(super) world: World,
    /// A host of many addresses.
    pub(super) crowd: Host,
    /// Bound to its source, of TCP; opens ssh.
    pub(super) bound: Known,
    /// Not bound, of UDP; opens web.
    pub(super) free: Known,
    clock: Clock,
    unused: Range<u16>,
    files: TempDir,
}

impl Known {
    fn new(name: &'static str, range: &'static str, is_bound: bool, opens: (&'static str, u16)) -> Self {
        Self { name, range, is_bound, opens, key: SequenceKey::from_bytes(random()) }
    }

    /// What both sides' files say of it.
    fn ports(&self) -> String {
        let Self { range, is_bound, .. } = self;
        format!("rolling = \"{range}\"\nkey = \"{}\"\nbound-to-source = {is_bound}\n", *self.key.to_text())
    }

    /// Its lines in posternd.toml.
    pub(super) fn to_toml(&self) -> String {
        format!("[sequences.{}]\n{}services = [\"{}\"]\n", self.name, self.ports(), self.opens.0)
    }

    /// The steps that its key gives.
    pub(super) fn steps(&self, epoch: Epoch, source: IpAddr) -> Result<Steps> {
        Ok(Rolling::new(&self.key, self.range.parse()?, Rolling::LENGTH, self.is_bound)?.steps(epoch, source))
    }

    /// Nothing that was printed repeats its key.
    pub(super) fn is_secret_in(&self, text: &str) -> Result<()> {
        ensure!(!text.contains(&**self.key.to_text()), "the key of {} is in: {text}", self.name);
        Ok(())
    }
}

impl Scene {
    /// A gate that runs, by a right clock, and has for so long that no epoch of now is from before its store.
    pub(super) fn new() -> Result<Self> {
        let settings = Settings { window_secs: 3600, ..Settings::default() };
        let mut world = World::new(settings)?;
        world.listen(&[SSH, WEB])?;
        let unused = FIRST..FIRST + 60;
        let crowd = world.network.host(unused.clone())?;
        let bound = Known::new("bound", "20000-29999/tcp", true, ("ssh", SSH));
        let free = Known::new("free", "30000-30999/udp", false, ("web", WEB));
        let clock = Clock::of(&world.gate)?;
        let files = tempfile::Builder::new().prefix("postern-rolling-").tempdir()?;
        let mut scene = Self { world, crowd, bound, free, clock, unused, files };
        scene.unused.next();
        scene.add(&(scene.bound.to_toml() + &scene.free.to_toml()))?;
        let entries = [&scene.bound, &scene.free].map(|known| {
            let port = known.opens.1;
            format!("[gates.bastion.sequences.{}]\n{}opens = [\"{port}/tcp\"]\n", known.name, known.ports())
        });
        scene.configure_client(&entries.concat())?;
        scene.clock.set(-3600)?;
        scene.start()?;
        scene.world.gate.kill()?;
        scene.clock.set(0)?;
        scene.start()?;
        Ok(scene)
    }

    /// The sequence that is bound to its source, or the one that is not.
    pub(super) const fn known(&self, is_bound: bool) -> &Known {
        if is_bound { &self.bound } else { &self.free }
    }

    /// Adds sections to posternd.toml.
    pub(super) fn add(&self, sections: &str) -> Result<()> {
        let gate = &self.world.gate;
        gate.edit(&gate.config(), "[firewall]\n", &format!("{sections}[firewall]\n"))
    }

    /// Replaces the client's configuration: the gate, and these sequences.
    pub(super) fn configure_client(&self, sequences: &str) -> Result<()> {
        let addresses = Family::ALL.map(|family| self.world.gate.host().ip(family).to_string());
        fs::write(self.config(), format!("[gates.bastion]\naddresses = {addresses:?}\n{sequences}"))?;
        Ok(fs::set_permissions(self.config(), Permissions::from_mode(0o600))?)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.files.path().join("config.toml")
    }

    pub(super) fn start(&mut self) -> Result<()> {
        let command = command(&self.world.gate, &[])?;
        self.world.gate.start_by(command)
    }

    /// Sets the gate's clock to the beginning of an epoch.
    pub(super) fn stand_at(&mut self, epoch: Epoch) -> Result<()> {
        let (wanted, now) = (i64::try_from(epoch.start().as_secs())?, i64::try_from(now().as_secs())?);
        self.clock.set(wanted - now)?;
        ensure!(self.clock.read().epoch() == epoch, "the clock is at {}", self.clock.read());
        Ok(())
    }

    /// Sets the gate's clock right.
    pub(super) fn set_right(&mut self) -> Result<()> {
        self.clock.set(0)
    }

    /// Sets the gate's clock back to the beginning of this epoch, and gives it: it does not turn for a while. A rule
    /// that begins by that clock has begun by the kernel's.
    pub(super) fn stand_still(&mut self) -> Result<Epoch> {
        let epoch = now().epoch();
        self.stand_at(epoch)?;
        Ok(epoch)
    }

    /// `postern sequence bastion` on a host.
    pub(super) fn postern(&self, from: &Host, arguments: &[&str]) -> Result<Finished> {
        let finished =
            run(self.postern_command(from, &[&["sequence", "bastion"], arguments].concat())?, b"", LONG)?;
        for known in [&self.bound, &self.free] {
            known.is_secret_in(&(finished.text() + &finished.stderr))?;
        }
        Ok(finished)
    }

    pub(super) fn postern_command(&self, from: &Host, arguments: &[&str]) -> Result<Command> {
        let mut command = from.command(programs::directory()?.join("postern"));
        command.arg("--config").arg(self.config()).args(arguments);
        Ok(command)
    }

    /// An address of the crowd that nobody has used.
    pub(super) fn address(&mut self, family: Family) -> Result<IpAddr> {
        Ok(ip_of(self.unused.next().context("one more address")?, family))
    }

    /// Touches ports in their order, from an address of the home or of the crowd.
    pub(super) fn touch(&self, from: IpAddr, steps: &Steps) -> Result<()> {
        let gate = self.world.gate.host().ip(Family::of(from));
        for step in steps.as_slice() {
            let to = SocketAddr::new(gate, step.number.get());
            match step.protocol {
                // Refused: it was answered at once.
                Protocol::Tcp => match self.host_of(from).enter(|| syn(Some(from), to))? {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                    touched => drop(touched?),
                },
                Protocol::Udp => {
                    let send = || UdpSocket::bind((from, 0))?.send_to(b"x", to);
                    self.host_of(from).enter(send)??;
                }
            }
            thread::sleep(SPACING);
        }
        Ok(())
    }

    /// What the door of a sequence shows to an address.
    pub(super) fn sees(&self, from: IpAddr, known: &Known) -> Result<Seen> {
        let door = self.world.gate.at(Family::of(from), known.opens.1);
        probe_bound(self.host_of(from), Some(from), door)
    }

    pub(super) fn is_shut(&self, from: IpAddr, known: &Known) -> Result<()> {
        let seen = self.sees(from, known)?;
        ensure!(seen == Seen::Nothing, "the door of {} shows {seen:?} to {from}", known.name);
        Ok(())
    }

    pub(super) fn opens(&self, from: IpAddr, known: &Known) -> Result<()> {
        let what = format!("the door of {} to open to {from}", known.name);
        wait_for(&what, LONG, || Ok((self.sees(from, known)? == Seen::Open).then_some(())))
    }

    /// Ends every lease.
    pub(super) fn shut(&self, from: IpAddr, known: &Known) -> Result<()> {
        self.world.gate.administer(&["revoke", "all"])?;
        let what = format!("the door of {} to shut", known.name);
        wait_for(&what, LONG, || Ok((self.sees(from, known)? == Seen::Nothing).then_some(())))
    }

    /// How many leases this gate has granted.
    pub(super) fn granted(&self) -> Result<usize> {
        Ok(self.world.gate.events("granted")?.len())
    }

    fn host_of(&self, address: IpAddr) -> &Host {
        if address == self.world.home.ip(Family::of(address)) { &self.world.home } else { &self.crowd }
    }
}

/// Waits for an epoch with time left for a few commands.
pub(super) fn wait_for_time() -> Result<Epoch> {
    const ENOUGH: Duration = Duration::from_secs(12);
    wait_for("an epoch that has begun", LONG, || {
        let now = now();
        Ok((now.epoch().next().start().since(now) >= ENOUGH).then_some(now.epoch()))
    })
}
