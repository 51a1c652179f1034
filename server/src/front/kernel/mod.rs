//! Junk dies in the kernel: a socket filter that knows which hints are the clients', so that a knock-shaped packet with any
//! other never reaches this process.
//!
//! ```text
//! Sought ──program (assembler)──▶ filter on each capture's socket ◀── maps ◀── mirror ◀── the gate's HintTable
//! ```
//! Maps and programs are made while the process may ([`KernelFilter::lay`]); afterwards it only changes what the maps hold, by
//! the descriptors that it has. The filter is no check: what it admits the gate looks up again. It may refuse nothing that
//! the gate would not have refused as unknown: see the [`mirror`] for why it does not. Where the kernel has no such filter, or
//! does not allow it, the classic one and the gate's own table do the work.
//!
//! The program reads the kernel's own wall clock (as TAI, from Linux 6.1 on): once somebody sets it, or the front is late,
//! the set is not asked, at that very packet. A timer that tells of it would be heard a moment later, and a knock be lost in it.

use std::io;
use std::os::fd::AsRawFd;

use postern_proto::{GateKeys, Tolerance, WallTime};

use super::capture::Capture;
use super::filter::Sought;
use crate::system::bpf::Filter;

mod assembler;
mod maps;
mod mirror;
mod program;
#[cfg(test)]
pub(super) mod tests;

use maps::Maps;
pub(crate) use mirror::Mirror;

/// Beside the epochs of the tolerance: the next one, and one that is on its way out.
const EPOCHS_BESIDE: u64 = 2;
/// Clients that reloads may add to a handful; a room that stays empty costs 16 bytes a hint.
const SPARE_CLIENTS: usize = 4_096;

/// Maps that were made, for filters that were attached.
pub(crate) struct KernelFilter(Maps);

impl KernelFilter {
    /// Attaches a filter to each of these captures. It refuses nothing yet. Takes `CAP_BPF`.
    ///
    /// # Errors
    /// When the kernel has none of this, or does not allow it; then each capture's filter is what it was, or refuses no more
    /// than that did.
    pub(crate) fn lay(
        captures: &[Capture],
        sought: &Sought,
        keys: &GateKeys,
        tolerance: Tolerance,
        clients: usize,
    ) -> io::Result<Self> {
        let epochs = tolerance.epochs(WallTime::from_secs(u64::from(u32::MAX)));
        let epochs = epochs.end().number() - epochs.start().number() + 1 + EPOCHS_BESIDE + 1;
        let epochs = usize::try_from(epochs).map_err(io::Error::other)?;
        // All of them may be rotated at once: each has two secrets then.
        let clients = clients.saturating_mul(2).saturating_add(SPARE_CLIENTS);
        let maps = Maps::create(clients.saturating_mul(epochs))?;
        for capture in captures {
            let program = program::program(capture.link(), sought, keys, &maps);
            Filter::load(&program)?.attach(capture.as_raw_fd())?;
        }
        Ok(Self(maps))
    }

    /// The mirror of a gate's table, which its window of tolerance comes from.
    pub(crate) fn into_mirror(self, tolerance: Tolerance) -> Mirror {
        Mirror::new(self.0, tolerance)
    }
}
