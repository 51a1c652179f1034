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
    /// Of the received and unknown, those that the kernel has refused by itself.
    #[serde(default)]
    pub(crate) refused_in_kernel: u64,
    /// Datagrams and knocks that were refused, by reason.
    pub(crate) refused: BTreeMap<Refusal, u64>,
}

impl Counters {
    pub(crate) fn refuse(&mut self, reason: Refusal) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// The kernel has refused so many more.
    pub(crate) fn refuse_in_kernel(&mut self, more: u64) {
        self.received += more;
        self.refused_in_kernel += more;
        *self.refused.entry(Refusal::Unknown).or_default() += more;
    }

    /// One line with everything that is not zero.
    pub(crate) fn log(&self) {
        let refused: Vec<_> =
            self.refused.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        let Self { received, accepted, dropped, refused_in_kernel, .. } = self;
        info!(received, accepted, dropped, refused_in_kernel, refused = refused.join(" "), "counters");
    }
}
