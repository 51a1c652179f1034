//! Why the warden does not carry out an order. The front has checked the same before: each of these says that the
//! front is not what it was, or that its settings and the warden's are not the same for a moment.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::clock::BootTime;

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OrderRefusal {
    /// It does not read.
    Malformed,
    /// There is no such client, or it is disabled.
    UnknownClient,
    /// There is no such service.
    UnknownService,
    /// The client may not have the service.
    ServiceNotAllowed,
    /// The window is longer than the client may have.
    WindowTooLong,
    /// The client may not let this address in, or nobody may.
    SourceNotAllowed,
    /// The client may not knock yet, or not any more.
    NotValidNow,
    /// The client holds as many leases as it may, or all clients together do.
    TooManyLeases,
    /// The client orders faster than any client knocks.
    TooFast,
    /// Its window was over before it came here.
    Late,
}

impl fmt::Display for OrderRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::UnknownClient => "unknown-client",
            Self::UnknownService => "unknown-service",
            Self::ServiceNotAllowed => "service-not-allowed",
            Self::WindowTooLong => "window-too-long",
            Self::SourceNotAllowed => "source-not-allowed",
            Self::NotValidNow => "not-valid-now",
            Self::TooManyLeases => "too-many-leases",
            Self::TooFast => "too-fast",
            Self::Late => "late",
        })
    }
}

/// Each reason is logged once in so long: a front that was taken over does not fill the log.
const QUIET: Duration = Duration::from_mins(1);

/// Counts of refused orders.
#[derive(Default)]
pub(crate) struct Refusals {
    counts: BTreeMap<OrderRefusal, Count>,
}

#[derive(Default)]
struct Count {
    refused: u64,
    said: Option<BootTime>,
}

impl Refusals {
    /// Counts one, and says it now and then.
    pub(crate) fn refuse(&mut self, reason: OrderRefusal, now: BootTime, order: &dyn fmt::Display) {
        let count = self.counts.entry(reason).or_default();
        count.refused += 1;
        if count.said.is_none_or(|said| now.since(said) >= QUIET) {
            count.said = Some(now);
            warn!(%reason, refused = count.refused, "the front's order is refused: {order}");
        }
    }

    /// How often each reason was met.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (OrderRefusal, u64)> {
        self.counts.iter().map(|(&reason, count)| (reason, count.refused))
    }

    /// One line with each reason that was met.
    pub(crate) fn log(&self) {
        let refused: Vec<_> = self.counts().map(|(reason, count)| format!("{reason}={count}")).collect();
        if !refused.is_empty() {
            info!(refused = refused.join(" "), "orders of the front");
        }
    }
}
