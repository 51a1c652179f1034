//! What the warden asks of the runner: that a service's commands follow its leases. It goes one way, and holds typed
//! values only: what is run for them stands in the configuration.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::{ClientName, ServiceName, WallTime};
use serde::{Deserialize, Serialize};

use crate::link::Message;

/// What the warden asks of the runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Errand {
    /// Somebody was let in, or for longer.
    Open {
        /// Whose lease it is.
        lease: LeaseKey,
        /// When the lease ends.
        until: WallTime,
        /// How long that is from now on.
        lasts: Duration,
    },
    /// A lease has ended.
    Close(LeaseKey),
}

/// What makes two grants one lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LeaseKey {
    pub(crate) client: ClientName,
    pub(crate) service: ServiceName,
    pub(crate) source: IpAddr,
    pub(crate) from_port: Option<NonZeroU16>,
}

impl Message for Errand {
    /// Two names, an address and two times.
    const MAX: usize = 512;
}
