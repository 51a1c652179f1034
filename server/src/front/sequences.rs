//! Classic sequences: the matcher of `postern_proto::sequence` with this gate's doors, and what each of them opens.
//!
//! ```text
//! Frame ──▶ Matcher ──▶ Completion ──▶ Gate::complete ──▶ Unrecorded, as for a knock
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use postern_proto::keys::SequenceKey;
use postern_proto::sequence::{
    self, Door, Matcher, MatcherError, Packet, PortRange, Rolling, RollingError, Sequence, Steps, Strays,
    Tcp, TcpFlags, Use,
};
use postern_proto::{ClientId, ClientName, Port, Protocol, ServiceName};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::frame::{Content, Frame};
use crate::address::is_within;
use crate::clock::{BootTime, Now};

/// One sequence, as the front is told of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SequenceSettings {
    pub(crate) name: ClientName,
    /// In place of a client's.
    pub(crate) id: ClientId,
    pub(crate) services: Vec<ServiceName>,
    pub(crate) max_leases: u32,
    /// Networks that it lets in; any when empty.
    pub(crate) sources: Vec<IpNet>,
    pub(crate) ports: Ports,
    pub(crate) timeout: Duration,
    pub(crate) flags: TcpFlags,
    pub(crate) target: Option<IpAddr>,
    pub(crate) strays: Strays,
}

/// The ports of a sequence.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ports {
    /// Always the same.
    Fixed(Steps),
    /// The first of these, each good once.
    OneTime(Vec<Steps>),
    /// Others in every epoch.
    Rolling { key: SequenceKey, range: PortRange, length: usize, bound_to_source: bool },
}

impl SequenceSettings {
    /// Whether it lets this address in.
    pub(crate) fn admits(&self, source: IpAddr) -> bool {
        is_within(source, &self.sources)
    }

    /// The door, as the matcher has it.
    ///
    /// # Errors
    /// [`RollingError`] for a length that its range does not allow.
    pub(crate) fn door(&self) -> Result<Door, RollingError> {
        let sequence = match &self.ports {
            Ports::Fixed(steps) => Sequence::Fixed(steps.clone()),
            Ports::OneTime(unused) => unused.first().cloned().map_or(Sequence::Spent, Sequence::Fixed),
            Ports::Rolling { key, range, length, bound_to_source } => {
                Sequence::Rolling(Box::new(Rolling::new(key, *range, *length, *bound_to_source)?))
            }
        };
        let Self { timeout, flags, target, strays, .. } = *self;
        Ok(Door { sequence, timeout, flags, target, strays })
    }
}

/// Why the sequences of a gate cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SequencesError {
    #[error("sequence {name}: {cause}")]
    Rolling { name: ClientName, cause: RollingError },
    #[error(transparent)]
    Matcher(#[from] MatcherError),
}

/// Whoever is on the way through a sequence.
pub(crate) struct Sequences {
    matcher: Matcher,
    settings: Vec<SequenceSettings>,
    copies: Copies,
}

/// The last datagrams. A capture of every interface shows what comes in through a bridge, or a VLAN, twice: unlike a
/// segment of TCP, a copy of a datagram cannot be told from another one but by its coming at once.
#[derive(Default)]
struct Copies {
    last: VecDeque<(Packet, BootTime)>,
}

/// How many datagrams are known again, and for how long: copies come one behind the other.
const COPIES_KNOWN: usize = 16;
const COPIES_FOR: Duration = Duration::from_millis(10);

impl Copies {
    /// Whether this datagram was here a moment ago; it is known from now on.
    fn has(&mut self, now: Now, packet: &Packet) -> bool {
        if packet.port.protocol == Protocol::Tcp {
            return false;
        }
        let is_copy = self.last.iter().any(|(last, at)| last == packet && now.boot.since(*at) <= COPIES_FOR);
        if !is_copy {
            self.last.truncate(COPIES_KNOWN - 1);
            self.last.push_front((*packet, now.boot));
        }
        is_copy
    }
}

/// A sequence that a source has been through.
pub(crate) struct Completion<'a> {
    pub(crate) sequence: &'a SequenceSettings,
    pub(crate) source: IpAddr,
    /// Of a rolling one: what must not happen twice.
    pub(crate) used: Option<Use>,
    /// Of a one-time one: what is spent now.
    pub(crate) spent: Option<Spent>,
}

