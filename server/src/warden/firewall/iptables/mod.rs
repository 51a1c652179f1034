//! The firewall through iptables: two chains and a jump in the filter table of each address family. The programs do the
//! work; what they print says what the kernel holds.

use std::io;
use std::net::IpAddr;

mod damage;
mod legacy;
mod rules;
mod tables;

pub(super) use legacy::LegacyTable;
pub(super) use rules::GUARD_CHAIN;
pub(crate) use tables::Variant;
pub(super) use tables::{DEADLINE, Tables, ask, saved};

use super::{Family, FirewallError, Found, Watch};
use crate::warden::guard::{Admit, Guard, Session};
use crate::warden::ledger::Lease;
use rules::GRANTS_CHAIN;

/// Every place of this host that may hold rules of ours, whatever is configured now.
pub(super) fn installed() -> Vec<Iptables> {
    let places = [Variant::Nft, Variant::Legacy]
        .into_iter()
        .flat_map(|variant| [Family::V4, Family::V6].into_iter().map(move |family| (variant, family)));
    let may_hold = places.filter(|&(variant, family)| tables::may_hold_rules(variant, family));
    may_hold.map(|(variant, family)| Iptables::new(variant, &[family], Admit::Accept)).collect()
}

/// iptables of some families.
#[derive(Clone)]
pub(crate) struct Iptables {
    pub(super) families: Vec<Tables>,
    pub(super) admit: Admit,
}

/// The rules of both chains of a family, in order.
struct Chains {
    /// All of the guard's chain.
    guard: Vec<String>,
    /// Of the grants' chain, the rules that let somebody in,
    grants: Vec<String>,
    /// and those behind them.
    refusals: Vec<String>,
}

impl Iptables {
    pub(super) fn new(variant: Variant, families: &[Family], admit: Admit) -> Self {
        Self { families: families.iter().map(|&family| Tables::new(variant, family)).collect(), admit }
    }

    /// Whether it may be a matter of iptables-legacy.
    pub(super) fn is_legacy(&self) -> bool {
        self.families.iter().any(|tables| tables.variant != Variant::Nft)
    }

