//! The main job, whole, for each family and each firewall: hidden, opened to one address, used by ssh, shut again,
//! and nobody cut who was there before.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings, Variant, WEB};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::{Process, succeed};
use postern_tests::programs;
use postern_tests::sshd::Sshd;
use postern_tests::wait::LONG;
use ring::rand::{SecureRandom, SystemRandom};

use crate::world::World;

/// What goes through ssh and back, in bytes.
const TRANSFER: usize = 100_000_000;
/// The number of a host in the network that never needs to knock.
const FRIEND: u16 = 9 * 256 + 1;

#[test]
fn ipv4_through_iptables_nft() -> Result<()> {
    the_main_job(Family::V4, Variant::Nft)
}

#[test]
fn ipv4_through_iptables_legacy() -> Result<()> {
    the_main_job(Family::V4, Variant::Legacy)
}

#[test]
fn ipv6_through_iptables_nft() -> Result<()> {
    the_main_job(Family::V6, Variant::Nft)
}

#[test]
fn ipv6_through_iptables_legacy() -> Result<()> {
    the_main_job(Family::V6, Variant::Legacy)
}

#[test]
fn ipv4_through_nftables() -> Result<()> {
    the_main_job(Family::V4, Variant::Nftables)
}

#[test]
fn ipv6_through_nftables() -> Result<()> {
    the_main_job(Family::V6, Variant::Nftables)
}

fn the_main_job(family: Family, variant: Variant) -> Result<()> {
    let always_allow = &["10.0.9.0/24", "fd00::900/120"];
    let mut world = World::new(Settings { variant, always_allow, ..Settings::default() })?;
    let friend = world.network.host([FRIEND])?;
    world.listen(&[WEB])?;
    let sshd = Sshd::start(world.gate.host())?;
    let door = world.gate.at(family, SSH);

    // A session from before the guard: conntrack knows nothing of it, and it is idle while the guard goes up.
    let mut standing = session(ssh(&sshd, &world.home, door, &[], "cat"))?;
    world.gate.start(&[])?;
    let first = world.opens(family)?;
    says(&mut standing, "idle while the guard went up")?;
    only_home_is_let_in(&world, &friend, family)?;
    let localhost =
        SocketAddr::new(if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse()? }, SSH);
    succeed(ssh(&sshd, world.gate.host(), localhost, &[], "true"), b"", LONG)?;
    world.shuts_on_time(first)?;

    // Twice through the ProxyCommand: one session that stays, one that carries all it can, both ways at once.
    let proxy = set_up_proxy(&world, family)?;
    let mut proxied = session(ssh(&sshd, &world.home, door, &proxy, "cat"))?;
    says(&mut proxied, "logged in")?;
    let mut sent = vec![0; TRANSFER];
    SystemRandom::new().fill(&mut sent).expect("the kernel gives random bytes to whoever asks");
    let echoed = succeed(ssh(&sshd, &world.home, door, &proxy, "cat"), &sent, LONG)?.stdout;
    ensure!(echoed == sent, "{} of {TRANSFER} bytes came back, or others", echoed.len());

    wait_to_see(&world.home, door, Seen::Nothing)?;
    says(&mut proxied, "outlived its window")?;
    says(&mut standing, "outlived windows of others")?;

    let last = world.opens(family)?;
    world.shuts_on_time(last)
}

/// While the door is open to one address: nobody else, nothing else, and no change for those who need not knock.
fn only_home_is_let_in(world: &World, friend: &Host, family: Family) -> Result<()> {
    let (ssh, web) = (world.gate.at(family, SSH), world.gate.at(family, WEB));
    for (who, host, to, expected) in [
        ("home", &world.home, ssh, Seen::Open),
        ("home", &world.home, web, Seen::Nothing),
        ("the stranger", &world.stranger, ssh, Seen::Nothing),
        ("the stranger", &world.stranger, web, Seen::Nothing),
        ("the friend", friend, ssh, Seen::Open),
        ("the friend", friend, web, Seen::Open),
        ("the gate itself", world.gate.host(), ssh, Seen::Open),
        ("home", &world.home, ssh, Seen::Open),
    ] {
        let seen = probe(host, to)?;
        ensure!(seen == expected, "{to} shows {who} {seen:?}, not {expected:?}");
    }
    Ok(())
}

/// A client added by the administrator, imported by the user, and named by ssh's options.
fn set_up_proxy(world: &World, family: Family) -> Result<[String; 2]> {
    let address = world.gate.host().ip(family).to_string();
    let profile =
        world.gate.administer(&["client", "add", "bob", "--service", "ssh", "--address", &address])?;
    world.gate.reload()?;
    let postern = programs::directory()?.join("postern");
    let config = world.gate.directory().join("config.toml");
    let postern = format!("{} --config {}", postern.display(), config.display());
    let mut import = world.home.command("sh");
    import.args(["-c", &format!("exec {postern} import bastion -")]).env_remove("HOME");
    succeed(import, &profile.stdout, LONG)?;
    Ok(["-o".to_owned(), format!("ProxyCommand={postern} proxy {} %h %p", family.flag())])
}

fn ssh(sshd: &Sshd, from: &Host, door: SocketAddr, options: &[String], command: &str) -> Command {
    sshd.ssh(from, door.ip(), options, command)
}

/// A session that sends back what it gets.
fn session(ssh: Command) -> Result<Process> {
    let mut session = Process::spawn(ssh)?;
    says(&mut session, "begun")?;
    Ok(session)
}

fn says(session: &mut Process, word: &str) -> Result<()> {
    session.write(format!("{word}\n").as_bytes())?;
    session.wait_for_lines(word, LONG, |lines| lines.iter().any(|line| line == word).then_some(()))
}
