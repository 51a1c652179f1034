//! The ports that a rolling sequence chooses from: `20000-29999/tcp`.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::steps::{self, StepsError};
use crate::port::{Port, Protocol};

/// Consecutive ports of one protocol, one at least.
///
/// In text it is the first port, `-`, the last one, and `:udp` or `/udp` behind them if they are not TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: Port,
    last: NonZeroU16,
}

/// Why a range of ports was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It does not look like one.
    #[error(
        "a range of ports is the first one and the last one, such as \"20000-29999\" or \"20000-29999/udp\""
    )]
    Form,
    /// One of the two is no port.
    #[error(transparent)]
    Port(#[from] StepsError),
    /// The last port lies before the first.
    #[error("the last port of a range does not lie before the first")]
    Backwards,
}

impl PortRange {
    /// The ports from the first of `numbers` to the last.
    ///
    /// # Errors
    /// [`RangeError::Backwards`] when the last lies before the first.
    pub fn new(protocol: Protocol, numbers: RangeInclusive<NonZeroU16>) -> Result<Self, RangeError> {
        let (number, last) = numbers.into_inner();
        if last < number {
            Err(RangeError::Backwards)
        } else {
            Ok(Self { first: Port { protocol, number }, last })
        }
    }

    /// Their protocol.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        self.first.protocol
    }

    /// Their numbers.
    #[must_use]
    pub const fn numbers(self) -> RangeInclusive<NonZeroU16> {
        self.first.number..=self.last
    }

    /// How many they are: 1 to 65,535.
    #[must_use]
    pub const fn count(self) -> NonZeroU16 {
        NonZeroU16::MIN.saturating_add(self.last.get() - self.first.number.get())
    }

    /// Whether a port is among them.
    #[must_use]
    pub fn contains(self, port: Port) -> bool {
        port.protocol == self.first.protocol && self.numbers().contains(&port.number)
    }

    /// The port so many behind the first; the last one if that is beyond it.
    pub(super) fn at(self, offset: u16) -> Port {
        Port { number: self.first.number.saturating_add(offset).min(self.last), ..self.first }
    }
}

impl FromStr for PortRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (first, rest) = text.split_once('-').ok_or(RangeError::Form)?;
        let last = steps::step(rest.trim())?;
        let first = format!("{}/{}", first.trim(), last.protocol.as_str());
        Self::new(last.protocol, steps::step(&first)?.number..=last.number)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}/{}", self.first.number, self.last, self.protocol().as_str())
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_and_print() {
        for (text, printed, count) in [
            ("20000-29999", "20000-29999/tcp", 10_000),
            ("1 - 65535:udp", "1-65535/udp", 65_535),
            ("7000-7000/tcp", "7000-7000/tcp", 1),
        ] {
            let range: PortRange = text.parse().unwrap();
            assert_eq!((range.to_string().as_str(), range.count().get()), (printed, count));
            assert_eq!(printed.parse(), Ok(range));
        }
        for (text, error) in [
            ("", RangeError::Form),
            ("7000", RangeError::Form),
            ("7001-7000", RangeError::Backwards),
            ("7000-", RangeError::Port(StepsError::Step(String::new()))),
            ("0-7000", RangeError::Port(StepsError::Step("0/tcp".to_owned()))),
            ("1/udp-2", RangeError::Port(StepsError::Step("1/udp/tcp".to_owned()))),
            ("1-2-3", RangeError::Port(StepsError::Step("2-3".to_owned()))),
            ("1-65536", RangeError::Port(StepsError::Step("65536".to_owned()))),
        ] {
            assert_eq!(text.parse::<PortRange>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_range_holds_its_ends_and_its_protocol_only() {
        let range: PortRange = "7000-7002/udp".parse().unwrap();
        for (port, want) in [
            ("6999/udp", false),
            ("7000/udp", true),
            ("7002/udp", true),
            ("7003/udp", false),
            ("7001/tcp", false),
        ] {
            assert_eq!(range.contains(port.parse().unwrap()), want, "{port}");
        }
        assert_eq!([0, 2, 3].map(|offset| range.at(offset).number.get()), [7000, 7002, 7002]);
    }
}
