//! The desk of the front: where each packet is taken to whom it concerns. What is decided waits here to be recorded, and
//! what comes of it is counted here.

use std::collections::VecDeque;
use std::mem::replace;
use std::net::IpAddr;
use std::num::NonZeroU16;

use anyhow::Context;
use postern_proto::{Datagram, KNOCK_LEN, Refusal, WallTime};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tracing::debug;

use super::frame::{Content, Frame};
use super::gate::{Gate, Refused, Unrecorded, Verdict, Way};
use super::kernel::Mirror;
use super::process::{Event, Newcomers};
use super::recorder::Recorded;
use super::sequences::{SequenceSettings, Sequences, Spent};
use crate::clock::Now;
use crate::counters::Counters;
use crate::last_use::LastUse;

/// Knocks on which the gate decides together, at the most.
const TOGETHER: usize = 32;
/// Clients whose last use is told together, at the most: 17 bytes each.
const USES_TOGETHER: usize = 512;

/// Who decides, and what they have decided.
pub(super) struct Desk {
    knock_ports: Vec<NonZeroU16>,
    pub(super) gate: Gate,
    /// The kernel's set of hints, where it looks them up.
    mirror: Option<Mirror>,
    pub(super) sequences: Sequences,
    pub(super) counters: Counters,
    /// Knocks that came in at once, on which the gate has not decided yet.
    gathered: Vec<(Way, [u8; KNOCK_LEN])>,
    /// Decisions that wait for their record.
    pub(super) decided: Vec<Unrecorded>,
    /// What waits for the note that a one-time sequence was used.
    unnoted: VecDeque<(Spent, Unrecorded)>,
    /// When clients knocked last of whom the supervisor was not told since.
    used: LastUse,
    /// To the supervisor: one-time sequences that are to be noted.
    events: mpsc::UnboundedSender<Event>,
}

