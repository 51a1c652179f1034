//! Scans and floods against sequences, with a simulated clock and a fixed seed.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use postern_proto::sequence::flags::SYN;
use postern_proto::sequence::{Door, Matcher, Now, Packet, Sequence, Strays, Tcp};
use postern_proto::{Port, Protocol, WallTime};

const FIRST: u16 = 7000;

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let one = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let two = (one ^ (one >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        two ^ (two >> 31)
    }

    /// Any address, of either kind.
    fn address(&mut self) -> IpAddr {
        let [number, more] = [self.draw(), self.draw()];
        if number.is_multiple_of(2) {
            Ipv6Addr::from_bits(u128::from(number) << 64 | u128::from(more)).into()
        } else {
            Ipv4Addr::from(u32::try_from(number >> 32).unwrap()).into()
        }
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, usize::try_from(self.draw() % (end as u64 + 1)).unwrap());
        }
    }
}

struct Gate {
    matcher: Matcher,
    now: Duration,
    packets: u32,
}

impl Gate {
    fn new(slots: usize, strays: Strays) -> Self {
        let door = Door { strays, ..Door::new(Sequence::Fixed("7000,8000,9000".parse().unwrap())) };
        let matcher = Matcher::new(vec![door], slots, *b"a key of a test.").unwrap();
        Self { matcher, now: Duration::from_secs(1000), packets: 0 }
    }

    /// A new connection, or a datagram: whether it opens the door.
    fn touch(&mut self, source: IpAddr, protocol: Protocol, number: u16) -> bool {
        self.packets += 1;
        let port = Port { protocol, number: number.try_into().unwrap() };
        let tcp = (protocol == Protocol::Tcp).then_some(Tcp { flags: SYN, sequence: self.packets });
        let destination = IpAddr::from([198, 51, 100, 1]);
        let now = Now { elapsed: self.now, wall: WallTime::from_secs(1_800_000_000) };
        !self.matcher.advance(now, &Packet { source, destination, port, source_port: 40_000, tcp }).is_empty()
    }

    fn syn(&mut self, source: IpAddr, number: u16) -> bool {
        self.touch(source, Protocol::Tcp, number)
    }
}

/// How many of these scans open the door. One takes 13 s: time enough.
fn opened_by_scans(strays: Strays, scans: impl Iterator<Item = Vec<u16>>) -> usize {
    let (scanner, mut gate) = (IpAddr::from([192, 0, 2, 1]), Gate::new(1024, strays));
    let mut scan = |ports: Vec<u16>| {
        gate.now += Duration::from_mins(1);
        let mut opened = 0;
        for port in ports {
            gate.now += Duration::from_micros(200);
            opened += usize::from(gate.syn(scanner, port));
        }
        opened
    };
    scans.map(&mut scan).sum()
}

#[test]
fn scans_of_all_ports_open_nothing() {
    let up = || (1..=u16::MAX).collect::<Vec<_>>();
    let down = || (1..=u16::MAX).rev().collect::<Vec<_>>();
    let mut random = Random(1);
    let mut shuffled = move || {
        let mut ports = up();
        random.shuffle(&mut ports);
        ports
    };
    for strays in [Strays::AtMost(0), Strays::default()] {
        assert_eq!(opened_by_scans(strays, [up(), up(), down(), up()].into_iter()), 0);
        assert_eq!(opened_by_scans(strays, (0..30).map(|_| shuffled())), 0);
    }
    // And they would, if strays did not count.
    assert_eq!(opened_by_scans(Strays::Unlimited, [up(), up(), down(), up()].into_iter()), 3);
    let opened = opened_by_scans(Strays::Unlimited, (0..30).map(|_| shuffled()));
    assert!((1..15).contains(&opened), "about one in six: {opened}");
}

#[test]
fn a_scan_with_datagrams_in_between_opens_nothing() {
    let mut gate = Gate::new(1024, Strays::default());
    let scanner = IpAddr::from([192, 0, 2, 1]);
    assert!(!(1..=u16::MAX).any(|port| {
        let datagram = gate.touch(scanner, Protocol::Udp, port);
        datagram || (matches!(port, 7000 | 8000 | 9000) && gate.syn(scanner, port))
    }));
}

/// 100,000 spoofed addresses in five seconds, with one sequence begun before them and one in their midst.
#[test]
fn a_hundred_thousand_spoofed_sources_keep_nobody_out() {
    let (mut gate, mut random) = (Gate::new(Matcher::SLOTS, Strays::default()), Random(2));
    let (before, during) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    assert!(!gate.syn(before, FIRST));
    let mut opened = Vec::new();
    for number in 0..100_000 {
        gate.now += Duration::from_micros(50);
        let spoofed = random.address();
        assert!(!gate.syn(spoofed, FIRST));
        for (source, at, port) in [
            (during, 40_000, 7000),
            (before, 45_000, 8000),
            (during, 60_000, 8000),
            (during, 80_000, 9000),
            (before, 99_999, 9000),
        ] {
            if number == at && gate.syn(source, port) {
                opened.push(source);
            }
        }
    }
    assert_eq!(opened, [during, before]);
    assert_eq!(gate.matcher.attempts(), 100_002, "there was room for all");
}

/// The part of honest attempts that open while so many spoofed first steps a second come in, at a table of
/// `Matcher::SLOTS`: rate and table are made smaller alike. Half a second passes between the first two steps, ten
/// between the second and the third.
fn part_that_opens(rate: u64) -> f64 {
    const SMALLER: u64 = 64;
    const HONEST: u32 = 1000;
    let slots = Matcher::SLOTS / usize::try_from(SMALLER).unwrap();
    let (mut gate, mut random) = (Gate::new(slots, Strays::default()), Random(rate));
    let begun = gate.now;
    // The table is full, or as full as it gets, after the time-out.
    let begins = |client: u32| begun + Duration::from_secs(30) + Duration::from_millis(100) * client;
    let mut steps: Vec<_> = (0..HONEST)
        .flat_map(|client| {
            let address = IpAddr::from(Ipv4Addr::from(0xc000_0200 + client));
            [(0, 7000), (500, 8000), (10_500, 9000)]
                .map(|(millis, port)| (begins(client) + Duration::from_millis(millis), address, port))
        })
        .collect();
    steps.sort_unstable();
    let mut opened = 0;
    for (at, address, port) in steps {
        while gate.now < at {
            gate.now += Duration::from_nanos(1_000_000_000 * SMALLER / rate);
            let spoofed = random.address();
            gate.syn(spoofed, FIRST);
        }
        opened += u32::from(gate.syn(address, port));
    }
    assert!(gate.matcher.attempts() <= slots, "the table is bounded");
    f64::from(opened) / f64::from(HONEST)
}

/// The figures that the matcher's description states.
#[test]
fn crowding_out_begins_where_it_is_said_to() {
    for (rate, want) in [(20_000, 0.998..=1.0), (100_000, 0.93..=0.975), (400_000, 0.79..=0.86)] {
        let part = part_that_opens(rate);
        println!("{rate} spoofed first steps a second: {part} of honest attempts open");
        assert!(want.contains(&part), "{rate} a second: {part}");
    }
}
