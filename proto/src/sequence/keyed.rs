//! Hashes under the matcher's own key, SipHash-2-4: nobody outside can tell which sources share a bucket, make two
//! packets look like one, or foresee whom chance takes.

use std::net::IpAddr;
use std::num::NonZeroU16;

use siphasher::sip::SipHasher24;

use super::packet::{Packet, octets};

/// What is remembered of a TCP packet, to know it when it is sent again; `None` for a datagram, which is always new.
///
/// Two packets have the same one by chance once in 65,000 times. It is compared only where that does no harm: for
/// steps with those to the same port, for strays with the last few.
pub(super) type Fingerprint = Option<NonZeroU16>;

pub(super) struct Keyed {
    hasher: SipHasher24,
    drawn: u64,
}

impl Keyed {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self { hasher: SipHasher24::new_with_key(key), drawn: 0 }
    }

    /// Stands for a source. Two have the same one by chance once in 2^64 pairs, which nobody can look for.
    pub(super) fn source(&self, source: IpAddr) -> u64 {
        self.hasher.hash(&octets(source))
    }

    /// Of the 4-tuple and the sequence number, but the source address, which is the attempt's. Not of the flags: a
    /// client that had no answer to a SYN with ECN sends it again without (RFC 3168, section 6.1.1.1).
    pub(super) fn fingerprint(&self, packet: &Packet) -> Fingerprint {
        let sequence = packet.tcp?.sequence;
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&octets(packet.destination));
        bytes[16..18].copy_from_slice(&packet.port.number.get().to_be_bytes());
        bytes[18..20].copy_from_slice(&packet.source_port.to_be_bytes());
        bytes[20..].copy_from_slice(&sequence.to_be_bytes());
        let [one, two, ..] = self.hasher.hash(&bytes).to_ne_bytes();
        NonZeroU16::new(u16::from_ne_bytes([one, two])).or(Some(NonZeroU16::MIN))
    }

    /// A number below `bound`, which is not 0: a hash of how many were drawn before.
    pub(super) fn draw(&mut self, bound: usize) -> usize {
        self.drawn = self.drawn.wrapping_add(1);
        remainder(self.hasher.hash(&self.drawn.to_ne_bytes()), bound)
    }
}

/// A hash below `bound`. The bias is `bound` in 2^64.
pub(super) fn remainder(hash: u64, bound: usize) -> usize {
    usize::try_from(hash % bound as u64).expect("it is less than a usize")
}
