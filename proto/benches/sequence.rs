//! What a packet costs the matcher of sequences: a stranger's, a first step, and both when the table is full; and how
//! much memory the table takes.
//!
//! `cargo bench -p postern-proto`. Figures are of one core; compare only what one run printed.

use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use postern_proto::sequence::flags::SYN;
use postern_proto::sequence::{Door, Matcher, Now, Packet, Rolling, Sequence, Tcp};
use postern_proto::{Port, Protocol, SequenceKey, WallTime};

const NOW: Now = Now { elapsed: Duration::from_secs(1000), wall: WallTime::from_secs(1_800_000_000) };
const FIRST: u16 = 7000;
const OTHER: u16 = 443;

/// Resident memory of this process in kB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells a process its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the status has VmRSS");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("VmRSS is a number of kB")
}

fn syn(source: u32, port: u16) -> Packet {
    Packet {
        source: IpAddr::from(Ipv4Addr::from(source)),
        destination: IpAddr::from([198, 51, 100, 1]),
        port: Port { protocol: Protocol::Tcp, number: NonZeroU16::new(port).expect("not zero") },
        source_port: 40_000,
        tcp: Some(Tcp { flags: SYN, sequence: source }),
    }
}

fn doors(rolling: usize) -> Vec<Door> {
    let fixed = ["7000,8000,9000", "7100,8100:udp,9100", "7200,8200,9200,7200"];
    let fixed = fixed.iter().map(|steps| Sequence::Fixed(steps.parse().expect("valid steps")));
    let range = "20000-29999".parse().expect("a valid range");
    let rolling = (0..rolling).map(|number| {
        let key = SequenceKey::from_bytes([number.to_le_bytes()[0]; 32]);
        Sequence::Rolling(Box::new(Rolling::new(&key, range, 5, true).expect("a valid length")))
    });
    fixed.chain(rolling).map(Door::new).collect()
}

fn matcher(rolling: usize) -> Matcher {
    Matcher::new(doors(rolling), Matcher::SLOTS, [7; 16]).expect("valid doors")
}

fn full() -> Matcher {
    let before = resident();
    let mut matcher = matcher(1);
    let idle = resident();
    // Four times as many as there is room for: every bucket is full.
    for source in 0..4 << 20 {
        assert!(matcher.advance(NOW, &syn(source, FIRST)).is_empty());
    }
    assert_eq!(matcher.attempts(), Matcher::SLOTS);
    println!("the table takes {} kB idle, {} kB when it is full", idle - before, resident() - before);
    matcher
}

fn measure(criterion: &mut Criterion) {
    let mut source = 0_u32;
    // A Weyl sequence: every address once, in no order that a cache could follow.
    let mut packet = |port| {
        source = source.wrapping_add(0x9e37_79b9);
        syn(source, port)
    };
    let mut bench = |name: &str, matcher: &mut Matcher, port: u16| {
        criterion.bench_function(name, |bench| {
            bench.iter(|| black_box(matcher.advance(NOW, black_box(&packet(port)))).len());
        });
    };
    let mut full = full();
    bench("another port, nothing under way", &mut matcher(1), OTHER);
    let mut one = matcher(1);
    assert!(one.advance(NOW, &syn(1, FIRST)).is_empty());
    bench("another port, one attempt under way", &mut one, OTHER);
    bench("another port, table full", &mut full, OTHER);
    bench("first step, table full", &mut full, FIRST);
    bench("first step, table filling up", &mut matcher(1), FIRST);
    bench("a port in the range of 1 rolling sequence", &mut matcher(1), 20_000);
    bench("a port in the range of 10 rolling sequences", &mut matcher(10), 20_000);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = measure
}
criterion_main!(benches);
