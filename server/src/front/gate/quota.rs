//! How many leases may live at a time, of one client and of the gate: a client's own mistakes must not fill the
//! firewall either (SPEC 5, step 9). The warden counts again; this count keeps a refused knock from being written. And
//! how many bad signatures of a client are looked at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::{ClientId, ServiceName};

use crate::clock::BootTime;
use crate::order::LIVE_LEASES;

/// So many bad signatures of one client are looked at, all at once or over time, and then one more after each interval;
/// for a client with several keys, as many fewer. To check one costs what a hundred other refusals do: who has a
/// client's secret alone must not keep the gate from the others.
const BAD_SIGNATURES: u32 = 256;
const BAD_SIGNATURE_INTERVAL: Duration = Duration::from_millis(20);

/// What is left of the gate's patience with each client.
#[derive(Default)]
pub(super) struct Patience {
    /// When it is whole again; whoever is not in here has all of it.
    whole: HashMap<ClientId, BootTime>,
}

impl Patience {
    /// Whether one more signature of this client is looked at.
    pub(super) fn lasts(&self, client: ClientId, now: BootTime) -> bool {
        let most = BAD_SIGNATURE_INTERVAL * (BAD_SIGNATURES - 1);
        self.whole.get(&client).is_none_or(|whole| whole.since(now) <= most)
    }

    /// It was bad by each of so many keys.
    pub(super) fn wear(&mut self, client: ClientId, keys: usize, now: BootTime) {
        let keys = u32::try_from(keys).unwrap_or(u32::MAX).clamp(1, BAD_SIGNATURES);
        let whole = self.whole.entry(client).or_insert(now);
        *whole = (*whole).max(now).after(BAD_SIGNATURE_INTERVAL * keys);
    }
}

/// What makes two grants one lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LeaseKey {
    pub(super) client: ClientId,
    pub(super) service: ServiceName,
    pub(super) source: IpAddr,
    pub(super) from_port: Option<NonZeroU16>,
}

/// The leases that this gate has granted and that have not ended.
#[derive(Default)]
pub(super) struct Leases {
    ends: HashMap<LeaseKey, BootTime>,
    per_client: HashMap<ClientId, u32>,
}

impl Leases {
    /// Whether these leases, all of one client, fit beside the living ones. A renewal takes no place.
    pub(super) fn have_room_for(&mut self, wanted: &[LeaseKey], max_of_client: u32, now: BootTime) -> bool {
        self.fit(wanted, max_of_client) || {
            self.end(|_, end| end <= now);
            self.fit(wanted, max_of_client)
        }
    }

    pub(super) fn add(&mut self, key: LeaseKey, end: BootTime) {
        let client = key.client;
        if let Some(old) = self.ends.get_mut(&key) {
            *old = end.max(*old);
        } else {
            self.ends.insert(key, end);
            *self.per_client.entry(client).or_default() += 1;
        }
    }

    /// Ends the leases for which this holds.
    pub(super) fn end(&mut self, which: impl Fn(&LeaseKey, BootTime) -> bool) {
        for (key, _) in self.ends.extract_if(|key, end| which(key, *end)) {
            if let Some(count) = self.per_client.get_mut(&key.client) {
                *count -= 1;
                if *count == 0 {
                    self.per_client.remove(&key.client);
                }
            }
        }
    }

    fn fit(&self, wanted: &[LeaseKey], max_of_client: u32) -> bool {
        let new = wanted.iter().filter(|key| !self.ends.contains_key(key)).count();
        let held = wanted.first().and_then(|key| self.per_client.get(&key.client)).copied().unwrap_or(0);
        new == 0 || (self.ends.len() + new <= LIVE_LEASES && held as usize + new <= max_of_client as usize)
    }
}
