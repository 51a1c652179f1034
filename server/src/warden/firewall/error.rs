//! Why the firewall did not do what it was told.

use std::net::IpAddr;

use super::iptables::DEADLINE;

/// Why the firewall did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirewallError {
    /// The program could not be started.
    #[error(
        "cannot run {program}: {reason}; install the iptables package, or choose another [firewall] variant"
    )]
    Missing {
        /// The program.
        program: &'static str,
        /// Why not.
        reason: String,
    },
    /// The program refused.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// nftables refused.
    #[error("nftables failed at {what}: {reason}")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// Why it did not.
        reason: String,
        /// Whether somebody has taken our table away.
        is_gone: bool,
    },
    /// The address belongs to a family that the configuration leaves out.
    #[error("nobody can be let in from {address}: its address family is not in [firewall] families")]
    NotServed {
        /// The address.
        address: IpAddr,
    },
    /// The program printed something else than it should.
    #[error("cannot make sense of what {program} prints")]
    Unreadable {
        /// The program.
        program: &'static str,
    },
    /// The program did not end in time.
    #[error("{program} did not end within {} s", DEADLINE.as_secs())]
    Late {
        /// The program.
        program: &'static str,
    },
}

impl FirewallError {
    /// Whether it may be that what we put up is not there any more.
    pub(crate) fn may_be_damage(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Refused { is_gone: true, .. })
    }
}
