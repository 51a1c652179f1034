//! How fast a client's orders may come. A lease that goes into the kernel can cost a program that is run, and every order a
//! line of the log and an answer: a front that was taken over must not keep the warden from the others, nor have it send
//! without end.

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::ClientId;

use crate::clock::BootTime;

/// How much of one kind is in time.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    /// So many of one client at once, or as many as it may hold leases, where these are more.
    burst: u32,
    /// One more after each of these.
    interval: Duration,
}

/// Leases that go into the kernel, and closes: fifty a second, more than any client's knocks that the kernel keeps up with.
pub(crate) const LEASES: Limit = Limit { burst: 256, interval: Duration::from_millis(20) };
/// All that is ordered. Jobs that knock at once with one key, at several ports each, renew one lease, and each waits for its
/// answer.
pub(crate) const ORDERS: Limit = Limit { burst: 1024, interval: Duration::from_millis(5) };

/// When each client has its whole burst again.
pub(crate) struct Pace {
    limit: Limit,
    rested: HashMap<ClientId, BootTime>,
}

impl Pace {
    pub(crate) fn new(limit: Limit) -> Self {
        Self { limit, rested: HashMap::new() }
    }

    /// Whether one more of the client, which may hold so many leases, is in time. Clients must be known ones: they are
    /// remembered.
    pub(crate) fn allows(&mut self, client: ClientId, max_leases: u32, now: BootTime) -> bool {
        let Limit { burst, interval } = self.limit;
        let rested = self.rested.entry(client).or_insert(now);
        let next = (*rested).max(now).after(interval);
        let in_time = next.since(now) <= interval * burst.max(max_leases);
        if in_time {
            *rested = next;
        }
        in_time
    }

    /// Forgets clients that are not known any more.
    pub(crate) fn retain(&mut self, is_known: impl Fn(ClientId) -> bool) {
        self.rested.retain(|&client, _| is_known(client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_fifty_a_second() {
        let (mut pace, client) = (Pace::new(LEASES), ClientId::from_bytes([1; 8]));
        let start = BootTime::from_boot(Duration::from_hours(1));
        let at_once = (0..1000).filter(|_| pace.allows(client, 10, start)).count();
        assert_eq!(at_once, 256);
        assert!(pace.allows(ClientId::from_bytes([2; 8]), 10, start), "another client has its own");
        let later = start.after(Duration::from_secs(2));
        assert_eq!((0..1000).filter(|_| pace.allows(client, 10, later)).count(), 100);
        let much_later = start.after(Duration::from_hours(1));
        assert_eq!((0..1000).filter(|_| pace.allows(client, 10, much_later)).count(), 256);
        assert_eq!((0..1000).filter(|_| pace.allows(ClientId::from_bytes([3; 8]), 500, start)).count(), 500);
    }
}
