//! What the front counts: every datagram that reaches the gate ends in exactly one of these.

use std::collections::BTreeMap;

use postern_proto::Refusal;
use serde::{Deserialize, Serialize};
use tracing::info;

/// Counts since the front's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Datagrams that reached the gate.
    pub(crate) received: u64,
    /// Knocks that were recorded and passed on.
    pub(crate) accepted: u64,
    /// Packets that passed the kernel's filter and found the capture's ring full; they are not among the received.
    pub(crate) dropped: u64,
    /// Datagrams and knocks that were refused, by reason.
    pub(crate) refused: BTreeMap<Refusal, u64>,
}

impl Counters {
    pub(crate) fn refuse(&mut self, reason: Refusal) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// One line with everything that is not zero.
    pub(crate) fn log(&self) {
        let refused: Vec<_> =
            self.refused.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        let Self { received, accepted, dropped, .. } = self;
        info!(received, accepted, dropped, refused = refused.join(" "), "counters");
    }
}
