//! Not one packet leaves the gate for 10,000 that are not authentic, fresh and new (P1), and each is counted once, by
//! its one reason (P10). Of those, a client's own that ask for what it may not have are answered, once each, where the gate
//! answers at all.

use std::collections::{BTreeMap, HashSet};
use std::iter::repeat_with;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_proto::datagram::{CIPHERTEXT_AT, PAYLOAD_LEN};
use postern_proto::{ANSWER_LEN, Epoch, KNOCK_LEN, Payload, Source, WallTime, Window};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::gate::{KNOCK_PORTS, SSH, Settings};
use postern_tests::knocks::{Client, Knock, now, open, random};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, udp, wait_to_see};
use postern_tests::wait::{LONG, wait_for};

use crate::world::{World, grants};

const DATAGRAMS: usize = 10_000;
/// Of each kind of hostile knock, where the kind does not give a number itself.
const EACH: usize = 200;
/// Kinds of knocks whose client is told that it may not have that.
const OVERREACHING: usize = 4;
/// The gate's clock tolerance, and by how much the knocks here miss it: less than an epoch, so that their hints are
/// known still, or already.
const TOLERANCE: Duration = Duration::from_mins(1);
const MISS: Duration = Duration::from_secs(3);
/// The seconds of an epoch from which such a miss does not lead into another one, with time to send them all.
const MIDDLE_OF_EPOCH: std::ops::RangeInclusive<u64> = 4..=24;

/// A datagram, and the reason why the gate refuses it; `None` where it never reaches the gate.
type Hostile = (Vec<u8>, Option<&'static str>);

#[test]
fn strangers_hear_nothing_and_are_counted() -> Result<()> {
    ten_thousand(Settings { answer: false, ..Settings::default() }, 0)
}

#[test]
fn where_clients_are_answered_strangers_hear_nothing_either() -> Result<()> {
    ten_thousand(Settings::default(), OVERREACHING * EACH)
}

/// Sends 10,000 datagrams, for which so many answers leave the gate, and nothing else.
fn ten_thousand(settings: Settings, answered: usize) -> Result<()> {
    let mut world = World::new(settings)?;
    world.listen(&[SSH])?;
    let people = People::enroll(&world)?;
    the_kernel_would_answer(&world)?;
    world.gate.start(&[])?;
    world.opens(Family::V4)?;
    let replayed = world.alice.seal(&world.alice.asks_for("ssh")?);
    grants(&world.gate, || world.send(&world.home, Family::V4, &replayed))?;
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Nothing)?;
    let before = world.gate.wait_for_received(KNOCK_PORTS.len() as u64 + 1)?;

    let capture = Capture::start(world.gate.host(), Direction::Out, "ip or ip6")?;
    let middle = || Ok(MIDDLE_OF_EPOCH.contains(&(now().as_secs() % 30)).then_some(()));
    wait_for("the middle of an epoch", LONG, middle)?;
    let mut hostile = send_all(&world, people.clocks_that_are_off()?)?;
    hostile.extend(send_all(&world, people.others(&replayed)?)?);
    let rest = repeat_with(random_knock).take(DATAGRAMS - hostile.len()).collect();
    hostile.extend(send_all(&world, rest)?);

    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for reason in hostile.iter().filter_map(|(_, reason)| *reason) {
        *expected.entry(reason.to_owned()).or_default() += 1;
    }
    let received = before.received + expected.values().sum::<u64>();
    let counters = world.gate.wait_for_received(received)?;
    assert_eq!(counters.refused, expected);
    assert_eq!((counters.received, counters.accepted), (received, before.accepted));

    // What the capture holds up to the answer that the open door gives is all that has left. The last knock is answered too.
    world.opens(Family::V4)?;
    let out = capture.wait_for("the answer of an open door", |packets| packets.iter().any(Packet::is_tcp))?;
    let left: Vec<_> = out.iter().take_while(|packet| !packet.is_tcp()).collect();
    let answers: HashSet<_> = left.iter().filter_map(|packet| packet.udp_payload()).collect();
    ensure!(answers.len() == left.len(), "something else than different answers: {left:?}");
    ensure!(answers.iter().all(|answer| answer.len() == ANSWER_LEN), "{left:?}");
    let own = if answered > 0 { KNOCK_PORTS.len() } else { 0 };
    let expected = answered..=answered + own;
    ensure!(expected.contains(&left.len()), "{} packets left, not {expected:?}", left.len());
    capture.finish()
}

/// Without a guard, the same datagrams are answered, and the capture sees it.
fn the_kernel_would_answer(world: &World) -> Result<()> {
    let capture = Capture::start(world.gate.host(), Direction::Out, "icmp or icmp6")?;
    for family in Family::ALL {
        world.send(&world.home, family, &random())?;
    }
    capture.wait_for("port unreachable, twice", |packets| packets.len() >= 2)?;
    capture.finish()
}

