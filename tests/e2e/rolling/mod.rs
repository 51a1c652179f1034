//! Rolling sequences: they open once, to those who have the key, by a clock that is nearly right; and what somebody has
//! recorded of one opens nothing.

mod scene;

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use postern_proto::sequence::Steps;
use postern_proto::{Epoch, Port, Protocol};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::knocks::now;
use postern_tests::netns::{Family, ip_of};
use postern_tests::probe::Echo;
use postern_tests::process::{run, succeed};
use postern_tests::wait::LONG;

use crate::world::{grants, refuses};
use scene::{Scene, wait_for_time};

/// An epoch before another, or behind it.
fn shifted(epoch: Epoch, by: i64) -> Result<Epoch> {
    Ok(Epoch::new(epoch.number().checked_add_signed(by).context("an epoch")?))
}

/// Replayed in every way there is: at once, in the next epoch, from elsewhere, and to a gate that was started again.
#[test]
fn what_was_recorded_opens_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    for family in Family::ALL {
        let home = scene.world.home.ip(family);
        scene.set_right()?;
        scene.is_shut(home, &scene.bound)?;
        let (recorded, epoch) = record(&scene, family)?;
        scene.shut(home, &scene.bound)?;
        for by in [0, 1, -1] {
            scene.stand_at(shifted(epoch, by)?)?;
            is_refused(&scene, home, &recorded).with_context(|| format!("{by} epochs later"))?;
        }
        // Elsewhere, and two epochs later, it is no sequence at all: there is nothing to count.
        scene.stand_at(epoch)?;
        let (stranger, friend) = (scene.address(family)?, scene.address(family)?);
        scene.touch(stranger, &recorded)?;
        is_refused(&scene, home, &recorded).context("behind the stranger")?;
        scene.is_shut(stranger, &scene.bound)?;
        let later = shifted(epoch, 2)?;
        scene.stand_at(later)?;
        scene.touch(home, &recorded)?;
        let steps = scene.bound.steps(later, friend)?;
        let granted = scene.granted()?;
        grants(&scene.world.gate, || scene.touch(friend, &steps)).context("two epochs later")?;
        ensure!(scene.granted()? == granted + 1, "somebody else was let in");
        scene.is_shut(home, &scene.bound)?;
        let counters = scene.world.gate.stop()?;
        ensure!(counters.refused.get("replayed") == Some(&4), "{counters:?}");

        scene.stand_at(epoch)?;
        scene.start()?;
        is_refused(&scene, home, &recorded).context("started again")?;
        scene.world.gate.kill()?;
        scene.start()?;
        is_refused(&scene, home, &recorded).context("started again after SIGKILL")?;

        let fresh = scene.stand_still()?;
        scene.touch(home, &scene.bound.steps(shifted(fresh, 1)?, home)?)?;
        scene.opens(home, &scene.bound)?;
        for known in [&scene.bound, &scene.free] {
            known.is_secret_in(&scene.world.gate.running()?.lines().join("\n"))?;
        }
        scene.shut(home, &scene.bound)?;
        scene.world.gate.kill()?;
        scene.start()?;
    }
    Ok(())
}

/// The ports that the client touches from home, which open, and their epoch.
fn record(scene: &Scene, family: Family) -> Result<(Steps, Epoch)> {
    let capture = Capture::start(scene.world.gate.host(), Direction::In, "tcp and portrange 20000-29999")?;
    let before = now().epoch();
    let sent = scene.postern(&scene.world.home, &["bound", family.flag(), "--wait", "20"])?;
    ensure!(sent.code == 0 && sent.text().contains("\nopen: "), "{sent:?}");
    let is_syn = |packet: &&Packet| packet.tcp_flags() == Some(0x02);
    let packets = capture.wait_for("the sequence", |packets| packets.iter().filter(is_syn).count() >= 5)?;
    capture.finish()?;
    let ports = packets.iter().filter(is_syn).filter_map(Packet::destination);
    let port = |number: u16| Ok(Port { protocol: Protocol::Tcp, number: number.try_into()? });
    let recorded = Steps::new(ports.map(port).collect::<Result<Vec<_>>>()?)?;
    let home = scene.world.home.ip(family);
    for epoch in [before, before.next()] {
        if scene.bound.steps(epoch, home)? == recorded {
            return Ok((recorded, epoch));
        }
    }
    anyhow::bail!("{recorded} is no sequence of the moment")
}

