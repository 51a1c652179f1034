//! New settings for a running gate (SIGHUP): a bad file changes nothing and says why and where; a good one keeps the
//! leases that are still allowed, and ends the others (P9).

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{KNOCK_PORTS, Role, SSH, Settings, Variant, WEB};
use postern_tests::knocks::Client;
use postern_tests::netns::Family;
use postern_tests::probe::Seen;
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

use crate::crowd::{Crowd, Lease, gate_and_crowd, rules_for};
use crate::neighbours::at_once;
use crate::world::World;

/// Windows that end after everything has been looked at.
const LASTING: Settings = Settings { window_secs: 120, ..Settings::DEFAULT };

/// What reload meets in its firewall is the same for both kinds of iptables, but for the lock of one.
const WITHOUT_LOCK: [Variant; 2] = [Variant::Nft, Variant::Nftables];

/// What is done to a file of a gate, and what the log says of it.
type Break = fn(&World) -> Result<()>;

#[test]
fn a_bad_file_changes_nothing_and_is_named_with_the_place() -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| a_bad_file_changes_nothing(variant)).map(drop)
}

fn a_bad_file_changes_nothing(variant: Variant) -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
    let (config, keys) = (world.gate.config(), world.gate.keys());
    let lease = Lease::take(&world, &mut crowd)?;
    let before = state(&world)?;
    let breaks: [(Break, &str, &[&str]); 15] = [
        (|world| edit_config(world, "[gate]", "[gate"), "posternd.toml", &["line 1"]),
        (|world| edit_config(world, "[gate]\n", "[gate]\nport = 5\n"), "posternd.toml", &["line 2", "port"]),
        (
            |world| edit_config(world, "ports = [62201, 443]", "ports = []"),
            "posternd.toml",
            &["line 3", "ports"],
        ),
        (|world| edit_config(world, "ports = [62201, 443]", "ports = [0]"), "posternd.toml", &["line 3"]),
        (|world| edit_config(world, "22/tcp", "22"), "posternd.toml", &["line 7"]),
        (|world| edit_config(world, "8080/tcp", "22/tcp"), "posternd.toml", &["line 10", "22/tcp"]),
        (
            |world| edit_config(world, "window = \"120s\"", "window = \"2h\""),
            "posternd.toml",
            &["line 6", "max-window"],
        ),
        (|world| edit_config(world, "variant = \"nft\"", "variant = \"bpf\""), "posternd.toml", &["variant"]),
        (
            |world| edit_config(world, "user = \"nobody\"", "user = \"nobody-at-all\""),
            "posternd.toml",
            &["nobody-at-all"],
        ),
        (|world| edit_config(world, "user = \"nobody\"", "user = \"root\""), "posternd.toml", &["root"]),
        (
            |world| Ok(fs::set_permissions(world.gate.config(), Permissions::from_mode(0o666))?),
            "posternd.toml",
            &["0666"],
        ),
        (|world| Ok(fs::remove_file(world.gate.config())?), "posternd.toml", &["No such file"]),
        (|world| world.gate.edit(&world.gate.keys(), "name = ", "name : "), "keys", &["line"]),
        (|world| world.gate.edit(&world.gate.keys(), "\"ssh\"", "\"ftp\""), "keys", &["line 2", "ftp"]),
        (
            |world| Ok(fs::set_permissions(world.gate.keys(), Permissions::from_mode(0o644))?),
            "keys",
            &["0644"],
        ),
    ];
    for (index, (breaks, file, says)) in breaks.into_iter().enumerate() {
        let kept = [&config, &keys].map(fs::read);
        breaks(&world)?;
        let told = is_refused(&world).with_context(|| format!("break {index}"))?;
        let file = world.gate.directory().join(file).display().to_string();
        ensure!(told.contains(&file), "break {index}: no {file} in {told:?}");
        ensure!(says.iter().all(|says| told.contains(says)), "break {index}: no {says:?} in {told:?}");
        assert_eq!(state(&world)?, before, "break {index}: {told}");
        for (path, bytes) in [&config, &keys].into_iter().zip(kept) {
            fs::write(path, bytes?)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        crowd.is_let_in(&world.gate, &world.alice).with_context(|| format!("after break {index}"))?;
    }
    lease.is_untouched(&world, &crowd)?;
    reload(&world)?;
    lease.is_untouched(&world, &crowd)
}

/// The pids of front and warden, and the guard.
fn state(world: &World) -> Result<(Vec<String>, Vec<String>)> {
    let pids =
        [Role::Front, Role::Warden].map(|role| world.gate.pid(role).map(|pid| format!("{role:?} {pid:?}")));
    let rules = Family::ALL.map(|family| world.gate.guard(family));
    let rules = rules.into_iter().collect::<Result<Vec<_>>>()?.concat();
    Ok((pids.into_iter().collect::<Result<_>>()?, rules))
}

