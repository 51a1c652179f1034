//! The gate: decides on one datagram, in the order of SPEC 5, the cheapest check first. It opens no socket and reads
//! no clock: what it sees and when comes in, a verdict goes out.
//!
//! ```text
//! Datagram ──hint──▶ candidates ──new · seal──▶ Authentic ──▶ Fresh ──policy · quota · proof──▶ Unrecorded ──▶ Outcome
//!          (hints)              (replay, proto)                (policy, quota, proto)          (the store's receipt)
//! ```
//! A sequence of ports that somebody has been through comes in behind the seal (`Gate::complete`).
//!
//! Each arrow takes one type and makes the next, which nothing else can make: a check that is skipped does not
//! compile. Nothing has an effect before it is recorded durably: only the store's [`Receipt`](super::store::Receipt) releases an outcome, and
//! the answer to it.

use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::{
    Authentic, ClientId, Datagram, GateKeys, Hint, HintTable, Refusal, Request, ServiceName, Tolerance,
    WallTime, Window, open,
};

pub use crate::address::Way;

use crate::address::is_usable_source;
use crate::clock::{BootTime, Now};

mod answer;
mod client;
mod policy;
mod quota;
mod replay;
#[cfg(test)]
mod tests;
mod verdict;

pub use answer::Reply;
pub use client::{Authorized, Client};
pub use policy::{Permitted, ServiceLimits, ServiceTable};
pub use replay::{Memory, Purge, Record, ReplayKey};
pub use verdict::{Closure, Grant, Outcome, Refused, Released, Unrecorded, Verdict};

use super::sequences::Completion;
use quota::{LeaseKey, Leases, Patience};

/// How many clients' hints are computed ahead in one slice, at least.
const HINT_SLICE: usize = 2_000;
/// In how many slices the next epoch's hints are computed, at the most.
const HINT_SLICES: usize = 20;

/// One gate with its clients, and everything it remembers.
pub struct Gate {
    keys: GateKeys,
    tolerance: Tolerance,
    services: ServiceTable,
    clients: Vec<Client>,
    hints: HintTable,
    memory: Memory,
    leases: Leases,
    patience: Patience,
    /// Whether clients are answered.
    answers: bool,
}

/// An authentic knock within the clock tolerance, above the floor.
struct Fresh(Authentic);

impl Gate {
    /// A gate with its clients, and what its store remembers. It answers them or it does not.
    #[must_use]
    pub fn new(
        keys: GateKeys,
        tolerance: Tolerance,
        services: ServiceTable,
        clients: Vec<Client>,
        memory: Memory,
        now: WallTime,
        answers: bool,
    ) -> Self {
        let hints = HintTable::new(tolerance, now, &clients);
        let (leases, patience) = (Leases::default(), Patience::default());
        Self { keys, tolerance, services, clients, hints, memory, leases, patience, answers }
    }

    /// Takes over other services and clients, with a table of their hints for this gate's tolerance; what is remembered stays.
    pub fn reload(&mut self, services: ServiceTable, clients: Vec<Client>, hints: HintTable) {
        self.hints = hints;
        self.services = services;
        self.clients = clients;
        // Of clients that are gone nothing is kept.
        self.patience = Patience::default();
    }

    /// Decides on a datagram that came this way.
    ///
    /// A stranger's packet is refused here, after one hash and one look into memory, whatever the number of clients (P3).
    pub fn handle(&mut self, now: Now, way: Way, datagram: Datagram<'_>) -> Verdict {
        self.hints.turn(now.wall, &self.clients);
        let hint = datagram.unveil(&self.keys);
        let known = self.hints.may_hold(hint).then_some(hint);
        self.judge(now, way, datagram, known)
    }