/// A one-time sequence that somebody has been through. Nothing opens before its file says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spent {
    pub(crate) name: ClientName,
    pub(crate) steps: Steps,
}

impl Sequences {
    /// Nobody is on the way yet. The key is random, and for this run only.
    ///
    /// # Errors
    /// [`SequencesError`]
    pub(crate) fn new(settings: Vec<SequenceSettings>, key: [u8; 16]) -> Result<Self, SequencesError> {
        let door = |sequence: &SequenceSettings| {
            sequence.door().map_err(|cause| SequencesError::Rolling { name: sequence.name.clone(), cause })
        };
        let doors = settings.iter().map(door).collect::<Result<_, _>>()?;
        Ok(Self { matcher: Matcher::new(doors, Matcher::SLOTS, key)?, settings, copies: Copies::default() })
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// What these are, to be compared with others.
    pub(crate) fn settings(&self) -> &[SequenceSettings] {
        &self.settings
    }

    /// Takes a packet; gives what it completes.
    pub(crate) fn advance(&mut self, now: Now, frame: &Frame<'_>) -> Vec<Completion<'_>> {
        let Some(packet) = packet(frame) else { return Vec::new() };
        if self.copies.has(now, &packet) {
            return Vec::new();
        }
        let completed = self.matcher.advance(at(now), &packet);
        let spent: Vec<_> = completed.iter().map(|done| self.spend(done.door, packet.source)).collect();
        let completion = |(done, spent): (sequence::Completed, Option<Spent>)| Completion {
            sequence: &self.settings[done.door],
            source: packet.source,
            used: done.used,
            spent,
        };
        completed.into_iter().zip(spent).map(completion).collect()
    }

    /// The sequences that have a packet's port, for a person to read.
    pub(crate) fn names_with(&self, frame: &Frame<'_>) -> Option<String> {
        let port = packet(frame)?.port;
        let has = |sequence: &SequenceSettings| match &sequence.ports {
            Ports::Fixed(steps) => steps.as_slice().contains(&port),
            Ports::OneTime(unused) => unused.first().is_some_and(|steps| steps.as_slice().contains(&port)),
            Ports::Rolling { range, .. } => range.contains(port),
        };
        let names: Vec<_> = self
            .settings
            .iter()
            .filter(|sequence| has(sequence))
            .map(|sequence| sequence.name.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Goes on to the next of one-time sequences, if it is one. Who is not let in spends nothing.
    fn spend(&mut self, door: usize, source: IpAddr) -> Option<Spent> {
        if !self.settings[door].admits(source) {
            return None;
        }
        let SequenceSettings { name, ports: Ports::OneTime(unused), .. } = &mut self.settings[door] else {
            return None;
        };
        let steps = (!unused.is_empty()).then(|| unused.remove(0))?;
        let next = unused.first().cloned().map_or(Sequence::Spent, Sequence::Fixed);
        if unused.is_empty() {
            warn!(sequence = %name, "no one-time sequence is left: nothing opens it");
        }
        if let Err(error) = self.matcher.replace(door, next) {
            error!(sequence = %name, %error, "nothing opens it until a reload");
        }
        Some(Spent { name: name.clone(), steps })
    }

    /// Forgets who did not go on in time, in part.
    pub(crate) fn sweep(&mut self, now: Now) {
        self.matcher.sweep(at(now));
    }
}

fn at(now: Now) -> sequence::Now {
    sequence::Now { elapsed: now.boot.since(BootTime::from_boot(Duration::ZERO)), wall: now.wall }
}

/// Nothing for a port that no packet should have.
fn packet(frame: &Frame<'_>) -> Option<Packet> {
    let (protocol, tcp) = match frame.content {
        Content::Datagram(_) => (Protocol::Udp, None),
        Content::Segment { flags, sequence } => (Protocol::Tcp, Some(Tcp { flags, sequence })),
    };
    Some(Packet {
        source: frame.source,
        destination: frame.destination,
        port: Port { protocol, number: NonZeroU16::new(frame.port)? },
        source_port: frame.source_port,
        tcp,
    })
}
