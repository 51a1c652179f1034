//! The capture on real interfaces: two network namespaces, `gate` and `stranger`, joined by a cable (veth). Needs root.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::thread::{
    CapabilitySet, CpuSet, LinkNameSpaceType, capabilities, move_into_link_name_space, sched_getcpu,
    sched_setaffinity, set_capabilities,
};

use super::super::frame::Content;
use super::super::frame::craft::{Craft, KNOCK, PORT, table};
use super::super::kernel::tests::look_up;
use super::*;

/// Whatever is waited for in these tests comes at once, or never.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where the gate listens. The stranger has the `1` of both networks.
const GATE4: &str = "192.0.2.2";
const GATE6: &str = "2001:db8::2";

fn sought() -> Sought {
    let knocks = [53, PORT].map(|port| NonZeroU16::new(port).unwrap());
    Sought { knocks: knocks.into(), ..Sought::default() }
}

/// Runs `ip` with these arguments, separated by spaces.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace that goes away with its owner, and its end of the cable with it.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("postern-{}-{count}-{role}", process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    /// Runs something inside. What it opens stays there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing more can be done when it fails, least of all while panicking.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

struct Lan {
    gate: Namespace,
    stranger: Namespace,
}

impl Lan {
    fn new() -> Self {
        let lan = Self { gate: Namespace::new("gate"), stranger: Namespace::new("stranger") };
        let (gate, stranger) = (&lan.gate.0, &lan.stranger.0);
        // The hardware address that crafted frames are sent to.
        ip(&format!(
            "link add name eth0 address 02:02:02:02:02:02 netns {gate} type veth peer name eth0 netns {stranger}"
        ));
        for (namespace, host) in [(gate, 2), (stranger, 1)] {
            ip(&format!("-n {namespace} address add 192.0.2.{host}/24 dev eth0"));
            ip(&format!("-n {namespace} address add 2001:db8::{host}/64 dev eth0 nodad"));
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} link set eth0 up"));
        }
        lan
    }

    /// The stranger's socket. Its own port tells one test packet from another.
    fn knocker(&self, v6: bool) -> UdpSocket {
        self.stranger.inside(|| UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap())
    }

    /// The stranger's end of the cable, for frames that no socket would send.
    fn cable(&self) -> pcap::Capture<Active> {
        self.stranger.inside(|| pcap::Capture::from_device("eth0").unwrap().open().unwrap())
    }
}

/// What is remembered of a datagram.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    source_port: u16,
    port: u16,
    v6: bool,
    length: usize,
}

/// Keeps this thread on the processor it is on: a cable delivers in order only what one processor sends.
fn stay_on_this_processor() {
    let mut processors = CpuSet::new();
    processors.set(sched_getcpu());
    sched_setaffinity(None, &processors).unwrap();
}

/// Opens a capture in the gate's namespace and lets `work` use it.
fn with_capture<T: Send>(lan: &Lan, interface: &str, work: impl FnOnce(Capture) -> T + Send) -> T {
    lan.gate.inside(|| {
        stay_on_this_processor();
        work(Capture::open(interface, &sought()).unwrap())
    })
}

/// Reads once there is something to read.
fn read(capture: &mut Capture, each: impl FnMut(Frame<'_>)) -> Result<usize, CaptureError> {
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    let mut descriptors = [PollFd::new(capture, PollFlags::IN)];
    assert_eq!(poll(&mut descriptors, Some(&deadline)).unwrap(), 1, "nothing that was waited for came");
    let ready = descriptors[0].revents();
    capture.read(ready, each)
}

/// Everything that comes in until a datagram from this port has.
fn seen_until(capture: &mut Capture, last_source_port: u16) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    while seen.last().is_none_or(|last| last.source_port != last_source_port) {
        let read = read(capture, |frame| {
            seen.push(Seen {
                source_port: frame.source_port,
                port: frame.port,
                v6: frame.source.is_ipv6(),
                length: match frame.content {
                    Content::Datagram(payload) => payload.len(),
                    Content::Segment { .. } => panic!("a TCP segment has passed"),
                },
            });
        });
        assert!((1..=BATCH).contains(&read.unwrap()));
    }
    seen
}

/// How many packets the kernel's filter let pass since then. (Before the filter was set, any packet passed.)
fn passed_since(before: Stats, capture: &mut Capture) -> u32 {
    let now = capture.stats().unwrap();
    assert_eq!(now.dropped, 0);
    now.received - before.received
}

