//! fail2ban: rules that shut a port to single addresses, in INPUT or in a table of nftables.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings};
use postern_tests::knocks::now;
use postern_tests::netns::{Family, Host};
use postern_tests::packages::Packages;
use postern_tests::probe::{Seen, probe};
use postern_tests::process::{Process, run};
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{at_once, heals, holds_and_opens, knocks_in_vain, remarks, removes_ours_alone};
use crate::world::World;

/// fail2ban on a host, with one jail for sshd that bans after one failure.
struct Fail2ban {
    packages: Packages,
    files: TempDir,
    server: Process,
}

impl Fail2ban {
    fn start(host: &Host, action: &str) -> Result<Self> {
        let packages = Packages::on(host)?;
        let files = tempfile::Builder::new().prefix("postern-fail2ban-").tempdir()?;
        let (settings, jail) = (settings(files.path()), jail(files.path(), action));
        fs::write(files.path().join("auth.log"), "")?;
        let write = "rm -f /etc/fail2ban/jail.d/*; printf %s \"$1\" > /etc/fail2ban/fail2ban.local; \
                     printf %s \"$2\" > /etc/fail2ban/jail.local";
        packages.run("sh", &["-ec", write, "sh", &settings, &jail])?;
        let server = Process::spawn(packages.command("fail2ban-server", &["-f", "-x", "start"]))?;
        wait_for("fail2ban", LONG, || {
            let status = run(packages.command("fail2ban-client", &["status", "sshd"]), b"", LONG)?;
            Ok((status.code == 0).then_some(()))
        })?;
        Ok(Self { packages, files, server })
    }

    /// sshd's log says that somebody failed; he is banned when this returns.
    fn sees_failure_of(&self, host: &Host) -> Result<()> {
        let (log, address) = (self.files.path().join("auth.log"), host.ip(Family::V4).to_string());
        let line =
            format!("{} gate sshd[1]: Failed password for root from {address} port 4000 ssh2\n", now());
        fs::OpenOptions::new().append(true).open(log)?.write_all(line.as_bytes())?;
        wait_for("the ban", LONG, || {
            let rules = self.packages.run("nft", &["list", "ruleset"])?.text();
            Ok(rules.contains(&address).then_some(()))
        })
    }

    fn forgives(&self, host: &Host) -> Result<()> {
        let address = host.ip(Family::V4).to_string();
        self.packages.run("fail2ban-client", &["set", "sshd", "unbanip", &address]).map(drop)
    }

    fn stop(&mut self) -> Result<()> {
        self.server.signal(Signal::TERM)?;
        self.server.wait(LONG).map(drop)
    }
}

fn settings(files: &Path) -> String {
    let path = |name: &str| files.join(name).display().to_string();
    format!(
        "[Definition]\nlogtarget = STDOUT\nsocket = {}\npidfile = {}\ndbfile = None\nallowipv6 = no\n",
        path("socket"),
        path("pid")
    )
}

fn jail(files: &Path, action: &str) -> String {
    let log = files.join("auth.log");
    format!(
        "[DEFAULT]\nbackend = polling\nbantime = 600\nmaxretry = 1\nusedns = no\nbanaction = {action}\n\
         [sshd]\nenabled = true\nport = {SSH}\nlogpath = {}\n",
        log.display()
    )
}

#[test]
fn bans_in_input_stand_behind_the_guard() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let (home, door) = (&world.home, world.gate.at(Family::V4, SSH));
    let mut fail2ban = Fail2ban::start(world.gate.host(), "iptables-multiport")?;
    fail2ban.sees_failure_of(home)?;
    assert_eq!(probe(home, door)?, Seen::Refused, "the ban holds");
    world.gate.start(&[])?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    ensure!(matches!(&told[..], [note] if note.starts_with("note: fail2ban bans in INPUT")), "{told:#?}");
    // As the note says: who is banned and has a key comes in.
    holds_and_opens(&world, &[Family::V4])?;
    removes_ours_alone(&mut world)?;
    assert_eq!(probe(&world.home, door)?, Seen::Refused, "the ban holds on");
    fail2ban.stop()?;
    assert_eq!(probe(&world.home, door)?, Seen::Open);

    // The other way round, fail2ban puts its rules before the guard, and the gate its guard before them.
    world.gate.start(&[])?;
    let fail2ban = Fail2ban::start(world.gate.host(), "iptables-multiport")?;
    fail2ban.sees_failure_of(&world.stranger)?;
    heals(&world.gate)?;
    assert_eq!(probe(&world.stranger, door)?, Seen::Nothing, "nobody is told of a ban");
    holds_and_opens(&world, &[Family::V4])?;
    removes_ours_alone(&mut world)?;
    assert_eq!(probe(&world.stranger, door)?, Seen::Refused);
    Ok(())
}

#[test]
fn bans_in_input_hold_for_those_who_are_returned() -> Result<()> {
    let mut world = World::new(Settings { grants: "return", ..Settings::default() })?;
    world.listen(&[SSH])?;
    let fail2ban = Fail2ban::start(world.gate.host(), "iptables-multiport")?;
    world.gate.start(&[])?;
    fail2ban.sees_failure_of(&world.home)?;
    knocks_in_vain(&world, &[Family::V4])?;
    fail2ban.forgives(&world.home)?;
    holds_and_opens(&world, &[Family::V4])?;
    removes_ours_alone(&mut world)
}

#[test]
fn bans_in_a_table_of_their_own_hold_for_who_knocks() -> Result<()> {
    at_once(&[true, false], |&fail2ban_first| {
        let mut world = World::new(Settings::default())?;
        world.listen(&[SSH])?;
        if !fail2ban_first {
            world.gate.start(&[])?;
        }
        // It answers whom it bans, and before the guard, unless it is told not to.
        let (action, seen) = if fail2ban_first {
            ("nftables", Seen::Refused)
        } else {
            ("nftables[blocktype=drop]", Seen::Nothing)
        };
        let fail2ban = Fail2ban::start(world.gate.host(), action)?;
        fail2ban.sees_failure_of(&world.home)?;
        assert_eq!(probe(&world.home, world.gate.at(Family::V4, SSH))?, seen);
        if fail2ban_first {
            world.gate.start(&[])?;
        }
        let told = remarks(world.gate.posternd(&["check"])?)?;
        ensure!(
            matches!(&told[..], [note] if note.starts_with("note: fail2ban bans in a table of its own")),
            "{told:#?}"
        );
        knocks_in_vain(&world, &[Family::V4])?;
        fail2ban.forgives(&world.home)?;
        holds_and_opens(&world, &[Family::V4])?;
        fail2ban.sees_failure_of(&world.stranger)?;
        let table = || fail2ban.packages.run("nft", &["--stateless", "list", "table", "inet", "f2b-table"]);
        let banned = table()?.text();
        removes_ours_alone(&mut world)?;
        assert_eq!(table()?.text(), banned);
        Ok(())
    })
    .map(drop)
}
