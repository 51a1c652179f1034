//! The ledger: who is let in where, and until when. Pure; the firewall carries out what it says.
//!
//! A lease is a client's for one service, from one source (and source port, or any). Knocking again renews it: it
//! never doubles and never shortens. The kernel holds one rule for each port of each lease, so that two clients
//! behind one address each have their own, revoking one leaves the other, and the kernel's rules alone say who holds
//! what when the warden starts again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use postern_proto::{ClientName, Port, ServiceName, WallTime};

use crate::clock::{BootTime, Now};
pub(crate) use crate::errand::LeaseKey;
use crate::order::LIVE_LEASES;

/// Number of a lease; hexadecimal in text. A renewal has a new one, so that no two rules in the kernel are ever alike, and
/// taking out the old one cannot hit the new.
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

/// What moves the wall clock against the boot clock by more than this is a step.
const STEP: Duration = Duration::from_millis(10);

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

/// The last whole second in which a rule that ends at `until` matches. The kernel takes its last second whole, so the
/// rule falls at the first full second at or behind `until`: never early, and less than a second late (P5).
pub(crate) fn last_second(until: WallTime) -> u64 {
    until.as_micros().div_ceil(1_000_000).saturating_sub(1)
}

/// What granting a lease means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing: it runs as long already.
    Unchanged,
    /// The lease runs on, within the last second of the rules that it has.
    Extend(Lease),
    /// New rules, and then away with those of the lease that it takes the place of.
    Grant {
        /// The lease as it will be.
        lease: Lease,
        /// The lease as it is, when this is a renewal.
        replaces: Option<Lease>,
    },
}

/// Which leases an administrator means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Every one.
    All,
    /// The one with this number.
    Lease(LeaseId),
    /// All of a client.
    Client(ClientName),
    /// All for a source address.
    Address(IpAddr),
}

impl Which {
    /// Reads `all`, an address, a client's name or a lease's number. A number can be a client's name too: `lease:` and
    /// `client:` in front tell them apart.
    ///
    /// # Errors
    /// When it is none of these, or could be two.
    pub(crate) fn parse(text: &str, is_client: impl Fn(&ClientName) -> bool) -> Result<Self, String> {
        let nothing = || format!("{text:?} is no lease, client or address, and not \"all\"");
        if text == "all" {
            return Ok(Self::All);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some(id) = text.strip_prefix("lease:") {
            return id.parse().map(Self::Lease).map_err(|_| nothing());
        }
        if let Some(name) = text.strip_prefix("client:") {
            return name.parse().map(Self::Client).map_err(|_| nothing());
        }
        match (text.parse::<ClientName>().ok().filter(|name| is_client(name)), text.parse::<LeaseId>()) {
            (Some(_), Ok(_)) => {
                Err(format!("{text} is a client and may be a lease: say client:{text} or lease:{text}"))
            }
            (Some(name), Err(_)) => Ok(Self::Client(name)),
            (None, Ok(id)) => Ok(Self::Lease(id)),
            (None, Err(_)) => text.parse().map(Self::Client).map_err(|_| nothing()),
        }
    }

    /// Whether this lease is meant.
    pub(crate) fn means(&self, lease: &Lease) -> bool {
        match self {
            Self::All => true,
            Self::Lease(id) => lease.id == *id,
            Self::Client(name) => lease.key.client == *name,
            Self::Address(address) => lease.key.source == *address,
        }
    }
}

/// All live leases.
#[derive(Default)]
pub(crate) struct Ledger {
    leases: HashMap<LeaseKey, Lease>,
    /// The same by their ends: with thousands of leases, a knock is not to look at each.
    ends: BTreeMap<BootTime, Vec<LeaseKey>>,
    /// How many each client has.
    of_client: HashMap<ClientName, usize>,
    last_id: u32,
}

impl Ledger {
    /// What granting this lease means. Nothing is entered before [`Ledger::enter`].
    ///
    /// A client that knocks many times in a second costs the kernel one rule in that second.
    pub(crate) fn plan(&mut self, now: Now, key: LeaseKey, ports: &[Port], lasts: Duration) -> Plan {
        let (until, ends) = (now.wall.after(lasts), now.boot.after(lasts));
        let replaces = self.leases.get(&key).cloned();
        // The kernel goes by the wall clock: a rule that begins later by it, since somebody set it back, lets nobody in.
        let old = replaces.as_ref().filter(|old| old.from <= now.wall);
        let (until, ends) = old.map_or((until, ends), |old| (old.until.max(until), old.ends.max(ends)));
        if let Some(old) = old.filter(|old| old.ports == ports) {
            if old.ends == ends && old.until == until {
                return Plan::Unchanged;
            }
            // nftables goes by the boot clock: where the wall clock was set back, the same second is a later one.
            let stepped = ends.since(old.ends).abs_diff(until.since(old.until)) > STEP;
            if last_second(old.until) == last_second(until) && !stepped {
                return Plan::Extend(Lease { until, ends, ..old.clone() });
            }
        }
        self.last_id = self.last_id.wrapping_add(1);
        let lease =
            Lease { key, id: LeaseId(self.last_id), ports: ports.to_vec(), from: now.wall, until, ends };
        Plan::Grant { lease, replaces }
    }

