//! A client is answered once for each knock that is recorded, when it is done, from where it knocked; a copy, another
//! client and a stranger never.

use std::fs::File;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::answer::Outcome;
use postern_proto::{ANSWER_LEN, Answer, Payload, Refusal, Request, Services, Window};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::gate::{KNOCK_PORTS, SSH, Settings, Variant};
use postern_tests::knocks::{Knock, now, open, random};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Seen, probe, udp, wait_to_see};
use postern_tests::wait::{LONG, wait_for};
use rustix::fs::{FlockOperation, flock};

use crate::neighbours::at_once;
use crate::world::{World, grants, refuses};

/// A client's socket, and what comes back to it.
struct Asking<'a> {
    world: &'a World,
    socket: UdpSocket,
}

impl<'a> Asking<'a> {
    /// From a host to one knock port, and from nowhere else back.
    fn new(world: &'a World, host: &Host, family: Family, port: u16) -> Result<Self> {
        let socket = udp(host, host.ip(family))?;
        socket.connect(world.gate.at(family, port))?;
        socket.set_read_timeout(Some(LONG))?;
        Ok(Self { world, socket })
    }

    fn send(&self, payload: &Payload) -> Result<Knock> {
        let knock = self.world.alice.seal(payload);
        ensure!(self.socket.send(&knock)? == knock.len(), "sent in part");
        Ok(knock)
    }

    /// The next datagram that comes back.
    fn hears(&self) -> Result<Vec<u8>> {
        let mut bytes = [0; 2 * ANSWER_LEN];
        let len = self.socket.recv(&mut bytes).context("an answer comes")?;
        Ok(bytes[..len].to_vec())
    }

    /// What the gate answers.
    fn asks(&self, payload: &Payload) -> Result<Answer> {
        let knock = self.send(payload)?;
        self.world.alice.read_answer(&knock, &self.hears()?)
    }

    /// Nothing has come that was not read: asked once an answer that was sent later has come.
    fn heard_all(&self) -> Result<()> {
        self.socket.set_nonblocking(true)?;
        let more = self.socket.recv(&mut [0; ANSWER_LEN]);
        self.socket.set_nonblocking(false)?;
        ensure!(more.is_err(), "something more came back");
        Ok(())
    }
}

#[test]
fn a_client_is_told_what_became_of_its_knock() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let world = World::running(Settings { variant, window_secs: 60, ..Settings::default() })?;
        for family in Family::ALL {
            for port in KNOCK_PORTS {
                tells(&world, family, port).with_context(|| format!("{variant:?} {family:?} {port}"))?;
            }
        }
        world.opens(Family::V4).map(drop)
    })
    .map(drop)
}

fn tells(world: &World, family: Family, port: u16) -> Result<()> {
    let asking = Asking::new(world, &world.home, family, port)?;
    let door = world.gate.at(family, SSH);
    ensure!(probe(&world.home, door)? == Seen::Nothing, "shut before");
    let services = Services::new(vec!["ssh".parse()?])?;
    let close = Request::Close { services };
    let asks = |request: Request| Ok::<_, anyhow::Error>(Payload { request, ..world.alice.asks_for("ssh")? });

    let begun = now();
    let answer = asking.asks(&asks(open("ssh", Window::from_secs(40).ok())?)?)?;
    // The door is open when the answer is here: the first SYN gets through.
    ensure!(probe(&world.home, door)? == Seen::Open, "open with the answer");
    let Outcome::Opened { until } = answer.outcome else { panic!("{answer:?}") };
    ensure!(answer.seen == asking.socket.local_addr()?, "{answer:?}");
    ensure!(answer.at >= begun && answer.at <= now(), "{answer:?}");
    ensure!(until.since(answer.at) == Duration::from_secs(40), "{answer:?}");

    ensure!(asking.asks(&asks(close)?)?.outcome == Outcome::Closed, "closed");
    ensure!(probe(&world.home, door)? == Seen::Nothing, "shut with the answer");
    ensure!(asking.asks(&asks(Request::Probe)?)?.outcome == Outcome::Heard, "heard");
    ensure!(probe(&world.home, door)? == Seen::Nothing, "a probe opens nothing");
    let refused = asking.asks(&asks(open("gopher", None)?)?)?.outcome;
    ensure!(refused == Outcome::Refused(Refusal::UnknownService), "{refused:?}");
    let refused = asking.asks(&asks(open("ssh", Window::from_secs(100_000).ok())?)?)?.outcome;
    ensure!(refused == Outcome::Refused(Refusal::WindowTooLong), "{refused:?}");
    asking.heard_all()
}

#[test]
fn a_copy_is_not_answered_wherever_it_comes_from() -> Result<()> {
    let world = World::running(Settings::default())?;
    let first = Asking::new(&world, &world.home, Family::V4, KNOCK_PORTS[0])?;
    let knock = first.send(&world.alice.asks_for("ssh")?)?;
    let answer = first.hears()?;
    world.alice.read_answer(&knock, &answer)?;
    let elsewhere = Asking::new(&world, &world.stranger, Family::V4, KNOCK_PORTS[1])?;
    for asking in [&first, &elsewhere] {
        refuses(&world.gate, "replayed", || Ok(asking.socket.send(&knock).map(drop)?))?;
    }
    // A later one of each is, and nothing came before it.
    for asking in [&first, &elsewhere] {
        let later = asking.send(&world.alice.asks_for("ssh")?)?;
        let heard = asking.hears()?;
        world.alice.read_answer(&later, &heard)?;
        ensure!(world.alice.read_answer(&knock, &heard).is_err(), "good for another knock");
        ensure!(
            world.alice.read_answer(&later, &answer).is_err(),
            "a recorded answer is good for another knock"
        );
        asking.heard_all()?;
    }
    Ok(())
}

