//! Waits for doors, by going through them: nothing else tells that one is open.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::ServiceName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connect::connect;
use crate::error::{Advice, Error};
use crate::report::OpenReport;

/// A TCP port that is to open, and the service, if one was knocked for, that it stands for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Door {
    pub(super) service: Option<ServiceName>,
    pub(super) port: NonZeroU16,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "{service} at ")?;
        }
        write!(f, "port {}", self.port)
    }
}

/// Until each door lets a connection in at one of the addresses.
///
/// # Errors
/// [`Error::InVain`] when one did not.
pub(super) async fn wait(
    doors: Vec<Door>,
    addresses: &[IpAddr],
    limit: Duration,
    advice: Advice,
) -> Result<Vec<OpenReport>, Error> {
    let begin = Instant::now();
    let mut tries = JoinSet::new();
    for door in doors {
        let to: Vec<_> = addresses.iter().map(|&address| SocketAddr::new(address, door.port.get())).collect();
        tries.spawn(async move {
            let connected = connect(&to, begin + limit).await;
            (door, connected, begin.elapsed())
        });
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for (door, connected, after) in tries.join_all().await {
        match connected {
            Ok((_, peer)) => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                let Door { service, port } = door;
                open.push(OpenReport { service, address: peer.ip(), port: port.get(), after_ms });
            }
            Err(not_open) => closed.push(format!("{door} ({not_open})")),
        }
    }
    if closed.is_empty() {
        open.sort_by(|one, other| (&one.service, one.port).cmp(&(&other.service, other.port)));
        return Ok(open);
    }
    closed.sort();
    Err(Error::InVain { waited: limit, what: format!("not open: {}", closed.join(", ")), advice })
}
