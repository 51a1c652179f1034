//! What filter and front share: the set of hints, the window in which it is complete, and what was refused by it.

use std::io;

use crate::system::bpf::{Count, Numbers, Set};

/// The bounds of the window, nanoseconds of the kernel's TAI clock: from this one on, and before that one.
pub(super) const FROM: u32 = 0;
pub(super) const UNTIL: u32 = 1;

/// The smallest set there is room for.
const LEAST_ROOM: u32 = 1024;
/// The largest: more would be gigabytes of the kernel's memory.
const MOST_ROOM: u32 = 1 << 26;

/// The maps of one front. A window without an end is none: at first nothing is refused.
pub(super) struct Maps {
    pub(super) hints: Set,
    pub(super) window: Numbers,
    pub(super) refused: Count,
}

impl Maps {
    /// Maps with room for so many hints, and some more: clients come with a reload.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(super) fn create(hints: usize) -> io::Result<Self> {
        let room = u32::try_from(hints).unwrap_or(MOST_ROOM).clamp(LEAST_ROOM, MOST_ROOM).next_power_of_two();
        Ok(Self { hints: Set::create(room)?, window: Numbers::create(2)?, refused: Count::create()? })
    }

    /// The set is complete for none of the time.
    pub(super) fn shut_window(&self) -> io::Result<()> {
        self.window.set(UNTIL, 0)
    }

    /// It is complete from here to there. Whatever is seen of both bounds half way is a part of one of the windows.
    pub(super) fn set_window(&self, from: u64, until: u64) -> io::Result<()> {
        self.window.set(FROM, from)?;
        self.window.set(UNTIL, until)
    }
}
