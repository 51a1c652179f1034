//! The time that knocks are dated by: this host's clock, and never a gate's. All knocks of this host are compared with one
//! another by their dates (SPEC 5.3), those of other processes too: a close that was dated by another clock would come
//! before the opens that it is to end, or would end those that follow. A gate that answers has found this clock good
//! enough; how far it is off is only told.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use postern_proto::WallTime;

/// How far a gate's clock is ahead of this host's, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffset(i64);

impl ClockOffset {
    /// A gate's clock less this host's at the same moment.
    pub(crate) fn between(gate: WallTime, host: WallTime) -> Self {
        Self(signed(gate).saturating_sub(signed(host)))
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

/// Times after the year 290,000 are as late as that.
fn signed(time: WallTime) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// A clock that was set back by more is believed: knocks from before are good at no gate that takes those from now on, and
/// a program that runs for long must not wait until the time has come again.
const SET_BACK: Duration = Duration::from_mins(1);

/// The clock that the knocks of one gate are dated by. Each date is later than all before it.
#[derive(Default)]
pub(crate) struct Clock {
    ahead: AtomicI64,
    /// The last date, in microseconds.
    last: AtomicU64,
}

impl Clock {
    /// The time to date a knock by.
    pub(crate) fn now(&self) -> WallTime {
        self.later_than_all(ClockOffset(self.ahead.load(Ordering::Relaxed)).to_gate(host_time()))
    }

    /// Shows the gate's time from now on. Only for a diagnosis, which opens nothing for long: see the head of this file.
    pub(crate) fn correct(&self, offset: ClockOffset) {
        self.ahead.store(offset.0, Ordering::Relaxed);
        self.last.store(0, Ordering::Relaxed);
    }

    fn later_than_all(&self, time: WallTime) -> WallTime {
        let next = |last: u64| {
            let is_set_back = WallTime::from_micros(last).since(time) > SET_BACK;
            let time = time.as_micros();
            if is_set_back { time } else { time.max(last.saturating_add(1)) }
        };
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        WallTime::from_micros(next(last.expect("every date has a next one")))
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
    fn no_time_is_too_late() {
        let (last, first) = (WallTime::from_micros(u64::MAX), WallTime::from_micros(0));
        assert!(ClockOffset::between(last, first).host_is_behind());
        assert!(!ClockOffset::between(first, last).host_is_behind());
    }

    #[test]
    fn a_clock_that_was_corrected_shows_the_gates_time() {
        let clock = Clock::default();
        for (offset, from, to) in [(300, 299, 300), (-300, -300, -299)] {
            let before = clock.now();
            clock.correct(ClockOffset(offset * 1_000_000));
            let shown = ClockOffset::between(clock.now(), host_time()).as_millis();
            assert!((from * 1000..=to * 1000).contains(&shown), "{shown} ms");
            assert_ne!(clock.now(), before);
        }
    }

    #[test]
    fn each_date_is_later_than_all_before_it() {
        let (clock, now) = (Clock::default(), WallTime::from_secs(1_790_000_000));
        let second = Duration::from_secs(1);
        assert_eq!(clock.later_than_all(now), now);
        assert_eq!(clock.later_than_all(now).as_micros(), now.as_micros() + 1);
        assert_eq!(clock.later_than_all(now.before(30 * second)).as_micros(), now.as_micros() + 2);
        assert_eq!(clock.later_than_all(now.after(second)), now.after(second));
        // Somebody has set it right.
        assert_eq!(clock.later_than_all(now.before(61 * second)), now.before(61 * second));
    }
}
