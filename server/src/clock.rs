//! The two clocks. Wall time says whether a knock is fresh, and steps when somebody sets it; boot time says how long
//! something has been remembered or open, and only ever runs forward, suspended or not.

use std::time::{Duration, SystemTime};

use postern_proto::WallTime;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// An instant since boot (`CLOCK_BOOTTIME`). Means nothing after the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(Duration);

impl BootTime {
    /// From the time that has run since boot.
    #[must_use]
    pub const fn from_boot(since: Duration) -> Self {
        Self(since)
    }

    /// This instant moved forward.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// Time from `earlier` to this instant; zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// What the wall clock says.
    pub wall: WallTime,
    /// What the boot clock says.
    pub boot: BootTime,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let boot = Duration::try_from(boot).expect("the boot clock starts at zero and only runs forward");
        Self { wall: SystemTime::now().into(), boot: BootTime(boot) }
    }
}
