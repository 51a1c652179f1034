//! Keeps the kernel's set of hints as the gate's table has them, and says for when it is complete.
//!
//! At every moment the set holds each hint that is valid by a clock within the window. So a window is made narrower
//! before a hint goes, and wider after the last one has come: the next epoch's are in long before its time, the last one's go
//! after theirs. A clock that steps out of the window, or a front that is late, means that the gate decides alone.

use std::io;
use std::ops::Range;

use postern_proto::hints::HintTable;
use postern_proto::keys::Hint;
use postern_proto::{Epoch, Tolerance, WallTime};
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};
use tracing::warn;

use super::maps::Maps;

#[cfg(test)]
mod tests;

/// Hints that are taken out at once.
const SLICE: usize = 20_000;
/// Nanoseconds of a second.
const NANOS: i128 = 1_000_000_000;

/// The set, and what is known to be in it.
pub(crate) struct Mirror {
    maps: Maps,
    tolerance: Tolerance,
    /// Consecutive epochs, oldest first.
    held: Vec<Held>,
    /// What has to go, unless it is another epoch's as well.
    leaving: Vec<Hint>,
    /// The window as it stands.
    window: Option<Range<u64>>,
    /// It could not be kept right: until a reload the gate decides alone.
    failed: bool,
    refused: u64,
}

/// What the set holds of an epoch.
struct Held {
    epoch: Epoch,
    /// So many clients have been looked at.
    clients: usize,
    hints: Vec<Hint>,
}

impl Mirror {
    pub(super) fn new(maps: Maps, tolerance: Tolerance) -> Self {
        let (held, leaving) = (Vec::new(), Vec::new());
        Self { maps, tolerance, held, leaving, window: None, failed: false, refused: 0 }
    }

    /// Goes on to what the table has of so many clients; `false` while something is left to do.
    pub(crate) fn follow(&mut self, table: &HintTable, clients: usize) -> bool {
        if self.failed {
            return true;
        }
        self.try_to_follow(table, clients).unwrap_or_else(|error| {
            if error.raw_os_error() == Some(libc::E2BIG) {
                warn!("many clients came with a reload, more than the kernel has room for: restart posternd to have junk refused there");
            } else {
                warn!("junk is not refused in the kernel until a reload, its set of hints cannot be kept: {error}");
            }
            self.failed = true;
            // Where even this fails, the window ends with its epoch.
            let _ = self.maps.shut_window();
            self.window = None;
            true
        })
    }

    /// The table is of other clients: all that it holds comes in, and what it does not hold goes out, before this returns.
    pub(crate) fn begin_anew(&mut self, table: &HintTable, clients: usize) {
        self.failed = self.maps.shut_window().is_err();
        self.window = None;
        self.leaving.extend(self.held.drain(..).flat_map(|held| held.hints));
        while !self.follow(table, clients) && !self.leaving.is_empty() {}
    }

    /// Datagrams that the kernel has refused.
    pub(crate) fn refused(&mut self) -> u64 {
        // What cannot be read now was at least what it was last.
        self.refused = self.maps.refused.sum().unwrap_or(self.refused);
        self.refused
    }

    fn try_to_follow(&mut self, table: &HintTable, clients: usize) -> io::Result<bool> {
        let is_known = |epoch| table.hints().any(|(known, _)| known == epoch);
        let (stay, go) = self.held.drain(..).partition(|held| is_known(held.epoch));
        self.held = stay;
        self.leaving.extend(go.into_iter().flat_map(|held: Held| held.hints));
        self.set_window(clients)?;
        // Before others come in: there is room for so many epochs, and no more.
        self.let_go(table)?;
        for (epoch, hints) in table.hints() {
            self.take_in(epoch, hints)?;
        }
        self.held.sort_by_key(|held| held.epoch);
        self.set_window(clients)?;
        Ok(self.leaving.is_empty() && self.held.iter().all(|held| held.clients == clients))
    }

    fn take_in(&mut self, epoch: Epoch, hints: &[Option<Hint>]) -> io::Result<()> {
        let at = self.held.iter().position(|held| held.epoch == epoch).unwrap_or_else(|| {
            self.held.push(Held { epoch, clients: 0, hints: Vec::new() });
            self.held.len() - 1
        });
        let held = &mut self.held[at];
        let new = hints.get(held.clients..).unwrap_or_default();
        let keys: Vec<_> = new.iter().flatten().map(|hint| hint.bytes()).collect();
        // First written down here: what fails half way must be known for its way out.
        held.hints.extend(new.iter().flatten());
        self.maps.hints.insert(&keys)?;
        held.clients = hints.len();
        Ok(())
    }

    /// All at once while the window is shut: then every hint waits for its turn. Otherwise in slices.
    fn let_go(&mut self, table: &HintTable) -> io::Result<()> {
        let slice = if self.window.is_none() { self.leaving.len() } else { SLICE };
        let rest = self.leaving.len().saturating_sub(slice);
        let going = self.leaving.split_off(rest);
        let keys: Vec<_> = going.into_iter().filter(|&hint| !table.holds(hint)).map(Hint::bytes).collect();
        self.maps.hints.remove(&keys)
    }

    /// The window in which a fresh knock is of an epoch that is in the set, with every client.
    fn set_window(&mut self, clients: usize) -> io::Result<()> {
        let complete: Vec<_> =
            self.held.iter().filter(|held| held.clients == clients).map(|held| held.epoch).collect();
        let window = complete.first().zip(complete.last()).and_then(|(first, last)| {
            let tolerance = self.tolerance.duration();
            let (from, until) = (first.start().after(tolerance), last.next().start().before(tolerance));
            (from < until).then(|| in_tai(from)..in_tai(until))
        });
        match &window {
            Some(Range { start, end }) => self.maps.set_window(*start, *end)?,
            None => self.maps.shut_window()?,
        }
        self.window = window;
        Ok(())
    }
}

/// An instant of the wall clock by the kernel's TAI clock, which no leap second stops. They are whole seconds apart; when
/// somebody sets the wall clock, the other steps with it.
fn in_tai(wall: WallTime) -> u64 {
    let nanos = |now: Timespec| i128::from(now.tv_sec) * NANOS + i128::from(now.tv_nsec);
    // A kernel without this clock has no such filter either.
    let Ok(tai) = clock_gettime_dynamic(DynamicClockId::Tai) else { return 0 };
    let (tai, real) = (nanos(tai), nanos(clock_gettime(ClockId::Realtime)));
    let seconds = (tai - real + NANOS / 2).div_euclid(NANOS);
    u64::try_from(i128::from(wall.as_micros()) * 1000 + seconds * NANOS).unwrap_or_default()
}
