//! The disk fills up, breaks, loses the replay store or damages it: every door stays shut meanwhile, nothing that was
//! used opens again, and the gate goes on by itself when the disk does (P4).

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{Datagram, Payload};
use postern_tests::broken_disk::{Disk, OnError, give_room_away};
use postern_tests::gate::{SSH, Settings};
use postern_tests::knocks::{Knock, now};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::{Finished, run};
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};
use tempfile::tempdir;

use crate::world::{World, grants, refuses};

const SHUT: &str = "knocks cannot be recorded: every door stays shut";
const AGAIN: &str = "knocks are recorded again";
const V4: Family = Family::V4;

#[test]
fn a_full_disk_keeps_the_door_shut_until_there_is_room() -> Result<()> {
    let files = tempdir()?;
    let disk = Disk::in_file(&files.path().join("image"), OnError::ReadOnly)?;
    let mut world = on(&disk)?;
    let filler = disk.fill()?;
    fails(&world.gate.attempt(&["run"])?, world.gate.state(), "No space left on device")?;
    drop(filler);
    world.gate.start(&[])?;
    world.shuts_on_time(world.opens(V4)?)?;

    let filler = disk.fill()?;
    let lost = knocks_until_unrecorded(&world)?;
    says_once(&world, "No space left on device")?;
    drop(filler);
    recovers(&world)?;
    remembers(&mut world, &[lost])
}

/// The kernel finds an error in the file system: nothing can be written to it any more, not to open files either. Then
/// a repaired copy takes its place.
#[test]
fn a_disk_that_goes_read_only_keeps_the_door_shut_until_it_is_repaired() -> Result<()> {
    let files = tempdir()?;
    let (image, repaired) = (files.path().join("image"), files.path().join("repaired"));
    let disk = Disk::in_file(&image, OnError::ReadOnly)?;
    let mut world = on(&disk)?;
    world.gate.start(&[])?;
    world.shuts_on_time(world.opens(V4)?)?;

    disk.fail()?;
    does_not_open(&world)?;
    // For longer than it takes until the store is tried again, and again.
    for _ in 0..50 {
        refuses(&world.gate, "unrecorded", || world.send(&world.stranger, V4, &fresh(&world)?))?;
        thread::sleep(Duration::from_millis(100));
    }
    says_once(&world, "Read-only file system")?;

    fs::copy(&image, &repaired)?;
    let posternd = *world.gate.posternd_pids()?.first().context("posternd runs")?;
    disk.replace_for(posternd, &repaired)?;
    // The front is confined to the folder of the disk that broke: another one takes its place. In between, nobody
    // decides on a knock.
    let before = world.gate.events("granted")?.len();
    wait_for("a knock that opens again", LONG, || {
        world.send(&world.stranger, V4, &fresh(&world)?)?;
        thread::sleep(Duration::from_millis(100));
        Ok((world.gate.events("granted")?.len() > before).then_some(()))
    })?;
    let replaced = "the front died: the folder of the replay store is another one than it was; another front starts in 100ms";
    ensure!(world.gate.events(replaced)?.len() == 1, "one line says so");
    world.shuts_on_time(world.opens(V4)?)
}

/// Writes are taken, and fail when the disk is to have them: what the kernel then still shows of the file is not on the
/// disk. When it works again, and the power fails, everything that opened is there.
#[test]
fn a_disk_that_loses_writes_keeps_the_door_shut_and_holds_what_opened() -> Result<()> {
    let thin = Disk::in_memory(5 * 1024)?;
    let image = thin.path().join("image");
    let disk = Disk::in_file(&image, OnError::Continue)?;
    let mut world = on(&disk)?;
    world.gate.start(&[])?;
    world.shuts_on_time(world.opens(V4)?)?;

    // The journal has its room, but all of it that was never written to was given away below it.
    give_room_away(&image)?;
    let filler = thin.fill()?;
    let mut lost = vec![knocks_until_unrecorded(&world)?];
    drop(filler);
    recovers(&world)?;
    // The tables are to grow, and cannot.
    let filler = thin.fill()?;
    lost.push(knocks_until_unrecorded(&world)?);
    drop(filler);
    recovers(&world)?;
    let used = fresh(&world)?;
    grants(&world.gate, || world.send(&world.home, V4, &used))?;
    world.gate.kill()?;

    // What the power cut leaves is what the image holds, and nothing that waits in memory to be written to it.
    let files = tempdir()?;
    let left = files.path().join("left");
    fs::copy(&image, &left)?;
    let left = Disk::of_file(&left, OnError::Continue)?;
    world.gate.keep_state_in(left.path().join("state"))?;
    world.gate.start(&[])?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    lost.push(used);
    remembers(&mut world, &lost)
}

