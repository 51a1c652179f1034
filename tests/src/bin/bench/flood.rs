//! More packets than anybody means: one thread, many a call.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use postern_tests::netns::Host;

use crate::prober::be_on_time;
use crate::wire::{GATE, Packet, Wire, syn};

/// Packets handed to the kernel at once, at the most.
const BATCH: usize = 64;
/// The first of the addresses in whose name SYNs come; nobody knocks from those.
const SPOOFED: u32 = u32::from_be_bytes([10, 192, 0, 0]);
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What a flood is made of.
#[derive(Clone, Debug)]
pub(crate) enum Junk {
    /// Random bytes.
    Random { port: u16, len: usize },
    /// Random text that reads as base64.
    Base64 { port: u16, len: usize },
    /// The same bytes again and again.
    Copies { port: u16, of: Vec<u8> },
    /// SYNs from so many sources in turns.
    Syns { port: u16, sources: u32 },
}

impl Junk {
    /// Where it goes.
    pub(crate) const fn port(&self) -> u16 {
        let (Self::Random { port, .. }
        | Self::Base64 { port, .. }
        | Self::Copies { port, .. }
        | Self::Syns { port, .. }) = self;
        *port
    }
}

/// A flood that goes on until it is dropped.
pub(crate) struct Flood {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Begins; without a rate as fast as it goes.
    pub(crate) fn begin(world: &Host, junk: Junk, per_second: Option<u32>) -> Result<Self> {
        let mut sender = Sender::new(world, junk)?;
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, count) = (Arc::clone(&over), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            be_on_time()?;
            let begun = Instant::now();
            let batch = per_second
                .map_or(BATCH, |rate| usize::try_from(rate / 2000).map_or(1, |each| each.clamp(1, BATCH)));
            while !is_over.load(Ordering::Relaxed) {
                if let Some(rate) = per_second {
                    let due =
                        Duration::from_nanos(1_000_000_000 * count.load(Ordering::Relaxed) / u64::from(rate));
                    thread::sleep(due.saturating_sub(begun.elapsed()));
                }
                count.fetch_add(sender.send(batch)? as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { over, sent, thread: Some(thread) })
    }

    /// How many packets it has sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it, and says whether it went well.
    pub(crate) fn end(mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is taken once").join().expect("sending does not panic")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Somebody else's error is on its way already.
            let _ = thread.join();
        }
    }
}

enum Sender {
    /// One call hands over many: the kernel cuts them apart before they are on the cable.
    Datagrams {
        socket: UdpSocket,
        rng: Rng,
        buffer: Vec<u8>,
        len: usize,
        fill: Fill,
    },
    Packets {
        wire: Wire,
        packets: Vec<Packet>,
        next: usize,
    },
}

#[derive(Clone, Copy)]
enum Fill {
    Random,
    Base64,
    Nothing,
}

impl Sender {
    fn new(world: &Host, junk: Junk) -> Result<Self> {
        let datagrams = |port: u16, datagram: Vec<u8>, fill| -> Result<Self> {
            let socket = world.enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((GATE, port))?;
                Ok::<_, io::Error>(socket)
            })??;
            setsockopt(&socket, UdpGsoSegment, &i32::try_from(datagram.len())?)?;
            let (len, buffer) = (datagram.len(), datagram.repeat(BATCH));
            Ok(Self::Datagrams { socket, rng: Rng::new(), buffer, len, fill })
        };
        match junk {
            Junk::Random { port, len } => datagrams(port, vec![0; len], Fill::Random),
            Junk::Base64 { port, len } => datagrams(port, vec![0; len], Fill::Base64),
            Junk::Copies { port, of } => datagrams(port, of, Fill::Nothing),
            Junk::Syns { port, sources } => {
                let source = |number| SocketAddrV4::new(Ipv4Addr::from_bits(SPOOFED + number), 40_000);
                let packets = (0..sources).map(|number| syn(source(number), port, number)).collect();
                Ok(Self::Packets { wire: Wire::of(world)?, packets, next: 0 })
            }
        }
    }

    fn send(&mut self, count: usize) -> io::Result<usize> {
        match self {
            Self::Datagrams { socket, rng, buffer, len, fill } => {
                let datagrams = &mut buffer[..count * *len];
                fill.fill(rng, datagrams);
                match socket.send(datagrams) {
                    // The answer to an earlier one: nobody listens on that port.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(0),
                    sent => sent.map(|bytes| bytes / *len),
                }
            }
            Self::Packets { wire, packets, next } => {
                let sent = wire.send_all(packets.iter().cycle().skip(*next).take(count))?;
                *next = (*next + sent) % packets.len();
                Ok(sent)
            }
        }
    }
}

impl Fill {
    fn fill(self, rng: &mut Rng, buffer: &mut [u8]) {
        match self {
            Self::Random => rng.fill(buffer),
            Self::Base64 => {
                rng.fill(buffer);
                for byte in buffer {
                    *byte = BASE64[usize::from(*byte % 64)];
                }
            }
            Self::Nothing => {}
        }
    }
}
