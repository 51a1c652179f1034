//! What an administrator is answered.

use super::Warden;
use super::ledger::{Lease, LeaseKey, Which};
use crate::admin::{Answer, LeaseRow, Request, Status};
use crate::clock::Now;
use crate::order::Note;

impl Warden {
    /// Answers an administrator.
    pub(super) async fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::List => Answer::Leases(self.ledger.leases().map(lease_row).collect()),
            Request::Revoke(which) => match self.revoke(&which).await {
                Ok(revoked) => Answer::Leases(revoked),
                Err(why) => Answer::Failed(why),
            },
            Request::Reload => Answer::Failed("only the supervisor can reload".to_owned()),
        }
    }

    fn status(&self) -> Status {
        let Note { counters, interfaces } = &self.note;
        let refused = self.refusals.counts().map(|(reason, count)| (reason.to_string(), count));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: Now::read().boot.since(self.since).as_secs(),
            watched: interfaces.clone(),
            is_guarded: self.healing.is_guarded(),
            trial_until: self.guard.until,
            leases: self.ledger.leases().count(),
            packets: counters.clone(),
            orders_refused: refused.collect(),
        }
    }

    /// Ends the leases that are meant, and waits until the kernel has shut them out.
    async fn revoke(&mut self, which: &str) -> Result<Vec<LeaseRow>, String> {
        let which = Which::parse(which, |name| self.ledger.leases().any(|lease| lease.key.client == *name))?;
        let leases = self.ledger.take(|lease| which.means(lease));
        let rows = leases.iter().map(lease_row).collect();
        for lease in &leases {
            self.note_end(lease, "revoked");
        }
        match self.firewall.close(&leases, &[]).await {
            Ok(()) => Ok(rows),
            Err(error) => {
                // In the ledger again, so that they are shown, and can be revoked again.
                for lease in leases {
                    self.ledger.enter(lease);
                }
                Err(format!("not revoked, or not all of them, the firewall failed: {error}"))
            }
        }
    }
}

fn lease_row(lease: &Lease) -> LeaseRow {
    let Lease { key: LeaseKey { client, service, source, from_port }, id, ports, until, ends, .. } = lease;
    LeaseRow {
        lease: id.to_string(),
        client: client.clone(),
        service: service.clone(),
        ports: ports.clone(),
        source: *source,
        from_port: *from_port,
        until: *until,
        left_secs: ends.since(Now::read().boot).as_secs(),
    }
}