    /// Enters a lease that the kernel now holds.
    pub(crate) fn enter(&mut self, lease: Lease) {
        self.remove(&lease.key);
        self.ends.entry(lease.ends).or_default().push(lease.key.clone());
        *self.of_client.entry(lease.key.client.clone()).or_default() += 1;
        self.leases.insert(lease.key.clone(), lease);
    }

    fn remove(&mut self, key: &LeaseKey) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        if let Some(keys) = self.ends.get_mut(&lease.ends) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.ends.remove(&lease.ends);
            }
        }
        if let Some(count) = self.of_client.get_mut(&key.client) {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&key.client);
            }
        }
        Some(lease)
    }

    /// Enters a lease that an earlier warden granted, as its rules in the kernel tell, if they let anybody in now: a clock
    /// that was set back must not open a window again when it comes round to it.
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
        if now.wall < from || until <= now.wall {
            return;
        }
        let ends = now.boot.after(until.since(now.wall));
        let mut lease = self.remove(&key).unwrap_or(Lease { key, id, ports: vec![], from, until, ends });
        if !lease.ports.contains(&port) {
            lease.ports.push(port);
        }
        if until > lease.until {
            (lease.from, lease.until, lease.ends) = (from, until, ends);
        }
        self.enter(lease);
    }

    /// Takes out the leases that have ended.
    pub(crate) fn ended(&mut self, now: BootTime) -> Vec<Lease> {
        let over: Vec<_> = self.ends.range(..=now).flat_map(|(_, keys)| keys).cloned().collect();
        over.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Takes out the leases of a client for a service and source.
    pub(crate) fn close(&mut self, client: &ClientName, service: &ServiceName, source: IpAddr) -> Vec<Lease> {
        self.take(|lease| {
            lease.key.client == *client && lease.key.service == *service && lease.key.source == source
        })
    }

    /// Takes out the leases for which this holds.
    pub(crate) fn take(&mut self, which: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let those: Vec<_> =
            self.leases.values().filter(|lease| which(lease)).map(|lease| lease.key.clone()).collect();
        those.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Whether one more lease of this client fits, beside those that are coming.
    pub(crate) fn has_room_for<'a>(
        &self,
        client: &ClientName,
        max_of_client: u32,
        coming: impl Iterator<Item = &'a ClientName>,
    ) -> bool {
        let of_client = self.of_client.get(client).copied().unwrap_or(0);
        let (all, of_client) = coming.fold((self.leases.len(), of_client), |(all, of_client), other| {
            (all + 1, of_client + usize::from(other == client))
        });
        all < LIVE_LEASES && of_client < max_of_client as usize
    }

    /// When the next lease ends.
    pub(crate) fn next_end(&self) -> Option<BootTime> {
        self.ends.first_key_value().map(|(ends, _)| *ends)
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

    fn plan(ledger: &mut Ledger, now: Now, key: LeaseKey, secs: u64) -> Plan {
        let plan = ledger.plan(now, key, &ssh(), Duration::from_secs(secs));
        if let Plan::Grant { lease, .. } | Plan::Extend(lease) = &plan {
            ledger.enter(lease.clone());
        }
        plan
    }

    fn grant(ledger: &mut Ledger, now: Now, key: LeaseKey, secs: u64) -> (Lease, Option<Lease>) {
        match plan(ledger, now, key, secs) {
            Plan::Grant { lease, replaces } => (lease, replaces),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn knocking_again_renews_and_never_doubles_or_shortens() {
        let mut ledger = Ledger::default();
        let (first, replaces) = grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30);
        assert_eq!(replaces, None);
        let (second, replaces) = grant(&mut ledger, at(10), key("alice", "192.0.2.1"), 30);
        assert_ne!(second.id, first.id, "their rules would be alike");
        assert_eq!(replaces, Some(first));
        assert_eq!(plan(&mut ledger, at(11), key("alice", "192.0.2.1"), 5), Plan::Unchanged);
        assert_eq!(ledger.leases().count(), 1);
        assert_eq!(ledger.next_end(), Some(at(40).boot));
    }

    #[test]
    fn within_one_second_the_kernel_is_left_alone() {
        let mut ledger = Ledger::default();
        let later = |now: Now, millis| Now {
            wall: now.wall.after(Duration::from_millis(millis)),
            boot: now.boot.after(Duration::from_millis(millis)),
        };
        let (first, _) = grant(&mut ledger, later(at(0), 100), key("alice", "192.0.2.1"), 30);
        let Plan::Extend(second) = plan(&mut ledger, later(at(0), 900), key("alice", "192.0.2.1"), 30) else {
            panic!("the same second needs no other rule");
        };
        assert_eq!((second.id, second.from), (first.id, first.from), "its rules are those of the first");
        assert_eq!(second.ends.since(first.ends), Duration::from_millis(800));
        grant(&mut ledger, later(at(1), 100), key("alice", "192.0.2.1"), 30);
    }

    #[test]
    fn a_lease_that_the_kernel_ended_with_a_stepped_clock_is_granted_anew() {
        let mut ledger = Ledger::default();
        grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 3_600);
        let step = Duration::from_hours(2);
        for wall in [at(5).wall.after(step), at(5).wall.before(Duration::from_mins(1))] {
            let now = Now { wall, boot: at(5).boot };
            let (lease, _) = grant(&mut ledger, now, key("alice", "192.0.2.1"), 30);
            assert_eq!(lease.until, wall.after(Duration::from_secs(30)));
        }
    }

    #[test]
    fn a_renewal_that_lasts_longer_by_the_boot_clock_alone_goes_into_the_kernel() {
        let mut ledger = Ledger::default();
        let (first, _) = grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30);
        // Ten seconds later, and set back by as much.
        let now = Now { wall: at(0).wall, boot: at(10).boot };
        let (second, replaces) = grant(&mut ledger, now, key("alice", "192.0.2.1"), 30);
        assert_eq!((second.until, second.ends, replaces), (first.until, at(40).boot, Some(first)));
    }

    #[test]
    fn leases_of_two_clients_behind_one_address_are_two() {
        let mut ledger = Ledger::default();
        let alice = grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30).0;
        let bob = grant(&mut ledger, at(5), key("bob", "192.0.2.1"), 30).0;
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
        assert_eq!(ledger.next_end(), Some(now.boot.after(Duration::from_secs(10))));
        let (lease, replaces) = grant(&mut ledger, now, alice, 30);
        assert_eq!((lease.id, replaces.unwrap().until), (LeaseId(8), at(110).wall));
        assert_eq!(grant(&mut ledger, now, key("bob", "192.0.2.2"), 1).0.id, LeaseId(9));
    }

    #[test]
    fn a_window_that_is_over_or_still_to_come_is_not_adopted() {
        let mut ledger = Ledger::default();
        for (from, until) in [(10, 40), (200, 230)] {
            ledger.adopt(
                at(100),
                key("alice", "192.0.2.1"),
                LeaseId(7),
                ssh()[0],
                at(from).wall,
                at(until).wall,
            );
        }
        assert_eq!(ledger.leases().count(), 0);
    }

    #[test]
    fn an_administrator_names_leases() {
        let parse = |text| Which::parse(text, |name| ["alice", "1f"].contains(&name.as_str()));
        for (text, which) in [
            ("all", Which::All),
            ("192.0.2.1", Which::Address("192.0.2.1".parse().unwrap())),
            ("2001:db8::1", Which::Address("2001:db8::1".parse().unwrap())),
            ("alice", Which::Client("alice".parse().unwrap())),
            ("gone", Which::Client("gone".parse().unwrap())),
            ("2e", Which::Lease(LeaseId(0x2e))),
            ("lease:1f", Which::Lease(LeaseId(0x1f))),
            ("client:1f", Which::Client("1f".parse().unwrap())),
        ] {
            assert_eq!(parse(text), Ok(which), "{text}");
        }
        for bad in ["1f", "", "no such thing", "lease:xyz", "192.0.2.1/24"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_holds_no_more_than_it_may() {
        let mut ledger = Ledger::default();
        grant(&mut ledger, at(0), key("alice", "192.0.2.1"), 30);
        grant(&mut ledger, at(0), key("alice", "192.0.2.2"), 30);
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse().unwrap());
        let fits =
            |client, max, coming: &[&ClientName]| ledger.has_room_for(client, max, coming.iter().copied());
        assert!(fits(&alice, 3, &[]) && fits(&alice, 3, &[&bob]) && fits(&alice, 4, &[&alice, &bob]));
        assert!(!fits(&alice, 2, &[]) && !fits(&alice, 3, &[&bob, &alice]));
        assert!(fits(&bob, 1, &[&alice]) && !fits(&bob, 1, &[&bob]));
    }
}
