//! What went over a host's link, taken by tcpdump and read here: its packets, and the UDP payloads in them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::netns::{Host, LINK};
use crate::process::Process;
use crate::wait::{LONG, wait_for};

/// Which way packets go, seen from the host with the capture.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    /// To the host.
    In,
    /// From the host.
    Out,
}

/// A running capture.
pub struct Capture {
    tcpdump: Process,
    file: Arc<Mutex<Vec<u8>>>,
}

impl Capture {
    /// Captures at a host's link, by a pcap filter; returns once packets are seen.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(host: &Host, direction: Direction, filter: &str) -> Result<Self> {
        let mut command = host.command("tcpdump");
        let direction = if matches!(direction, Direction::In) { "in" } else { "out" };
        // Each packet is written at once; no change of user, no names; 16 MB of buffer, so that none is lost. Each has its
        // place in there at full length: with room for the longest that there is, there would be 64.
        command.args(["-i", LINK, "-Q", direction, "-w", "-", "-U", "--immediate-mode", "-n"]);
        command.args(["-s", "2048", "-B", "16384", "-Z", "root", filter]);
        let (tcpdump, mut stdout) = Process::spawn_with_stdout(command)?;
        let file = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&file);
        thread::spawn(move || {
            let mut chunk = vec![0; 65_536];
            while let Ok(len @ 1..) = stdout.read(&mut chunk) {
                lock(&collected).extend_from_slice(&chunk[..len]);
            }
        });
        tcpdump.wait_for_lines("the start of the capture", LONG, |lines| {
            lines.iter().any(|line| line.contains("listening on")).then_some(())
        })?;
        Ok(Self { tcpdump, file })
    }

    /// The packets so far, in the order of the wire.
    ///
    /// # Errors
    /// When tcpdump writes something else than what is read here.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        read_packets(&lock(&self.file))
    }

    /// Waits for packets, and gives back all that were captured up to then.
    ///
    /// # Errors
    /// When they do not come.
    pub fn wait_for(&self, what: &str, enough: impl Fn(&[Packet]) -> bool) -> Result<Vec<Packet>> {
        wait_for(what, LONG, || {
            let packets = self.packets()?;
            Ok(enough(&packets).then_some(packets))
        })
    }

    /// Writes what was captured so far to a pcap file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, &*lock(&self.file)).with_context(|| path.display().to_string())
    }

    /// Ends the capture, and checks that the kernel had room for every packet.
    ///
    /// # Errors
    /// When packets were lost: what the capture does not hold then proves nothing.
    pub fn finish(mut self) -> Result<()> {
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(Duration::from_secs(10))?;
        self.tcpdump.wait_for_lines("a capture without loss", LONG, |lines| {
            lines.iter().any(|line| line == "0 packets dropped by kernel").then_some(())
        })
    }
}

fn lock(file: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One captured Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When it was seen, from the beginning of Unix time.
    at: Duration,
    frame: Vec<u8>,
}

const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const TCP: u8 = 6;

impl Packet {
    /// The payload of a UDP datagram over plain IPv4 or IPv6; `None` for another packet.
    #[must_use]
    pub fn udp_payload(&self) -> Option<&[u8]> {
        let (protocol, transport) = self.transport()?;
        (protocol == UDP).then(|| transport.get(UDP_HEADER..)).flatten()
    }

    /// When it was seen, from the beginning of Unix time.
    #[must_use]
    pub const fn at(&self) -> Duration {
        self.at
    }

    /// Its length on the wire.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no packet is empty")]
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// The port that a segment or datagram over plain IPv4 or IPv6 is for; `None` for another packet.
    #[must_use]
    pub fn destination(&self) -> Option<u16> {
        let (protocol, transport) = self.transport()?;
        let port = transport.get(2..)?.first_chunk().copied().map(u16::from_be_bytes)?;
        matches!(protocol, TCP | UDP).then_some(port)
    }

    /// The flags of a segment of TCP.
    #[must_use]
    pub fn tcp_flags(&self) -> Option<u8> {
        let (protocol, transport) = self.transport()?;
        (protocol == TCP).then(|| transport.get(13).copied()).flatten()
    }

    /// Whether it is a segment of TCP.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.transport().is_some_and(|(protocol, _)| protocol == TCP)
    }

    fn transport(&self) -> Option<(u8, &[u8])> {
        let ip = self.frame.get(ETHERNET_HEADER..)?;
        let (protocol_at, header) = match ip.first()? >> 4 {
            4 => (9, IPV4_HEADER),
            6 => (6, IPV6_HEADER),
            _ => return None,
        };
        Some((*ip.get(protocol_at)?, ip.get(header..)?))
    }
}

/// Reads a pcap file as tcpdump writes it on this machine; a last packet that is not complete yet is left out.
fn read_packets(file: &[u8]) -> Result<Vec<Packet>> {
    const FILE_HEADER: usize = 24;
    const PACKET_HEADER: usize = 16;
    const MAGIC: u32 = 0xa1b2_c3d4;

    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map(u32::from_ne_bytes)
    };
    let Some(magic) = word(file, 0) else { return Ok(Vec::new()) };
    ensure!(magic == MAGIC, "not a pcap file of this machine");
    let mut packets = Vec::new();
    let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
    while let Some(captured) = word(rest, 8) {
        let end = PACKET_HEADER + usize::try_from(captured)?;
        if word(rest, 12) != Some(captured) {
            if rest.len() < PACKET_HEADER {
                break;
            }
            bail!("a packet was captured in part");
        }
        let Some(packet) = rest.get(PACKET_HEADER..end) else { break };
        // Seconds and microseconds.
        let at = |at| word(rest, at).unwrap_or_default();
        let at = Duration::new(at(0).into(), at(4) * 1000);
        packets.push(Packet { at, frame: packet.to_vec() });
        rest = &rest[end..];
    }
    Ok(packets)
}
