//! A door: what a sequence is and what may happen while it is under way.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::flags::TcpFlags;
use super::packet::Packet;
use super::rolling::Rolling;
use super::steps::Steps;
use crate::port::{Port, Protocol};
use crate::time::Epoch;

/// What has to be touched, and how.
#[derive(Clone, Debug)]
pub struct Door {
    /// The ports to touch, in order.
    pub sequence: Sequence,
    /// How long it may take, from the first step. A packet that comes exactly so much later is too late.
    pub timeout: Duration,
    /// Which TCP packets count. Others to ports of the sequence are ignored: neither steps nor wrong ones.
    pub flags: TcpFlags,
    /// The address of the gate that packets must be sent to; others are ignored. Any, if there is none.
    pub target: Option<IpAddr>,
    /// What else the same source may touch meanwhile.
    pub strays: Strays,
}

impl Door {
    /// The time for a sequence unless configured, as in knockd: 25 s.
    pub const TIMEOUT: Duration = Duration::from_secs(25);

    /// A door with this sequence and everything else as it is unless configured.
    #[must_use]
    pub fn new(sequence: Sequence) -> Self {
        let (flags, strays) = (TcpFlags::default(), Strays::default());
        Self { sequence, timeout: Self::TIMEOUT, flags, target: None, strays }
    }

    /// Whether a scan that goes through the ports one by one, upwards or downwards, opens this door: its ports are in
    /// that order, and there are no more others between them than it allows strays. Such a door is not worth much.
    #[must_use]
    pub fn opens_to_a_scan(&self) -> bool {
        let Sequence::Fixed(steps) = &self.sequence else { return false };
        let steps = steps.as_slice();
        let (first, last) = (steps[0], steps[steps.len() - 1]);
        let scanned = usize::from(first.number.get().abs_diff(last.number.get())) + 1;
        let allowed = match self.strays {
            Strays::AtMost(strays) => scanned <= steps.len() + usize::from(strays),
            Strays::Unlimited => true,
        };
        allowed
            && steps.iter().all(|step| step.protocol == first.protocol)
            && (steps.is_sorted_by(|one, next| one.number < next.number)
                || steps.is_sorted_by(|one, next| one.number > next.number))
    }

    /// What a packet is to this door; its addresses are canonical.
    pub(super) fn read(&self, packet: &Packet) -> Reading {
        if self.target.is_some_and(|target| target.to_canonical() != packet.destination) {
            return Reading::Ignored;
        }
        let flags_match = match packet.port.protocol {
            Protocol::Tcp => packet.tcp.is_some_and(|tcp| self.flags.matches(tcp.flags)),
            Protocol::Udp => true,
        };
        match self.sequence.has(packet.port) {
            true if flags_match => Reading::Own,
            // What would be a step at another port is a stray here: a scan by packets that begin nothing is one too.
            false if packet.is_new() || flags_match => Reading::Stray,
            _ => Reading::Ignored,
        }
    }
}

/// What a packet is to a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// To one of its ports, in the way that counts: a step, if it is the next one.
    Own,
    /// Something new to another port.
    Stray,
    /// Nothing.
    Ignored,
}

/// The ports of a door.
#[derive(Clone, Debug)]
pub enum Sequence {
    /// Always the same ones.
    Fixed(Steps),
    /// Others in every epoch (SPEC 8).
    Rolling(Box<Rolling>),
    /// None: a list of one-time sequences came to its end. Nothing opens the door.
    Spent,
}

impl Sequence {
    /// The steps in this epoch for this source; the epoch is nothing to a fixed sequence.
    pub(super) fn steps(&self, epoch: Epoch, source: IpAddr) -> Cow<'_, [Port]> {
        match self {
            Self::Fixed(steps) => Cow::Borrowed(steps.as_slice()),
            Self::Rolling(rolling) => Cow::Owned(rolling.ports(epoch, source).collect()),
            Self::Spent => Cow::Borrowed(&[]),
        }
    }

    /// Its first step.
    pub(super) fn first(&self, epoch: Epoch, source: IpAddr) -> Option<Port> {
        match self {
            Self::Fixed(steps) => steps.as_slice().first().copied(),
            Self::Rolling(rolling) => rolling.ports(epoch, source).next(),
            Self::Spent => None,
        }
    }

    /// How many steps it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fixed(steps) => steps.as_slice().len(),
            Self::Rolling(rolling) => rolling.length(),
            Self::Spent => 0,
        }
    }

    /// Whether a port is one of its ports; of a rolling sequence all of the range are.
    pub(super) fn has(&self, port: Port) -> bool {
        match self {
            Self::Fixed(steps) => steps.as_slice().contains(&port),
            Self::Rolling(rolling) => rolling.range().contains(port),
            Self::Spent => false,
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(steps) => steps.fmt(f),
            Self::Rolling(rolling) => write!(f, "{} of {}, rolling", rolling.length(), rolling.range()),
            Self::Spent => f.write_str("spent"),
        }
    }
}

