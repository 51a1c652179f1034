//! Wall time as the knock sees it: instants, epochs, the clock tolerance, and the length of a window.
//!
//! Only wall time lives here. What must not jump with the clock (expiry of what is remembered) is measured in
//! boot time, which is another type, in the server.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of an epoch in seconds (SPEC 3.1): a hint is good for one epoch.
pub const EPOCH_SECONDS: u64 = 30;

const MICROS: u64 = 1_000_000;
const EPOCH_MICROS: u64 = EPOCH_SECONDS * MICROS;

/// An instant on the wall clock: microseconds since 1970-01-01T00:00:00Z.
///
/// In text it is RFC 3339 in UTC and whole seconds, in postcard a varint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(MICROS))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / MICROS
    }

    /// The epoch this instant lies in (SPEC 3.1).
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        Epoch(self.0 / EPOCH_MICROS)
    }

    /// This instant moved forward, stopping at the end of the type.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This instant moved back, stopping at the Unix epoch.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for WallTime {
    /// A clock before 1970 reads as 1970.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The printable range ends with the year 9999.
        match UNIX_EPOCH.checked_add(Duration::from_micros(self.0)) {
            Some(time) if self.0 < 253_402_300_800 * MICROS => {
                write!(f, "{}", humantime::format_rfc3339_seconds(time))
            }
            _ => write!(f, "{} us after 1970", self.0),
        }
    }
}

/// Why a date was not understood.
#[derive(Debug, thiserror::Error)]
#[error("a date is written in UTC and whole seconds, like \"2027-01-31T18:00:00Z\"")]
pub struct DateError;

impl FromStr for WallTime {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        // A fraction would be lost when the date is printed, and behind one humantime takes any offset for UTC.
        if text.contains('.') {
            return Err(DateError);
        }
        humantime::parse_rfc3339_weak(text.trim()).map(Self::from).map_err(|_| DateError)
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// A span of [`EPOCH_SECONDS`], counted from 1970 (SPEC 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number, `floor(unix seconds / 30)`.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The first instant of the epoch.
    #[must_use]
    pub const fn start(self) -> WallTime {
        WallTime(self.0.saturating_mul(EPOCH_MICROS))
    }

    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// How far a client's clock may be off from the gate's: 1 s to 10 min, 60 s unless configured (SPEC 5.1).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(try_from = "Duration", into = "Duration")]
pub struct Tolerance(Duration);

/// A clock tolerance outside its bounds.
#[derive(Debug, thiserror::Error)]
#[error("the clock tolerance must lie between 1s and 10m")]
pub struct ToleranceError;

impl Tolerance {
    /// The longest there is.
    pub const LONGEST: Duration = Duration::from_mins(10);

    /// A tolerance within its bounds.
    ///
    /// # Errors
    /// [`ToleranceError`] below 1 s and above 10 min.
    pub fn new(tolerance: Duration) -> Result<Self, ToleranceError> {
        let bounds = Duration::from_secs(1)..=Self::LONGEST;
        if bounds.contains(&tolerance) { Ok(Self(tolerance)) } else { Err(ToleranceError) }
    }

    /// The tolerance as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// The time around `now` for which [`Tolerance::epochs`] gives the same.
    #[must_use]
    pub fn same_epochs(self, now: WallTime) -> Range<WallTime> {
        let (oldest, newest) = (now.before(self.0), now.after(self.0));
        let past = oldest.since(oldest.epoch().start()).min(newest.since(newest.epoch().start()));
        let left =
            oldest.epoch().next().start().since(oldest).min(newest.epoch().next().start().since(newest));
        now.before(past)..now.after(left)
    }

    /// The epochs a fresh knock can belong to at `now`.
    #[must_use]
    pub fn epochs(self, now: WallTime) -> RangeInclusive<Epoch> {
        now.before(self.0).epoch()..=now.after(self.0).epoch()
    }
}

impl TryFrom<Duration> for Tolerance {
    type Error = ToleranceError;

