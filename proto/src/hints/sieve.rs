//! Tells most strangers' hints from clients' with one byte of memory, before any map is asked.
//!
//! A slot is one byte, found by the low bits of a hint; each of its bits stands for a generation: an epoch, or a few
//! epochs in a row when the clock tolerance covers many. A bit says that some client's hint of that generation falls
//! into the slot. With a million clients the maps of all epochs are far larger than any cache, and one miss instead of
//! one for each epoch is what keeps a stranger's packet cheap.

use crate::keys::Hint;
use crate::time::Epoch;

/// Slots for each client, at least: an unknown hint meets another one's bit once in 16 for each generation.
const SLOTS_PER_CLIENT: usize = 16;
const SMALLEST: usize = 64;
/// Generations that a byte tells apart. One of them is being filled, and at most six more are alive.
const GENERATIONS: u64 = 8;
const ALIVE: u64 = 6;

pub(super) struct Sieve {
    slots: Vec<u8>,
    epochs_per_generation: u64,
}

/// The generations in which a hint may be a client's.
#[derive(Clone, Copy)]
pub(super) struct Generations {
    bits: u8,
    epochs_per_generation: u64,
}

impl Sieve {
    /// A sieve for so many clients, of which `epochs` epochs in a row are alive at a time.
    pub(super) fn new(clients: usize, epochs: u64) -> Self {
        let slots = clients.saturating_mul(SLOTS_PER_CLIENT).next_power_of_two().max(SMALLEST);
        Self { slots: vec![0; slots], epochs_per_generation: epochs.div_ceil(ALIVE) }
    }

    /// Makes room for an epoch: when it begins a generation, the one that had its bit is over.
    pub(super) fn begin(&mut self, epoch: Epoch) {
        if epoch.number().is_multiple_of(self.epochs_per_generation) {
            let keep = !bit(epoch, self.epochs_per_generation);
            self.slots.iter_mut().for_each(|slot| *slot &= keep);
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(0);
    }

    pub(super) fn add(&mut self, hint: Hint, epoch: Epoch) {
        let slot = self.slot(hint);
        self.slots[slot] |= bit(epoch, self.epochs_per_generation);
    }

    pub(super) fn generations(&self, hint: Hint) -> Generations {
        Generations { bits: self.slots[self.slot(hint)], epochs_per_generation: self.epochs_per_generation }
    }

    fn slot(&self, hint: Hint) -> usize {
        // The number of slots is a power of two; which bits of a hint are taken does not matter.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
        let low = u64::from_le_bytes(hint.bytes()) as usize;
        low & (self.slots.len() - 1)
    }
}

impl Generations {
    /// Whether the hint may be a client's in this epoch.
    pub(super) const fn may_hold(self, epoch: Epoch) -> bool {
        self.bits & bit(epoch, self.epochs_per_generation) != 0
    }
}

const fn bit(epoch: Epoch, epochs_per_generation: u64) -> u8 {
    1 << (epoch.number() / epochs_per_generation % GENERATIONS)
}
