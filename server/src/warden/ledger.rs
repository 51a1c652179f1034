//! The ledger: who is let in where, and until when. Pure; the firewall carries out what it says.
//!
//! A lease is a client's for one service, from one source (and source port, or any). Knocking again renews it: it
//! never doubles and never shortens. The kernel holds one rule for each port of each lease, so that two clients
//! behind one address each have their own, revoking one leaves the other, and the kernel's rules alone say who holds
//! what when the warden starts again.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use postern_proto::{ClientName, Port, ServiceName, WallTime, Window};

use crate::clock::{BootTime, Now};
use crate::pipe::LIVE_LEASES;

/// Number of a lease, unique while it lives; hexadecimal in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LeaseId(pub(crate) u32);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for LeaseId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u32::from_str_radix(text, 16).map(Self)
    }
}

/// What makes two grants one lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeaseKey {
    pub(crate) client: ClientName,
    pub(crate) service: ServiceName,
    pub(crate) source: IpAddr,
    pub(crate) from_port: Option<NonZeroU16>,
}

/// One live lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) key: LeaseKey,
    pub(crate) id: LeaseId,
    /// The ports of the service when it was granted.
    pub(crate) ports: Vec<Port>,
    /// When it was granted, by the wall clock.
    pub(crate) from: WallTime,
    /// When it ends by the wall clock: what the kernel goes by.
    pub(crate) until: WallTime,
    /// When it ends by the boot clock: what the warden goes by.
    pub(crate) ends: BootTime,
}

/// What granting would change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The lease as it will be.
    pub(crate) lease: Lease,
    /// The lease that it takes the place of.
    pub(crate) replaces: Option<Lease>,
}

/// All live leases.
#[derive(Default)]
pub(crate) struct Ledger {
    leases: HashMap<LeaseKey, Lease>,
    last_id: u32,
}

impl Ledger {
    /// What granting this lease would change; `None` when it runs as long already. Nothing is changed before
    /// [`Ledger::enter`].
    pub(crate) fn plan(&self, now: Now, key: LeaseKey, ports: &[Port], window: Window) -> Option<Change> {
        let old = self.leases.get(&key);
        let lease = Lease {
            id: old.map_or(LeaseId(self.last_id.wrapping_add(1)), |old| old.id),
            ports: ports.to_vec(),
            from: now.wall,
            until: now.wall.after(window.duration()),
            ends: now.boot.after(window.duration()),
            key,
        };
        match old {
            Some(old) if old.ends >= lease.ends && old.ports == lease.ports => None,
            old => Some(Change { replaces: old.cloned(), lease }),
        }
    }

    /// Enters a lease that the kernel now holds.
    pub(crate) fn enter(&mut self, lease: Lease) {
        self.last_id = self.last_id.max(lease.id.0);
        self.leases.insert(lease.key.clone(), lease);
    }

    /// Enters a lease that an earlier warden granted, as its rules in the kernel tell.
    pub(crate) fn adopt(
        &mut self,
        now: Now,
        key: LeaseKey,
        id: LeaseId,
        port: Port,
        from: WallTime,
        until: WallTime,
    ) {
        self.last_id = self.last_id.max(id.0);
        let ends = now.boot.after(until.since(now.wall));
        let lease =
            self.leases.entry(key.clone()).or_insert(Lease { key, id, ports: vec![], from, until, ends });
        if !lease.ports.contains(&port) {
            lease.ports.push(port);
        }
        if until > lease.until {
            (lease.from, lease.until, lease.ends) = (from, until, ends);
        }
    }

    /// Takes out the leases that have ended.
    pub(crate) fn ended(&mut self, now: BootTime) -> Vec<Lease> {
        self.take(|lease| lease.ends <= now)
    }

    /// Takes out the leases of a client for a service and source.
    pub(crate) fn close(&mut self, client: &ClientName, service: &ServiceName, source: IpAddr) -> Vec<Lease> {
        self.take(|lease| {
            lease.key.client == *client && lease.key.service == *service && lease.key.source == source
        })
    }