#[test]
fn nobody_is_answered_twice_after_a_restart() -> Result<()> {
    let mut world = World::running(Settings { window_secs: 60, ..Settings::default() })?;
    let knock = {
        let asking = Asking::new(&world, &world.home, Family::V4, KNOCK_PORTS[0])?;
        let knock = asking.send(&world.alice.asks_for("ssh")?)?;
        world.alice.read_answer(&knock, &asking.hears()?)?;
        knock
    };
    world.gate.stop()?;
    world.gate.start(&[])?;
    let asking = Asking::new(&world, &world.home, Family::V4, KNOCK_PORTS[0])?;
    refuses(&world.gate, "replayed", || Ok(asking.socket.send(&knock).map(drop)?))?;
    asking.asks(&world.alice.asks_for("ssh")?)?;
    asking.heard_all()
}

/// To the kernel an answer begins a session. What comes back in it is met by silence as well, when nobody listens any more.
#[test]
fn who_was_answered_meets_silence_when_the_gate_is_gone() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::running(Settings { variant, ..Settings::default() })?;
        let mut ways = Vec::new();
        for family in Family::ALL {
            let asking = Asking::new(&world, &world.home, family, KNOCK_PORTS[0])?;
            asking.asks(&world.alice.asks_for("ssh")?)?;
            ways.push(asking.socket);
        }
        world.gate.stop()?;
        let capture = Capture::start(world.gate.host(), Direction::Out, "udp or icmp or icmp6")?;
        for socket in &ways {
            for _ in 0..20 {
                socket.send(&random::<ANSWER_LEN>())?;
            }
        }
        world.gate.start(&[])?;
        // The first that leaves is what is answered behind all of that.
        let last = Asking::new(&world, &world.home, Family::V4, KNOCK_PORTS[1])?;
        last.asks(&world.alice.asks_for("ssh")?)?;
        let left = capture.wait_for("the last answer", |packets| !packets.is_empty())?;
        let lengths: Vec<_> = left.iter().map(|packet| packet.udp_payload().map(<[u8]>::len)).collect();
        ensure!(lengths == [Some(ANSWER_LEN)], "{lengths:?}");
        capture.finish()
    })
    .map(drop)
}

/// While iptables cannot take a rule out, nobody is told that it is closed, however often he asks.
#[test]
fn closed_is_said_when_it_is() -> Result<()> {
    let settings = Settings { variant: Variant::Legacy, window_secs: 600, ..Settings::default() };
    let world = World::running(settings)?;
    let asking = Asking::new(&world, &world.home, Family::V4, KNOCK_PORTS[0])?;
    let close = || {
        let request = Request::Close { services: Services::new(vec!["ssh".parse()?])? };
        Ok::<_, anyhow::Error>(Payload { request, ..world.alice.asks_for("ssh")? })
    };
    let door = world.gate.at(Family::V4, SSH);
    asking.asks(&world.alice.asks_for("ssh")?)?;
    ensure!(probe(&world.home, door)? == Seen::Open, "open");

    let lock = File::create(world.gate.directory().join("xtables.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    asking.send(&close()?)?;
    world.gate.wait_for_events("a rule could not be taken out; the kernel ends a lease's at its time", 1)?;
    for _ in 0..5 {
        asking.send(&close()?)?;
    }
    ensure!(probe(&world.home, door)? == Seen::Open, "the rule stands still");
    drop(lock);
    wait_to_see(&world.home, door, Seen::Nothing)?;

    // What is answered first was asked after that.
    asking.socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut asked = Vec::new();
    let bytes = wait_for("an answer", LONG, || {
        asked.push(asking.send(&close()?)?);
        Ok(asking.hears().ok())
    })?;
    let answer = asked.iter().find_map(|knock| world.alice.read_answer(knock, &bytes).ok());
    ensure!(answer.context("an answer to an earlier one")?.outcome == Outcome::Closed, "closed");
    world.opens(Family::V4).map(drop)
}

#[test]
fn a_gate_can_be_without_answers() -> Result<()> {
    let world = World::running(Settings { answer: false, ..Settings::default() })?;
    let capture = Capture::start(world.gate.host(), Direction::Out, "udp or tcp or icmp or icmp6")?;
    for family in Family::ALL {
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        grants(&world.gate, || world.send(&world.home, family, &knock))?;
        wait_to_see(&world.home, world.gate.at(family, SSH), Seen::Open)?;
    }
    // A segment that left later is there: what left before it would be too.
    let packets = capture.wait_for("a segment", |packets| packets.iter().any(Packet::is_tcp))?;
    ensure!(packets.iter().all(Packet::is_tcp), "{packets:?}");
    capture.finish()
}