#[test]
fn knocks_arrive_and_nothing_else() {
    let lan = Lan::new();
    for interface in ["eth0", "any"] {
        with_capture(&lan, interface, |mut capture| {
            let before = capture.stats().unwrap();
            let (v4, v6) = (lan.knocker(false), lan.knocker(true));
            let mut sent = Vec::new();
            for (socket, gate, is_v6) in [(&v4, GATE4, false), (&v6, GATE6, true)] {
                let knock = [0xa5; KNOCK];
                for port in [PORT, 53] {
                    socket.send_to(&knock, (gate, port)).unwrap();
                    let source_port = socket.local_addr().unwrap().port();
                    sent.push(Seen { source_port, port, v6: is_v6, length: KNOCK });
                }
                for port in [PORT - 1, PORT + 1, 54, 22] {
                    socket.send_to(&knock, (gate, port)).unwrap();
                }
                for length in [0, 1, KNOCK - 1, KNOCK + 1, 1400, 4000] {
                    socket.send_to(&vec![0xa5; length], (gate, PORT)).unwrap();
                }
            }
            let last = lan.knocker(true);
            last.send_to(&[0xa5; KNOCK], (GATE6, PORT)).unwrap();
            let source_port = last.local_addr().unwrap().port();
            sent.push(Seen { source_port, port: PORT, v6: true, length: KNOCK });

            assert_eq!(seen_until(&mut capture, source_port), sent);
            assert_eq!(passed_since(before, &mut capture), 5, "the kernel filters, on {interface}");
        });
    }
}

#[test]
fn what_the_gate_itself_sends_is_not_seen() {
    let lan = Lan::new();
    for interface in ["eth0", "any"] {
        with_capture(&lan, interface, |mut capture| {
            let own = UdpSocket::bind("0.0.0.0:0").unwrap();
            own.send_to(&[0; KNOCK], ("192.0.2.1", PORT)).unwrap();
            let stranger = lan.knocker(false);
            stranger.send_to(&[0; KNOCK], (GATE4, PORT)).unwrap();
            let seen = seen_until(&mut capture, stranger.local_addr().unwrap().port());
            assert_eq!(seen.len(), 1, "{seen:?} on {interface}");
        });
    }
}