#[test]
fn a_store_that_is_gone_keeps_the_door_shut() -> Result<()> {
    let mut world = World::running(Settings::default())?;
    let used = fresh(&world)?;
    grants(&world.gate, || world.send(&world.home, V4, &used))?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;

    let (store, aside) = (world.gate.store(), world.gate.directory().join("aside"));
    fs::rename(&store, &aside)?;
    let lost = does_not_open(&world)?;
    says_once(&world, "it is gone")?;
    fs::rename(&aside, &store)?;
    recovers(&world)?;
    remembers(&mut world, &[used, lost])
}

/// Nobody can tell what it held: what was made before there is a new one is stale, by a clock that is ahead too.
#[test]
fn a_store_that_was_lost_is_begun_anew_by_a_restart_only() -> Result<()> {
    let tolerance_secs = 15;
    let mut world = World::running(Settings { tolerance_secs, ..Settings::default() })?;
    let ahead = Duration::from_secs(u64::from(tolerance_secs) - 1);
    let used = world.alice.seal(&Payload { at: now().after(ahead), ..world.alice.asks_for("ssh")? });
    grants(&world.gate, || world.send(&world.home, V4, &used))?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;

    let store = world.gate.store();
    fs::remove_file(&store)?;
    let lost = does_not_open(&world)?;
    says_once(&world, "it is gone")?;
    ensure!(!store.exists(), "the running gate has made a new one");
    world.gate.kill()?;
    world.gate.start(&[])?;
    let new = "there was no replay store: a new one begins, and knocks made up to its floor are stale";
    world.gate.wait_for_events(new, 1)?;
    for knock in [used, lost] {
        refuses(&world.gate, "stale", || world.send(&world.home, V4, &knock))?;
    }
    wait_for("a fresh knock that opens", LONG, || opens_from(&world, &world.stranger))?;
    world.opens(V4).map(drop)
}

#[test]
fn a_store_that_is_in_use_is_left_alone() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.shuts_on_time(world.opens(V4)?)?;
    let rules = world.gate.saved(V4)?;
    // A second gate by the same files, but for its socket, on another host: on this one it would not come so far.
    let second = world.gate.directory().join("second.toml");
    let config = fs::read_to_string(world.gate.config())?;
    fs::write(&second, config.replace("admin.sock", "second.sock"))?;
    let mut command = world.stranger.command(programs::directory()?.join("posternd"));
    command.arg("--config").arg(&second).arg("run");
    fails(&run(command, b"", LONG)?, &world.gate.store(), "another process has it open")?;
    fails(&world.gate.attempt(&["state", "reset", "--yes"])?, &world.gate.store(), "another process")?;
    let told = world.gate.administer(&["check"])?.text();
    ensure!(told.contains("in use by a running gate"), "{told}");
    assert_eq!(world.gate.saved(V4)?, rules);
    ensure!(world.gate.events(SHUT)?.is_empty(), "the running gate was disturbed");
    world.opens(V4).map(drop)
}

#[test]
fn a_damaged_store_is_kept_until_it_is_reset_at_a_known_cost() -> Result<()> {
    let tolerance_secs = 5;
    let mut world = World::running(Settings { tolerance_secs, ..Settings::default() })?;
    let ahead = Duration::from_secs(u64::from(tolerance_secs) - 1);
    // A client whose clock is ahead: its knock is fresh for longest.
    let mut payload = world.alice.asks_for("ssh")?;
    payload.at = payload.at.after(ahead);
    let used = world.alice.seal(&payload);
    grants(&world.gate, || world.send(&world.home, V4, &used))?;
    world.gate.stop()?;
    let told = world.gate.administer(&["check"])?.text();
    ensure!(told.contains("reads well, 1 knocks remembered"), "{told}");

    // The knock's nonce is wiped out, wherever it stands.
    let store = world.gate.store();
    let mut bytes = fs::read(&store)?;
    let nonce = *Datagram::new(&used).context("a knock")?.nonce();
    let places: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(&nonce)).collect();
    ensure!(!places.is_empty(), "the store holds the nonce");
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(&store, &bytes)?;
    does_not_start(&world, "posternd state reset")?;
    ensure!(world.gate.attempt(&["check"])?.code == 1, "check sees it");
    let refused = world.gate.attempt(&["state", "reset"])?;
    ensure!(refused.code == 1 && refused.text().contains("no knock opens for 5s"), "{}", refused.text());
    ensure!(fs::read(&store)? == bytes, "the damaged store is as it was");

    // Whose the folder is, his the new store is to be.
    let folder = store.parent().context("a folder")?;
    chown(folder, Some(65_534), Some(65_534))?;
    world.gate.administer(&["state", "reset", "--yes"])?;
    let new = fs::metadata(&store)?;
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (65_534, 65_534, 0o600));
    let kept: Vec<_> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    ensure!(
        kept.iter().any(|path| *path != store && fs::read(path).is_ok_and(|kept| kept == bytes)),
        "{kept:?}"
    );

    world.gate.start(&[])?;
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    for knock in [used, fresh(&world)?] {
        refuses(&world.gate, "stale", || world.send(&world.home, V4, &knock))?;
    }
    // The used knock again and again, for as long as any gate could take it for fresh.
    wait_for("a fresh knock that opens", LONG, || {
        world.send(&world.stranger, V4, &used)?;
        opens_from(&world, &world.home)
    })?;
    ensure!(probe(&world.stranger, world.gate.at(V4, SSH))? == Seen::Nothing, "the used knock opened");
    wait_to_see(&world.home, world.gate.at(V4, SSH), Seen::Nothing)?;
    world.opens(V4).map(drop)
}

