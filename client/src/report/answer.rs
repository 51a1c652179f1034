//! What a gate answered, for people and for programs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use jiff::{Timestamp, ZonedDateTime};
use postern_proto::{Outcome, Refusal, WallTime};
use serde::Serialize;

use super::say;
use crate::clock::ClockOffset;
use crate::reply::Reply;

/// A clock that is further off than this is told of: a gate refuses knocks that are off by a minute.
pub(crate) const CLOCK_WARNING_SECONDS: u64 = 10;

const HALF_SECOND: Duration = Duration::from_millis(500);

/// A gate's answer to a knock.
#[derive(Debug, Serialize)]
pub struct AnswerReport {
    /// `opened`, `closed`, `heard` or `refused`.
    pub outcome: &'static str,
    /// Until when what was asked for is open, in UTC by this host's clock.
    pub until: Option<WallTime>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// The address that was to be let in.
    pub source: IpAddr,
    /// Where the gate saw the knock come from.
    pub seen: SocketAddr,
    /// Where it was sent from.
    pub sent_from: SocketAddr,
    /// The address and port of the gate that answered.
    pub answered_by: SocketAddr,
    /// How far the gate's clock is ahead of this host's.
    pub clock_offset_ms: i64,
    /// From the knock to its answer.
    pub round_trip_ms: u64,
}

impl From<&Reply> for AnswerReport {
    fn from(reply: &Reply) -> Self {
        let (outcome, refusal) = match reply.answer.outcome {
            Outcome::Opened { .. } => ("opened", None),
            Outcome::Closed => ("closed", None),
            Outcome::Refused(refusal) => ("refused", Some(refusal)),
            _ => ("heard", None),
        };
        Self {
            outcome,
            until: reply.until(),
            refusal,
            source: reply.let_in(),
            seen: reply.answer.seen,
            sent_from: reply.from,
            answered_by: reply.to,
            clock_offset_ms: reply.offset.as_millis(),
            round_trip_ms: u64::try_from(reply.round_trip.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl AnswerReport {
    /// What is open, in one line.
    pub(super) fn line(&self, services: &str, from_port: Option<NonZeroU16>) -> String {
        let port = from_port.map(|port| format!(" port {port}")).unwrap_or_default();
        match self.until {
            Some(until) => {
                format!(
                    "open until {} for {}{port}: {services}",
                    local_time(until, &ZonedDateTime::now()),
                    self.source
                )
            }
            None => format!("{} for {}: {services}", self.outcome, self.source),
        }
    }
}

/// What is open, in one line.
pub(crate) fn open_line(reply: &Reply, services: &str) -> String {
    AnswerReport::from(reply).line(services, None)
}

/// Tells a person of a clock that is so far off that knocks will be refused one day.
pub(crate) fn warn_of_clock(offset: ClockOffset) {
    if offset.abs().as_secs() >= CLOCK_WARNING_SECONDS {
        say(&format!("this host's clock is {}: set it right", Off(offset, "the gate's")));
    }
}

/// How far this host's clock is off somebody else's.
pub(crate) struct Off<'a>(pub(crate) ClockOffset, pub(crate) &'a str);

impl fmt::Display for Off<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.0.host_is_behind() { "behind" } else { "ahead of" };
        let (seconds, whose) = ((self.0.abs() + HALF_SECOND).as_secs(), self.1);
        match (seconds / 60, seconds % 60) {
            (0, 0) => write!(f, "within a second of {whose}"),
            (0, seconds) => write!(f, "{seconds} s {side} {whose}"),
            (minutes, 0) => write!(f, "{minutes} min {side} {whose}"),
            (minutes, seconds) => write!(f, "{minutes} min {seconds} s {side} {whose}"),
        }
    }
}

/// The time of day where `now` is, with the date unless it is today.
pub(crate) fn local_time(time: WallTime, now: &ZonedDateTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let Ok(timestamp) = Timestamp::from_second(seconds) else { return time.to_string() };
    let there = timestamp.to_zoned_datetime(now.time_zone().clone());
    let format = if there.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    there.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use jiff::tz::{Offset, TimeZone};

    use super::*;

    #[test]
    fn a_time_is_that_of_the_place_and_has_its_date_unless_it_is_today() {
        let noon: Timestamp = "2027-01-31T12:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<WallTime>().unwrap();
        for (hours, time, expected) in [
            (0, "2027-01-31T12:03:20Z", "12:03:20"),
            (0, "2027-02-01T00:00:00Z", "2027-02-01 00:00:00"),
            (11, "2027-01-31T12:03:20Z", "23:03:20"),
            (-13, "2027-01-31T12:03:20Z", "23:03:20"),
            (-13, "2027-01-31T13:00:00Z", "2027-01-31 00:00:00"),
        ] {
            let zone = TimeZone::fixed(Offset::from_hours(hours).unwrap());
            assert_eq!(local_time(at(time), &noon.to_zoned_datetime(zone)), expected);
        }
    }

    #[test]
    fn a_clock_is_behind_or_ahead() {
        let (early, late) = (WallTime::from_secs(1000), WallTime::from_secs(1300));
        let off = |gate, host| Off(ClockOffset::between(gate, host), "the gate's").to_string();
        assert_eq!(off(late, early), "5 min behind the gate's");
        assert_eq!(off(early, late), "5 min ahead of the gate's");
        let later = late.after(Duration::from_secs(12));
        assert_eq!(off(later, late), "12 s behind the gate's");
        assert_eq!(off(later, early), "5 min 12 s behind the gate's");
        assert_eq!(off(late, late), "within a second of the gate's");
    }
}
