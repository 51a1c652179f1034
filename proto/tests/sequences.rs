//! The rules of sequences, one case each, as schedules of packets in one line.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::sequence::flags::{ACK, FIN, RST, SYN};
use postern_proto::sequence::{Door, Matcher, MatcherError, Now, Packet, Sequence, Strays, Tcp, TcpFlags};
use postern_proto::{Port, Protocol, WallTime};

const SLOTS: usize = 1 << 14;

/// Runs schedules of words with blanks between them, each a packet or a time:
///
/// `7000` a new connection to this port; `7000:udp` a datagram; `=7000` the last SYN to it again; `7000/a` with these
/// flags (s, a, f, r); `b>7000` from another source; `7000@2` to another address of the gate; `+500` that many
/// milliseconds pass; `-500` time goes back.
struct Run {
    matcher: Matcher,
    now: Duration,
    connections: u32,
    last: HashMap<(IpAddr, Port), Packet>,
}

impl Run {
    fn new(doors: Vec<Door>) -> Self {
        let matcher = Matcher::new(doors, SLOTS, [7; 16]).unwrap();
        Self { matcher, now: Duration::from_secs(1000), connections: 0, last: HashMap::new() }
    }

    /// The doors that a schedule opens, each behind the number of the word that did it.
    fn play(&mut self, schedule: &str) -> Vec<(usize, usize)> {
        let mut opened = Vec::new();
        for (number, word) in schedule.split_whitespace().enumerate() {
            if let Some(millis) = word.strip_prefix('+') {
                self.now += Duration::from_millis(millis.parse().unwrap());
            } else if let Some(millis) = word.strip_prefix('-') {
                self.now -= Duration::from_millis(millis.parse().unwrap());
            } else {
                let packet = self.packet(word);
                let now = Now { elapsed: self.now, wall: WallTime::from_secs(1_800_000_000) };
                opened.extend(self.matcher.advance(now, &packet).iter().map(|done| (number, done.door)));
            }
        }
        opened
    }

    fn packet(&mut self, word: &str) -> Packet {
        let (source, word) = word.split_once('>').unwrap_or(("a", word));
        let source = match source {
            "a" => "192.0.2.1",
            "b" => "192.0.2.2",
            "6" => "2001:db8::1",
            "mapped" => "::ffff:192.0.2.1",
            other => other,
        };
        let source = source.parse().unwrap();
        let (word, destination) = word.split_once('@').unwrap_or((word, "1"));
        let (word, flags) = word.split_once('/').unwrap_or((word, "s"));
        let port = |word: &str| word.parse::<postern_proto::sequence::Steps>().unwrap().as_slice()[0];
        if let Some(again) = word.strip_prefix('=') {
            return self.last[&(source, port(again))];
        }
        self.connections += 1;
        let bit = |flag| match flag {
            's' => SYN,
            'a' => ACK,
            'f' => FIN,
            'r' => RST,
            other => panic!("no such flag: {other}"),
        };
        let tcp =
            Tcp { flags: flags.chars().fold(0, |bits, flag| bits | bit(flag)), sequence: self.connections };
        let port = port(word);
        let packet = Packet {
            source,
            destination: format!("198.51.100.{destination}").parse().unwrap(),
            port,
            source_port: 40_000,
            tcp: (port.protocol == Protocol::Tcp).then_some(tcp),
        };
        self.last.insert((source, port), packet);
        packet
    }
}

fn door(steps: &str) -> Door {
    Door::new(Sequence::Fixed(steps.parse().unwrap()))
}

