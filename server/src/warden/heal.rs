//! Healing: when somebody flushes or reorders the firewall while the gate runs, everything of ours comes back, with those let
//! in who are let in, for as long as they have left. The log tells of it, and is not filled by it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, warn};

use super::Warden;
use super::firewall::{FirewallError, Watch};
use super::ledger::Lease;

/// Lines of one kind that may be logged at once; when they are used up, one more each [`ANOTHER_LINE`].
const LINES: u32 = 10;
const ANOTHER_LINE: Duration = Duration::from_mins(1);

/// What the warden knows from one look at the firewall to the next.
pub(super) struct Healing {
    watch: Watch,
    closings: Arc<Closings>,
    healed: Throttle,
    failed: Throttle,
    is_guarded: bool,
}

/// Rules on their way out, as far as healing has to know of them.
#[derive(Default)]
pub(super) struct Closings {
    under_way: AtomicUsize,
    failed: Notify,
    /// Whether one could not be taken out, and was not seen gone since.
    are_left: AtomicBool,
}

impl Closings {
    pub(super) fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// So many are over. What could not be taken out has to be looked at: it lets somebody in who is not to come in.
    pub(super) fn end(&self, count: usize, all_went_out: bool) {
        self.under_way.fetch_sub(count, Ordering::Relaxed);
        if !all_went_out {
            self.are_left.store(true, Ordering::Relaxed);
            self.failed.notify_one();
        }
    }

    /// Whether all that were to go out are out, as far as is known.
    pub(super) fn are_out(&self) -> bool {
        !self.are_left.load(Ordering::Relaxed)
    }
}

impl Healing {
    pub(super) fn new(watch: Watch) -> Self {
        let now = Instant::now();
        Self {
            watch,
            closings: Arc::default(),
            healed: Throttle::new(now),
            failed: Throttle::new(now),
            is_guarded: true,
        }
    }

    /// Whether the guard stood, or was put up again, at the last look.
    pub(super) fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    pub(super) fn closings(&self) -> &Arc<Closings> {
        &self.closings
    }

    /// Waits until it is time to look whether something has to be healed.
    ///
    /// # Errors
    /// When the firewall cannot be watched any more.
    pub(super) async fn due(&mut self) -> io::Result<()> {
        loop {
            tokio::select! {
                due = self.watch.due() => return due,
                () = self.closings.failed.notified() => self.watch.look_again(),
            }
        }
    }
}

impl Warden {
    /// Looks whether the firewall is as we left it, and restores it where it is not; says whether it was not. Nobody is let
    /// in meanwhile: a rule that is not there yet could not be told from one that somebody took.
    pub(super) async fn heal(&mut self) -> bool {
        let Self { firewall, guard, ledger, standing, healing, .. } = self;
        let leases: Vec<&Lease> = ledger.leases().collect();
        let taking_out = healing.closings.under_way.load(Ordering::Relaxed) > 0;
        healing.watch.looking();
        let (healed, result) = firewall.heal(guard, &leases, standing, taking_out).await;
        healing.is_guarded = result.is_ok();
        if result.is_ok() && !taking_out {
            healing.closings.are_left.store(false, Ordering::Relaxed);
        }
        healing.watch.looked(healed.is_empty() && result.is_ok());
        if !healed.is_empty()
            && let Some(times) = healing.healed.pass(Instant::now())
        {
            let wrong = healed.join(", ");
            warn!(wrong, times, "the firewall was not as the gate left it: restored");
        }
        if let Err(error) = result {
            healing.watch.look_again();
            if let Some(times) = healing.failed.pass(Instant::now()) {
                error!(%error, times, "cannot make sure that the guard is up; trying again every second");
            }
        }
        !healed.is_empty()
    }

    /// Lets the sources of leases in, in one transaction. Where somebody has taken our chains away just now, they come back
    /// first: whoever knocks in that moment does not knock in vain.
    pub(super) async fn let_in(&mut self, leases: &[Lease]) -> Result<(), FirewallError> {
        match self.firewall.open(leases).await {
            Err(error) if error.may_be_damage() && self.heal().await => self.firewall.open(leases).await,
            result => result,
        }
    }
}

/// Bounds how often something is said, and counts how often it was not.
struct Throttle {
    left: u32,
    refilled: Instant,
    unsaid: u32,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { left: LINES, refilled: now, unsaid: 0 }
    }

    /// It has happened once more; gives how often since it was last said, when it may be said.
    fn pass(&mut self, now: Instant) -> Option<u32> {
        self.unsaid = self.unsaid.saturating_add(1);
        while self.left < LINES && now.duration_since(self.refilled) >= ANOTHER_LINE {
            self.left += 1;
            self.refilled += ANOTHER_LINE;
        }
        if self.left == LINES {
            self.refilled = now;
        }
        self.left = self.left.checked_sub(1)?;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_flushing_every_second_fills_no_log() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let said: Vec<(u64, u32)> = (0..3_600)
            .filter_map(|second| Some((second, throttle.pass(begin + Duration::from_secs(second))?)))
            .collect();
        let lines = usize::try_from(LINES).unwrap();
        assert!(said.len() <= lines + 60, "{}", said.len());
        assert!(said[..lines].iter().all(|&(second, times)| second < u64::from(LINES) && times == 1));
        assert!(said[lines + 1..].iter().all(|&(_, times)| times == 60), "{said:?}");
        let told: u32 = said.iter().map(|(_, times)| times).sum();
        assert_eq!(told + throttle.unsaid, 3_600, "none is forgotten");
    }

    #[test]
    fn after_a_calm_each_incident_is_said_again() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(begin);
        let mut said = |from: Instant| (0..100).filter(|_| throttle.pass(from).is_some()).count();
        assert_eq!(said(begin), 10);
        assert_eq!(said(begin + ANOTHER_LINE * 3), 3);
        assert_eq!(said(begin + ANOTHER_LINE * 1_000), 10);
    }
}
