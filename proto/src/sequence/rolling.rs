//! Rolling sequences: ports computed from a key, the epoch and the source, good once (SPEC 8).
//!
//! What an eavesdropper records is dead: the ports are others in the next epochs, and in this one their use is
//! recorded. The range is to be chosen so that nothing guarded, listening or knocked at lies in it.

use std::fmt;
use std::net::IpAddr;

use ring::{hkdf, hmac};

use super::range::PortRange;
use super::steps::Steps;
use crate::datagram::UsedNonce;
use crate::keys::{CLIENT_ID_LEN, ClientId, SALT, SECRET_LEN, SequenceKey, expand};
use crate::port::Port;
use crate::time::Epoch;

const INFO_PORTS: &[u8] = b"postern v1 sequence ports";
const INFO_USES: &[u8] = b"postern v1 sequence uses";
const INFO_ID: &[u8] = b"postern v1 sequence id";
/// Values of a draw, which is 2 bytes of a block (SPEC 8.1).
const DRAWS: u32 = 1 << 16;
/// What stands for the source where it does not count, and before IPv4 and IPv6 (SPEC 8.1, as in 4).
const NO_SOURCE: &[u8] = &[0];
const IPV4: &[u8] = &[1, 0];
const IPV6: &[u8] = &[1, 1];

/// A sequence that is another one in every epoch, and for every source if it is bound to the source.
///
/// Cheap to ask for the first port (one HMAC), and hardly dearer for all of them.
#[derive(Clone)]
pub struct Rolling {
    // The hash states that the derived keys give. ring does not wipe them; they live as long as the sequence.
    ports: hmac::Key,
    uses: hmac::Key,
    id: ClientId,
    range: PortRange,
    length: usize,
    bound: bool,
}

/// Why there is no such rolling sequence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollingError {
    /// None, or too many.
    #[error("a rolling sequence has 1 to {max} ports", max = Steps::MAX)]
    Length,
    /// They are all different, and the range has fewer.
    #[error("a rolling sequence has no more ports than its range")]
    Range,
}

/// A rolling sequence that was used: it must not be again, and so this is to be recorded, durably, before the door
/// opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Use {
    /// The epoch whose ports they were. They can be used until this epoch, the next one and the time-out have passed.
    pub epoch: Epoch,
    /// In place of a client's id: of the key, the same for all its uses.
    pub id: ClientId,
    /// In place of a knock's nonce: of the key, the epoch, and the source if it counts.
    pub nonce: UsedNonce,
}

impl Rolling {
    /// Ports of a sequence, unless gate and client agree on another number: of 10,000 ports, as good as 65 bits.
    pub const LENGTH: usize = 5;

    /// The sequences of `length` different ports of `range` that this key gives. `bound`: each source has its own;
    /// without it a client need not know the address that the gate sees, and each epoch is good for one client only.
    ///
    /// # Errors
    /// When `length` is 0, above [`Steps::MAX`] or above the number of ports in the range.
    pub fn new(
        key: &SequenceKey,
        range: PortRange,
        length: usize,
        bound: bool,
    ) -> Result<Self, RollingError> {
        if length == 0 || length > Steps::MAX {
            return Err(RollingError::Length);
        }
        if length > usize::from(range.count().get()) {
            return Err(RollingError::Range);
        }
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(key.expose());
        let mac = |info| hmac::Key::new(hmac::HMAC_SHA256, expand::<SECRET_LEN>(&prk, info).as_slice());
        let id = ClientId::from_bytes(*expand::<CLIENT_ID_LEN>(&prk, INFO_ID));
        Ok(Self { ports: mac(INFO_PORTS), uses: mac(INFO_USES), id, range, length, bound })
    }

    /// The sequence of an epoch, in order. The source counts only if the sequence is bound to it; it is then the
    /// address that the gate sees.
    #[must_use]
    pub fn steps(&self, epoch: Epoch, source: IpAddr) -> Steps {
        let ports: Vec<_> = self.ports(epoch, source).collect();
        Steps::new(ports).expect("new() checked the length")
    }

    /// What to record when the sequence of an epoch was used by a source (SPEC 8.2).
    #[must_use]
    pub fn used(&self, epoch: Epoch, source: IpAddr) -> Use {
        let tag = self.begin(&self.uses, epoch, source).sign();
        let nonce = *tag.as_ref().first_chunk().expect("HMAC-SHA256 gives 32 bytes");
        Use { epoch, id: self.id, nonce }
    }

    /// The ports that it chooses from.
    #[must_use]
    pub const fn range(&self) -> PortRange {
        self.range
    }

    /// How many ports a sequence has.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Whether each source has its own sequences.
    #[must_use]
    pub const fn is_bound(&self) -> bool {
        self.bound
    }

    /// The ports of an epoch, in order; computed as they are asked for.
    pub(super) fn ports(&self, epoch: Epoch, source: IpAddr) -> impl Iterator<Item = Port> {
        let count = u32::from(self.range.count().get());
        // Above a multiple of the count, the low ports would come more often than the others.
        let fair = DRAWS - DRAWS % count;
        let mut given = [None; Steps::MAX];
        let mut next = 0;
        self.draws(epoch, source)
            .filter(move |&draw| draw < fair)
            .map(move |draw| {
                let offset = u16::try_from(draw % count).expect("a remainder by at most 65,535 fits");
                self.range.at(offset)
            })
            .filter(move |&port| {
                let new = !given.contains(&Some(port));
                if new && next < given.len() {
                    given[next] = Some(port);
                    next += 1;
                }
                new
            })
            .take(self.length)
    }

    /// Numbers below [`DRAWS`] without end: `HMAC-SHA256(port key, epoch || source || i)` for i = 0, 1, ... (SPEC 8.1).
    fn draws(&self, epoch: Epoch, source: IpAddr) -> impl Iterator<Item = u32> {
        let begun = self.begin(&self.ports, epoch, source);
        (0_u32..).flat_map(move |block| {
            let mut block_mac = begun.clone();
            block_mac.update(&block.to_be_bytes());
            let block: [u8; 32] =
                *block_mac.sign().as_ref().first_chunk().expect("HMAC-SHA256 gives 32 bytes");
            let (pairs, _) = block.as_chunks::<2>();
            let draws: [u32; 16] = std::array::from_fn(|at| u32::from(u16::from_be_bytes(pairs[at])));
            draws
        })
    }

    /// An HMAC over `epoch || source`.
    fn begin(&self, key: &hmac::Key, epoch: Epoch, source: IpAddr) -> hmac::Context {
        let mut mac = hmac::Context::with_key(key);
        mac.update(&epoch.number().to_be_bytes());
        match source.to_canonical() {
            _ if !self.bound => mac.update(NO_SOURCE),
            IpAddr::V4(address) => [IPV4, &address.octets()].iter().for_each(|bytes| mac.update(bytes)),
            IpAddr::V6(address) => [IPV6, &address.octets()].iter().for_each(|bytes| mac.update(bytes)),
        }
        mac
    }
}

/// Nothing of the key.
impl fmt::Debug for Rolling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, length, bound, .. } = self;
        f.debug_struct("Rolling")
            .field("range", range)
            .field("length", length)
            .field("bound", bound)
            .finish_non_exhaustive()
    }
}