    /// [`Gate::handle`] for knocks that came in together, in their order. With many clients the look for a hint is one into
    /// memory that no cache holds; here they are all on their way before the first one is back.
    pub(crate) fn handle_all(
        &mut self,
        now: Now,
        knocks: &[(Way, Datagram<'_>)],
        mut each: impl FnMut(Way, Verdict),
    ) {
        self.hints.turn(now.wall, &self.clients);
        let hints: Vec<_> = knocks.iter().map(|(_, datagram)| datagram.unveil(&self.keys)).collect();
        let may: Vec<_> = self.hints.may_hold_each(&hints).collect();
        for ((&(way, datagram), hint), may) in knocks.iter().zip(hints).zip(may) {
            each(way, self.judge(now, way, datagram, may.then_some(hint)));
        }
    }

    /// A datagram, and its hint if that may be a client's.
    fn judge(&mut self, now: Now, way: Way, datagram: Datagram<'_>, known: Option<Hint>) -> Verdict {
        match known {
            Some(hint) => self.examine(now, way, datagram, hint),
            None => Verdict::Refused(Refused { reason: Refusal::Unknown, client: None, at: None }),
        }
    }

    /// What a hint deserves that may be a client's. Apart from the way of strangers, which it would make longer.
    #[inline(never)]
    fn examine(&mut self, now: Now, way: Way, datagram: Datagram<'_>, hint: Hint) -> Verdict {
        match self.authenticate(now.wall, datagram, hint) {
            Ok((client, knock)) => self.decide(now, way, client, hint, knock),
            Err((reason, client)) => {
                let client = client.map(|client| self.clients[client].name.clone());
                Verdict::Refused(Refused { reason, client, at: None })
            }
        }
    }

    /// Steps 2 to 5: whose knock is it?
    fn authenticate(
        &self,
        now: WallTime,
        datagram: Datagram<'_>,
        hint: Hint,
    ) -> Result<(usize, Authentic), (Refusal, Option<usize>)> {
        let mut refusal = (Refusal::Unknown, None);
        // A secret that was replaced is nobody's from its last instant on, whatever the table still has of its epochs.
        let known = self.hints.look_up(hint).filter(|(client, _)| self.clients[*client].is_current(now));
        for (client, epoch) in known {
            if self.memory.contains(&(self.clients[client].id, *datagram.nonce())) {
                return Err((Refusal::Replayed, Some(client)));
            }
            match open(&self.keys, self.clients[client].seal_key(), epoch, datagram) {
                Ok(knock) => return Ok((client, knock)),
                Err(reason) => refusal = (reason, Some(client)),
            }
        }
        Err(refusal)
    }

    /// Steps 6 to 11: what does its client get?
    fn decide(&mut self, now: Now, way: Way, client: usize, hint: Hint, knock: Authentic) -> Verdict {
        let observed = way.from.ip();
        let (at, name) = (knock.at(), self.clients[client].name.clone());
        let refused = |reason| Refused { reason, client: Some(name.clone()), at: Some(at) };
        let fresh = match self.freshen(now.wall, client, knock) {
            Ok(fresh) => fresh,
            Err(reason) => return Verdict::Refused(refused(reason)),
        };
        let source = fresh.0.source(observed);
        if !is_usable_source(source) {
            return Verdict::Refused(refused(Refusal::UnusableSource));
        }
        let Client { id, policy, .. } = &self.clients[client];
        let (id, max_leases) = (*id, policy.max_leases);
        let permitted = policy.permit(&self.services, now.wall, &fresh.0, observed);
        let wanted = match &permitted {
            Ok(Permitted::Open(services)) => leases(id, services, source, from_port(&fresh)),
            _ => vec![],
        };
        if !self.memory.has_room_for(id) || !self.leases.have_room_for(&wanted, max_leases, now.boot) {
            return Verdict::Refused(refused(Refusal::Busy));
        }
        let proven = permitted.and_then(|permitted| {
            self.prove(now.boot, client, hint, &fresh)?;
            Ok(permitted)
        });
        let is_busy = match proven {
            Err(Refusal::Unsigned | Refusal::BadSignature) => !self.memory.has_room_for_unproven(id),
            Err(reason) => reason == Refusal::Busy,
            Ok(_) => false,
        };
        if is_busy {
            return Verdict::Refused(refused(Refusal::Busy));
        }
        let outcome = match proven {
            Err(reason) => Outcome::Refused(refused(reason)),
            Ok(Permitted::Close(services)) => {
                let closed = |service: &ServiceName| services.iter().any(|closed| closed == service);
                self.leases.end(|key, _| key.client == id && key.source == source && closed(&key.service));
                Outcome::Close(Closure { client: id, services, source })
            }
            Ok(Permitted::Probe) => Outcome::Heard,
            Ok(Permitted::Open(services)) => {
                self.take_leases(wanted, &services, now);
                let from_port = from_port(&fresh);
                Outcome::Open(Grant { client: id, services, source, from_port, decided: now.boot })
            }
        };
        let closes = match &outcome {
            Outcome::Close(closure) => closure.services.iter().cloned().collect(),
            _ => Vec::new(),
        };
        let record = Record { key: (id, *fresh.0.nonce()), at, closes };
        self.memory.remember(&record, now.boot);
        let reply = self.answers.then(|| Box::new(self.reply(now.wall, way, client, &record, &outcome)));
        Verdict::Decided(Unrecorded { record: Some(record), outcome, client: name, reply })
    }

    /// Decides on a sequence that a source has been through. One that rolls is good once (SPEC 8.2).
    pub(crate) fn complete(&mut self, now: Now, completion: &Completion<'_>) -> Verdict {
        let Completion { sequence, source, used, .. } = completion;
        let made = used.map(|used| used.epoch.start());
        let refused =
            |reason| Verdict::Refused(Refused { reason, client: Some(sequence.name.clone()), at: made });
        if !is_usable_source(*source) {
            return refused(Refusal::UnusableSource);
        }
        if !sequence.admits(*source) {
            return refused(Refusal::SourceNotAllowed);
        }
        let record =
            used.map(|used| Record { key: (used.id, used.nonce), at: used.epoch.start(), closes: vec![] });
        if let Some(record) = &record {
            if self.memory.contains(&record.key) {
                return refused(Refusal::Replayed);
            }
            if self.memory.is_below_floor(record.at) {
                return refused(Refusal::Stale);
            }
            if !self.memory.has_room_for(record.key.0) {
                return refused(Refusal::Busy);
            }
        }
        let window = |name: &ServiceName| Some((name.clone(), self.services.get(name)?.window));
        let Some(services) = sequence.services.iter().map(window).collect::<Option<Vec<_>>>() else {
            return refused(Refusal::UnknownService);
        };
        let wanted = leases(sequence.id, &services, *source, None);
        if !self.leases.have_room_for(&wanted, sequence.max_leases, now.boot) {
            return refused(Refusal::Busy);
        }
        self.take_leases(wanted, &services, now);
        let grant =
            Grant { client: sequence.id, services, source: *source, from_port: None, decided: now.boot };
        if let Some(record) = &record {
            self.memory.remember(record, now.boot);
        }
        let (outcome, client) = (Outcome::Open(grant), sequence.name.clone());
        Verdict::Decided(Unrecorded { record, outcome, client, reply: None })
    }

    /// Step 6: within the tolerance, above the floor, and not made before a close of the same services.
    fn freshen(&self, now: WallTime, client: usize, knock: Authentic) -> Result<Fresh, Refusal> {
        let (at, id) = (knock.at(), self.clients[client].id);
        if now.since(at) > self.tolerance.duration() || self.memory.is_below_floor(at) {
            return Err(Refusal::Stale);
        }
        if at.since(now) > self.tolerance.duration() {
            return Err(Refusal::Early);
        }
        let closed = |service| self.memory.is_closed(id, service, at);
        if knock.request().services().iter().any(closed) { Err(Refusal::Stale) } else { Ok(Fresh(knock)) }
    }

    /// Step 10: signed by a key that the client has, where it must be. All that is cheaper comes before.
    fn prove(&mut self, now: BootTime, client: usize, hint: Hint, knock: &Fresh) -> Result<(), Refusal> {
        let client = &self.clients[client];
        let Some(keys) = client.identities() else { return Ok(()) };
        if !self.patience.lasts(client.id, now) {
            return Err(Refusal::Busy);
        }
        if knock.0.is_signed_by(keys, self.keys.id(), client.id, hint) {
            return Ok(());
        }
        self.patience.wear(client.id, keys.len(), now);
        Err(Refusal::BadSignature)
    }

    /// Counts leases for which there is room.
    fn take_leases(&mut self, keys: Vec<LeaseKey>, services: &[(ServiceName, Window)], now: Now) {
        for (key, (_, window)) in keys.into_iter().zip(services) {
            self.leases.add(key, now.boot.after(window.duration()));
        }
    }

    /// What may be forgotten at `now`.
    #[must_use]
    pub fn purgeable(&self, now: Now) -> Option<Purge> {
        self.memory.purgeable(now, self.tolerance)
    }

    /// Forgets what was written as forgotten.
    pub fn forget(&mut self, purge: &Purge) {
        self.memory.forget(purge);
    }

    /// Computes a slice of the next epoch's hints; `true` once they are complete.
    pub fn prepare(&mut self, now: WallTime) -> bool {
        self.hints.turn(now, &self.clients);
        let slice = HINT_SLICE.max(self.clients.len().div_ceil(HINT_SLICES));
        self.hints.prepare(&self.clients, slice)
    }

    /// The hints of its clients, as far as they are known.
    #[must_use]
    pub fn hints(&self) -> &HintTable {
        &self.hints
    }

    /// The clients, by the position that their key file gave them.
    #[must_use]
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }
}

/// What a grant of these services would take of the quotas.
fn leases(
    client: ClientId,
    services: &[(ServiceName, Window)],
    source: IpAddr,
    from_port: Option<NonZeroU16>,
) -> Vec<LeaseKey> {
    let key = |(service, _): &(ServiceName, Window)| LeaseKey {
        client,
        service: service.clone(),
        source,
        from_port,
    };
    services.iter().map(key).collect()
}

fn from_port(knock: &Fresh) -> Option<NonZeroU16> {
    match knock.0.request() {
        Request::Open { from_port, .. } => *from_port,
        Request::Close { .. } | Request::Probe => None,
    }
}
