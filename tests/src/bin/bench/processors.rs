//! Who measures how long something takes has a processor of its own: on one of the contender's, the sending of each probe
//! would be a part of what is measured.

use std::sync::LazyLock;

use anyhow::Result;
use rustix::io;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Those that this program may use, as it was started.
static ALL: LazyLock<io::Result<CpuSet>> = LazyLock::new(|| sched_getaffinity(None));

/// Keeps this thread, and what it starts from now on, off the processor that measures, unless it is the only one.
pub(crate) fn leave_one() -> Result<()> {
    let (all, last) = last()?;
    let mut others = all;
    others.unset(last);
    stay(if others.count() == 0 { all } else { others })
}

/// Keeps this thread on the processor that measures.
pub(crate) fn take_one() -> Result<()> {
    let mut own = CpuSet::new();
    own.set(last()?.1);
    stay(own)
}

/// A thread that was kept from processors. Dropping it ends that.
pub(crate) struct Kept;

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = (*ALL).map_err(Into::into).and_then(stay) {
            eprintln!("cannot use all processors again: {error:#}");
        }
    }
}

fn last() -> Result<(CpuSet, usize)> {
    let all = (*ALL)?;
    let last = (0..CpuSet::MAX_CPU).rfind(|&processor| all.is_set(processor)).unwrap_or_default();
    Ok((all, last))
}

fn stay(processors: CpuSet) -> Result<()> {
    Ok(sched_setaffinity(None, &processors)?)
}
