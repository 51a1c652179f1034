//! The desk of the front: where each packet is taken to whom it concerns. What was decided goes on to the recorder, and what
//! came of it comes back to be counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU16;

use anyhow::Context;
use postern_proto::{Datagram, GateId, KNOCK_LEN, Refusal, WallTime};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::frame::{Content, Frame};
use super::gate::{Gate, Refused, Unrecorded, Verdict};
use super::kernel::Mirror;
use super::process::Enrolled;
use super::recorder::{Recorded, Work};
use super::sequences::{SequenceSettings, Sequences, Spent};
use crate::clock::Now;
use crate::counters::Counters;

/// Knocks on which the gate decides together, at the most.
const TOGETHER: usize = 32;

/// What the tasks of the front share; they take turns on one thread.
pub(super) struct Desk {
    knock_ports: Vec<NonZeroU16>,
    pub(super) gate: RefCell<Gate>,
    /// The kernel's set of hints, where it looks them up.
    mirror: RefCell<Option<Mirror>>,
    pub(super) sequences: RefCell<Sequences>,
    pub(super) counters: RefCell<Counters>,
    /// The interfaces that are watched.
    pub(super) interfaces: RefCell<Vec<String>>,
    /// Knocks that came in at once, on which the gate has not decided yet.
    gathered: RefCell<Vec<(IpAddr, [u8; KNOCK_LEN])>>,
    /// To the recorder; `None` at the end, when nothing more is decided.
    recorder: RefCell<Option<mpsc::Sender<Work>>>,
    /// What waits for the note that a one-time sequence was used.
    unnoted: RefCell<VecDeque<(Spent, Unrecorded)>>,
    /// One-time sequences that are to be noted.
    spent: mpsc::UnboundedSender<Spent>,
    /// What is to be forgotten is with the recorder.
    is_purging: Cell<bool>,
    /// Something was counted, or is watched no more.
    pub(super) news: Notify,
}

impl Desk {
    /// Nothing was decided yet. What comes out beside it are the one-time sequences that are to be noted as used.
    ///
    /// # Errors
    /// When the sequences cannot be followed.
    pub(super) fn new(
        knock_ports: Vec<NonZeroU16>,
        gate: Gate,
        mirror: Option<Mirror>,
        sequences: Vec<SequenceSettings>,
        interfaces: Vec<String>,
        recorder: mpsc::Sender<Work>,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Spent>)> {
        let (spent, to_note) = mpsc::unbounded_channel();
        let desk = Self {
            knock_ports,
            gate: RefCell::new(gate),
            mirror: RefCell::new(mirror),
            sequences: RefCell::new(follow(sequences)?),
            counters: RefCell::default(),
            interfaces: RefCell::new(interfaces),
            gathered: RefCell::new(Vec::with_capacity(TOGETHER)),
            recorder: RefCell::new(Some(recorder)),
            unnoted: RefCell::default(),
            spent,
            is_purging: Cell::new(false),
            news: Notify::new(),
        };
        desk.prepare(Now::read().wall);
        Ok((desk, to_note))
    }

    /// Computes a slice of the next epoch's hints, here and in the kernel; `true` once they are complete.
    pub(super) fn prepare(&self, now: WallTime) -> bool {
        let mut gate = self.gate.borrow_mut();
        let is_complete = gate.prepare(now);
        let mut mirror = self.mirror.borrow_mut();
        let follows = mirror.as_mut().is_none_or(|mirror| mirror.follow(gate.hints(), gate.clients().len()));
        is_complete && follows
    }

    /// All that was counted: what the kernel has refused came in as well, and was unknown.
    pub(super) fn counted(&self) -> Counters {
        let mut counters = self.counters.borrow_mut();
        if let Some(mirror) = self.mirror.borrow_mut().as_mut() {
            let refused = mirror.refused();
            let more = refused.saturating_sub(counters.refused_in_kernel);
            if more > 0 {
                debug!(reason = %Refusal::Unknown, count = more, "refused in the kernel");
                counters.refuse_in_kernel(more);
            }
        }
        counters.clone()
    }

    /// Takes a packet to whom it concerns. Knocks are gathered: see [`Desk::settle_gathered`].
    pub(super) fn take(&self, frame: &Frame<'_>) {
        match frame.content {
            Content::Datagram(payload) if self.knock_ports.iter().any(|port| port.get() == frame.port) => {
                if let Ok(payload) = payload.try_into() {
                    self.gather(frame.source, payload);
                }
            }
            _ => self.step(frame),
        }
    }

    /// Lets others knock from now on.
    pub(super) fn reload(&self, gate: &GateId, enrolled: Enrolled) -> Result<(), String> {
        let clients = enrolled.clients(gate).map_err(|error| format!("the key file: {error}"))?;
        // Who is on the way through a sequence goes on, if all of them are what they were.
        if self.sequences.borrow().settings() != enrolled.sequences {
            let sequences = follow(enrolled.sequences).map_err(|error| error.to_string())?;
            *self.sequences.borrow_mut() = sequences;
        }
        let mut gate = self.gate.borrow_mut();
        gate.reload(enrolled.services, clients, Now::read().wall);
        if let Some(mirror) = self.mirror.borrow_mut().as_mut() {
            mirror.begin_anew(gate.hints(), gate.clients().len());
        }
        drop(gate);
        self.counted().log();
        Ok(())
    }