impl Desk {
    /// Nothing was decided yet.
    ///
    /// # Errors
    /// When the sequences cannot be followed.
    pub(super) fn new(
        knock_ports: Vec<NonZeroU16>,
        gate: Gate,
        mirror: Option<Mirror>,
        sequences: Vec<SequenceSettings>,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Self> {
        let mut desk = Self {
            knock_ports,
            gate,
            mirror,
            sequences: follow(sequences)?,
            counters: Counters::default(),
            gathered: Vec::with_capacity(TOGETHER),
            decided: Vec::new(),
            unnoted: VecDeque::new(),
            used: LastUse::new(),
            events,
        };
        desk.prepare(Now::read().wall);
        Ok(desk)
    }

    /// Computes a slice of the next epoch's hints, here and in the kernel; `true` once they are complete.
    pub(super) fn prepare(&mut self, now: WallTime) -> bool {
        let Self { gate, mirror, .. } = self;
        let is_complete = gate.prepare(now);
        let follows = mirror.as_mut().is_none_or(|mirror| mirror.follow(gate.hints(), gate.clients().len()));
        is_complete && follows
    }

    /// All that was counted: what the kernel has refused came in as well, and was unknown.
    pub(super) fn counted(&mut self) -> Counters {
        if let Some(mirror) = &mut self.mirror {
            let refused = mirror.refused();
            let more = refused.saturating_sub(self.counters.refused_in_kernel);
            if more > 0 {
                debug!(reason = %Refusal::Unknown, count = more, "refused in the kernel");
                self.counters.refuse_in_kernel(more);
            }
        }
        self.counters.clone()
    }

    /// When clients knocked last, as far as it was not asked for yet and goes into one message.
    pub(super) fn newly_used(&mut self) -> LastUse {
        let rest = self.used.keys().nth(USES_TOGETHER).copied();
        let rest = rest.map(|first| self.used.split_off(&first)).unwrap_or_default();
        replace(&mut self.used, rest)
    }

    /// Takes a packet to whom it concerns. Knocks are gathered: see [`Desk::settle_gathered`].
    pub(super) fn take(&mut self, frame: &Frame<'_>) {
        match frame.content {
            Content::Datagram(payload) if self.knock_ports.iter().any(|port| port.get() == frame.port) => {
                if let Ok(payload) = payload.try_into() {
                    self.gather(frame.way(), payload);
                }
            }
            _ => self.step(frame),
        }
    }

    /// Lets others knock from now on.
    pub(super) fn reload(&mut self, newcomers: Newcomers) -> Result<(), String> {
        let Newcomers { services, clients, hints, sequences } = newcomers;
        // Who is on the way through a sequence goes on, if all of them are what they were.
        if self.sequences.settings() != sequences {
            self.sequences = follow(sequences).map_err(|error| error.to_string())?;
        }
        let Self { gate, mirror, .. } = self;
        gate.reload(services, clients, hints);
        if let Some(mirror) = mirror {
            mirror.begin_anew(gate.hints(), gate.clients().len());
        }
        self.counted().log();
        Ok(())
    }

    /// A knock-sized datagram came in.
    fn gather(&mut self, way: Way, payload: [u8; KNOCK_LEN]) {
        self.gathered.push((way, payload));
        if self.gathered.len() == TOGETHER {
            self.settle_gathered();
        }
    }

    /// Has the gate decide on the knocks that were gathered; to be called behind the last packet of those that came at once.
    pub(super) fn settle_gathered(&mut self) {
        let Self { gate, gathered, decided, counters, .. } = self;
        let knocks: Vec<_> = gathered.iter().map(|(way, payload)| (*way, Datagram::from(payload))).collect();
        counters.received += knocks.len() as u64;
        gate.handle_all(Now::read(), &knocks, |way, verdict| match verdict {
            Verdict::Decided(unrecorded) => decided.push(unrecorded),
            Verdict::Refused(refused) => refuse(counters, Some(way.from.ip()), &refused),
        });
        gathered.clear();
    }

    /// Another packet came in: it may be a step of a sequence.
    fn step(&mut self, frame: &Frame<'_>) {
        let Self { gate, sequences, decided, unnoted, counters, events, .. } = self;
        if sequences.is_empty() {
            return;
        }
        let now = Now::read();
        for completion in sequences.advance(now, frame) {
            if let Some(spent) = &completion.spent {
                // The other end lives as long as the front.
                let _ = events.send(Event::Spent(spent.clone()));
            }
            match (gate.complete(now, &completion), completion.spent) {
                // They are few: each was taken out of its list when it came here.
                (Verdict::Decided(unrecorded), Some(spent)) => unnoted.push_back((spent, unrecorded)),
                (Verdict::Decided(unrecorded), None) => decided.push(unrecorded),
                (Verdict::Refused(refused), _) => refuse(counters, Some(completion.source), &refused),
            }
        }
    }

    /// Goes on with whoever used a one-time sequence, now that its file says so, or cannot be made to.
    pub(super) fn noted(&mut self, spent: &Spent, is_done: bool) {
        let at = self.unnoted.iter().position(|(waits, _)| waits == spent);
        match at.and_then(|at| self.unnoted.remove(at)) {
            Some((_, unrecorded)) if is_done => self.decided.push(unrecorded),
            Some((_, unrecorded)) => refuse(&mut self.counters, None, &unrecorded.fail()),
            None => {}
        }
    }

    /// Counts what came of a commit.
    pub(super) fn conclude(&mut self, Recorded { accepted, used, refused }: Recorded) {
        self.counters.accepted += accepted;
        let now = Now::read().wall;
        self.used.extend(used.into_iter().map(|client| (client, now)));
        for refused in &refused {
            refuse(&mut self.counters, None, refused);
        }
    }
}

/// Counts a knock that the gate refused, or its record or the want of one.
fn refuse(counters: &mut Counters, source: Option<IpAddr>, refused: &Refused) {
    let Refused { reason, client, .. } = refused;
    counters.refuse(*reason);
    let (source, client) =
        (source.map(tracing::field::display), client.as_ref().map(tracing::field::display));
    debug!(%reason, source, client, "refused");
}

/// Sequences, with a new key for what they remember.
fn follow(settings: Vec<SequenceSettings>) -> anyhow::Result<Sequences> {
    let mut key = [0; 16];
    SystemRandom::new().fill(&mut key).ok().context("the system gives no random bytes")?;
    Ok(Sequences::new(settings, key)?)
}
