//! The steps of a sequence at the moment when it is sent: always the same, or those that its key gives for the epoch
//! and, where it is bound to its source, for the address that the gate will see (SPEC 8).
//!
//! The gate takes a rolling sequence once. Nothing is kept here of what was sent: whoever needs another one before the
//! epoch is over asks for that of the next.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use postern_proto::keys::SequenceKey;
use postern_proto::sequence::{PortRange, Rolling, RollingError, Steps};
use postern_proto::{Epoch, WallTime};

use crate::error::Error;
use crate::knock::routed;
use crate::resolve::Family;

/// The ports of a sequence, as the configuration has them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Always the same.
    Fixed(Steps),
    /// Others in every epoch.
    Rolling(RollingPorts),
}

/// What gives the ports of each epoch.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RollingPorts {
    pub(crate) key: SequenceKey,
    pub(crate) range: PortRange,
    pub(crate) length: usize,
    /// Whether each source has its own.
    pub(crate) bound_to_source: bool,
}

impl Ports {
    /// Whether each source has its own.
    pub(crate) const fn are_bound(&self) -> bool {
        matches!(self, Self::Rolling(RollingPorts { bound_to_source: true, .. }))
    }
}

impl RollingPorts {
    /// The sequences that the key gives.
    ///
    /// # Errors
    /// [`RollingError`] for a length that the range does not allow.
    pub(crate) fn rolling(&self) -> Result<Rolling, RollingError> {
        Rolling::new(&self.key, self.range, self.length, self.bound_to_source)
    }
}

/// One sequence on its way to the addresses of a gate.
pub(crate) enum Course {
    Fixed(Steps),
    Rolling(Box<Roll>),
}

/// A rolling sequence, and what was said about it.
pub(crate) struct Roll {
    rolling: Rolling,
    /// The address that the gate will see, where that is not this host's own.
    source: Option<IpAddr>,
    /// That of the next epoch, not of this one.
    next: bool,
    /// The family that it was sent to first.
    first: Option<Family>,
}

impl Course {
    /// # Errors
    /// [`Error::Usage`] when there is nothing of the kind that `source` or `next` is about.
    pub(crate) fn new(ports: &Ports, source: Option<IpAddr>, next: bool) -> Result<Self, Error> {
        if source.is_some() && !ports.are_bound() {
            return Err(Error::Usage(
                "--source is for a rolling sequence that is bound to its source".into(),
            ));
        }
        match ports {
            Ports::Fixed(_) if next => {
                Err(Error::Usage("--next is for a rolling sequence: this one is always the same".into()))
            }
            Ports::Fixed(steps) => Ok(Self::Fixed(steps.clone())),
            Ports::Rolling(ports) => {
                let rolling = ports.rolling().map_err(|error| Error::Usage(error.to_string()))?;
                Ok(Self::Rolling(Box::new(Roll { rolling, source, next, first: None })))
            }
        }
    }

    /// How many steps it has.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Fixed(steps) => steps.as_slice().len(),
            Self::Rolling(roll) => roll.rolling.length(),
        }
    }

    /// The steps for one of the gate's addresses, to be sent now.
    ///
    /// # Errors
    /// When there is no route to it, or no sequence for it.
    pub(crate) fn steps_to(&mut self, to: IpAddr) -> io::Result<Steps> {
        match self {
            Self::Fixed(steps) => Ok(steps.clone()),
            Self::Rolling(roll) => roll.steps_to(to),
        }
    }

    /// The steps to print, and how long they are good where they are not for ever.
    ///
    /// # Errors
    /// [`Error::Usage`] when nothing tells from where they will be sent.
    pub(crate) fn steps_now(&self) -> Result<(Steps, Option<Duration>), Error> {
        match self {
            Self::Fixed(steps) => Ok((steps.clone(), None)),
            Self::Rolling(roll) => roll.steps_now().map(|(steps, good)| (steps, Some(good))),
        }
    }
}

impl Roll {
    fn steps_to(&mut self, to: IpAddr) -> io::Result<Steps> {
        let family = Family::of(to);
        let is_other = *self.first.get_or_insert(family) != family;
        let epoch = self.epoch(now());
        if self.rolling.is_bound() {
            let begin = self.rolling.range().numbers().start().get();
            let source = self.source.map_or_else(|| routed(SocketAddr::new(to, begin)), Ok)?;
            return Ok(self.rolling.steps(epoch, source));
        }
        // The gate takes each epoch's once, whoever sends it; and to it, another family is somebody else.
        let epoch = match (is_other, self.next) {
            (false, _) => epoch,
            (true, false) => epoch.next(),
            (true, true) => {
                return Err(io::Error::other("the next sequence is good for one family: choose by -4 or -6"));
            }
        };
        Ok(self.rolling.steps(epoch, NOBODY))
    }