/// A gate that is going to keep its state on a disk.
fn on(disk: &Disk) -> Result<World> {
    let mut world = World::new(Settings::default())?;
    world.gate.keep_state_in(disk.path().join("state"))?;
    world.listen(&[SSH])?;
    Ok(world)
}

fn fresh(world: &World) -> Result<Knock> {
    Ok(world.alice.seal(&world.alice.asks_for("ssh")?))
}

/// Knocks from elsewhere until one cannot be recorded; then nothing opens.
fn knocks_until_unrecorded(world: &World) -> Result<Knock> {
    let before = world.gate.reload()?;
    for burst in 1..=200 {
        for _ in 0..50 {
            world.send(&world.stranger, V4, &fresh(world)?)?;
        }
        let counted = wait_for("a decision on each knock", LONG, || {
            let counted = world.gate.reload()?.since(&before);
            Ok((counted.received >= 50 * burst).then_some(counted))
        })?;
        if counted.refused.get("unrecorded").is_some_and(|count| *count > 0) {
            return does_not_open(world);
        }
    }
    anyhow::bail!("10000 knocks were recorded on a disk without room")
}

/// A fresh knock is counted as unrecorded, and opens nothing; gives it back.
fn does_not_open(world: &World) -> Result<Knock> {
    let knock = fresh(world)?;
    refuses(&world.gate, "unrecorded", || world.send(&world.home, V4, &knock))?;
    let seen = probe(&world.home, world.gate.at(V4, SSH))?;
    ensure!(seen == Seen::Nothing, "a knock that was not recorded opened");
    let counted = world.gate.reload()?.refused.get("unrecorded").copied();
    ensure!(counted.is_some_and(|count| count > 0), "counted: {counted:?}");
    Ok(knock)
}

/// The log holds one line about the store since it last worked, with this in it.
fn says_once(world: &World, says: &str) -> Result<()> {
    let (lines, over) = (world.gate.events(SHUT)?, world.gate.events(AGAIN)?.len());
    ensure!(lines.len() == over + 1, "{lines:#?}");
    let error = lines[over]["error"].to_string();
    let store = world.gate.store();
    ensure!(error.contains(says) && error.contains(&*store.to_string_lossy()), "no {says:?} in {error}");
    Ok(())
}

/// Without any help, a fresh knock opens again soon.
fn recovers(world: &World) -> Result<()> {
    wait_for("a knock that opens again", LONG, || opens_from(world, &world.stranger))
        .with_context(|| format!("the log: {:#?}", world.gate.events(SHUT)))?;
    let (shut, again) = (world.gate.events(SHUT)?.len(), world.gate.events(AGAIN)?.len());
    ensure!(shut == again, "{shut} lines say that it is shut, {again} that it is not any more");
    world.shuts_on_time(world.opens(V4)?)
}

/// Whether a fresh knock from a host is granted; not asked too often.
fn opens_from(world: &World, host: &Host) -> Result<Option<()>> {
    let ended = || {
        let (granted, refused) = (world.gate.events("granted")?.len(), world.gate.events("refused")?.len());
        Ok::<_, anyhow::Error>((granted, granted + refused))
    };
    let before = ended()?;
    world.send(host, V4, &fresh(world)?)?;
    let after = wait_for("a decision", LONG, || Ok(Some(ended()?).filter(|now| now.1 > before.1)))?;
    thread::sleep(Duration::from_millis(100));
    Ok((after.0 > before.0).then_some(()))
}

/// These knocks open nothing any more, not after a kill either; a fresh one does.
fn remembers(world: &mut World, knocks: &[Knock]) -> Result<()> {
    for restart in [false, true] {
        if restart {
            world.gate.kill()?;
            world.gate.start(&[])?;
        }
        for knock in knocks {
            refuses(&world.gate, "replayed", || world.send(&world.home, V4, knock))?;
        }
        ensure!(probe(&world.home, world.gate.at(V4, SSH))? == Seen::Nothing, "a replayed knock opened");
    }
    world.opens(V4).map(drop)
}

/// `posternd run` ends at once, and says why.
fn does_not_start(world: &World, says: &str) -> Result<()> {
    fails(&world.gate.attempt(&["run"])?, &world.gate.store(), says)
}

fn fails(finished: &Finished, store: &Path, says: &str) -> Result<()> {
    let Finished { code, stderr, .. } = finished;
    ensure!(*code == 1, "exit code {code}: {stderr}");
    ensure!(stderr.contains(says) && stderr.contains(&*store.to_string_lossy()), "no {says:?} in: {stderr}");
    Ok(())
}
