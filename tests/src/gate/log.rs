//! What a gate under test says: its log, one JSON object a line, and the counters in it.

use std::collections::BTreeMap;

use serde_json::Value;

/// The JSON lines with a message.
pub(super) fn events(lines: &[String], message: &str) -> Vec<Value> {
    let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|event| event["message"] == message).collect()
}

/// What a gate has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that reached it.
    pub received: u64,
    /// Those that the kernel dropped before it could, for want of room.
    pub dropped: u64,
    /// Those that it accepted.
    pub accepted: u64,
    /// Those that it refused, by reason; a reason that never was is left out.
    pub refused: BTreeMap<String, u64>,
}

impl Counters {
    /// What was counted since these, of the same gate.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let refused = self.refused.iter().map(|(reason, count)| {
            (reason.clone(), count - earlier.refused.get(reason).copied().unwrap_or_default())
        });
        Self {
            received: self.received - earlier.received,
            dropped: self.dropped - earlier.dropped,
            accepted: self.accepted - earlier.accepted,
            refused: refused.filter(|(_, count)| *count > 0).collect(),
        }
    }

    pub(super) fn from_event(event: &Value) -> Self {
        let count = |name: &str| event[name].as_u64().unwrap_or_default();
        let reasons = event["refused"].as_str().unwrap_or_default().split_whitespace();
        let refused = reasons.filter_map(|reason| {
            let (name, count) = reason.split_once('=')?;
            Some((name.to_owned(), count.parse().ok()?))
        });
        let (received, dropped, accepted) = (count("received"), count("dropped"), count("accepted"));
        Self { received, dropped, accepted, refused: refused.collect() }
    }
}
