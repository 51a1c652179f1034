//! The time that knocks are dated by: this host's clock, put right by what a gate has answered.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use postern_proto::WallTime;

/// How far a gate's clock is ahead of this host's, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffset(i64);

impl ClockOffset {
    /// A gate's clock less this host's at the same moment.
    pub(crate) const fn between(gate: WallTime, host: WallTime) -> Self {
        // Times after the year 290,000 saturate.
        Self(gate.as_micros().cast_signed().saturating_sub(host.as_micros().cast_signed()))
    }

    /// In milliseconds; negative where the gate's clock is behind.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0 / 1000
    }

    /// How far the two are apart.
    #[must_use]
    pub const fn abs(self) -> Duration {
        Duration::from_micros(self.0.unsigned_abs())
    }

    /// Whether this host's clock is the one behind.
    #[must_use]
    pub const fn host_is_behind(self) -> bool {
        self.0 > 0
    }

    /// What this host's clock shows when the gate's shows that.
    pub(crate) const fn to_host(self, gate: WallTime) -> WallTime {
        WallTime::from_micros(gate.as_micros().saturating_add_signed(self.0.saturating_neg()))
    }

    /// What the gate's clock shows when this host's shows that.
    pub(crate) const fn to_gate(self, host: WallTime) -> WallTime {
        WallTime::from_micros(host.as_micros().saturating_add_signed(self.0))
    }
}

/// The clock of one run: this host's, until a gate has told better.
#[derive(Default)]
pub(crate) struct Clock {
    ahead: AtomicI64,
}

impl Clock {
    /// The time to date a knock by.
    pub(crate) fn now(&self) -> WallTime {
        ClockOffset(self.ahead.load(Ordering::Relaxed)).to_gate(host_time())
    }

    pub(crate) fn learn(&self, offset: ClockOffset) {
        self.ahead.store(offset.0, Ordering::Relaxed);
    }
}

/// What this host's clock shows.
pub(crate) fn host_time() -> WallTime {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_and_both_signs() {
        let (early, late) = (WallTime::from_secs(1000), WallTime::from_secs(1025));
        let ahead = ClockOffset::between(late, early);
        assert_eq!((ahead.as_millis(), ahead.host_is_behind()), (25_000, true));
        assert_eq!((ahead.to_gate(early), ahead.to_host(late)), (late, early));
        let behind = ClockOffset::between(early, late);
        assert_eq!((behind.as_millis(), behind.host_is_behind()), (-25_000, false));
        assert_eq!((behind.to_gate(late), behind.to_host(early)), (early, late));
        assert_eq!((ahead.abs(), behind.abs()), (Duration::from_secs(25), Duration::from_secs(25)));
    }

    #[test]
    fn a_clock_that_has_learnt_shows_the_gates_time() {
        let clock = Clock::default();
        clock.learn(ClockOffset(300_000_000));
        let ahead = clock.now().since(host_time());
        assert!(ahead > Duration::from_secs(299) && ahead <= Duration::from_mins(5), "{ahead:?}");
    }
}
