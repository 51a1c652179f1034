//! A knock opens once though the power goes right behind it (P4): the replay store is on a disk that loses what was
//! not synced, and the kernel forgets its firewall.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::disk::{Disk, Image, privately};
use postern_tests::gate::{KNOCK_PORTS, SSH, Settings};
use postern_tests::knocks::Knock;
use postern_tests::netns::{Family, Host, ip_of};
use postern_tests::probe::{Seen, first_through, probe, udp};
use postern_tests::process::{Process, succeed};
use postern_tests::seed::seeded;
use postern_tests::wait::{LONG, wait_for};
use serde_json::Value;

use crate::world::World;

/// New disks: what is made at the first start has to last too.
const DISKS: usize = 4;
/// Cuts of each.
const CUTS: usize = 5;
/// Cuts at the first start, each on a new disk, and the time in which a store is made.
const FIRST_STARTS: usize = 20;
const MAKING_MICROS: u64 = 30_000;
/// The addresses that knock, one knock each: before odd cuts those of one half, before even ones those of the other,
/// since what was in flight at one cut may be let in before the next.
const NUMBERS: [Range<u16>; 2] = [1000..1080, 1080..1160];
/// Between two knocks, less than a commit takes: the power is cut amid one. Between two SYNs, too.
const EVERY: Duration = Duration::from_micros(500);
/// Longer than any knock takes that takes at all.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn no_recorded_knock_opens_after_a_power_cut() -> Result<()> {
    let mut rng = seeded()?;
    let mut gate = PoweredGate::new()?;
    privately(|| {
        for number in 1..=DISKS {
            let (mut image, mut recorded) = (Image::formatted()?, Vec::new());
            for cut in 1..=CUTS {
                let disk = gate.power_on(image)?;
                gate.replay(&mut recorded)?;
                // Every third cut is behind a single knock, the others amid many.
                let most = if cut % 3 == 1 { 1 } else { usize::MAX };
                let sent = gate.knock(NUMBERS[cut % 2].clone().take(most), || disk.cut())?;
                let knocks = sent.len();
                recorded.extend(sent);
                let opened = gate.lose_power(&disk, &mut recorded)?;
                let remains = disk.remains(Some(&mut rng))?;
                let (unsynced, kept) = (remains.unsynced, remains.kept);
                println!(
                    "disk {number}, cut {cut}: {opened} of {knocks} open, {kept} of {unsynced} unsynced blocks kept"
                );
                remains.image.check()?;
                image = remains.image;
            }
            let disk = gate.power_on(image)?;
            gate.replay(&mut recorded)?;
            gate.world.opens(Family::V4)?;
            gate.lose_power(&disk, &mut recorded)?;
        }
        Ok(())
    })
}

/// What the test above would see if the store did not sync, or the rig lost nothing.
#[test]
fn a_disk_that_lies_about_syncs_lets_a_recorded_knock_open_again() -> Result<()> {
    let mut gate = PoweredGate::new()?;
    privately(|| {
        let disk = gate.power_on(Image::formatted()?)?;
        let mut recorded = gate.knock(NUMBERS[0].clone().take(1), || disk.lie_about_syncs())?;
        recorded.extend(gate.knock(NUMBERS[1].clone().take(1), || disk.cut())?);
        assert_eq!(gate.lose_power(&disk, &mut recorded)?, 2);
        let remains = disk.remains(None)?;
        ensure!(remains.unsynced > 0, "nothing was written");

        let _disk = gate.power_on(remains.image)?;
        gate.replays_open_nothing(&recorded[..1])?;
        let error = gate.replays_open_nothing(&recorded[1..]).expect_err("a forgotten knock was refused");
        ensure!(error.to_string().contains("opened again"), "{error:?}");
        gate.world.opens(Family::V4).map(drop)
    })
}

