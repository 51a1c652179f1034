//! What a flood is made of, and how it is sent.

use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use postern_proto::KNOCK_LEN;
use postern_proto::datagram::TAG_AT;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use rustix::process::setpriority_process;

use crate::knocks::Knock;

/// Datagrams handed to the kernel at once.
const BATCH: usize = 64;
/// The nice value of who sends.
const PRIORITY: i32 = -10;
/// The longest payload that fits a packet on every link.
const LONGEST: usize = 1400;

/// What is in a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Random bytes, as many as a knock has: each costs a look for its hint.
    Junk,
    /// Random bytes, fewer or more.
    WrongLength,
    /// What somebody can make of knocks that he has recorded, under hints that are a client's: copies of one that was
    /// accepted, as it was and with another tag, and of one that he has kept from arriving, with another tag. Those cost
    /// most: nothing but the seal tells that they are forged.
    Copies,
}

/// The datagrams of a flood, one after the other.
pub(super) struct Datagrams {
    kind: Kind,
    accepted: Knock,
    withheld: Knock,
    rng: Rng,
    made: usize,
}

impl Datagrams {
    /// A flood of a kind, with the knocks that it may copy.
    pub(super) fn new(kind: Kind, accepted: Knock, withheld: Knock) -> Self {
        Self { kind, accepted, withheld, rng: Rng::new(), made: 0 }
    }

    fn next(&mut self, datagram: &mut Vec<u8>) {
        self.made += 1;
        match self.kind {
            Kind::Junk => self.fill(datagram, KNOCK_LEN),
            Kind::WrongLength => {
                let len = self.rng.usize(..LONGEST);
                self.fill(datagram, if len < KNOCK_LEN { len } else { len + 1 });
            }
            Kind::Copies => {
                let copied = if self.made.is_multiple_of(2) { self.accepted } else { self.withheld };
                datagram.clear();
                datagram.extend_from_slice(&copied);
                if !self.made.is_multiple_of(4) {
                    datagram[self.rng.usize(TAG_AT..KNOCK_LEN)] ^= self.rng.u8(1..);
                }
            }
        }
    }

    fn fill(&mut self, datagram: &mut Vec<u8>, len: usize) {
        datagram.resize(len, 0);
        self.rng.fill(datagram);
    }
}

/// Sends datagrams at a rate until it is over; gives how many it were.
pub(super) fn send(
    socket: &UdpSocket,
    datagrams: &mut Datagrams,
    per_second: u32,
    over: &AtomicBool,
) -> io::Result<u64> {
    // A flood comes from outside: it does not slow down because this machine has other work. (Of this thread alone.)
    setpriority_process(None, PRIORITY)?;
    let (begun, mut sent) = (Instant::now(), 0);
    let mut batch = vec![Vec::new(); BATCH];
    while !over.load(Ordering::Relaxed) {
        // After a pause it catches up.
        let due = Duration::from_nanos(1_000_000_000 * sent / u64::from(per_second));
        thread::sleep(due.saturating_sub(begun.elapsed()));
        for datagram in &mut batch {
            datagrams.next(datagram);
        }
        sent += send_batch(socket, &batch)? as u64;
    }
    Ok(sent)
}

fn send_batch(socket: &UdpSocket, batch: &[Vec<u8>]) -> io::Result<usize> {
    let slices: Vec<_> = batch.iter().map(|datagram| [IoSlice::new(datagram)]).collect();
    let mut controls: Vec<_> = batch.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let messages = slices.iter().zip(&mut controls).map(|(slice, control)| MMsgHdr::new(slice, control));
    let mut messages: Vec<_> = messages.collect();
    Ok(sendmmsg(socket, &mut messages, SendFlags::empty())?)
}