    fn steps_now(&self) -> Result<(Steps, Duration), Error> {
        if self.rolling.is_bound() && self.source.is_none() {
            return Err(Error::Usage(
                "the sequence is bound to its source: say with --source from which address it will be sent"
                    .into(),
            ));
        }
        let now = now();
        let epoch = self.epoch(now);
        // The gate begins to follow it until the epoch after it is over.
        let good = epoch.next().next().start().since(now);
        Ok((self.rolling.steps(epoch, self.source.unwrap_or(NOBODY)), good))
    }

    fn epoch(&self, now: WallTime) -> Epoch {
        if self.next { now.epoch().next() } else { now.epoch() }
    }
}

/// Stands for the source where it does not count.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn now() -> WallTime {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn ports(bound_to_source: bool) -> Ports {
        let (key, range) = (SequenceKey::from_bytes([7; 32]), "20000-29999".parse().unwrap());
        Ports::Rolling(RollingPorts { key, range, length: 5, bound_to_source })
    }

    /// Which epoch a sequence is of, counted from this one.
    fn epoch_of(steps: &Steps, ports: &Ports, source: IpAddr) -> Option<u64> {
        let Ports::Rolling(ports) = ports else { return None };
        let (rolling, now) = (ports.rolling().unwrap(), now().epoch().number());
        (0..3).find(|later| rolling.steps(Epoch::new(now + later), source) == *steps)
    }

    /// Does it again if an epoch turned meanwhile.
    fn within_an_epoch(check: impl Fn()) {
        while {
            let begin = now().epoch();
            check();
            begin != now().epoch()
        } {}
    }

    #[test]
    fn a_bound_sequence_is_for_the_address_that_the_gate_sees() {
        let (ports, stated) = (ports(true), IpAddr::from([192, 0, 2, 7]));
        within_an_epoch(|| {
            for next in [false, true] {
                let mut own = Course::new(&ports, None, next).unwrap();
                for to in [V4, V6, V4] {
                    assert_eq!(epoch_of(&own.steps_to(to).unwrap(), &ports, to), Some(next.into()));
                }
                let mut other = Course::new(&ports, Some(stated), next).unwrap();
                assert_eq!(epoch_of(&other.steps_to(V4).unwrap(), &ports, stated), Some(next.into()));
                let (printed, good) = other.steps_now().unwrap();
                assert_eq!(epoch_of(&printed, &ports, stated), Some(next.into()));
                let good = good.unwrap().as_secs();
                assert!((30..60).contains(&(good - u64::from(next) * 30)), "{good} s");
            }
        });
        let unknown = Course::new(&ports, None, false).unwrap().steps_now().unwrap_err();
        assert!(unknown.to_string().contains("--source"), "{unknown}");
    }

    #[test]
    fn one_that_is_not_bound_is_another_one_for_the_other_family() {
        let ports = ports(false);
        within_an_epoch(|| {
            let mut course = Course::new(&ports, None, false).unwrap();
            for (to, epoch) in [(V4, 0), (V4, 0), (V6, 1)] {
                assert_eq!(epoch_of(&course.steps_to(to).unwrap(), &ports, NOBODY), Some(epoch), "{to}");
            }
            let mut next = Course::new(&ports, None, true).unwrap();
            assert_eq!(epoch_of(&next.steps_to(V6).unwrap(), &ports, NOBODY), Some(1));
            // The one after the next is too early for a gate.
            assert!(next.steps_to(V4).unwrap_err().to_string().contains("choose by -4 or -6"));
        });
    }

    #[test]
    fn what_is_not_about_the_sequence_is_refused() {
        let fixed = Ports::Fixed("7000,8000".parse().unwrap());
        let refused = |ports: &Ports, source, next| Course::new(ports, source, next).is_err();
        assert!(
            !refused(&fixed, None, false) && refused(&fixed, Some(V4), false) && refused(&fixed, None, true)
        );
        assert!(refused(&ports(false), Some(V4), false) && !refused(&ports(false), None, true));
    }
}
