//! The watch's sign of life: the process tells the supervisor that it is not stuck only while the watch is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::BootTime;

/// A watch that did not turn for so long is stuck. It turns every five seconds at least, and a reload of very many clients is
/// one turn.
const STUCK: Duration = Duration::from_secs(15);

/// When the watch turned last, in milliseconds of the boot clock. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Pulse(Arc<AtomicU64>);

/// Who waits for the disk is not stuck: another one would wait as well.
const WAITS: u64 = u64::MAX;

impl Pulse {
    /// The watch turns.
    pub(super) fn beat(&self, now: BootTime) {
        self.0.store(millis(now), Ordering::Relaxed);
    }

    /// From now until it turns again, the watch waits for the disk.
    pub(super) fn pause(&self) {
        self.0.store(WAITS, Ordering::Relaxed);
    }

    /// Whether the watch is not stuck.
    pub(super) fn is_felt(&self, now: BootTime) -> bool {
        Duration::from_millis(millis(now).saturating_sub(self.0.load(Ordering::Relaxed))) < STUCK
    }
}

fn millis(at: BootTime) -> u64 {
    u64::try_from(at.since(BootTime::from_boot(Duration::ZERO)).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> BootTime {
        BootTime::from_boot(Duration::from_secs(secs))
    }

    #[test]
    fn it_is_felt_until_the_watch_is_stuck() {
        let (pulse, other) = (Pulse::default(), Pulse::default());
        let felt = pulse.clone();
        for turned in [100, 5_000] {
            pulse.beat(at(turned));
            assert!(felt.is_felt(at(turned)) && felt.is_felt(at(turned + 14)));
            assert!(!felt.is_felt(at(turned + 15)));
        }
        assert!(!other.is_felt(at(5_000)));
    }

    #[test]
    fn who_waits_for_the_disk_is_not_stuck_until_he_turns_again() {
        let pulse = Pulse::default();
        pulse.pause();
        assert!(pulse.is_felt(at(1_000_000)));
        pulse.beat(at(100));
        assert!(!pulse.is_felt(at(200)));
    }
}
