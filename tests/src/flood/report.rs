//! What came of a flood, and whether that is all that may come of one.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Flood, Measured, NUMBERS};
use crate::gate::Counters;

/// Memory in KiB: of all processes, and by how much it may grow behind the warm-up. What they share counts for each of
/// them, and of a program that is not optimized that is twice as much: some 20 MB of its own code.
const MAX_RESIDENT: u64 = if cfg!(debug_assertions) { 128 << 10 } else { 64 << 10 };
const MAX_GROWTH: u64 = 1 << 10;
/// Lines in the log.
const MAX_LINES: usize = 100;
/// Of what was to be offered, the share that has to be, or it was no such flood.
const MIN_OFFERED: f64 = 0.8;

/// What came of a flood.
#[derive(Clone, Debug)]
pub struct Report {
    pub(super) flood: Flood,
    /// Datagrams that were sent.
    pub(super) sent: u64,
    pub(super) lasted: Duration,
    /// Packets that the gate's link has handed to its kernel.
    pub(super) delivered: u64,
    /// What the gate has counted.
    pub(super) counted: Counters,
    /// Lines that the gate has logged.
    pub(super) lines: usize,
    pub(super) measured: Measured,
}

impl Report {
    /// Checks that there was such a flood, that every knock has opened, that every datagram was counted by what became of
    /// it, and that memory and log have stayed within bounds.
    ///
    /// # Errors
    /// When one of that is not so.
    pub fn check(&self) -> Result<()> {
        let Measured { opened, usage: [before, after], .. } = &self.measured;
        let offered = per_second(self.sent, self.lasted);
        ensure!(
            offered >= MIN_OFFERED * f64::from(self.flood.per_second),
            "only {offered:.0} a second offered"
        );
        ensure!(opened.len() == NUMBERS.len(), "{} of {} knocks have opened", opened.len(), NUMBERS.len());
        let Counters { received, accepted, refused, .. } = &self.counted;
        ensure!(
            accepted + refused.values().sum::<u64>() == *received,
            "not each was decided once: {:?}",
            self.counted
        );
        ensure!(after.resident <= MAX_RESIDENT, "{} KiB of memory", after.resident);
        for (before, after) in [(before.resident, after.resident), (before.anonymous, after.anonymous)] {
            ensure!(after <= before + MAX_GROWTH, "memory has grown from {before} to {after} KiB");
        }
        ensure!(self.lines <= MAX_LINES, "{} lines in the log", self.lines);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flood, sent, lasted, delivered, counted, lines, measured } = self;
        let Measured { opened, usage: [before, after], .. } = measured;
        let (offered, delivered) = (per_second(*sent, *lasted), per_second(*delivered, *lasted));
        let slowest = opened.iter().max().map_or(0.0, Duration::as_secs_f64) * 1e3;
        let more = |before: u64, after: u64| after.cast_signed() - before.cast_signed();
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        let each = cpu / per_second(measured.delivered, Duration::from_secs(1)) * 1e6;
        let share = cpu / measured.lasted.as_secs_f64() * 100.0;

        writeln!(f, "{:?}, {} a second for {:.1} s", flood.kind, flood.per_second, lasted.as_secs_f64())?;
        writeln!(f, "  a second    {offered:.0} offered, {delivered:.0} delivered")?;
        writeln!(f, "  counted     {} received, {} dropped by the ring", counted.received, counted.dropped)?;
        writeln!(f, "  refused     {:?}", counted.refused)?;
        writeln!(
            f,
            "  knocks      {} of {} open, the slowest in {slowest:.0} ms",
            opened.len(),
            NUMBERS.len()
        )?;
        writeln!(f, "  processes   {}, at {each:.2} us a packet, {share:.0} % of a core", after.processes)?;
        writeln!(f, "  resident    {} KiB, {:+} KiB", after.resident, more(before.resident, after.resident))?;
        writeln!(
            f,
            "  anonymous   {} KiB, {:+} KiB",
            after.anonymous,
            more(before.anonymous, after.anonymous)
        )?;
        write!(f, "  log         {lines} lines")
    }
}

#[expect(clippy::cast_precision_loss, reason = "no flood has 2^52 packets")]
fn per_second(packets: u64, time: Duration) -> f64 {
    packets as f64 / time.as_secs_f64()
}
