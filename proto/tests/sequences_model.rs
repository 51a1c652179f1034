//! The matcher against a model that forgets nothing and is bounded by nothing, on random schedules of few ports.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::sequence::flags::{ACK, SYN};
use postern_proto::sequence::{Door, Matcher, Now, Packet, Rolling, Sequence, Steps, Strays, Tcp, TcpFlags};
use postern_proto::{Epoch, Port, Protocol, SequenceKey, WallTime};
use proptest::collection::vec;
use proptest::prelude::*;

/// One source's attempt at one door in one epoch, with everything that it ever saw.
struct Attempt {
    began: Duration,
    steps: Vec<Port>,
    taken: Vec<Packet>,
    strays: Vec<Packet>,
}

#[derive(Default)]
struct Model {
    attempts: HashMap<(IpAddr, usize, u64), Attempt>,
}

impl Model {
    /// The doors and epochs that a packet completes.
    fn advance(&mut self, doors: &[Door], now: Now, packet: &Packet) -> Vec<(usize, u64)> {
        let mut completed = Vec::new();
        for (index, door) in doors.iter().enumerate() {
            // A schedule begins in epoch 50 and is over, one way or the other, long before these are.
            let epochs = if matches!(door.sequence, Sequence::Rolling(_)) { 35..=65 } else { 0..=0 };
            for epoch in epochs {
                if self.advance_one(door, index, epoch, now, packet) {
                    completed.push((index, epoch));
                }
            }
        }
        completed
    }

    fn advance_one(&mut self, door: &Door, index: usize, epoch: u64, now: Now, packet: &Packet) -> bool {
        let (own, steps) = match &door.sequence {
            Sequence::Fixed(steps) => (steps.as_slice().contains(&packet.port), steps.as_slice().to_vec()),
            Sequence::Rolling(rolling) => {
                let steps = rolling.steps(Epoch::new(epoch), packet.source);
                (rolling.range().contains(packet.port), steps.as_slice().to_vec())
            }
            Sequence::Spent => return false,
        };
        let may_begin = match door.sequence {
            Sequence::Rolling(_) => now.wall.epoch().number().abs_diff(epoch) <= 1,
            _ => true,
        };
        let key = (packet.source, index, epoch);
        let is_over = |attempt: &Attempt| now.elapsed.abs_diff(attempt.began) >= door.timeout;
        if self.attempts.get(&key).is_some_and(is_over) {
            self.attempts.remove(&key);
        }
        let matches = packet.tcp.is_none_or(|tcp| door.flags.matches(tcp.flags));
        let begins = own && matches && may_begin && steps[0] == packet.port;
        if door.target.is_some_and(|target| target != packet.destination) {
            return false;
        }
        if let Some(attempt) = self.attempts.get_mut(&key) {
            match attempt.take(door, packet, own, matches) {
                Some(completes) => return completes,
                None => drop(self.attempts.remove(&key)),
            }
        }
        if begins {
            let attempt = Attempt { began: now.elapsed, steps, taken: vec![*packet], strays: vec![] };
            let completes = attempt.steps.len() == 1;
            self.attempts.insert(key, attempt);
            return completes;
        }
        false
    }
}

impl Attempt {
    /// Whether a packet completes the attempt; `None` when it ends it.
    fn take(&mut self, door: &Door, packet: &Packet, own: bool, matches: bool) -> Option<bool> {
        let is_new = packet.tcp.is_none_or(|tcp| tcp.flags & (SYN | ACK) == SYN);
        let again = |known: &[Packet]| packet.tcp.is_some() && known.iter().any(|other| same(other, packet));
        if own {
            if !matches || again(&self.taken) {
                return Some(false);
            }
            if self.steps.get(self.taken.len()) != Some(&packet.port) {
                return None;
            }
            self.taken.push(*packet);
            return Some(self.taken.len() == self.steps.len());
        }
        if (is_new || matches) && !again(&self.strays) {
            self.strays.push(*packet);
        }
        match door.strays {
            Strays::AtMost(most) if self.strays.len() > usize::from(most) => None,
            _ => Some(false),
        }
    }
}

fn same(one: &Packet, other: &Packet) -> bool {
    let identity = |packet: &Packet| {
        (
            packet.source,
            packet.destination,
            packet.port,
            packet.source_port,
            packet.tcp.map(|tcp| tcp.sequence),
        )
    };
    identity(one) == identity(other)
}

fn port() -> impl Strategy<Value = Port> {
    // Mostly TCP, so that sequences have a chance.
    (1..=6_u16, 0..4_u8).prop_map(|(number, protocol)| Port {
        protocol: if protocol == 0 { Protocol::Udp } else { Protocol::Tcp },
        number: number.try_into().unwrap(),
    })
}

