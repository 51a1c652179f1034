//! What the gate remembers so that a knock opens once (SPEC 5.2). Pure: the store beside it makes it durable.
//!
//! Invariant: every knock that was ever recorded is either remembered here, or its `at` is at or below the floor.
//! A knock may be forgotten only when wall time is past `at` and the tolerance, and it was remembered for
//! [`REMEMBER_AT_LEAST`] of boot time and twice the tolerance, so that a clock that steps forward and back loses nothing. Forgetting raises
//! the floor to the highest `at` forgotten, and happens only after store and floor were written together.

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::{ClientId, ServiceName, Tolerance, UsedNonce, WallTime};
use serde::{Deserialize, Serialize};

use crate::clock::{BootTime, Now};

/// A knock is remembered for at least so much boot time.
pub(crate) const REMEMBER_AT_LEAST: Duration = Duration::from_mins(10);
/// Knocks of one client that are remembered at a time.
pub(crate) const LIVE_NONCES_PER_CLIENT: usize = 65_536;
/// Knocks of all clients together that are remembered at a time; about 100 bytes each.
pub(crate) const LIVE_NONCES: usize = 4 * 1024 * 1024;
/// How many knocks are forgotten in one commit: nobody reads packets meanwhile.
const PURGE_SLICE: usize = 2_048;

/// A knock as it is remembered: whose, and which.
pub type ReplayKey = (ClientId, UsedNonce);

/// What is written durably before a knock has any effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Whose knock, and which.
    pub key: ReplayKey,
    /// When the client made it.
    pub at: WallTime,
    /// The services that it closes: earlier knocks for them are stale from now on.
    pub closes: Vec<ServiceName>,
}

/// What may be forgotten now, and the floor that must be written with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// The knocks to forget.
    pub keys: Vec<ReplayKey>,
    /// The floor from then on.
    pub floor: WallTime,
}

#[derive(Clone, Copy)]
struct Seen {
    at: WallTime,
    since: BootTime,
}

/// All knocks that could be replayed.
pub struct Memory {
    seen: HashMap<ReplayKey, Seen>,
    per_client: HashMap<ClientId, usize>,
    /// The latest close of a client's service: opens made at or before it are stale.
    closed: HashMap<(ClientId, ServiceName), WallTime>,
    floor: WallTime,
}

impl Memory {
    /// What a store holds; empty for a new one.
    #[must_use]
    pub fn new(floor: WallTime) -> Self {
        Self { seen: HashMap::new(), per_client: HashMap::new(), closed: HashMap::new(), floor }
    }

    pub(crate) fn contains(&self, key: &ReplayKey) -> bool {
        self.seen.contains_key(key)
    }

    /// Whether a knock made at `at` is older than what the gate still remembers exactly.
    pub(crate) fn is_below_floor(&self, at: WallTime) -> bool {
        at <= self.floor
    }

    pub(crate) fn is_closed(&self, client: ClientId, service: &ServiceName, at: WallTime) -> bool {
        // Almost nobody closes anything: no key is built for the look-up then.
        !self.closed.is_empty()
            && self.closed.get(&(client, service.clone())).is_some_and(|&closed| at <= closed)
    }

    pub(super) fn has_room_for(&self, client: ClientId) -> bool {
        self.holds_less_than(1, client)
    }

    /// Whether there is room for a knock that only shows that somebody has the client's secret. Half of the room is kept from
    /// these: a thief of secrets must not fill what is there for who can sign.
    pub(super) fn has_room_for_unproven(&self, client: ClientId) -> bool {
        self.holds_less_than(2, client)
    }

    /// Less than this part of what it may.
    fn holds_less_than(&self, part: usize, client: ClientId) -> bool {
        self.seen.len() < LIVE_NONCES / part
            && self.per_client.get(&client).is_none_or(|&count| count < LIVE_NONCES_PER_CLIENT / part)
    }

    /// Remembers a knock, before it is written and when it is loaded again.
    pub fn remember(&mut self, record: &Record, now: BootTime) {
        if self.seen.insert(record.key, Seen { at: record.at, since: now }).is_none() {
            *self.per_client.entry(record.key.0).or_default() += 1;
        }
        for service in &record.closes {
            self.remember_closed(record.key.0, service.clone(), record.at);
        }
    }

    /// Remembers that a client closed a service.
    pub(crate) fn remember_closed(&mut self, client: ClientId, service: ServiceName, at: WallTime) {
        let closed = self.closed.entry((client, service)).or_insert(at);
        *closed = (*closed).max(at);
    }

    /// How many knocks are remembered.
    pub(crate) fn knocks(&self) -> usize {
        self.seen.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.closed.is_empty()
    }

    /// What may be forgotten at `now`, a slice of it when it is much.
    #[must_use]
    pub fn purgeable(&self, now: Now, tolerance: Tolerance) -> Option<Purge> {
        // With less than twice the tolerance, a step ahead could lift the floor above what a slow client sends now.
        let long_enough = REMEMBER_AT_LEAST.max(2 * tolerance.duration());
        let outlived = |seen: &Seen| {
            now.wall > seen.at.after(tolerance.duration()) && now.boot.since(seen.since) >= long_enough
        };
        let mut floor = self.floor;
        let keys: Vec<_> = self
            .seen
            .iter()
            .filter(|(_, seen)| outlived(seen))
            .take(PURGE_SLICE)
            .inspect(|(_, seen)| floor = floor.max(seen.at))
            .map(|(key, _)| *key)
            .collect();
        (!keys.is_empty()).then_some(Purge { keys, floor })
    }

    /// Forgets what was written as forgotten.
    pub fn forget(&mut self, purge: &Purge) {
        self.floor = self.floor.max(purge.floor);
        for key in &purge.keys {
            if self.seen.remove(key).is_some()
                && let Some(count) = self.per_client.get_mut(&key.0)
            {
                *count -= 1;
                if *count == 0 {
                    self.per_client.remove(&key.0);
                }
            }
        }
        // The floor refuses what these refused.
        let floor = self.floor;
        self.closed.retain(|_, closed| *closed > floor);
    }
}