/// A sequence that was used is refused, by name, and nobody is let in.
fn is_refused(scene: &Scene, from: IpAddr, steps: &Steps) -> Result<()> {
    let granted = scene.granted()?;
    refuses(&scene.world.gate, "replayed", || scene.touch(from, steps))?;
    ensure!(scene.granted()? == granted, "somebody was let in");
    scene.is_shut(from, &scene.bound)
}

/// Not bound to a source, it is used all the same when another one comes with it.
#[test]
fn what_is_not_bound_opens_once_an_epoch() -> Result<()> {
    let mut scene = Scene::new()?;
    let epoch = scene.stand_still()?;
    let home = scene.world.home.ip(Family::V4);
    let recorded = scene.free.steps(epoch, home)?;
    scene.touch(home, &recorded)?;
    scene.opens(home, &scene.free)?;
    for family in Family::ALL {
        let stranger = scene.address(family)?;
        refuses(&scene.world.gate, "replayed", || scene.touch(stranger, &recorded))?;
        scene.is_shut(stranger, &scene.free)?;
    }
    ensure!(scene.granted()? == 1, "somebody else was let in");
    Ok(())
}

#[test]
fn a_clock_may_be_one_epoch_off_and_not_two() -> Result<()> {
    let mut scene = Scene::new()?;
    // One that is not bound is good once an epoch, whichever family it is that comes.
    for (family, is_bound) in [(Family::V4, true), (Family::V6, true), (Family::V4, false)] {
        let epoch = scene.stand_still()?;
        let granted = scene.granted()?;
        let mut froms = Vec::new();
        for by in [-2, 2, -1, 0, 1] {
            let from = scene.address(family)?;
            let known = scene.known(is_bound);
            let steps = known.steps(shifted(epoch, by)?, from)?;
            let touch = || scene.touch(from, &steps);
            if by.abs() == 2 { touch() } else { grants(&scene.world.gate, touch) }
                .with_context(|| format!("{by} epochs off, {}", known.name))?;
            froms.push(from);
        }
        let known = scene.known(is_bound);
        for from in &froms[..2] {
            scene.is_shut(*from, known)?;
        }
        for from in &froms[2..] {
            scene.opens(*from, known)?;
        }
        ensure!(scene.granted()? == granted + 3, "not three were let in");
    }
    Ok(())
}

/// The wiki's script, with the ports of the moment in place of its own; and with `-n`, for these ports answer, and nmap asks
/// for the name of whoever answers: without a resolver that takes longer than the sequence may.
#[test]
fn what_is_printed_opens_by_nmap() -> Result<()> {
    let scene = Scene::new()?;
    for (family, six) in [(Family::V4, ""), (Family::V6, "-6")] {
        let home = scene.world.home.ip(family);
        scene.is_shut(home, &scene.bound)?;
        let printed =
            scene.postern(&scene.world.home, &["bound", "--print", "--source", &home.to_string()])?;
        ensure!(printed.code == 0 && printed.stderr.contains("good once, if begun within"), "{printed:?}");
        let script = format!(
            "for step in {}; do nmap {six} -n -Pn --host-timeout 201ms --max-retries 0 -p ${{step%:tcp}} {}; done",
            printed.text().trim_end(),
            scene.world.gate.host().ip(family),
        );
        let mut nmap = scene.world.home.command("bash");
        nmap.args(["-euc", &script]);
        let said = succeed(nmap, b"", LONG)?.text();
        scene.opens(home, &scene.bound).context(said)?;
    }
    Ok(())
}