    fn try_from(tolerance: Duration) -> Result<Self, ToleranceError> {
        Self::new(tolerance)
    }
}

impl From<Tolerance> for Duration {
    fn from(tolerance: Tolerance) -> Self {
        tolerance.0
    }
}

impl Default for Tolerance {
    fn default() -> Self {
        Self(Duration::from_mins(1))
    }
}

/// How long a door stays open: whole seconds, at least one.
///
/// In text it is a duration such as `30s` or `10m`, in postcard a varint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window(NonZeroU32);

/// Why a window was not understood.
#[derive(Debug, thiserror::Error)]
#[error("a window is a whole number of seconds, at least one, such as \"30s\", \"10m\" or \"1h\"")]
pub struct WindowError;

impl Window {
    /// What a service gives unless asked or configured otherwise: 30 s.
    pub const DEFAULT: Self = Self(NonZeroU32::new(30).expect("30 is not zero"));
    /// The longest window unless configured otherwise: 1 h.
    pub const DEFAULT_MAX: Self = Self(NonZeroU32::new(3600).expect("3600 is not zero"));

    /// A window of so many seconds.
    ///
    /// # Errors
    /// [`WindowError`] for zero.
    pub fn from_secs(secs: u32) -> Result<Self, WindowError> {
        NonZeroU32::new(secs).map(Self).ok_or(WindowError)
    }

    /// Its length in seconds.
    #[must_use]
    pub const fn as_secs(self) -> u32 {
        self.0.get()
    }

    /// Its length.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0.get() as u64)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.duration()).to_string().replace(' ', ""))
    }
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let duration = humantime::parse_duration(text.trim()).map_err(|_| WindowError)?;
        if duration.subsec_nanos() != 0 {
            return Err(WindowError);
        }
        u32::try_from(duration.as_secs()).map_err(|_| WindowError).and_then(Self::from_secs)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            NonZeroU32::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_thirty_seconds() {
        assert_eq!(WallTime::from_secs(59).epoch(), Epoch::new(1));
        assert_eq!(WallTime::from_secs(60).epoch(), Epoch::new(2));
        assert_eq!(Epoch::new(2).start(), WallTime::from_secs(60));
    }

    #[test]
    fn tolerance_covers_the_epochs_around_now() {
        let now = WallTime::from_secs(100 * 30 + 15);
        assert_eq!(Tolerance::default().epochs(now), Epoch::new(98)..=Epoch::new(102));
        let uneven = Tolerance::new(Duration::from_secs(47)).unwrap();
        for tolerance in [Tolerance::default(), uneven] {
            let (same, epochs) = (tolerance.same_epochs(now), tolerance.epochs(now));
            let micro = Duration::from_micros(1);
            assert_eq!(
                (tolerance.epochs(same.start), tolerance.epochs(same.end.before(micro))),
                (epochs.clone(), epochs.clone())
            );
            assert!(
                tolerance.epochs(same.start.before(micro)) != epochs && tolerance.epochs(same.end) != epochs
            );
        }
        assert!(Tolerance::new(Duration::from_millis(999)).is_err());
        assert!(Tolerance::new(Duration::from_secs(601)).is_err());
    }

    #[test]
    fn windows_read_and_print() {
        for (text, secs) in [("30s", 30), ("10m", 600), ("1h", 3600), ("1h 30m", 5400)] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.as_secs(), secs);
            assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
        }
        for text in ["", "0s", "30", "1500ms", "-1s", "200years"] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    #[test]
    fn dates_read_and_print() {
        let date: WallTime = "2027-01-31T18:00:00Z".parse().unwrap();
        assert_eq!(date.to_string(), "2027-01-31T18:00:00Z");
        for text in
            ["tomorrow", "2027-01-31T18:00:00.5Z", "2027-01-31T18:00:00.5+05:00", "2027-01-31T18:00:00+05:00"]
        {
            assert!(text.parse::<WallTime>().is_err(), "{text}");
        }
        assert_eq!(WallTime::from_micros(u64::MAX).to_string(), "18446744073709551615 us after 1970");
    }
}