    /// Takes out the leases for which this holds.
    pub(crate) fn take(&mut self, which: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        self.leases.extract_if(|_, lease| which(lease)).map(|(_, lease)| lease).collect()
    }

    /// Whether one more lease of this client fits.
    pub(crate) fn has_room_for(&self, client: &ClientName, max_of_client: u32) -> bool {
        let of_client = self.leases.keys().filter(|key| key.client == *client).count();
        self.leases.len() < LIVE_LEASES && of_client < max_of_client as usize
    }

    /// How long until the next lease ends.
    pub(crate) fn next_end(&self, now: BootTime) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends.since(now)).min()
    }

    /// The live leases.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Now {
        Now { wall: WallTime::from_secs(1_000 + secs), boot: BootTime::from_boot(Duration::from_secs(secs)) }
    }

    fn key(client: &str, source: &str) -> LeaseKey {
        LeaseKey {
            client: client.parse().unwrap(),
            service: "ssh".parse().unwrap(),
            source: source.parse().unwrap(),
            from_port: None,
        }
    }

    fn ssh() -> [Port; 1] {
        ["22/tcp".parse().unwrap()]
    }

    fn grant(ledger: &mut Ledger, now: Now, key: LeaseKey, secs: u32) -> Option<Change> {
        let change = ledger.plan(now, key, &ssh(), Window::from_secs(secs).unwrap());
        if let Some(change) = &change {
            ledger.enter(change.lease.clone());
        }
        change
    }

    #[test]
    fn knocking_again_renews_and_never_doubles_or_shortens() {
        let mut ledger = Ledger::default();
        let first = grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30).unwrap();
        assert_eq!(first.replaces, None);
        let second = grant(&mut ledger, at(10), key("alice", "192.0.2.1"), 30).unwrap();
        assert_eq!((second.lease.id, second.replaces), (first.lease.id, Some(first.lease)));
        assert_eq!(grant(&mut ledger, at(11), key("alice", "192.0.2.1"), 5), None, "it runs longer already");
        assert_eq!(ledger.leases().count(), 1);
        assert_eq!(ledger.next_end(at(11).boot), Some(Duration::from_secs(29)));
    }

    #[test]
    fn leases_of_two_clients_behind_one_address_are_two() {
        let mut ledger = Ledger::default();
        let alice = grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30).unwrap().lease;
        let bob = grant(&mut ledger, at(5), key("bob", "192.0.2.1"), 30).unwrap().lease;
        assert_ne!(alice.id, bob.id);
        let closed = ledger.close(&alice.key.client, &alice.key.service, alice.key.source);
        assert_eq!(closed, [alice]);
        assert_eq!(ledger.leases().collect::<Vec<_>>(), [&bob]);
        assert_eq!(ledger.ended(at(34).boot), []);
        assert_eq!(ledger.ended(at(35).boot), [bob]);
    }

    #[test]
    fn an_adopted_lease_is_renewed_like_any_other() {
        let mut ledger = Ledger::default();
        let (alice, port) = (key("alice", "192.0.2.1"), ssh()[0]);
        let (now, id) = (at(100), LeaseId(7));
        ledger.adopt(now, alice.clone(), id, port, at(90).wall, at(110).wall);
        ledger.adopt(now, alice.clone(), id, port, at(80).wall, at(105).wall);
        assert_eq!(ledger.next_end(now.boot), Some(Duration::from_secs(10)));
        let change = grant(&mut ledger, now, alice, 30).unwrap();
        assert_eq!((change.lease.id, change.replaces.unwrap().until), (id, at(110).wall));
        assert_eq!(grant(&mut ledger, now, key("bob", "192.0.2.2"), 1).unwrap().lease.id, LeaseId(8));
    }

    #[test]
    fn a_client_holds_no_more_than_it_may() {
        let mut ledger = Ledger::default();
        grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30);
        grant(&mut ledger, at(0), key("alice", "192.0.2.2"), 30);
        assert!(ledger.has_room_for(&"alice".parse().unwrap(), 3));
        assert!(!ledger.has_room_for(&"alice".parse().unwrap(), 2));
        assert!(ledger.has_room_for(&"bob".parse().unwrap(), 1));
    }
}