/// The power goes while the store is being made, on a new disk each time.
#[test]
fn a_gate_starts_though_the_power_was_cut_at_its_first_start() -> Result<()> {
    let mut rng = seeded()?;
    let mut gate = PoweredGate::new()?;
    privately(|| {
        for _ in 0..FIRST_STARTS {
            let disk = Disk::mount(Image::formatted()?, &gate.state)?;
            let posternd = Process::spawn(gate.world.gate.posternd(&["run"])?)?;
            let folder = gate.state.join("front");
            wait_for("the folder of the store", LONG, || Ok(folder.exists().then_some(())))?;
            thread::sleep(Duration::from_micros(rng.u64(0..MAKING_MICROS)));
            disk.cut();
            drop(posternd);
            gate.wait_until_nothing_runs()?;
            let remains = disk.remains(Some(&mut rng))?;
            remains.image.check()?;

            let disk = gate.power_on(remains.image)?;
            gate.lose_power(&disk, &mut [])?;
        }
        let _disk = gate.power_on(Image::formatted()?)?;
        gate.world.opens(Family::V4).map(drop)
    })
}

#[test]
fn a_cut_disk_has_what_was_synced_and_no_more() -> Result<()> {
    let at = tempfile::tempdir()?;
    let write_and_sync = |name: &str| {
        let mut file = File::create(at.path().join(name))?;
        file.write_all(name.as_bytes())?;
        file.sync_all()
    };
    privately(|| {
        let disk = Disk::mount(Image::formatted()?, at.path())?;
        write_and_sync("synced")?;
        disk.lie_about_syncs();
        write_and_sync("not synced, says the disk")?;
        disk.cut();
        ensure!(write_and_sync("too late").is_err(), "a disk without power has synced");
        let remains = disk.remains(None)?;
        ensure!(remains.unsynced > 0, "nothing was written");
        remains.image.check()?;

        let _disk = Disk::mount(remains.image, at.path())?;
        let names = fs::read_dir(at.path())?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        ensure!(names.len() == 2 && names.iter().any(|name| name == "synced"), "{names:?} and lost+found");
        Ok(())
    })
}

/// A gate that remembers on a disk whose power can be cut.
struct PoweredGate {
    world: World,
    farm: Host,
    state: PathBuf,
}

/// A knock that somebody on the wire has recorded.
struct Recorded {
    knock: Knock,
    from: IpAddr,
    /// It has opened, or was refused as one that has.
    used: bool,
}

impl PoweredGate {
    fn new() -> Result<Self> {
        // A window that outlasts the looks at it, and knocks that stay fresh: a gate that has forgotten one has no
        // other reason to refuse it.
        let mut world = World::new(Settings { window_secs: 60, tolerance_secs: 600, ..Settings::default() })?;
        world.listen(&[SSH])?;
        let farm = world.network.host(NUMBERS.into_iter().flatten())?;
        let state = world.gate.directory().join("state");
        fs::create_dir(&state)?;
        Ok(Self { world, farm, state })
    }

    fn power_on(&mut self, image: Image) -> Result<Disk> {
        let disk = Disk::mount(image, &self.state)?;
        self.world.gate.start(&[])?;
        Ok(disk)
    }

    /// Sends a knock from one of these addresses after the other, and acts and sends no more as soon as the first of them
    /// is let in. Gives what was sent.
    fn knock(&self, numbers: impl Iterator<Item = u16>, act: impl FnOnce() + Send) -> Result<Vec<Recorded>> {
        let (alice, mut recorded, mut sockets) = (&self.world.alice, Vec::new(), Vec::new());
        for number in numbers {
            let from = ip_of(number, Family::V4);
            sockets.push(udp(&self.farm, from)?);
            recorded.push(Recorded { knock: alice.seal(&alice.asks_for("ssh")?), from, used: false });
        }
        let (to, door) =
            (self.world.gate.at(Family::V4, KNOCK_PORTS[0]), self.world.gate.at(Family::V4, SSH));
        let (open, knocked) = (AtomicBool::new(false), Instant::now());
        let stream = || {
            let mut sent = 0;
            for (socket, recorded) in sockets.iter().zip(&recorded) {
                if open.load(Ordering::Relaxed) {
                    break;
                }
                socket.send_to(&recorded.knock, to)?;
                sent += 1;
                thread::sleep(EVERY);
            }
            io::Result::Ok(sent)
        };
        let sent = self.farm.enter(|| {
            thread::scope(|scope| {
                let sender = scope.spawn(stream);
                let seen = first_through(recorded[0].from, door, knocked, EVERY, LIMIT);
                act();
                open.store(true, Ordering::Relaxed);
                let streamed = sender.join().expect("sending does not panic")?;
                ensure!(seen?.is_some(), "the first knock has not opened within {LIMIT:?}");
                anyhow::Ok(streamed)
            })
        })??;
        recorded.truncate(sent);
        Ok(recorded)
    }

