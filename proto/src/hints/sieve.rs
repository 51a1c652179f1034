//! Tells most strangers' hints from clients' by one line of memory, before any map is asked.
//!
//! It is a Bloom filter in blocks of one cache line. A hint marks [`MARKS`] bytes of its block; each bit of a byte
//! stands for a generation: an epoch, or a few epochs in a row when the clock tolerance covers many. Only where all its
//! marks have a generation's bit can a hint be some client's in it. With a million clients the maps of all epochs
//! are far larger than any cache, and one miss instead of one for each epoch is what keeps a stranger's packet cheap.

use crate::keys::Hint;
use crate::time::Epoch;

/// Bytes for each client, at least. With four marks each, a stranger's hint seems to be in a generation once in
/// some hundred times.
const BYTES_PER_CLIENT: usize = 16;
const MARKS: u32 = 4;
/// Bytes in a block, and bits of a hint that choose one of them.
const BLOCK_LEN: usize = 64;
const BLOCK_BITS: u32 = BLOCK_LEN.ilog2();
/// Generations that a byte tells apart. One of them is being filled, and at most six more are alive.
const GENERATIONS: u64 = 8;
const ALIVE: u64 = 6;

/// A cache line.
#[derive(Clone)]
#[repr(align(64))]
struct Block([u8; BLOCK_LEN]);

pub(super) struct Sieve {
    blocks: Vec<Block>,
    epochs_per_generation: u64,
}

impl Sieve {
    /// A sieve for so many clients, of which `epochs` epochs in a row are alive at a time.
    pub(super) fn new(clients: usize, epochs: u64) -> Self {
        let blocks = (clients.saturating_mul(BYTES_PER_CLIENT) / BLOCK_LEN).next_power_of_two();
        Self { blocks: vec![Block([0; BLOCK_LEN]); blocks], epochs_per_generation: epochs.div_ceil(ALIVE) }
    }

    /// Makes room for an epoch, and gives its generation's bit: when the epoch begins a generation, the one that had its
    /// bit is over.
    pub(super) fn begin(&mut self, epoch: Epoch) -> u8 {
        let bit = 1 << (epoch.number() / self.epochs_per_generation % GENERATIONS);
        if epoch.number().is_multiple_of(self.epochs_per_generation) {
            self.blocks.iter_mut().flat_map(|block| &mut block.0).for_each(|byte| *byte &= !bit);
        }
        bit
    }

    pub(super) fn clear(&mut self) {
        self.blocks.fill(Block([0; BLOCK_LEN]));
    }

    pub(super) fn add(&mut self, hint: Hint, bit: u8) {
        let block = self.block(hint);
        marks(hint).for_each(|mark| self.blocks[block].0[mark] |= bit);
    }

    /// The bits of the generations in which a hint may be a client's.
    pub(super) fn generations(&self, hint: Hint) -> u8 {
        let block = &self.blocks[self.block(hint)];
        marks(hint).fold(u8::MAX, |bits, mark| bits & block.0[mark])
    }

    fn block(&self, hint: Hint) -> usize {
        low_bits(number(hint) >> (MARKS * BLOCK_BITS), self.blocks.len())
    }
}

/// The bytes of its block that a hint marks.
fn marks(hint: Hint) -> impl Iterator<Item = usize> {
    (0..MARKS).map(move |mark| low_bits(number(hint) >> (mark * BLOCK_BITS), BLOCK_LEN))
}

fn number(hint: Hint) -> u64 {
    u64::from_le_bytes(hint.bytes())
}

/// A number below `bound`, a power of two, from as many low bits. A hint is the output of a keyed hash: any will do.
#[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
const fn low_bits(number: u64, bound: usize) -> usize {
    number as usize & (bound - 1)
}
