//! Tells most strangers' hints from clients' by one line of memory, before any map is asked.
//!
//! A Bloom filter in blocks of one cache line. With a million clients the maps of all epochs are far larger than any
//! cache; this is 8 MB, and one look into it instead of one into each map is what keeps a stranger's packet cheap.
//! Nothing can be taken out of it again: the table makes a new one with each epoch.

use crate::keys::Hint;

/// Bytes for each client, at least. With six epochs and four marks a hint, at most 1 in 100 strangers' hints passes.
const BYTES_PER_CLIENT: usize = 8;
const MARKS: u32 = 4;
/// A block is 8 words of 64 bits, as long as a cache line.
const WORDS: usize = 8;
const BLOCK_LEN: usize = WORDS * 8;
/// Bits of a hint that choose one bit of a block.
const MARK_BITS: u32 = (BLOCK_LEN * 8).ilog2();

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Block([u64; WORDS]);

pub(super) struct Sieve(Vec<Block>);

impl Sieve {
    /// An empty sieve for so many clients.
    pub(super) fn new(clients: usize) -> Self {
        let blocks = clients.saturating_mul(BYTES_PER_CLIENT).div_ceil(BLOCK_LEN).next_power_of_two();
        Self(vec![Block::default(); blocks])
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(Block::default());
    }

    pub(super) fn add(&mut self, hint: Hint) {
        let block = self.block(hint);
        for (word, bit) in marks(hint) {
            self.0[block].0[word] |= bit;
        }
    }

    /// Whether a hint may have been added: always `true` for one that was.
    pub(super) fn may_hold(&self, hint: Hint) -> bool {
        let block = &self.0[self.block(hint)];
        // Without a branch for each mark: none of them could be foretold.
        marks(hint).fold(0, |missing, (word, bit)| missing | (bit & !block.0[word])) == 0
    }

    /// Has what [`Sieve::may_hold`] looks at for these hints come from memory, all of it at once: a processor begins as many
    /// loads as it sees ahead, and here there is little between them. What comes back means nothing.
    pub(super) fn fetch(&self, hints: &[Hint]) -> u64 {
        hints.iter().fold(0, |all, &hint| all ^ self.0[self.block(hint)].0[0])
    }

    fn block(&self, hint: Hint) -> usize {
        low_bits(number(hint) >> (MARKS * MARK_BITS), self.0.len())
    }
}

/// The bits of its block that a hint marks, each as a word and a mask.
fn marks(hint: Hint) -> impl Iterator<Item = (usize, u64)> {
    (0..MARKS).map(move |mark| {
        let mark = low_bits(number(hint) >> (mark * MARK_BITS), BLOCK_LEN * 8);
        (mark / 64, 1 << (mark % 64))
    })
}

fn number(hint: Hint) -> u64 {
    u64::from_le_bytes(hint.bytes())
}

/// A number below `bound`, a power of two, from as many low bits. A hint is the output of a keyed hash: any will do.
#[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
const fn low_bits(number: u64, bound: usize) -> usize {
    number as usize & (bound - 1)
}
