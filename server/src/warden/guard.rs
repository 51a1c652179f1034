//! The guard: what is shut unless granted, in terms of no firewall in particular.

use ipnet::IpNet;
use postern_proto::{Port, WallTime};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::NonZeroU16;

/// Everything the firewall is to hold beside the grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guard {
    /// UDP ports that knocks come to: the kernel would answer for them, having no socket.
    pub(crate) knock_ports: Vec<NonZeroU16>,
    /// Whether clients are answered from them. To the kernel an answer begins a session, and what comes back from where it went
    /// would be a part of it: then nothing is let through to these ports, and the kernel gives them to nobody else.
    pub(crate) answers: bool,
    /// The ports of the services.
    pub(crate) ports: Vec<GuardedPort>,
    /// Networks that never need to knock.
    pub(crate) always_allow: Vec<IpNet>,
    /// What meets whoever was not let in.
    pub(crate) refuse: Refuse,
    /// The guard stands only so long, then the kernel lets it fall: a trial.
    pub(crate) until: Option<WallTime>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuardedPort {
    pub(crate) port: Port,
    /// Whether a session outlives the window in which it began.
    pub(crate) keep_established: bool,
}

/// What meets whoever was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refuse {
    /// Silence.
    Drop,
    /// What a closed port answers: for hosts whose other ports all do.
    Reset,
}

/// What a grant does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Admit {
    /// Accepts it.
    Accept,
    /// Leaves it to the administrator's rules behind the guard.
    Return,
}

/// A TCP session that stood when the guard went up, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}