fn sequence() -> impl Strategy<Value = Sequence> {
    let fixed = vec(port(), 1..=6).prop_map(|steps| Sequence::Fixed(Steps::new(steps).unwrap()));
    let rolling = (any::<[u8; 32]>(), 1..=3_usize, any::<bool>()).prop_map(|(key, length, bound)| {
        let range = "2-5".parse().unwrap();
        let key = SequenceKey::from_bytes(key);
        Sequence::Rolling(Box::new(Rolling::new(&key, range, length, bound).unwrap()))
    });
    prop_oneof![4 => fixed, 1 => rolling]
}

prop_compose! {
    fn door()(
        sequence in sequence(),
        timeout in prop_oneof![Just(2000_u64), Just(10_000), Just(25_000)],
        flags in prop_oneof![Just("any"), Just("syn"), Just("syn,!ack")],
        target in proptest::option::weighted(0.2, Just(IpAddr::from([198, 51, 100, 1]))),
        strays in prop_oneof![(0..=5_u16).prop_map(Strays::AtMost), Just(Strays::Unlimited)],
    ) -> Door {
        let timeout = Duration::from_millis(timeout);
        Door { sequence, timeout, flags: flags.parse::<TcpFlags>().unwrap(), target, strays }
    }
}

prop_compose! {
    /// Milliseconds since the last packet, and a packet.
    fn event()(
        pause in prop_oneof![6 => 0..500_i64, 2 => 500..6000_i64, 1 => -6000..0_i64],
        source in 1..=2_u8,
        destination in prop_oneof![5 => Just(1_u8), 1 => Just(2)],
        port in port(),
        source_port in 1..=2_u16,
        sequence in 1..=4_u32,
        flags in prop_oneof![8 => Just(SYN), 1 => Just(ACK), 1 => Just(SYN | ACK)],
    ) -> (i64, Packet) {
        (pause, Packet {
            source: [192, 0, 2, source].into(),
            destination: [198, 51, 100, destination].into(),
            port,
            source_port,
            tcp: (port.protocol == Protocol::Tcp).then_some(Tcp { flags, sequence }),
        })
    }
}

/// A schedule in which the next port of a door comes about every other time, or nothing would ever open.
fn follow(doors: &[Door], events: &[(i64, Packet)]) -> Vec<(i64, Packet)> {
    let steps = |door: &Door| match &door.sequence {
        Sequence::Fixed(steps) => steps.as_slice().to_vec(),
        Sequence::Rolling(rolling) => {
            rolling.steps(Epoch::new(50), IpAddr::from([192, 0, 2, 1])).as_slice().to_vec()
        }
        Sequence::Spent => vec![],
    };
    let wanted: Vec<Port> = doors.iter().flat_map(steps).collect();
    let mut wanted = wanted.iter().cycle();
    let steer = |(index, &(pause, packet)): (usize, &(i64, Packet))| {
        let Packet { source, destination, source_port, .. } = packet;
        let port = if index % 8 < 5 { *wanted.next().unwrap() } else { packet.port };
        let sequence = u32::try_from(index % 8).unwrap();
        let fresh = Tcp { flags: SYN, sequence };
        let tcp = (port.protocol == Protocol::Tcp).then(|| packet.tcp.unwrap_or(fresh));
        (pause, Packet { source, destination, port, source_port, tcp })
    };
    events.iter().enumerate().map(steer).collect()
}

/// Runs a schedule through both, and counts what opened.
fn agree(doors: &[Door], events: &[(i64, Packet)]) -> Result<usize, TestCaseError> {
    let mut matcher = Matcher::new(doors.to_vec(), 1024, [7; 16]).unwrap();
    let (mut model, mut opened) = (Model::default(), 0);
    let mut millis = 50 * 30_000_u64;
    for (index, (pause, packet)) in events.iter().enumerate() {
        millis = millis.saturating_add_signed(*pause);
        let now = Now { elapsed: Duration::from_millis(millis), wall: WallTime::from_micros(millis * 1000) };
        let mut got: Vec<_> = matcher
            .advance(now, packet)
            .iter()
            .map(|done| (done.door, done.used.map_or(0, |used| used.epoch.number())))
            .collect();
        got.sort_unstable();
        let want = model.advance(doors, now, packet);
        prop_assert_eq!(&got, &want, "packet {} of {:?}", index, events);
        opened += got.len();
    }
    Ok(opened)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_model(doors in vec(door(), 1..=4), events in vec(event(), 1..60), steered: bool) {
        let events = if steered { follow(&doors, &events) } else { events };
        agree(&doors, &events)?;
    }
}

/// The schedules above are worth something: they open doors, of all lengths.
#[test]
fn the_schedules_open_doors() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut opened = [0; 7];
    for _ in 0..500 {
        let doors = vec(door(), 1..=1).new_tree(&mut runner).unwrap().current();
        let events = vec(event(), 60).new_tree(&mut runner).unwrap().current();
        let Sequence::Fixed(steps) = &doors[0].sequence else { continue };
        opened[steps.as_slice().len()] += agree(&doors, &follow(&doors, &events)).unwrap();
    }
    assert!(opened[1..].iter().all(|&count| count > 0), "opened by length: {opened:?}");
}