    /// Whether the guard of every family is up.
    pub(super) async fn is_guarded(&self) -> Result<bool, FirewallError> {
        for tables in &self.families {
            if tables.list().await?.rules(GUARD_CHAIN).next().is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Our rules that let somebody in, as the kernel holds them.
    pub(super) async fn found(&self) -> Result<Vec<Found>, FirewallError> {
        let mut found = Vec::new();
        for tables in &self.families {
            found.extend(tables.list().await?.rules(GRANTS_CHAIN).filter_map(rules::read));
        }
        Ok(found)
    }

    /// Puts the guard up with these leases and sessions let in, and nobody else: one transaction a family.
    pub(super) async fn install(
        &mut self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
    ) -> Result<(), FirewallError> {
        for tables in &mut self.families {
            let chains = Chains::new(tables.family, self.admit, guard, leases, sessions);
            tables.install(&chains).await?;
        }
        Ok(())
    }

    /// Looks whether everything of ours stands as it was put up, and puts it up anew where it does not; gives what was
    /// wrong and is right again. `taking_out` says that rules are being taken out meanwhile. A family that fails does not
    /// keep the other.
    pub(super) async fn heal(
        &mut self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
        taking_out: bool,
    ) -> (Vec<String>, Result<(), FirewallError>) {
        let (mut healed, mut result) = (Vec::new(), Ok(()));
        for tables in &mut self.families {
            let family = tables.family;
            let chains = Chains::new(family, self.admit, guard, leases, sessions);
            match tables.heal(&chains, taking_out).await {
                Ok(parts) => healed.extend(parts.iter().map(|part| format!("{family} {part}"))),
                Err(error) => result = result.and(Err(error)),
            }
        }
        (healed, result)
    }

    /// The guard as text, a line a rule, for a person to read.
    pub(super) fn describe(&self, guard: &Guard) -> Vec<String> {
        let lines = |tables: &Tables| {
            let chains = Chains::new(tables.family, self.admit, guard, &[], &[]);
            let program = tables.program();
            let line = move |name: &str, rule: String| format!("{program} -A {name} {rule}");
            let head = std::iter::once(format!("{program} -I INPUT 1 -j {GUARD_CHAIN}"));
            head.chain(chains.guard.into_iter().map(|rule| line(GUARD_CHAIN, rule)))
                .chain(chains.refusals.into_iter().map(|rule| line(GRANTS_CHAIN, rule)))
                .collect::<Vec<_>>()
        };
        self.families.iter().flat_map(lines).collect()
    }

    /// Lets the sources of leases in: one transaction a family, and for a single rule the way that is the shortest.
    pub(super) async fn open(&self, leases: &[Lease]) -> Result<(), FirewallError> {
        for lease in leases {
            self.serves(lease.key.source)?;
        }
        for tables in &self.families {
            let of_family = leases.iter().filter(|lease| Family::of(lease.key.source) == tables.family);
            let grants = of_family
                .flat_map(|lease| lease.ports.iter().map(|&port| rules::grant(lease, port, self.admit)));
            tables.insert_grants(&grants.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Takes the rules of leases and standing sessions out again. One that is gone already does not keep the others.
    pub(super) async fn close(&self, leases: &[Lease], sessions: &[Session]) -> Result<(), FirewallError> {
        let mut result = Ok(());
        for tables in &self.families {
            let of_family = |address: IpAddr| Family::of(address) == tables.family;
            let leases = leases.iter().filter(|lease| of_family(lease.key.source));
            let sessions = sessions.iter().filter(|session| of_family(session.remote.ip()));
            let rules: Vec<String> = leases
                .flat_map(|lease| lease.ports.iter().map(|&port| rules::grant(lease, port, self.admit)))
                .chain(sessions.map(|session| rules::standing(session, self.admit)))
                .collect();
            result = result.and(tables.delete_grants(&rules).await);
        }
        result
    }

    pub(super) fn variant(&self) -> Variant {
        self.families.first().map_or(Variant::Auto, |tables| tables.variant)
    }

    /// Begins to watch what others do to it.
    pub(super) async fn watch(&self) -> Result<io::Result<Watch>, FirewallError> {
        let families: Vec<_> = self.families.iter().map(|tables| tables.family).collect();
        Ok(Watch::new(self.variant().actual().await?, &families))
    }

    /// Whether a configuration with this kind of iptables, or none, and these families leaves it out.
    pub(super) fn is_left_out(&self, actual: Option<Variant>, families: &[Family]) -> bool {
        let left_out = |tables: &Tables| Some(tables.variant) != actual || !families.contains(&tables.family);
        self.families.iter().any(left_out) && self.families.iter().all(Tables::is_installed)
    }

    /// Takes everything of ours away; `false` when there was nothing. A family that fails does not keep the other.
    pub(super) async fn remove(&self) -> Result<bool, FirewallError> {
        let mut result = Ok(false);
        for tables in &self.families {
            let removed = tables.uninstall().await;
            result = result.and_then(|any| removed.map(|removed| any | removed));
        }
        result
    }

    fn serves(&self, address: IpAddr) -> Result<(), FirewallError> {
        let is_served = self.families.iter().any(|tables| tables.family == Family::of(address));
        if is_served { Ok(()) } else { Err(FirewallError::NotServed { address }) }
    }
}

impl Chains {
    fn new(family: Family, admit: Admit, guard: &Guard, leases: &[&Lease], sessions: &[Session]) -> Self {
        let of_family = |address: IpAddr| Family::of(address) == family;
        let leases = leases.iter().filter(|lease| of_family(lease.key.source));
        let sessions = sessions.iter().filter(|session| of_family(session.remote.ip()));
        let grants = leases
            .flat_map(|lease| lease.ports.iter().map(|&port| rules::grant(lease, port, admit)))
            .chain(sessions.map(|session| rules::standing(session, admit)));
        Self {
            guard: rules::guard_chain(family, guard, admit),
            grants: grants.collect(),
            refusals: rules::end_of_grants(family, guard),
        }
    }
}
