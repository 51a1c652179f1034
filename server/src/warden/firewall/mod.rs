//! The firewall as the warden sees it: a guard, grants in and grants out, for both address families, and a watch over
//! what others do to them.

use std::net::IpAddr;

mod damage;
mod iptables;
mod legacy;
mod neighbours;
mod rules;
mod watch;

pub(crate) use damage::Damage;
pub(crate) use iptables::{FirewallError, Variant};
pub(crate) use neighbours::Remark;
pub(crate) use rules::{Family, Found};
pub(crate) use watch::Watch;

use super::guard::{Admit, Guard, Session};
use super::ledger::Lease;
use iptables::Tables;
use rules::{GRANTS_CHAIN, GUARD_CHAIN};

/// Every place of this host that may hold rules of ours, whatever is configured now.
pub(crate) fn installed() -> Vec<Firewall> {
    let places = [Variant::Nft, Variant::Legacy]
        .into_iter()
        .flat_map(|variant| [Family::V4, Family::V6].into_iter().map(move |family| (variant, family)));
    let may_hold = places.filter(|&(variant, family)| iptables::may_hold_rules(variant, family));
    may_hold.map(|(variant, family)| Firewall::new(variant, &[family], Admit::Accept)).collect()
}

/// Those of the places that this configuration leaves out: a guard that an earlier one left there would shut ports behind its back.
pub(crate) async fn others(
    installed: Vec<Firewall>,
    variant: Variant,
    families: &[Family],
) -> Result<Vec<Firewall>, FirewallError> {
    let actual = variant.actual().await?;
    let left_out = |firewall: &Firewall| {
        firewall.families.iter().any(|tables| tables.variant != actual || !families.contains(&tables.family))
    };
    let programs_there = |firewall: &Firewall| firewall.families.iter().all(Tables::is_installed);
    Ok(installed.into_iter().filter(|firewall| left_out(firewall) && programs_there(firewall)).collect())
}

/// The kernel's firewall, through iptables.
#[derive(Clone)]
pub(crate) struct Firewall {
    families: Vec<Tables>,
    admit: Admit,
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

impl Firewall {
    pub(crate) fn new(variant: Variant, families: &[Family], admit: Admit) -> Self {
        Self { families: families.iter().map(|&family| Tables::new(variant, family)).collect(), admit }
    }

    /// Whether it may be a matter of iptables-legacy.
    pub(crate) fn is_legacy(&self) -> bool {
        self.families.iter().any(|tables| tables.variant != Variant::Nft)
    }

    /// Whether the guard of every family is up.
    pub(crate) async fn is_guarded(&self) -> Result<bool, FirewallError> {
        for tables in &self.families {
            if tables.list().await?.rules(GUARD_CHAIN).next().is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Our rules that let somebody in, as the kernel holds them.
    pub(crate) async fn found(&self) -> Result<Vec<Found>, FirewallError> {
        let mut found = Vec::new();
        for tables in &self.families {
            found.extend(tables.list().await?.rules(GRANTS_CHAIN).filter_map(rules::read));
        }
        Ok(found)
    }

    /// Puts the guard up with these leases and sessions let in, and nobody else: one transaction a family.
    pub(crate) async fn install(
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
    pub(crate) async fn heal(
        &mut self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
        taking_out: bool,
    ) -> (Vec<Damage>, Result<(), FirewallError>) {
        let (mut healed, mut result) = (Vec::new(), Ok(()));
        for tables in &mut self.families {
            let family = tables.family;
            let chains = Chains::new(family, self.admit, guard, leases, sessions);
            match tables.heal(&chains, taking_out).await {
                Ok(parts) => healed.extend(parts.into_iter().map(|part| Damage { part, family })),
                Err(error) => result = result.and(Err(error)),
            }
        }
        (healed, result)
    }

    /// The guard as text, a line a rule, for a person to read.
    pub(crate) fn describe(&self, guard: &Guard) -> Vec<String> {
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

    /// Lets a lease's source in.
    pub(crate) async fn open(&self, lease: &Lease) -> Result<(), FirewallError> {
        let tables = self.tables(lease.key.source)?;
        for &port in &lease.ports {
            tables.insert_grant(&rules::grant(lease, port, self.admit)).await?;
        }
        Ok(())
    }

    /// Takes the rules of leases and standing sessions out again. One that is gone already does not keep the others.
    pub(crate) async fn close(&self, leases: &[Lease], sessions: &[Session]) -> Result<(), FirewallError> {
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

    /// What of the other firewalls of this host goes round this guard, or keeps out whom it lets in.
    pub(crate) async fn neighbours(&self, guard: &Guard) -> Vec<Remark> {
        neighbours::look(self, guard).await
    }

    /// Takes everything of ours away; `false` when there was nothing. A family that fails does not keep the other.
    pub(crate) async fn remove(&self) -> Result<bool, FirewallError> {
        let mut result = Ok(false);
        for tables in &self.families {
            let removed = tables.uninstall().await;
            result = result.and_then(|any| removed.map(|removed| any | removed));
        }
        result
    }

    fn tables(&self, address: IpAddr) -> Result<&Tables, FirewallError> {
        let family = Family::of(address);
        let tables = self.families.iter().find(|tables| tables.family == family);
        tables.ok_or(FirewallError::NotServed { address })
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