    /// A knock-sized datagram came in.
    fn gather(&self, source: IpAddr, payload: [u8; KNOCK_LEN]) {
        let mut gathered = self.gathered.borrow_mut();
        gathered.push((source, payload));
        if gathered.len() == TOGETHER {
            drop(gathered);
            self.settle_gathered();
        }
    }

    /// Has the gate decide on the knocks that were gathered; to be called behind the last packet of those that came at once.
    pub(super) fn settle_gathered(&self) {
        let mut gathered = self.gathered.borrow_mut();
        let knocks: Vec<_> =
            gathered.iter().map(|(source, payload)| (*source, Datagram::from(payload))).collect();
        self.counters.borrow_mut().received += knocks.len() as u64;
        let mut gate = self.gate.borrow_mut();
        gate.handle_all(Now::read(), &knocks, |source, verdict| self.settle(source, verdict));
        gathered.clear();
    }

    /// Another packet came in: it may be a step of a sequence.
    fn step(&self, frame: &Frame<'_>) {
        let mut sequences = self.sequences.borrow_mut();
        if sequences.is_empty() {
            return;
        }
        let now = Now::read();
        for completion in sequences.advance(now, frame) {
            let verdict = self.gate.borrow_mut().complete(now, &completion);
            match (verdict, completion.spent) {
                (Verdict::Decided(unrecorded), Some(spent)) => {
                    // They are few: each was taken out of its list when it came here.
                    self.unnoted.borrow_mut().push_back((spent.clone(), unrecorded));
                    // The other end lives as long as the front.
                    drop(self.spent.send(spent));
                }
                (verdict, spent) => {
                    drop(spent.map(|spent| self.spent.send(spent)));
                    self.settle(completion.source, verdict);
                }
            }
        }
    }

    /// Goes on with whoever used a one-time sequence, now that its file says so, or cannot be made to.
    pub(super) fn noted(&self, spent: &Spent, is_done: bool) {
        let mut unnoted = self.unnoted.borrow_mut();
        let at = unnoted.iter().position(|(waits, _)| waits == spent);
        let Some((_, unrecorded)) = at.and_then(|at| unnoted.remove(at)) else { return };
        let refused = if is_done { self.wait(unrecorded) } else { Some(unrecorded.fail()) };
        if let Some(refused) = refused {
            self.refuse(refused);
        }
    }

    fn settle(&self, source: IpAddr, verdict: Verdict) {
        let refused = match verdict {
            Verdict::Refused(refused) => Some(refused),
            Verdict::Decided(unrecorded) => self.wait(unrecorded),
        };
        if let Some(Refused { reason, client, .. }) = refused {
            self.counters.borrow_mut().refuse(reason);
            debug!(%reason, %source, client = client.map(tracing::field::display), "refused");
        }
    }

    /// Has a decision wait for its record; it is refused where too many do.
    fn wait(&self, unrecorded: Unrecorded) -> Option<Refused> {
        match self.give(Work::Decided(unrecorded)) {
            Some(Work::Decided(unrecorded)) => Some(unrecorded.fail()),
            _ => None,
        }
    }

    /// Gives the recorder something to do; gives it back where that cannot take it.
    fn give(&self, work: Work) -> Option<Work> {
        let recorder = self.recorder.borrow();
        let Some(recorder) = recorder.as_ref() else { return Some(work) };
        recorder.try_send(work).err().map(TrySendError::into_inner)
    }

    /// Has the store forget what it may.
    pub(super) fn purge(&self) {
        if self.is_purging.get() {
            return;
        }
        if let Some(purge) = self.gate.borrow().purgeable(Now::read()) {
            self.is_purging.set(self.give(Work::Forget(purge)).is_none());
        }
    }

    /// Nothing more is decided: what waits is recorded, and that is all.
    pub(super) fn close(&self) {
        self.recorder.take();
    }

    /// Counts what came of a commit.
    pub(super) fn conclude(&self, recorded: Recorded) {
        let Recorded { accepted, refused, purge } = recorded;
        self.counters.borrow_mut().accepted += accepted;
        for refused in refused {
            self.refuse(refused);
        }
        if let Some((purge, is_done)) = purge {
            self.is_purging.set(false);
            if is_done {
                self.gate.borrow_mut().forget(&purge);
            }
        }
        self.news.notify_one();
    }

    /// Counts a knock that its record, or the want of one, refused.
    fn refuse(&self, refused: Refused) {
        self.counters.borrow_mut().refuse(refused.reason);
        debug!(reason = %refused.reason, client = refused.client.map(tracing::field::display), "refused");
    }
}

/// Sequences, with a new key for what they remember.
fn follow(settings: Vec<SequenceSettings>) -> anyhow::Result<Sequences> {
    let mut key = [0; 16];
    SystemRandom::new().fill(&mut key).ok().context("the system gives no random bytes")?;
    Ok(Sequences::new(settings, key)?)
}