/// From the gate to itself, a packet goes out and comes in over one interface: it counts once.
#[test]
fn loopback_brings_each_packet_once() {
    let lan = Lan::new();
    for interface in ["lo", "any"] {
        with_capture(&lan, interface, |mut capture| {
            let (first, last) = (UdpSocket::bind("[::]:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
            first.send_to(&[0; KNOCK], ("127.0.0.1", PORT)).unwrap();
            last.send_to(&[0; KNOCK], ("::1", PORT)).unwrap();
            let seen = seen_until(&mut capture, last.local_addr().unwrap().port());
            assert_eq!(seen.len(), 2, "{seen:?} on {interface}");
        });
    }
}

/// The table of frames over the cable: the kernel's program, with its own way of treating VLAN tags, gives the same
/// verdicts as the one the filter's tests run. So does the one that looks hints up, which refuses those it does not know.
#[test]
fn the_kernel_filters_as_the_table_says() {
    let lan = Lan::new();
    for interface in ["eth0", "any"] {
        // What the kernel allowed a filter by default up to Linux 6.8.
        lan.gate.inside(|| fs::write("/proc/sys/net/core/optmem_max", "20480")).unwrap();
        for known in [None, Some(true), Some(false)] {
            with_capture(&lan, interface, |mut capture| {
                let refused = known.map(|is_known| look_up(&capture, &sought(), is_known));
                let knocks = if known == Some(false) { refused } else { None };
                filters_as_the_table_says(&lan, &mut capture, knocks);
            });
        }
    }
}

/// Sends each frame of the table, and looks which of them come, and that no others passed the filter. Where that refuses the
/// knocks among them, and `refused` how many, none come.
fn filters_as_the_table_says(lan: &Lan, capture: &mut Capture, refused: Option<impl Fn() -> u64>) {
    const MTU: usize = 1500;
    let interface = capture.interface().to_owned();
    let before = capture.stats().unwrap();
    let mut cable = lan.cable();
    let mut expected = Vec::new();
    let mut admitted = 0;
    let mut number = 1000;
    for row in table() {
        number += 1;
        let craft = Craft { source_port: number, ..row.craft };
        let frame = craft.frame(Link::Ethernet);
        if frame.len() > MTU {
            continue;
        }
        cable.sendpacket(frame.as_slice()).unwrap();
        // The kernel takes off the outer tag before any capture, if it is none of the old kind.
        let visible = interface == "eth0" || matches!(craft.tags, [] | [0x8100 | 0x88a8]);
        if row.admitted && visible {
            admitted += 1;
            // Beyond the snap length it is cut short.
            if i32::try_from(frame.len()).unwrap() <= SNAPLEN {
                expected.push(number);
            }
        }
    }
    let last = Craft { source_port: 9, ..Craft::default() }.frame(Link::Ethernet);
    cable.sendpacket(last.as_slice()).unwrap();
    expected.push(9);
    admitted += 1;
    if let Some(refused) = refused {
        let deadline = Instant::now() + DEADLINE;
        while refused() < u64::from(admitted) && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!((refused(), passed_since(before, capture)), (admitted.into(), 0), "on {interface}");
        return;
    }
    let ports: Vec<_> = seen_until(capture, 9).iter().map(|seen| seen.source_port).collect();
    assert_eq!(ports, expected, "on {interface}");
    assert_eq!(passed_since(before, capture), admitted, "on {interface}");
}

#[test]
fn a_flood_comes_in_batches() {
    let lan = Lan::new();
    with_capture(&lan, "eth0", |mut capture| {
        let mut cable = lan.cable();
        let before = capture.stats().unwrap();
        // More than a batch, and less than the 1000 packets that the kernel lets wait for delivery.
        let flood = u16::try_from(BATCH).unwrap() + 100;
        for number in 1..=flood {
            let frame = Craft { source_port: number, ..Craft::default() }.frame(Link::Ethernet);
            cable.sendpacket(frame.as_slice()).unwrap();
        }
        let seen = seen_until(&mut capture, flood);
        assert!(seen.iter().map(|seen| seen.source_port).eq(1..=flood));
        assert_eq!(passed_since(before, &mut capture), u32::from(flood));
    });
}

#[test]
fn an_interface_that_goes_down_or_away_is_reported() {
    let lan = Lan::new();
    let gate = &lan.gate.0;
    for how in ["set eth0 down", "delete eth0"] {
        with_capture(&lan, "eth0", |mut capture| {
            let stranger = lan.knocker(false);
            stranger.send_to(&[0; KNOCK], (GATE4, PORT)).unwrap();
            seen_until(&mut capture, stranger.local_addr().unwrap().port());
            ip(&format!("-n {gate} link {how}"));
            let error = read(&mut capture, |_| panic!("nothing was sent")).unwrap_err();
            assert!(error.may_pass(), "{error:?}");
        });
        if how.contains("down") {
            ip(&format!("-n {gate} link set eth0 up"));
        }
    }
}

#[test]
fn an_error_names_the_interface_and_the_way_out() {
    let lan = Lan::new();
    ip(&format!("-n {} link set eth0 down", lan.gate.0));
    let open = |interface| lan.gate.inside(|| Capture::open(interface, &sought()).map(|_| ()).unwrap_err());
    let missing = open("eth1");
    assert!(missing.may_pass());
    assert_eq!(
        missing.to_string(),
        "no interface \"eth1\": `ip link` lists those there are, and \"any\" means all of them"
    );
    let down = open("eth0");
    assert!(down.may_pass());
    assert_eq!(down.to_string(), "interface \"eth0\" is down: `ip link set eth0 up`");
    let refused = lan.gate.inside(|| {
        // Of this thread alone.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_RAW);
        set_capabilities(None, sets).unwrap();
        Capture::open("any", &sought()).map(|_| ()).unwrap_err()
    });
    assert!(!refused.may_pass());
    assert_eq!(refused.to_string(), "not allowed to capture on \"any\": run as root or with CAP_NET_RAW");
}

/// A capture file of the classic format, written out by hand.
fn capture_file(linktype: u32, packets: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    /// Microseconds, in the byte order of the writer.
    const MAGIC: u32 = 0xa1b2_c3d4;
    let mut file = Vec::new();
    // Version 2.4, two fields that are always zero, the snap length.
    for field in [MAGIC, 2 | 4 << 16, 0, 0, 65535, linktype] {
        file.extend(field.to_ne_bytes());
    }
    for (seconds, micros, bytes) in packets {
        let length = u32::try_from(bytes.len()).unwrap();
        for field in [*seconds, *micros, length, length] {
            file.extend(field.to_ne_bytes());
        }
        file.extend(bytes);
    }
    file
}

#[test]
fn a_file_is_read_packet_by_packet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("knocks.pcap");
    for (linktype, link) in [
        (0, Link::Loopback),
        (1, Link::Ethernet),
        (101, Link::Raw),
        (113, Link::Cooked),
        (276, Link::Cooked2),
    ] {
        let knock = Craft { v6: true, ..Craft::default() }.frame(link);
        let fragment = Craft { fragment: 1, ..Craft::default() }.frame(link);
        // libpcap takes the seconds for a signed number: the last of them lies before 1970.
        let packets = [(1_700_000_000, 999_999, knock), (u32::MAX, 5, fragment)];
        fs::write(&path, capture_file(linktype, &packets)).unwrap();
        let mut read = Vec::new();
        read_file(&path, |at, frame| read.push((at.as_micros(), frame.map(|frame| frame.port)))).unwrap();
        assert_eq!(read, [(1_700_000_000_999_999, Ok(PORT)), (5, Err(Unfit::Fragment)),], "{link:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.pcap");
    let read = |path: &Path| {
        let mut count = 0;
        let result = read_file(path, |_, _| count += 1);
        (count, result.map_err(|error| error.to_string()))
    };
    let unreadable = Err(format!("cannot read the capture file {}", path.display()));
    assert_eq!(read(&path), (0, unreadable.clone()), "there is none");

    fs::write(&path, "no capture at all, but long enough to be one").unwrap();
    assert_eq!(read(&path), (0, unreadable.clone()));

    let packets =
        [(1, 1, Craft::default().frame(Link::Ethernet)), (2, 2, Craft::default().frame(Link::Ethernet))];
    let whole = capture_file(1, &packets);
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(read(&path), (1, unreadable), "cut short in its second packet");

    fs::write(&path, capture_file(105, &packets)).unwrap();
    let unsupported =
        format!("cannot read the frames in {}: link type IEEE802_11 (105) is not supported", path.display());
    assert_eq!(read(&path), (0, Err(unsupported)));
}