/// Behind address translation, what is not bound opens; what is bound opens for the address that is stated.
#[test]
fn a_client_that_does_not_know_its_address_needs_no_bound_sequence() -> Result<()> {
    let scene = Scene::new()?;
    let outside = Family::ALL.map(|family| ip_of(1001, family));
    for (address, program) in outside.iter().zip(["iptables-nft", "ip6tables-nft"]) {
        let mut nat = scene.crowd.command(program);
        nat.args(["-w", "-t", "nat", "-A", "POSTROUTING", "-j", "SNAT", "--to-source", &address.to_string()]);
        succeed(nat, b"", LONG)?;
    }
    let crowd = &scene.crowd;
    for (family, outside) in Family::ALL.into_iter().zip(outside) {
        let granted = scene.granted()?;
        let in_vain = scene.postern(crowd, &["bound", family.flag(), "--wait", "0.5"])?;
        ensure!(in_vain.code == 5, "{in_vain:?}");
        ensure!(scene.granted()? == granted, "somebody was let in");
        let stated = scene.postern(crowd, &["bound", "--source", &outside.to_string(), "--wait", "20"])?;
        ensure!(stated.code == 0 && stated.text().contains("\nopen: "), "{stated:?}");
        are_let_in(&scene, granted, &[outside])?;
    }
    let granted = scene.granted()?;
    let free = scene.postern(crowd, &["free", "--wait", "20"])?;
    ensure!(free.code == 0 && free.text().contains("\nopen: "), "{free:?}");
    are_let_in(&scene, granted, &outside)
}

/// These addresses, since so many others were.
fn are_let_in(scene: &Scene, granted: usize, addresses: &[IpAddr]) -> Result<()> {
    let grants = scene.world.gate.wait_for_events("granted", granted + addresses.len())?;
    let sources: Vec<_> = grants[granted..].iter().map(|grant| grant["source"].clone()).collect();
    ensure!(sources == addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(), "{sources:?}");
    Ok(())
}

#[test]
fn a_second_one_in_an_epoch_is_that_of_the_next() -> Result<()> {
    let scene = Scene::new()?;
    let (gate, home) = (&scene.world.gate, &scene.world.home);
    let from = home.ip(Family::V4);
    wait_for_time()?;
    let opened = scene.postern(home, &["bound", "-4", "--wait", "20"])?;
    ensure!(opened.code == 0, "{opened:?}");
    scene.shut(from, &scene.bound)?;
    refuses(gate, "replayed", || scene.postern(home, &["bound", "-4"]).map(drop))?;
    scene.is_shut(from, &scene.bound)?;
    let next = scene.postern(home, &["bound", "-4", "--next", "--wait", "20"])?;
    ensure!(next.code == 0 && next.text().contains("\nopen: "), "{next:?}");

    // Not bound: one an epoch, whoever comes; and so each family has an epoch's.
    let granted = scene.granted()?;
    let both = scene.postern(home, &["free", "--wait", "20"])?;
    ensure!(both.code == 0, "{both:?}");
    for family in Family::ALL {
        scene.opens(home.ip(family), &scene.free)?;
    }
    are_let_in(&scene, granted, &Family::ALL.map(|family| home.ip(family)))?;
    let again = scene.postern(&scene.crowd, &["free", "--next", "--json"])?;
    ensure!(again.code == 0 && again.text().contains("choose by -4 or -6"), "{again:?}");
    Ok(())
}

#[test]
fn a_proxy_goes_through() -> Result<()> {
    let scene = Scene::new()?;
    let home = &scene.world.home;
    for family in Family::ALL {
        let gate = scene.world.gate.host().ip(family).to_string();
        scene.is_shut(home.ip(family), &scene.bound)?;
        let proxy = scene.postern_command(home, &["proxy", &gate, "22"])?;
        ensure!(succeed(proxy, b"through\n", LONG)?.text() == "through\n");
    }
    Ok(())
}

