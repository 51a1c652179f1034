//! Rolling sequences: their ports are random to whoever lacks the key, and each use is known again.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::sequence::flags::SYN;
use postern_proto::sequence::{
    Completed, Door, Matcher, Now, Packet, Rolling, RollingError, Sequence, Steps, Strays, Tcp,
};
use postern_proto::{Epoch, Port, SequenceKey, WallTime};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
/// The epoch of the gate's clock.
const EPOCH: u64 = 60_000_000;

fn rolling(key: u8, range: &str, length: usize, bound: bool) -> Rolling {
    let key = SequenceKey::from_bytes([key; 32]);
    Rolling::new(&key, range.parse().unwrap(), length, bound).unwrap()
}

fn door(rolling: &Rolling) -> Door {
    Door::new(Sequence::Rolling(Box::new(rolling.clone())))
}

struct Gate {
    matcher: Matcher,
    now: Now,
    connections: u32,
}

impl Gate {
    fn new(doors: Vec<Door>) -> Self {
        let now = Now { elapsed: Duration::from_secs(1000), wall: Epoch::new(EPOCH).start() };
        Self { matcher: Matcher::new(doors, 1024, [7; 16]).unwrap(), now, connections: 0 }
    }

    fn touch(&mut self, source: IpAddr, port: Port) -> Vec<Completed> {
        self.connections += 1;
        let tcp = Some(Tcp { flags: SYN, sequence: self.connections });
        let destination = IpAddr::from([198, 51, 100, 1]);
        self.matcher.advance(self.now, &Packet { source, destination, port, source_port: 40_000, tcp })
    }

    fn send(&mut self, source: IpAddr, steps: &Steps) -> Vec<Completed> {
        steps.as_slice().iter().flat_map(|&port| self.touch(source, port)).collect()
    }

    fn pass(&mut self, secs: u64) {
        let time = Duration::from_secs(secs);
        self.now = Now { elapsed: self.now.elapsed + time, wall: self.now.wall.after(time) };
    }
}

fn port(number: u16) -> Port {
    format!("{number}/tcp").parse().unwrap()
}

#[test]
fn the_epoch_and_its_neighbours_open() {
    let rolling = rolling(1, "20000-29999", 5, true);
    for (epoch, want) in [(-2, false), (-1, true), (0, true), (1, true), (2, false)] {
        let epoch = Epoch::new(EPOCH.checked_add_signed(epoch).unwrap());
        let opened = Gate::new(vec![door(&rolling)]).send(HERE, &rolling.steps(epoch, HERE));
        let done = Completed { door: 0, used: Some(rolling.used(epoch, HERE)) };
        assert_eq!(opened, if want { vec![done] } else { vec![] }, "{epoch:?}");
    }
    let epoch = Epoch::new(0);
    let mut gate = Gate::new(vec![door(&rolling)]);
    gate.now.wall = WallTime::from_secs(0);
    assert_eq!(gate.send(HERE, &rolling.steps(epoch, HERE)).len(), 1, "the first epoch has none before it");
    gate.now.wall = WallTime::from_micros(u64::MAX);
    assert_eq!(gate.send(HERE, &rolling.steps(gate.now.wall.epoch(), HERE)), [], "no clock shows that time");
}

#[test]
fn a_sequence_begun_in_its_epoch_may_end_in_another() {
    let rolling = rolling(1, "20000-29999", 3, true);
    let mut gate = Gate::new(vec![Door { timeout: Duration::from_secs(100), ..door(&rolling) }]);
    let steps = rolling.steps(Epoch::new(EPOCH - 1), HERE);
    let [one, two, three] = *steps.as_slice() else { panic!("three steps") };
    assert_eq!(gate.touch(HERE, one), []);
    gate.pass(60);
    assert_eq!(gate.touch(HERE, two), []);
    assert_eq!(gate.touch(HERE, three)[0].used.unwrap().epoch, Epoch::new(EPOCH - 1));
    assert_eq!(gate.send(HERE, &steps), [], "but not begin there");
}

#[test]
fn only_the_source_that_it_is_bound_to() {
    let (bound, free) = (rolling(1, "20000-29999", 5, true), rolling(1, "20000-29999", 5, false));
    let epoch = Epoch::new(EPOCH);
    assert_eq!(Gate::new(vec![door(&bound)]).send(THERE, &bound.steps(epoch, HERE)), []);
    assert_eq!(Gate::new(vec![door(&free)]).send(THERE, &free.steps(epoch, HERE)).len(), 1);
    assert_eq!(free.steps(epoch, HERE), free.steps(epoch, THERE));
    assert_ne!(bound.steps(epoch, HERE), free.steps(epoch, HERE));
}

