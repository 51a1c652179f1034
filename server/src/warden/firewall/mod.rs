//! The firewall as the warden sees it: a guard, grants in and grants out, for both address families, and a watch over
//! what others do to them.

use std::fmt;
use std::net::IpAddr;

use postern_proto::{Port, WallTime};
use serde::{Deserialize, Serialize};

mod error;
mod iptables;
mod neighbours;
mod watch;

pub(crate) use error::FirewallError;
pub(crate) use iptables::{Iptables as Firewall, Variant, installed, others};
pub(crate) use watch::Watch;

use super::guard::Session;
use super::ledger::{LeaseId, LeaseKey};

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