/// Sends datagrams to each knock port in turn, over each family in turn, no faster than a capture can take.
fn send_all(world: &World, datagrams: Vec<Hostile>) -> Result<Vec<Hostile>> {
    let mut ways = Vec::new();
    for port in KNOCK_PORTS {
        for family in Family::ALL {
            ways.push((udp(&world.home, world.home.ip(family))?, world.gate.at(family, port)));
        }
    }
    for (chunk, (bytes, _)) in datagrams.iter().enumerate() {
        let (socket, to) = &ways[chunk % ways.len()];
        ensure!(socket.send_to(bytes, to)? == bytes.len(), "sent in part");
        if chunk % 20 == 19 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(datagrams)
}

fn random_knock() -> Hostile {
    (random::<KNOCK_LEN>().to_vec(), Some("unknown"))
}

/// Whose knocks are refused.
struct People {
    alice: Client,
    /// May open ssh alone, for a short time.
    restricted: Client,
    disabled: Client,
    stranger: Client,
}

impl People {
    fn enroll(world: &World) -> Result<Self> {
        let mut restricted = world.gate.client("restricted")?;
        restricted.entry.services = vec!["ssh".parse()?];
        restricted.entry.max_window = Some(Window::from_secs(10)?);
        let mut disabled = world.gate.client("disabled")?;
        disabled.entry.disabled = true;
        world.gate.write_clients(&[&world.alice, &restricted, &disabled])?;
        Ok(Self {
            alice: world.alice.clone(),
            restricted,
            disabled,
            stranger: world.gate.client("stranger")?,
        })
    }

    fn clocks_that_are_off(&self) -> Result<Vec<Hostile>> {
        let made = |at: WallTime| Ok::<_, anyhow::Error>(Payload { at, ..self.alice.asks_for("ssh")? });
        let stale = made(now().before(TOLERANCE + MISS))?;
        let early = made(now().after(TOLERANCE + MISS))?;
        let knocks = [(stale, "stale"), (early, "early")];
        Ok(knocks.iter().flat_map(|(payload, reason)| several(reason, || self.alice.seal(payload))).collect())
    }

    fn others(&self, replayed: &Knock) -> Result<Vec<Hostile>> {
        let mut hostile = every_length();
        hostile.extend(self.damaged()?);
        hostile.extend(self.malformed()?);
        hostile.extend(self.overreaching()?);
        hostile.extend(several("replayed", || *replayed));
        for client in [&self.stranger, &self.disabled] {
            let payload = client.asks_for("ssh")?;
            hostile.extend(several("unknown", || client.seal(&payload)));
        }
        let yesterday = Payload { at: now().before(Duration::from_hours(24)), ..self.alice.asks_for("ssh")? };
        hostile.extend(several("unknown", || self.alice.seal(&yesterday)));
        Ok(hostile)
    }

    /// A good knock that was never sent, with each of its bits flipped, and cut at each of its bytes.
    fn damaged(&self) -> Result<Vec<Hostile>> {
        let good = self.alice.seal(&self.alice.asks_for("ssh")?);
        let flipped = (0..KNOCK_LEN * 8).map(|bit| {
            let mut knock = good.to_vec();
            knock[bit / 8] ^= 1 << (bit % 8);
            // The nonce veils the hint: whatever is flipped before the ciphertext names another client.
            (knock, Some(if bit / 8 < CIPHERTEXT_AT { "unknown" } else { "forged" }))
        });
        let cut = (0..KNOCK_LEN).map(|len| (good[..len].to_vec(), None));
        Ok(flipped.chain(cut).collect())
    }

    /// What is no payload, within a good seal; and one that was made in another epoch than its hint says.
    fn malformed(&self) -> Result<Vec<Hostile>> {
        let epoch = now().epoch();
        let payload = self.alice.asks_for("ssh")?.encode();
        let before = Epoch::new(epoch.number() - 1);
        let junk = several("malformed", || self.alice.seal_bytes(epoch, &random::<PAYLOAD_LEN>()));
        Ok(junk.into_iter().chain(several("malformed", || self.alice.seal_bytes(before, &payload))).collect())
    }

    /// What a client asks for that it may not have.
    fn overreaching(&self) -> Result<Vec<Hostile>> {
        let asks = || self.restricted.asks_for("ssh");
        let elsewhere = Source::Stated(Ipv4Addr::new(10, 0, 0, 99).into());
        let loopback = Source::Stated(Ipv4Addr::LOCALHOST.into());
        let long = Some(Window::from_secs(11)?);
        let knocks = [
            ("unknown-service", Payload { request: open("gopher", None)?, ..asks()? }),
            ("service-not-allowed", Payload { request: open("web", None)?, ..asks()? }),
            ("window-too-long", Payload { request: open("ssh", long)?, ..asks()? }),
            ("source-not-own", Payload { source: elsewhere, ..asks()? }),
            ("unusable-source", Payload { source: loopback, ..asks()? }),
        ];
        Ok(knocks
            .iter()
            .flat_map(|(reason, payload)| several(reason, || self.restricted.seal(payload)))
            .collect())
    }
}

/// Random bytes of every length that fits a packet.
fn every_length() -> Vec<Hostile> {
    let junk = random::<1401>();
    let reason = |len| (len == KNOCK_LEN).then_some("unknown");
    (0..junk.len()).map(|len| (junk[..len].to_vec(), reason(len))).collect()
}

fn several(reason: &'static str, knock: impl FnMut() -> Knock) -> Vec<Hostile> {
    repeat_with(knock).take(EACH).map(|knock| (knock.to_vec(), Some(reason))).collect()
}