#[test]
fn a_use_is_the_same_only_for_the_same_sequence() {
    let mut gate = Gate::new(vec![door(&rolling(1, "20000-29999", 5, true))]);
    let steps = rolling(1, "20000-29999", 5, true).steps(Epoch::new(EPOCH), HERE);
    let (first, again) = (gate.send(HERE, &steps), gate.send(HERE, &steps));
    assert_eq!((first.len(), &first), (1, &again), "the caller knows it by what it recorded");

    let mut recorded = HashSet::new();
    for (key, bound) in [(1, true), (1, false), (2, true), (2, false)] {
        let rolling = rolling(key, "20000-29999", 5, bound);
        for epoch in [EPOCH, EPOCH + 1] {
            for source in [HERE, THERE] {
                let used = rolling.used(Epoch::new(epoch), source);
                recorded.insert((used.id, used.nonce));
            }
        }
    }
    assert_eq!(recorded.len(), 4 + 2 + 4 + 2, "without a source, one in each epoch");
}

#[test]
fn a_wrong_port_of_the_range_ends_it_and_others_are_strays() {
    let rolling = rolling(1, "20000-20099", 3, true);
    let steps = rolling.steps(Epoch::new(EPOCH), HERE);
    let [one, two, three] = *steps.as_slice() else { panic!("three steps") };
    let firsts =
        [EPOCH - 1, EPOCH, EPOCH + 1].map(|epoch| rolling.steps(Epoch::new(epoch), HERE).as_slice()[0]);
    let wrong =
        (20_000..20_100).map(port).find(|port| !steps.as_slice().contains(port) && !firsts.contains(port));
    let strays = (1..=5).map(port);
    let opens = |ports: Vec<Port>| {
        !Gate::new(vec![door(&rolling)]).send(HERE, &Steps::new(ports).unwrap()).is_empty()
    };
    assert!(opens(vec![one, two, three]));
    assert!(!opens(vec![one, wrong.unwrap(), two, three]));
    assert!(!opens(vec![one, two, two, three]));
    assert!(opens(vec![one, one, two, three]), "the first one begins anew");
    assert!(opens([one, two].into_iter().chain(strays.clone()).chain([three]).collect()));
    assert!(!opens([one, two].into_iter().chain(strays).chain([port(6), three]).collect()));
}

/// Where epochs share a first port, or one's step is another's first, all are followed.
#[test]
fn every_epoch_opens_in_a_small_range_too() {
    for key in 0..100 {
        let rolling = rolling(key, "20000-20005", 6, true);
        for epoch in [EPOCH - 1, EPOCH, EPOCH + 1] {
            let opened = Gate::new(vec![door(&rolling)]).send(HERE, &rolling.steps(Epoch::new(epoch), HERE));
            assert!(
                opened.iter().any(|done| done.used.unwrap().epoch == Epoch::new(epoch)),
                "key {key}, epoch {epoch}"
            );
        }
    }
}

#[test]
fn scans_of_the_range_open_nothing() {
    let rolling = rolling(1, "20000-29999", 3, true);
    let mut gate = Gate::new(vec![Door { strays: Strays::Unlimited, ..door(&rolling) }]);
    for scan in 0..3 {
        for number in 20_000..30_000 {
            assert_eq!(gate.touch(HERE, port(number)), [], "scan {scan}");
        }
    }
}

/// Chi-square over 3,000 sequences of 5 out of 40 ports, each position for itself: 39 degrees of freedom. 5 positions
/// and 2 sides are 10 looks; the bounds leave 0.001 to chance in each (quantiles at 0.001 and 0.999).
#[test]
fn ports_are_spread_evenly_and_differ() {
    let rolling = rolling(1, "20000-20039", 5, false);
    let mut cells = [[0_u32; 40]; 5];
    let sequences = 3000_u32;
    for epoch in 0..u64::from(sequences) {
        let steps = rolling.steps(Epoch::new(epoch), HERE);
        assert_eq!(steps.as_slice().iter().collect::<HashSet<_>>().len(), 5, "all different");
        for (position, step) in steps.as_slice().iter().enumerate() {
            cells[position][usize::from(step.number.get() - 20_000)] += 1;
        }
    }
    let expected = f64::from(sequences) / 40.0;
    for (position, cells) in cells.iter().enumerate() {
        let sum: f64 = cells.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
        assert!((17.262..=72.054).contains(&sum), "position {position}: {sum}");
    }
}

#[test]
fn lengths_and_ranges_have_bounds() {
    let new = |range: &str, length| {
        Rolling::new(&SequenceKey::from_bytes([1; 32]), range.parse().unwrap(), length, true)
            .map(|r| r.length())
            .err()
    };
    assert_eq!(new("1-65535", 0), Some(RollingError::Length));
    assert_eq!(new("1-65535", 33), Some(RollingError::Length));
    assert_eq!(new("1-65535", 32), None);
    assert_eq!(new("7000-7003", 5), Some(RollingError::Range));
    assert_eq!(new("7000-7003", 4), None);
}

#[test]
fn keys_have_a_text_and_are_not_printed() {
    let key = SequenceKey::from_bytes([7; 32]);
    assert!(SequenceKey::from_text(&key.to_text()) == Ok(key.clone()));
    let printed = format!("{:?}", door(&rolling(7, "1-9", 2, true)));
    assert!(printed.contains("length: 2, bound: true, .."), "{printed}");
    assert!(!printed.contains("Key") && !printed.contains(key.to_text().as_str()), "{printed}");
}