/// How many new connections and datagrams to ports outside a sequence its source may send, from the first step on,
/// before the attempt ends. Ports of other doors are outside it as well.
///
/// A scan of all ports opens nothing then, and a browser does no harm. In text it is a number, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strays {
    /// So many; with 0 the first one ends the attempt.
    AtMost(u16),
    /// Any number: as in knockd, which sees no ports but those of its doors. There a port of another door ends
    /// the attempt; here it does not.
    Unlimited,
}

const UNLIMITED: &str = "unlimited";

/// At most 5.
impl Default for Strays {
    fn default() -> Self {
        Self::AtMost(5)
    }
}

impl fmt::Display for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(strays) => strays.fmt(f),
            Self::Unlimited => f.pad(UNLIMITED),
        }
    }
}

impl Serialize for Strays {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let most = match *self {
            Self::AtMost(strays) => Some(strays),
            Self::Unlimited => None,
        };
        match most {
            most if !serializer.is_human_readable() => most.serialize(serializer),
            Some(strays) => strays.serialize(serializer),
            None => UNLIMITED.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Strays {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Strays;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 0 to {}, or {UNLIMITED:?}", u16::MAX)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Strays, E> {
                let range = |_| E::invalid_value(de::Unexpected::Signed(number), &self);
                u16::try_from(number).map(Strays::AtMost).map_err(range)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Strays, E> {
                let range = |_| E::invalid_value(de::Unexpected::Unsigned(number), &self);
                u16::try_from(number).map(Strays::AtMost).map_err(range)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strays, E> {
                let known = (text == UNLIMITED).then_some(Strays::Unlimited);
                known.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(Visitor)
        } else {
            Ok(Option::deserialize(deserializer)?.map_or(Self::Unlimited, Self::AtMost))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_read_and_print() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Sample {
            strays: Strays,
        }
        for (text, strays) in [
            ("strays = 0\n", Strays::AtMost(0)),
            ("strays = 65535\n", Strays::AtMost(u16::MAX)),
            ("strays = \"unlimited\"\n", Strays::Unlimited),
        ] {
            let sample = Sample { strays };
            assert_eq!(toml::from_str::<Sample>(text).unwrap(), sample);
            assert_eq!(toml::to_string(&sample).unwrap(), text);
        }
        for strays in [Strays::AtMost(7), Strays::Unlimited] {
            let bytes = postcard::to_allocvec(&strays).unwrap();
            assert_eq!(postcard::from_bytes(&bytes), Ok(strays));
        }
        for wrong in ["-1", "65536", "\"many\"", "\"5\"", "true", "1.5"] {
            assert!(toml::from_str::<Sample>(&format!("strays = {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn doors_that_a_scan_opens() {
        let opens = |steps: &str, strays| {
            let door = Door { strays, ..Door::new(Sequence::Fixed(steps.parse().unwrap())) };
            door.opens_to_a_scan()
        };
        let five = Strays::default();
        for (steps, strays, want) in [
            ("7000,7001,7002", Strays::AtMost(0), true),
            ("7002,7001,7000", Strays::AtMost(0), true),
            ("7000", Strays::AtMost(0), true),
            ("7000,7003,7007", five, true),
            ("7000,7003,7008", five, false),
            ("7000,8000,9000", five, false),
            ("9000:udp,8000:udp", Strays::Unlimited, true),
            ("7000,9000,8000", Strays::Unlimited, false),
            ("7000,7000", Strays::Unlimited, false),
            ("7000,7001:udp", Strays::Unlimited, false),
        ] {
            assert_eq!(opens(steps, strays), want, "{steps} {strays}");
        }
        assert!(!Door::new(Sequence::Spent).opens_to_a_scan());
    }
}
