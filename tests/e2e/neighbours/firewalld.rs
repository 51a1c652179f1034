//! firewalld: a table of nftables that comes after the guard, and every rule of iptables gone when it starts or reloads.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::gate::{Gate, SSH, Settings};
use postern_tests::netns::{Family, Host};
use postern_tests::packages::Packages;
use postern_tests::probe::{Seen, progress, syn};
use postern_tests::process::{Process, run, succeed};
use postern_tests::programs;
use postern_tests::wait::{LONG, wait_for};
use rustix::process::Signal;

use super::{heals, holds_and_opens, knocks_in_vain, remarks, remedy, removes_ours_alone};
use crate::world::World;

/// A system bus on which everybody may do everything.
const BUS: &str = "<busconfig><type>system</type><listen>unix:path=/run/bus</listen><auth>EXTERNAL</auth>\
                   <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>\
                   <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>";

/// firewalld on a host, with a bus of its own.
struct Firewalld {
    packages: Packages,
    _bus: Process,
    daemon: Process,
}

impl Firewalld {
    /// Starts it with a default zone that not even ssh is in.
    fn start(host: &Host) -> Result<Self> {
        let packages = Packages::on(host)?;
        packages.run("sh", &["-ec", "printf %s \"$1\" > /run/bus.conf", "sh", BUS])?;
        let options = ["--config-file=/run/bus.conf", "--nofork", "--nopidfile", "--print-address"];
        let bus = Process::spawn(packages.command("dbus-daemon", &options))?;
        bus.wait_for_lines("the bus", LONG, |lines| {
            lines.iter().any(|line| line.starts_with("unix:")).then_some(())
        })?;
        packages.run("firewall-offline-cmd", &["--remove-service=ssh"])?;
        let daemon = spawn(&packages)?;
        Ok(Self { packages, _bus: bus, daemon })
    }

    fn restart(&mut self) -> Result<()> {
        self.daemon.signal(Signal::TERM)?;
        self.daemon.wait(LONG)?;
        self.daemon = spawn(&self.packages)?;
        Ok(())
    }

    /// Runs a script in which firewall-cmd finds the bus.
    fn script(&self, script: &str) -> Result<()> {
        succeed(on_bus(&self.packages, "sh", &["-ec", script]), b"", LONG).map(drop)
    }

    /// What `check` says where it finds firewall-cmd.
    fn remarks(&self, gate: &Gate) -> Result<Vec<String>> {
        let (posternd, config) = (programs::directory()?.join("posternd"), gate.config());
        let arguments = ["--config", &config.display().to_string(), "check"];
        remarks(on_bus(&self.packages, &posternd.display().to_string(), &arguments))
    }

    /// Its rules.
    fn table(&self) -> Result<String> {
        Ok(self.packages.run("nft", &["--stateless", "list", "table", "inet", "firewalld"])?.text())
    }
}

fn spawn(packages: &Packages) -> Result<Process> {
    let daemon = Process::spawn(on_bus(packages, "firewalld", &["--nofork", "--nopid"]))?;
    wait_for("firewalld", LONG, || {
        let state = run(on_bus(packages, "firewall-cmd", &["--state"]), b"", LONG)?;
        Ok((state.code == 0).then_some(()))
    })?;
    Ok(daemon)
}

fn on_bus(packages: &Packages, program: &str, arguments: &[&str]) -> Command {
    let mut command = packages.command(program, arguments);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/bus");
    command
}

#[test]
fn firewalld_and_the_gate_stand_beside_each_other_in_both_orders() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let mut firewalld = Firewalld::start(world.gate.host())?;
    world.gate.start(&[])?;
    knocks_in_vain(&world, &Family::ALL)?;
    let told = firewalld.remarks(&world.gate)?;
    let allow = remedy(&told, &["22/tcp", "firewalld"])?;
    assert_eq!(allow, "firewall-cmd --permanent --zone=public --add-port=22/tcp && firewall-cmd --reload");
    firewalld.script(&allow)?;
    heals(&world.gate)?;
    holds_and_opens(&world, &Family::ALL)?;

    let told = firewalld.remarks(&world.gate)?;
    ensure!(remedy(&told, &["22/tcp is shut"]).is_err(), "{told:#?}");
    let shut_meanwhile = remedy(&told, &["throws every rule of iptables away"])?;
    firewalld.script(&shut_meanwhile)?;
    heals(&world.gate)?;
    let door = world.gate.at(Family::V4, SSH);
    stays_shut(&world.stranger, door, || firewalld.script("firewall-cmd --reload"))?;
    heals(&world.gate)?;
    let told = firewalld.remarks(&world.gate)?;
    ensure!(remedy(&told, &["throws"]).is_err(), "{told:#?}");

    firewalld.restart()?;
    heals(&world.gate)?;
    holds_and_opens(&world, &Family::ALL)?;
    let table = firewalld.table()?;
    removes_ours_alone(&mut world)?;
    assert_eq!(firewalld.table()?, table);
    Ok(())
}

/// Nobody who tries a port all the time while something is done gets in.
fn stays_shut(from: &Host, door: SocketAddr, deed: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let tries = scope.spawn(|| {
            let mut tries = Vec::new();
            while !over.load(Ordering::Relaxed) {
                tries.push(from.enter(|| syn(None, door))??);
                thread::sleep(Duration::from_millis(5));
            }
            Ok::<_, anyhow::Error>(tries)
        });
        let done = deed();
        over.store(true, Ordering::Relaxed);
        let tries = tries.join().expect("trying does not panic")?;
        for attempt in &tries {
            let seen = progress(attempt)?;
            ensure!(seen == Seen::Nothing, "one of {} tries has seen {seen:?}", tries.len());
        }
        done
    })
}
