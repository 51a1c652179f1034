//! How fast a client's orders may come. Each service in one can cost a program that is run: a front that was taken over
//! must not keep the warden from the others.

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::ClientId;

use crate::clock::BootTime;

/// Orders of one client at once, or as many as it may hold leases, where these are more.
const BURST: u32 = 256;
/// One more after each of these: fifty a second, more than any client's knocks that the kernel keeps up with.
const INTERVAL: Duration = Duration::from_millis(20);

/// When each client has its whole burst again.
#[derive(Default)]
pub(crate) struct Pace {
    rested: HashMap<ClientId, BootTime>,
}

impl Pace {
    /// Whether one more order of the client, which may hold so many leases, is in time. Clients must be known ones: they
    /// are remembered.
    pub(crate) fn allows(&mut self, client: ClientId, max_leases: u32, now: BootTime) -> bool {
        let rested = self.rested.entry(client).or_insert(now);
        let next = (*rested).max(now).after(INTERVAL);
        let in_time = next.since(now) <= INTERVAL * BURST.max(max_leases);
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
        let (mut pace, client) = (Pace::default(), ClientId::from_bytes([1; 8]));
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
