//! What the gate says of a knock: a refusal with its reason, or an outcome that only the store's receipt releases.

use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::{ClientId, ClientName, Refusal, ServiceName, Services, WallTime, Window};

use super::super::store::Receipt;
use super::answer::Reply;
use super::replay::Record;
use crate::clock::BootTime;

/// What the gate decided.
#[must_use]
pub enum Verdict {
    /// Refused; nothing is written.
    Refused(Refused),
    /// Decided, to be released once it is recorded durably.
    Decided(Unrecorded),
}

/// A refusal, with what is known of the knock by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The one reason.
    pub reason: Refusal,
    /// The client, once a hint named it.
    pub client: Option<ClientName>,
    /// When the client made the knock, once it was opened.
    pub at: Option<WallTime>,
}

/// A decision that has no effect before its record is durable.
#[must_use]
#[derive(Debug)]
pub struct Unrecorded {
    /// Nothing for a sequence that may be gone through again.
    pub(super) record: Option<Record>,
    pub(super) outcome: Outcome,
    pub(super) client: ClientName,
    /// Nothing for a sequence, and where the gate does not answer. Boxed: most verdicts are refusals.
    pub(super) reply: Option<Box<Reply>>,
}

impl Unrecorded {
    /// For tests of what comes behind the gate.
    #[cfg(test)]
    pub(crate) fn for_tests(outcome: Outcome) -> Self {
        Self { record: None, outcome, client: "alice".parse().expect("a name"), reply: None }
    }

    /// What must be durable first.
    #[must_use]
    pub const fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// What would follow, to be looked at and not to be acted on.
    pub(crate) const fn preview(&self) -> &Outcome {
        &self.outcome
    }

    /// What follows, now that the store says it is durable.
    pub fn release(self, _: &Receipt) -> Released {
        let Self { outcome, reply, .. } = self;
        Released { outcome, reply }
    }

    /// What follows when it could not be made durable: nothing. The knock stays remembered, so that it cannot be
    /// tried again either.
    #[must_use]
    pub fn fail(self) -> Refused {
        Refused {
            reason: Refusal::Unrecorded,
            client: Some(self.client),
            at: self.record.map(|record| record.at),
        }
    }
}

/// What follows from a decision that is recorded, and what its client is told when that is done.
#[must_use]
pub struct Released {
    /// What follows.
    pub outcome: Outcome,
    /// What the client is told.
    pub reply: Option<Box<Reply>>,
}

/// What follows from a recorded knock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let somebody in.
    Open(Grant),
    /// Close services again.
    Close(Closure),
    /// Nothing: it asked for nothing.
    Heard,
    /// Nothing: policy refuses it.
    Refused(Refused),
}

impl Outcome {
    /// Who gets or gives back something.
    pub(crate) const fn client(&self) -> Option<ClientId> {
        match self {
            Self::Open(grant) => Some(grant.client),
            Self::Close(closure) => Some(closure.client),
            Self::Heard | Self::Refused(_) => None,
        }
    }
}

/// What a client gets: these services for this source, no more (P8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who asked.
    pub client: ClientId,
    /// The services, each with the length of its window.
    pub services: Vec<(ServiceName, Window)>,
    /// Whom to let in.
    pub source: IpAddr,
    /// From which source port; from any when absent.
    pub from_port: Option<NonZeroU16>,
    /// When the gate decided: the windows begin then.
    pub decided: BootTime,
}

/// What a client gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// Who asked.
    pub client: ClientId,
    /// The services.
    pub services: Services,
    /// Whose leases end: this address's.
    pub source: IpAddr,
}