/// What a schedule opens: `"5:0"` when word number 5 opens door 0.
fn opens(doors: &[Door], schedule: &str) -> String {
    let opened = Run::new(doors.to_vec()).play(schedule);
    opened.iter().map(|(word, door)| format!("{word}:{door}")).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn table(doors: &[Door], cases: &[(&str, &str, &str)]) {
    for (what, schedule, want) in cases {
        assert_eq!(opens(doors, schedule), *want, "{what}: {schedule}");
    }
}

#[test]
fn steps_in_order_open() {
    table(
        &[door("7000,8000,9000")],
        &[
            ("in order", "7000 8000 9000", "2:0"),
            ("from IPv6", "6>7000 6>8000 6>9000", "2:0"),
            ("to several addresses of the gate", "7000@1 8000@2 9000@3", "2:0"),
            ("twice", "7000 8000 9000 7000 8000 9000", "2:0 5:0"),
            ("two swapped", "7000 9000 8000", ""),
            ("backwards", "9000 8000 7000", ""),
            ("not all", "7000 8000", ""),
            ("not the first", "8000 9000", ""),
            ("the wrong protocol", "7000 8000:udp 9000", ""),
            ("by two sources", "a>7000 b>8000 a>9000", ""),
            ("two sources at a time", "a>7000 b>7000 a>8000 b>8000 b>9000 a>9000", "4:0 5:0"),
            ("IPv4 mapped into IPv6 is IPv4", "a>7000 mapped>8000 a>9000", "2:0"),
        ],
    );
    table(&[door("7000")], &[("one step", "7000 7001 7000", "0:0 2:0"), ("sent again", "7000 =7000", "0:0")]);
    table(
        &[door("7000:udp,8000,9000:udp")],
        &[
            ("TCP and UDP", "7000:udp 8000 9000:udp", "2:0"),
            ("only TCP", "7000 8000 9000", ""),
            ("a datagram twice is a wrong step", "7000:udp 8000 8000 9000:udp", ""),
        ],
    );
    table(
        &[door("7000,7000,8000,7000")],
        &[
            ("a port that comes again", "7000 7000 8000 7000", "3:0"),
            ("once is not enough", "7000 8000 7000", ""),
            ("and a packet that comes again is not it", "7000 =7000 8000 7000", ""),
            ("what came before is not considered again", "7000 7000 7000 8000 7000", ""),
        ],
    );
    let longest: Vec<_> = (1..=32).map(|step| (step * 2000).to_string()).collect();
    assert_eq!(opens(&[door(&longest.join(","))], &longest.join(" ")), "31:0");
}

#[test]
fn a_wrong_step_ends_the_attempt() {
    table(
        &[door("7000,8000,9000")],
        &[
            ("a step left out", "7000 9000 8000 9000", ""),
            ("a step twice", "7000 8000 8000 9000", ""),
            ("the first step twice begins anew", "7000 7000 8000 9000", "3:0"),
            ("the first step in the middle begins anew", "7000 8000 7000 8000 9000", "4:0"),
            ("and forgets what was", "7000 8000 7000 9000", ""),
            ("after a wrong step, from the beginning", "7000 9000 7000 8000 9000", "4:0"),
        ],
    );
}

#[test]
fn doors_know_nothing_of_each_other() {
    let prefix = [door("7000,8000"), door("7000,8000,9000")];
    table(
        &prefix,
        &[
            ("a door that is a prefix of another", "7000 8000 9000", "1:0 2:1"),
            ("the longer one also opens alone", "7000 8000 8000 7000 8000 9000", "1:0 4:0 5:1"),
        ],
    );
    table(
        &[door("7000,8000"), door("7000,9000"), door("7000,8000")],
        &[
            ("doors that begin alike all advance", "7000 9000", "1:1"),
            ("what is wrong for one is right for another", "7000 8000", "1:0 1:2"),
            ("and the port of another is no wrong step", "7000 9000 8000", "1:1 2:0 2:2"),
        ],
    );
    table(
        &[door("7000,8000,9000"), door("8000,9000,7000")],
        &[
            ("a first step of another door is begun", "7000 8000 9000", "2:0"),
            ("within the other's sequence", "7000 8000 9000 7000", "2:0 3:1"),
            ("also when it is wrong for the first", "7000 7000 8000 8000 9000 7000", "5:1"),
        ],
    );
    table(
        &[door("1000,1001,1002"), door("2000,2001,2002")],
        &[("two interleaved", "1000 2000 1001 2001 1002 2002", "4:0 5:1")],
    );
}

#[test]
fn a_packet_sent_again_is_nothing() {
    table(
        &[door("7000,8000,9000")],
        &[
            ("the first", "7000 =7000 8000 9000", "3:0"),
            ("each", "7000 =7000 8000 =8000 9000 =9000", "4:0"),
            ("an earlier one after the next step", "7000 8000 =7000 9000", "3:0"),
            ("all earlier ones, several times", "7000 8000 =7000 =8000 =7000 9000 =9000 =8000 =7000", "5:0"),
            ("not after the time", "7000 +25000 =7000 8000 9000", "4:0"),
            ("from somebody else it is his first", "7000 b>7000 8000 9000", "3:0"),
            ("to another address it is another one", "7000 8000 8000@2 9000", ""),
            ("a datagram is never the same", "7000 7000:udp 7000:udp 8000 9000", "4:0"),
        ],
    );
    table(
        &[door("1,2,3,4,5,6,7,8")],
        &[
            ("the last six are known", "1 2 3 4 5 6 7 =2 =3 =4 =5 =6 =7 8", "13:0"),
            ("the one before them is not", "1 2 3 4 5 6 7 =1 8", ""),
        ],
    );
    let mut run = Run::new(vec![door("7000,8000")]);
    run.play("7000");
    let mut other = run.last[&("192.0.2.1".parse().unwrap(), "7000/tcp".parse().unwrap())];
    other.source_port += 1;
    run.last.insert((other.source, other.port), other);
    assert_eq!(run.play("=7000 8000"), [(1, 0)], "from another port it is new, and begins anew");
}

#[test]
fn strays_are_counted() {
    let with = |strays| [Door { strays, ..door("7000,8000,9000") }];
    table(
        &with(Strays::default()),
        &[
            ("a few do no harm", "7000 1 2 8000 3 4 5 9000", "7:0"),
            ("one more does", "7000 1 2 8000 3 4 5 6 9000", ""),
            ("datagrams count", "7000 1:udp 1:udp 1:udp 1:udp 1:udp 1:udp 8000 9000", ""),
            ("TCP and UDP together", "7000 1 2 3 4:udp 5:udp 6:udp 8000 9000", ""),
            ("a SYN sent again does not", "7000 1 =1 =1 2 =1 =2 3 4 5 =1 =2 =3 =4 =5 =5 8000 9000", "17:0"),
            ("another connection to the same port does", "7000 1 1 1 1 1 1 8000 9000", ""),
            (
                "standing connections do not",
                "7000 1/a 2/a 3/fa 1/r 2/f 3/ra 1/sa 2/sa 3/sa 4/sa 5/sa 6/sa 8000 9000",
                "14:0",
            ),
            ("those before the first step do not", "1 2 3 4 5 6 7000 8000 9000", "8:0"),
            ("nor those of others", "7000 b>1 b>2 b>3 b>4 b>5 b>6 8000 9000", "8:0"),
            ("they begin at none when the first step comes again", "7000 1 2 3 7000 4 5 6 8000 9000", "9:0"),
        ],
    );
    table(
        &with(Strays::AtMost(0)),
        &[("none", "7000 8000 9000", "2:0"), ("none allowed", "7000 1 8000 9000", "")],
    );
    let many = (10_000..20_000).map(|port| port.to_string()).collect::<Vec<_>>().join(" ");
    let schedule = format!("7000 {many} 8000 9000");
    assert_eq!(opens(&with(Strays::Unlimited), &schedule), "10002:0");
    table(
        &[Door { strays: Strays::AtMost(1), ..door("7000,8000") }, door("1000,1001")],
        &[("a port of another door is a stray", "7000 1000 8000 7000 1000 1001 8000", "2:0 5:1")],
    );
}

#[test]
fn flags_decide_what_counts() {
    table(
        &[door("7000,8000")],
        &[
            ("what does not match is ignored", "7000 8000/a 7000/a 7000/sa 8000/r 7000/sf 8000", "6:0"),
            ("also as the first step", "7000/a 8000", ""),
        ],
    );
    let with = |flags: &str| [Door { flags: flags.parse().unwrap(), ..door("7000,8000,8000:udp") }];
    table(
        &with("fin,!syn"),
        &[("others", "7000/f 7000 8000/fa 8000:udp", "3:0"), ("UDP has none", "7000 8000 8000:udp", "")],
    );
    assert_eq!("any".parse(), Ok(TcpFlags::ANY));
    table(
        &with("any"),
        &[
            ("any", "7000/a 8000/r 8000:udp", "2:0"),
            ("any is wrong, too", "7000 7000/a 8000/a 8000:udp", "3:0"),
        ],
    );
    table(&with("any"), &[("any wrong one ends it", "7000 8000 7000/a 8000:udp", "")]);
    let mut without = Run::new(vec![door("7000")]);
    let packet = Packet { tcp: None, ..without.packet("7000") };
    let now = Now { elapsed: Duration::ZERO, wall: WallTime::from_secs(0) };
    assert!(without.matcher.advance(now, &packet).is_empty(), "TCP without a header");
}

#[test]
fn a_target_must_be_met() {
    let target = Some("::ffff:198.51.100.9".parse().unwrap());
    table(
        &[Door { target, strays: Strays::AtMost(0), ..door("7000,8000") }],
        &[
            ("it is", "7000@9 8000@9", "1:0"),
            ("it is not", "7000 8000", ""),
            ("what goes elsewhere is ignored", "7000@9 8000 7000 9000 8000@9", "4:0"),
            ("a stray does not", "7000@9 9000@9 8000@9", ""),
        ],
    );
}

#[test]
fn the_time_runs_from_the_first_step() {
    table(
        &[door("7000,8000,9000")],
        &[
            ("just in time", "7000 +24999 8000 9000", "3:0"),
            ("exactly then it is too late", "7000 +25000 8000 9000", ""),
            ("not from the last step", "7000 +13000 8000 +12000 9000", ""),
            ("the next attempt has its own", "7000 +20000 7000 +20000 8000 9000", "5:0"),
            ("a first step begins the next one", "7000 8000 +25000 7000 8000 9000", "5:0"),
            ("time that goes back a little does no harm", "7000 -10000 8000 9000", "3:0"),
            ("time that goes back further ends it", "7000 -25000 8000 9000", ""),
            ("and it can be done again", "7000 -900000 7000 8000 9000", "4:0"),
        ],
    );
    let timeout = Duration::from_micros(1_500_001);
    table(
        &[Door { timeout, ..door("7000,8000") }],
        &[("1500 ms", "7000 +1500 8000", "2:0"), ("1501 ms", "7000 +1501 8000", "")],
    );
    assert_eq!(opens(&[Door { timeout: Duration::ZERO, ..door("7000,8000") }], "7000 8000"), "");
    assert_eq!(opens(&[Door { timeout: Duration::MAX, ..door("7000,8000") }], "7000 +900000000 8000"), "2:0");
}

/// What keeps honest clients out of other implementations.
#[test]
fn what_others_do_keeps_nobody_out() {
    let spoofed = |addresses: u32| {
        (0..addresses)
            .map(|n| format!("{}>7000", std::net::Ipv4Addr::from(0xc633_0000 + n)))
            .collect::<Vec<_>>()
    };
    let during = format!("7000 {} 8000 9000", spoofed(1000).join(" "));
    table(
        &[door("7000,8000,9000")],
        &[
            ("the first SYN is sent again", "7000 +1000 =7000 8000 9000", "4:0"),
            ("the client also goes elsewhere", "7000 443 8000 9000", "3:0"),
            ("another address knocks right, then wrong", "7000 b>7000 b>9000 8000 b>22 9000", "5:0"),
            ("another address touches the first port", "7000 b>7000 8000 b>7000 b>7000 9000", "5:0"),
            ("two steps swapped by the network", "7000 9000 8000", ""),
            ("a recorded one from another address", "7000 8000 9000 b>7000 b>8000 b>9000", "2:0 5:0"),
            ("1,000 spoofed addresses", &during, "1002:0"),
        ],
    );
}

#[test]
fn a_sequence_can_be_replaced() {
    let mut run = Run::new(vec![door("7000,8000"), door("7000,9000")]);
    assert_eq!(run.play("7000"), []);
    run.matcher.replace(0, Sequence::Fixed("7100,8000".parse().unwrap())).unwrap();
    assert_eq!(run.play("8000 9000"), [(1, 1)], "the attempt at the old one is over, the other one's is not");
    assert_eq!(run.play("7000 8000 7100 8000"), [(3, 0)]);
    run.matcher.replace(0, Sequence::Spent).unwrap();
    assert_eq!(run.play("7100 8000 7000 9000"), [(3, 1)]);
    assert_eq!(run.matcher.door(1).unwrap().sequence.to_string(), "7000:tcp,9000:tcp");
}

#[test]
fn doors_that_begin_alike_are_limited() {
    let doors = |count| (0..count).map(|n| door(&format!("7000,{}", 8000 + n))).collect::<Vec<_>>();
    let port: Port = "7000/tcp".parse().unwrap();
    assert_eq!(
        Matcher::new(doors(Matcher::MOST_ALIKE + 1), SLOTS, [7; 16]).err(),
        Some(MatcherError::Alike(port))
    );
    assert_eq!(opens(&doors(Matcher::MOST_ALIKE), "7000 8015"), "1:15", "as many have room");

    let mut many = doors(Matcher::MOST_ALIKE);
    many.push(door("7001,1"));
    let mut run = Run::new(many);
    let alike = Sequence::Fixed("7000,1".parse().unwrap());
    assert_eq!(run.matcher.replace(16, alike), Err(MatcherError::Alike(port)));
    assert_eq!(
        run.play("7000 1 7001 1 7000 8003"),
        [(5, 3)],
        "a door that cannot be is spent, the others stay"
    );
}

#[test]
fn what_is_over_can_be_swept_away() {
    let mut run = Run::new(vec![door("7000,8000")]);
    run.play("a>7000 b>7000 +20000 6>7000");
    assert_eq!(run.matcher.attempts(), 3);
    let mut sweep = |secs| {
        run.matcher.sweep(Now { elapsed: Duration::from_secs(secs), wall: WallTime::from_secs(0) });
        run.matcher.attempts()
    };
    assert_eq!([1020, 1030, 1045].map(&mut sweep), [3, 1, 0]);
}