    /// Power is gone: from the disk, from everything that runs, and from the kernel with its rules. Gives how many
    /// addresses had been let in, and marks their knocks.
    fn lose_power(&mut self, disk: &Disk, recorded: &mut [Recorded]) -> Result<usize> {
        disk.cut();
        self.world.gate.kill()?;
        self.wait_until_nothing_runs()?;
        let gate = &self.world.gate;
        let mut opened = 0;
        for rule in gate.rules(Family::V4, "POSTERN-GRANTS")? {
            let lets_in = |knock: &&mut Recorded| rule.contains(&format!(" {}/32 ", knock.from));
            if let Some(knock) = recorded.iter_mut().rev().find(lets_in) {
                opened += usize::from(!knock.used);
                knock.used = true;
            }
        }
        for family in Family::ALL {
            for flush in ["-F", "-X"] {
                let mut command = gate.firewall(family, "");
                command.args(["-w", flush]);
                succeed(command, b"", LONG)?;
            }
        }
        Ok(opened)
    }

    /// An iptables that posternd had started may be at work still when it is gone.
    fn wait_until_nothing_runs(&self) -> Result<()> {
        wait_for("the end of everything on the gate", LONG, || {
            Ok(self.world.gate.host().pids()?.is_empty().then_some(()))
        })
    }

    /// Sends everything recorded again. What has opened does not open; what was in flight may open, this once.
    fn replay(&self, recorded: &mut [Recorded]) -> Result<()> {
        recorded.sort_by_key(|knock| !knock.used);
        let (used, in_flight) = recorded.split_at_mut(recorded.partition_point(|knock| knock.used));
        self.replays_open_nothing(used)?;
        self.send(in_flight, |knock| udp(&self.farm, knock.from))?;
        for knock in in_flight {
            knock.used = true;
        }
        self.replays_open_nothing(recorded)
    }

    /// Sends knocks again, from elsewhere: each is refused as replayed, and the door stays shut.
    fn replays_open_nothing(&self, recorded: &[Recorded]) -> Result<()> {
        let stranger = &self.world.stranger;
        let (refused, granted) = self.send(recorded, |_| udp(stranger, stranger.ip(Family::V4)))?;
        ensure!(granted == 0, "{granted} of {} recorded knocks have opened again", recorded.len());
        ensure!(refused.iter().all(|event| event["reason"] == "replayed"), "{refused:?}");
        let seen = probe(stranger, self.world.gate.at(Family::V4, SSH))?;
        ensure!(seen == Seen::Nothing, "nothing was granted, and the door shows {seen:?}");
        Ok(())
    }

    /// Sends knocks and waits until each is decided: gives the refusals and the number of grants.
    fn send(
        &self,
        knocks: &[Recorded],
        socket: impl Fn(&Recorded) -> Result<UdpSocket>,
    ) -> Result<(Vec<Value>, usize)> {
        let gate = &self.world.gate;
        let before = (gate.events("refused")?.len(), gate.events("granted")?.len());
        for knock in knocks {
            socket(knock)?.send_to(&knock.knock, gate.at(Family::V4, KNOCK_PORTS[0]))?;
        }
        wait_for(&format!("a decision on {} knocks", knocks.len()), LONG, || {
            let refused = gate.events("refused")?.split_off(before.0);
            let granted = gate.events("granted")?.len() - before.1;
            Ok((refused.len() + granted >= knocks.len()).then_some((refused, granted)))
        })
    }
}