/// The lines that `sequence new` prints, in the files of both sides; and what listens in the range is warned of.
#[test]
fn what_is_drawn_works_on_both_sides() -> Result<()> {
    let mut scene = Scene::new()?;
    let drawn = scene.world.gate.administer(&["sequence", "new", "--rolling"])?.text();
    let drawn = drawn.replace("NAME", "drawn").replace("GATE", "bastion");
    let (ours, theirs) = drawn.split_once("\n\n").context("two parts")?;
    scene.add(&format!("{ours}\n"))?;
    scene.configure_client(theirs)?;
    scene.world.gate.kill()?;
    let checked = scene.world.gate.administer(&["check"])?.text();
    ensure!(checked.contains("sequence drawn: 5 of ") && !checked.contains("listens on"), "{checked}");
    scene.start()?;
    let sent = scene.postern(&scene.world.home, &["drawn", "-4", "--wait", "20"])?;
    ensure!(sent.code == 0 && sent.text().contains("\nopen: "), "{sent:?}");

    let range = ours.lines().find_map(|line| line.strip_prefix("rolling = \"")).context("a range")?;
    let first: u16 = range.split('-').next().context("its first port")?.parse()?;
    let _echo = Echo::start(scene.world.gate.host(), first + 7)?;
    let checked = scene.world.gate.administer(&["check"])?.text();
    let warning = format!("warning: sequence drawn: something listens on {}/tcp", first + 7);
    ensure!(checked.contains(&warning), "{checked}");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_by_name() -> Result<()> {
    let scene = Scene::new()?;
    let (gate, good) = (&scene.world.gate, scene.bound.to_toml());
    let config = gate.config();
    let text = fs::read_to_string(&config)?;
    for (from, to, says) in [
        ("20000-29999/tcp", "20-29/tcp", "22/tcp is guarded, for service ssh; choose another"),
        ("20000-29999/tcp", "62000-62999/udp", "62201/udp is a knock port of this gate; choose another"),
        ("rolling = ", "steps = [\"7000\"]\nrolling = ", "always the same"),
        ("20000-29999", "20000-20003", "no more ports than its range"),
        ("bound-to-source", "length = 33\nbound-to-source", "1 to 32 ports"),
        ("key = \"", "key = \"x", "a sequence key is 32 bytes"),
        ("key = ", "# key = ", "a rolling sequence has a range (rolling) and a key"),
    ] {
        let bad = good.replacen(from, to, 1);
        ensure!(bad != good, "{from} is not in it");
        gate.edit(&config, &good, &bad)?;
        is_refused_to_start(&scene, says)?;
        gate.edit(&config, &bad, &good)?;
    }
    ensure!(fs::read_to_string(&config)? == text);
    fs::set_permissions(&config, Permissions::from_mode(0o644))?;
    is_refused_to_start(&scene, "mode 0644 lets others read or change it: chmod 600")?;
    fs::set_permissions(scene.config(), Permissions::from_mode(0o644))?;
    let read = scene.postern(&scene.world.home, &["bound"])?;
    ensure!(read.code == 3 && read.stderr.contains("others can read or write it (mode 0644)"), "{read:?}");
    Ok(())
}

/// By `check` and by `run`, with the exit code of a bad configuration and without the key.
fn is_refused_to_start(scene: &Scene, says: &str) -> Result<()> {
    for what in ["check", "run"] {
        let refused = run(scene.world.gate.posternd(&[what])?, b"", LONG)?;
        ensure!(refused.code == 3 && refused.stderr.contains(says), "{says}: {refused:?}");
        scene.bound.is_secret_in(&(refused.text() + &refused.stderr))?;
    }
    Ok(())
}
