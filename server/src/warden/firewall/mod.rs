//! The firewall as the warden sees it: a guard, grants in and grants out, for both address families, and a watch over
//! what others do to them.

use std::fmt;
use std::io;
use std::net::IpAddr;

use postern_proto::{Port, WallTime};
use serde::{Deserialize, Serialize};

mod error;
mod iptables;
mod neighbours;
mod nftables;
mod watch;

pub(crate) use error::FirewallError;
pub(crate) use iptables::Variant;
use neighbours::Remark;
pub(crate) use watch::Watch;

use super::guard::{Admit, Guard, Session};
use super::ledger::{Lease, LeaseId, LeaseKey};
use iptables::Iptables;
use nftables::Nftables;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What of ours lets somebody in, as it was found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Found {
    /// One port of a lease.
    Grant { key: LeaseKey, id: LeaseId, port: Port, from: WallTime, until: WallTime },
    /// A session that stood before the guard.
    Standing(Session),
}

/// What carries the rules into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Backend {
    /// Its programs.
    Iptables { variant: Variant, admit: Admit },
    /// Netlink; no program is run.
    Nftables,
}

/// The kernel's firewall.
#[derive(Clone)]
pub(crate) enum Firewall {
    Iptables(Iptables),
    Nftables(Nftables),
}

/// Every place of this host that may hold something of ours, whatever is configured now.
pub(crate) fn installed() -> Vec<Firewall> {
    // Where the kernel does not tell, it may.
    let nftables = nftables::is_there().unwrap_or(true);
    let nftables = nftables.then(|| Firewall::Nftables(Nftables::new(&[Family::V4, Family::V6])));
    nftables.into_iter().chain(iptables::installed().into_iter().map(Firewall::Iptables)).collect()
}

/// Those of the places that this configuration leaves out: a guard that an earlier one left there would shut ports behind its back.
pub(crate) async fn others(
    installed: Vec<Firewall>,
    backend: Backend,
    families: &[Family],
) -> Result<Vec<Firewall>, FirewallError> {
    let actual = match backend {
        Backend::Iptables { variant, .. } => Some(variant.actual().await?),
        Backend::Nftables => None,
    };
    let left_out = |firewall: &Firewall| match firewall {
        Firewall::Iptables(iptables) => iptables.is_left_out(actual, families),
        Firewall::Nftables(_) => actual.is_some(),
    };
    Ok(installed.into_iter().filter(left_out).collect())
}

impl Firewall {
    pub(crate) fn new(backend: Backend, families: &[Family]) -> Self {
        match backend {
            Backend::Iptables { variant, admit } => Self::Iptables(Iptables::new(variant, families, admit)),
            Backend::Nftables => Self::Nftables(Nftables::new(families)),
        }
    }

    fn iptables(&self) -> Option<&Iptables> {
        match self {
            Self::Iptables(iptables) => Some(iptables),
            Self::Nftables(_) => None,
        }
    }

    fn families(&self) -> Vec<Family> {
        match self {
            Self::Iptables(iptables) => iptables.families.iter().map(|tables| tables.family).collect(),
            Self::Nftables(nftables) => nftables.families().to_vec(),
        }
    }

    /// Whether it may be a matter of iptables-legacy.
    pub(crate) fn is_legacy(&self) -> bool {
        matches!(self, Self::Iptables(iptables) if iptables.is_legacy())
    }

    /// Begins to watch what others do to it. Not before it was written or read once: that loads the modules that are asked.
    pub(crate) async fn watch(&self) -> Result<io::Result<Watch>, FirewallError> {
        Ok(match self {
            Self::Iptables(iptables) => iptables.watch().await?,
            Self::Nftables(nftables) => nftables.port().and_then(Watch::of_table),
        })
    }

    /// Whether the guard of every family is up.
    pub(crate) async fn is_guarded(&self) -> Result<bool, FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.is_guarded().await,
            Self::Nftables(nftables) => nftables.is_guarded(),
        }
    }

    /// What of ours lets somebody in, as the kernel holds it.
    pub(crate) async fn found(&self) -> Result<Vec<Found>, FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.found().await,
            Self::Nftables(nftables) => nftables.found(),
        }
    }

    /// Puts the guard up with these leases and sessions let in, and nobody else: at no moment is a part of it there.
    pub(crate) async fn install(
        &mut self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
    ) -> Result<(), FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.install(guard, leases, sessions).await,
            Self::Nftables(nftables) => nftables.install(guard, leases, sessions),
        }
    }

    /// Looks whether everything of ours stands as it was put up, and puts it up anew where it does not; gives what was
    /// wrong and is right again. `taking_out` says that somebody is being taken out meanwhile.
    pub(crate) async fn heal(
        &mut self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
        taking_out: bool,
    ) -> (Vec<String>, Result<(), FirewallError>) {
        match self {
            Self::Iptables(iptables) => iptables.heal(guard, leases, sessions, taking_out).await,
            Self::Nftables(nftables) => nftables.heal(guard, leases, sessions, taking_out),
        }
    }

    /// The guard as text, for a person to read.
    pub(crate) fn describe(&self, guard: &Guard) -> Vec<String> {
        match self {
            Self::Iptables(iptables) => iptables.describe(guard),
            Self::Nftables(nftables) => nftables.describe(guard),
        }
    }

    /// Lets the sources of leases in. Where it fails some may be in, through iptables; through nftables none is.
    pub(crate) async fn open(&self, leases: &[Lease]) -> Result<(), FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.open(leases).await,
            Self::Nftables(nftables) => nftables.open(leases),
        }
    }

    /// Takes leases and standing sessions out again. One that is gone already does not keep the others.
    pub(crate) async fn close(&self, leases: &[Lease], sessions: &[Session]) -> Result<(), FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.close(leases, sessions).await,
            Self::Nftables(nftables) => nftables.close(leases, sessions),
        }
    }

    /// What of the other firewalls of this host goes round this guard, or keeps out whom it lets in.
    pub(crate) async fn neighbours(&self, guard: &Guard) -> Vec<Remark> {
        neighbours::look(self, guard).await
    }

    /// Takes everything of ours away; `false` when there was nothing.
    pub(crate) async fn remove(&self) -> Result<bool, FirewallError> {
        match self {
            Self::Iptables(iptables) => iptables.remove().await,
            Self::Nftables(nftables) => nftables.remove(),
        }
    }
}