fn edit_config(world: &World, from: &str, to: &str) -> Result<()> {
    world.gate.edit(&world.gate.config(), from, to)
}

/// Has the gate reload, which it refuses to; gives what it said.
fn is_refused(world: &World) -> Result<String> {
    let refusals = |lines: &[String]| lines.iter().filter(|line| line.contains("not reloaded")).count();
    let posternd = world.gate.running()?;
    let before = refusals(&posternd.lines());
    world.gate.signal(Signal::HUP)?;
    posternd.wait_for_lines("that it did not reload", LONG, |lines| {
        let last = lines.iter().rfind(|line| line.contains("not reloaded"))?;
        (refusals(lines) > before).then(|| last.clone())
    })
}

fn reload(world: &World) -> Result<()> {
    let before = world.gate.events("reloaded")?.len();
    world.gate.signal(Signal::HUP)?;
    world.gate.wait_for_events("reloaded", before + 1).map(drop)
}

/// Each client's lease is one that the new files do not allow any more, for a reason of its own; but for alice's.
#[test]
fn a_good_file_ends_the_leases_that_it_does_not_allow() -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| a_good_file_ends_leases(variant)).map(drop)
}

fn a_good_file_ends_leases(variant: Variant) -> Result<()> {
    let (mut world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
    let names = ["unserved", "disabled", "removed", "elsewhere", "shorter", "expired", "moved"];
    let clients = names.map(|name| world.gate.client(name)).into_iter().collect::<Result<Vec<_>>>()?;
    let all = [&world.alice].into_iter().chain(&clients).collect::<Vec<_>>();
    world.gate.write_clients(&all)?;
    reload(&world)?;

    let kept = Lease::take(&world, &mut crowd)?;
    let mut doors = Vec::new();
    for client in &clients {
        let (service, port) = if client.entry.name.as_str() == "moved" { ("web", WEB) } else { ("ssh", SSH) };
        let (from, door) = (crowd.address(Family::V4)?, world.gate.at(Family::V4, port));
        crowd.send(from, &world.gate, KNOCK_PORTS[0], &client.seal(&client.asks_for(service)?))?;
        crowd.is_to_see(from, door, Seen::Open)?;
        doors.push((client.entry.name.clone(), from, door));
    }

    let mut after = vec![world.alice.clone()];
    for mut client in clients {
        let entry = &mut client.entry;
        match entry.name.as_str() {
            "unserved" => entry.services.retain(|service| service.as_str() != "ssh"),
            "disabled" => entry.disabled = true,
            "removed" => continue,
            "elsewhere" => entry.sources = vec!["192.0.2.0/24".parse()?],
            "shorter" => entry.max_window = Some(postern_proto::Window::from_secs(30)?),
            "expired" => entry.expires = Some(postern_tests::knocks::now()),
            _ => {}
        }
        after.push(client);
    }
    world.gate.write_clients(&after.iter().collect::<Vec<_>>())?;
    edit_config(&world, "8080/tcp", "8081/tcp")?;
    world.listen(&[WEB + 1])?;
    reload(&world)?;

    kept.is_untouched(&world, &crowd)?;
    for (name, from, door) in doors {
        let gone = || Ok(rules_for(&world, from)?.is_empty().then_some(()));
        wait_for(&format!("the end of the lease of {name}"), LONG, gone)?;
        // Port 8080 is guarded no more; nobody's business is what it shows.
        if door.port() == SSH {
            crowd.is_to_see(from, door, Seen::Nothing)?;
        }
    }
    let withdrawn = world.gate.wait_for_events("withdrawn", names.len())?;
    assert_eq!(withdrawn.len(), names.len(), "{withdrawn:#?}");
    // Who was not put out gets in at the new place.
    let (moved, from) = (after.last().context("moved is the last")?, crowd.address(Family::V4)?);
    let door = world.gate.at(Family::V4, WEB + 1);
    ensure!(crowd.sees(from, door)? == Seen::Nothing, "the new port is not guarded");
    crowd.send(from, &world.gate, KNOCK_PORTS[0], &moved.seal(&moved.asks_for("web")?))?;
    crowd.is_to_see(from, door, Seen::Open)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

/// Somebody holds the lock of iptables for longer than anybody waits for it.
#[test]
fn a_firewall_that_refuses_keeps_what_there_is() -> Result<()> {
    let (world, mut crowd) = gate_and_crowd(Settings { variant: Variant::Legacy, ..LASTING })?;
    let bob = world.gate.client("bob")?;
    world.gate.write_clients(&[&world.alice, &bob])?;
    reload(&world)?;
    let from = crowd.is_let_in(&world.gate, &bob)?;
    let lease = Lease::of(&world, &crowd, from)?;
    let before = state(&world)?;

    world.gate.write_clients(&[&world.alice])?;
    let lock = File::options().write(true).open(world.gate.directory().join("xtables.lock"))?;
    lock.lock()?;
    let told = is_refused(&world)?;
    drop(lock);
    ensure!(told.contains("the warden") && told.contains("iptables"), "{told}");
    assert_eq!(state(&world)?, before);
    lease.is_untouched(&world, &crowd)?;
    crowd.is_let_in(&world.gate, &bob)?;

    reload(&world)?;
    crowd.is_to_see(from, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    crowd.is_let_in(&world.gate, &world.alice).map(drop)
}

#[test]
fn other_interfaces_take_another_front() -> Result<()> {
    changes(&WITHOUT_LOCK, &[Role::Front], |world, variant| {
        world.gate.configure(Settings { variant, interfaces: &["eth0"], ..LASTING })
    })
}

#[test]
fn other_knock_ports_take_another_front() -> Result<()> {
    const OTHERS: [u16; 2] = [53, 40_000];
    at_once(&WITHOUT_LOCK, |&variant| {
        let (mut world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
        let lease = Lease::take(&world, &mut crowd)?;
        world.gate.configure(Settings { variant, ports: OTHERS, ..LASTING })?;
        reload(&world)?;
        lease.is_untouched(&world, &crowd)?;
        crowd.is_let_in_by(&world.gate, &world.alice, OTHERS[1])?;
        let guard = world.gate.guard(Family::V4)?;
        let guards = |port: u16| {
            let (rule, element) = (format!("--dport {port} "), format!("udp . {port}"));
            guard.iter().any(|line| line.contains(&rule) || *line == element)
        };
        ensure!(guards(53) && !guards(62_201), "{guard:#?}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn another_gate_id_takes_another_front() -> Result<()> {
    changes(&WITHOUT_LOCK, &[Role::Front], |world, _| {
        world.gate.rename()?;
        world.alice = Client::at(world.gate.id(), world.alice.entry.clone());
        Ok(())
    })
}

#[test]
fn another_tolerance_takes_another_front() -> Result<()> {
    changes(&WITHOUT_LOCK, &[Role::Front], |world, variant| {
        world.gate.configure(Settings { variant, tolerance_secs: 30, ..LASTING })
    })
}

#[test]
fn another_iptables_takes_another_warden() -> Result<()> {
    changes(&[Variant::Nft], &[Role::Warden], |world, _| {
        world.gate.configure(Settings { variant: Variant::Legacy, ..LASTING })
    })
}

/// Another user may not have what the old one wrote before it is handed over.
#[test]
fn another_user_takes_another_front_and_warden() -> Result<()> {
    at_once(&WITHOUT_LOCK, |&variant| another_user(variant)).map(drop)
}

fn another_user(variant: Variant) -> Result<()> {
    let settings = Settings { variant, user: "daemon", ..LASTING };
    let (mut world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
    let lease = Lease::take(&world, &mut crowd)?;
    world.gate.configure(settings)?;
    let told = world.gate.attempt(&["reload"])?;
    ensure!(told.code == 1, "exit code {}", told.code);
    ensure!(told.stderr.contains("state/front") && told.stderr.contains("chown"), "{}", told.stderr);
    crowd.is_let_in(&world.gate, &world.alice)?;
    lease.is_untouched(&world, &crowd)?;

    let folder = world.gate.state().join("front");
    for path in [folder.join("replay.redb"), folder] {
        chown(path, Some(0), Some(0))?;
    }
    takes_effect(&mut world, &mut crowd, &lease, &[Role::Front, Role::Warden])
}

/// A change takes effect with new processes in these roles, and keeps who is in.
fn changes(
    variants: &[Variant],
    roles: &[Role],
    change: impl Fn(&mut World, Variant) -> Result<()> + Sync,
) -> Result<()> {
    at_once(variants, |&variant| {
        let (mut world, mut crowd) = gate_and_crowd(Settings { variant, ..LASTING })?;
        let lease = Lease::take(&world, &mut crowd)?;
        change(&mut world, variant)?;
        takes_effect(&mut world, &mut crowd, &lease, roles)
    })
    .map(drop)
}

fn takes_effect(world: &mut World, crowd: &mut Crowd, lease: &Lease, roles: &[Role]) -> Result<()> {
    let pids = |world: &World| {
        [Role::Front, Role::Warden]
            .map(|role| world.gate.wait_for_pid(role, &[]))
            .into_iter()
            .collect::<Result<Vec<_>>>()
    };
    let before = pids(world)?;
    // Who asks is answered, also where the warden that was asked makes room for another.
    let told = world.gate.administer(&["reload"])?.text();
    ensure!(told == "reloaded\n", "{told}");
    crowd.is_let_in(&world.gate, &world.alice)?;
    lease.is_untouched(world, crowd)?;
    for ((role, before), after) in [Role::Front, Role::Warden].into_iter().zip(before).zip(pids(world)?) {
        ensure!((before != after) == roles.contains(&role), "{role:?}: {before:?} before, {after:?} after");
    }
    Ok(())
}
