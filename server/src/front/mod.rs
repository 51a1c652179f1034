//! The front: the only room that reads strangers' packets. It cannot touch the firewall: what it decides goes, once
//! recorded durably, as an order to the warden.
//!
//! ```text
//! wire ──capture──▶ Frame ──knock──────▶ Gate ──▶ Unrecorded ──store──▶ Outcome ──Order──▶ warden
//!         (pcap)   (frame) ╲             ╱(gate)               (one fsync for all that wait)
//!                           ╲──sequences╱
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, ensure};
use postern_proto::{Datagram, GateId, GateKeys};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinSet, spawn_blocking, spawn_local, yield_now};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::clock::Now;
use crate::counters::Counters;
use crate::link::Sender;
use crate::order::{Note, Order};
use crate::process::{Line, Report};

pub(crate) mod capture;
pub(crate) mod filter;
pub(crate) mod frame;
pub mod gate;
pub(crate) mod process;
pub(crate) mod sequences;
pub mod store;

use capture::{Capture, Opened};
use frame::{Content, Frame};
use gate::{Gate, Outcome, Purge, Refused, Unrecorded, Verdict};
use process::{Command, Enrolled, Event, Settings};
use sequences::{SequenceSettings, Sequences, Spent};
use store::Store;

/// Decisions that may wait for the store; beyond it a knock is refused unrecorded.
const WAITING: usize = 65_536;
/// How often the next epoch's hints go on, while they are not complete.
const HINT_PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked for knocks that may be forgotten.
const TICK: Duration = Duration::from_secs(5);
/// How often a part of those is forgotten who did not go on with a sequence.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How soon the warden knows what was counted.
const NOTE_PAUSE: Duration = Duration::from_millis(500);
/// After how many pauses it is told though nothing has changed.
const NOTES_A_REPEAT: u64 = 10;

/// The front, ready to run: everything that can fail at the start has not.
struct Front {
    captures: Vec<Capture>,
    gate_id: GateId,
    knock_ports: Rc<[NonZeroU16]>,
    spent: mpsc::UnboundedReceiver<Spent>,
    desk: Rc<Desk>,
    store: Store,
}

/// What the tasks of the front share; they take turns on one thread.
struct Desk {
    gate: RefCell<Gate>,
    sequences: RefCell<Sequences>,
    counters: RefCell<Counters>,
    /// The interfaces that are watched.
    interfaces: RefCell<Vec<String>>,
    waiting: RefCell<Vec<Unrecorded>>,
    /// What waits for the note that a one-time sequence was used.
    unnoted: RefCell<VecDeque<(Spent, Unrecorded)>>,
    /// One-time sequences that are to be noted.
    spent: mpsc::UnboundedSender<Spent>,
    purge: RefCell<Option<Purge>>,
    /// Something waits to be recorded, or it is time to stop.
    work: Notify,
    /// Nothing comes in any more: what waits is recorded, and that is all.
    stopping: Cell<bool>,
}

impl Front {
    /// Opens the store, and reads from these captures.
    ///
    /// # Errors
    /// When the store cannot be used, or the clients' keys do not read.
    fn start(settings: &Settings, captures: Vec<Opened>) -> anyhow::Result<Self> {
        let Settings { watch, enrolled, .. } = settings;
        let now = Now::read();
        let (store, memory) = Store::open(&watch.store, now)?;
        let keys = GateKeys::derive(&watch.gate);
        let clients = enrolled.clients(&watch.gate).context("the key file")?;
        let gate = Gate::new(keys, watch.tolerance, enrolled.services.clone(), clients, memory, now.wall);
        let captures = captures.into_iter().map(Capture::watch).collect::<Result<Vec<_>, _>>()?;
        let interfaces = captures.iter().map(|capture| capture.interface().to_owned()).collect();
        let sequences = follow(enrolled.sequences.clone())?;
        let (sender, spent) = mpsc::unbounded_channel();
        let desk = Desk {
            gate: RefCell::new(gate),
            sequences: RefCell::new(sequences),
            counters: RefCell::default(),
            interfaces: RefCell::new(interfaces),
            waiting: RefCell::default(),
            unnoted: RefCell::default(),
            spent: sender,
            purge: RefCell::default(),
            work: Notify::new(),
            stopping: Cell::new(false),
        };
        let knock_ports = watch.sought.knocks.clone().into();
        Ok(Self { captures, gate_id: watch.gate.clone(), knock_ports, spent, desk: Rc::new(desk), store })
    }

    /// Works until the line to the supervisor ends. Says in the log what it counted, at the end and on each reload.
    ///
    /// # Errors
    /// When one of its tasks cannot go on.
    async fn run(self, orders: Sender<Order>, mut line: Line<Command, Event>) -> anyhow::Result<()> {
        let Self { captures, gate_id, knock_ports, mut spent, desk, store } = self;
        let mut tasks = JoinSet::new();
        let (unwatched, mut lost) = mpsc::unbounded_channel();
        for capture in captures {
            tasks.spawn_local(watch(Rc::clone(&desk), capture, Rc::clone(&knock_ports), unwatched.clone()));
        }
        tasks.spawn_local(prepare(Rc::clone(&desk)));
        tasks.spawn_local(forget(Rc::clone(&desk)));
        tasks.spawn_local(sweep(Rc::clone(&desk)));
        let orders = Rc::new(orders);
        tasks.spawn_local(note(Rc::clone(&desk), Rc::clone(&orders)));
        let mut recorder = spawn_local(record(Rc::clone(&desk), store, orders));
        let result = loop {
            tokio::select! {
                command = line.commands.receive() => match command? {
                    Some(Command::Reload(enrolled)) => {
                        let result = desk.reload(&gate_id, enrolled);
                        line.reports.send(&Report::Reloaded(result)).await?;
                    }
                    Some(Command::Begin) => {}
                    Some(Command::Noted(spent, done)) => desk.noted(&spent, done),
                    None => break Ok(()),
                },
                Some(spent) = spent.recv() => {
                    line.reports.send(&Report::Event(Event::Spent(spent))).await?;
                }
                Some(interface) = lost.recv() => {
                    desk.interfaces.borrow_mut().retain(|watched| *watched != interface);
                    line.reports.send(&Report::Event(Event::Unwatched(interface))).await?;
                }
                Some(ended) = tasks.join_next() => {
                    match ended.context("a task of the front failed").and_then(|result| result) {
                        Ok(()) => {}
                        failed => break failed,
                    }
                }
                ended = &mut recorder => return ended.context("the recorder failed")?,
            }
        };
        tasks.shutdown().await;
        desk.stopping.set(true);
        desk.work.notify_one();
        let result = result.and(recorder.await.context("the recorder failed")?);
        desk.counters.borrow().log();
        result
    }
}

impl Desk {
    /// Lets others knock from now on.
    fn reload(&self, gate: &GateId, enrolled: Enrolled) -> Result<(), String> {
        let clients = enrolled.clients(gate).map_err(|error| format!("the key file: {error}"))?;
        // Who is on the way through a sequence goes on, if all of them are what they were.
        if self.sequences.borrow().settings() != enrolled.sequences {
            let sequences = follow(enrolled.sequences).map_err(|error| error.to_string())?;
            *self.sequences.borrow_mut() = sequences;
        }
        self.gate.borrow_mut().reload(enrolled.services, clients, Now::read().wall);
        self.counters.borrow().log();
        Ok(())
    }

    /// A knock-sized datagram came in.
    fn knock(&self, source: IpAddr, datagram: Datagram<'_>) {
        self.counters.borrow_mut().received += 1;
        let verdict = self.gate.borrow_mut().handle(Now::read(), source, datagram);
        self.settle(source, verdict);
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
    fn noted(&self, spent: &Spent, is_done: bool) {
        let mut unnoted = self.unnoted.borrow_mut();
        let at = unnoted.iter().position(|(waits, _)| waits == spent);
        let Some((_, unrecorded)) = at.and_then(|at| unnoted.remove(at)) else { return };
        if is_done {
            self.waiting.borrow_mut().push(unrecorded);
            self.work.notify_one();
        } else {
            self.refuse(unrecorded.fail());
        }
    }

    fn settle(&self, source: IpAddr, verdict: Verdict) {
        let refused = match verdict {
            Verdict::Refused(refused) => refused,
            Verdict::Decided(unrecorded) => {
                let mut waiting = self.waiting.borrow_mut();
                if waiting.len() < WAITING {
                    waiting.push(unrecorded);
                    self.work.notify_one();
                    return;
                }
                unrecorded.fail()
            }
        };
        self.counters.borrow_mut().refuse(refused.reason);
        debug!(reason = %refused.reason, %source, client = refused.client.map(tracing::field::display), "refused");
    }
}

/// Sequences, with a new key for what they remember.
fn follow(settings: Vec<SequenceSettings>) -> anyhow::Result<Sequences> {
    let mut key = [0; 16];
    SystemRandom::new().fill(&mut key).ok().context("the system gives no random bytes")?;
    Ok(Sequences::new(settings, key)?)
}

/// Hands every packet of an interface to whom it concerns, until the interface goes down or away.
async fn watch(
    desk: Rc<Desk>,
    mut capture: Capture,
    knock_ports: Rc<[NonZeroU16]>,
    unwatched: mpsc::UnboundedSender<String>,
) -> anyhow::Result<()> {
    let mut dropped = 0;
    let is_knock_port = |port| knock_ports.iter().any(|knock| knock.get() == port);
    loop {
        let each = |frame: Frame<'_>| match frame.content {
            Content::Datagram(payload) if is_knock_port(frame.port) => {
                if let Some(datagram) = Datagram::new(payload) {
                    desk.knock(frame.source, datagram);
                }
            }
            _ => desk.step(&frame),
        };
        match capture.batch(each).await {
            Ok(_) => {
                let stats = capture.stats()?;
                desk.counters.borrow_mut().dropped += u64::from(stats.dropped.saturating_sub(dropped));
                dropped = stats.dropped;
                // Under a flood there is always a next batch: the others have their turn all the same.
                yield_now().await;
            }
            Err(error) if error.may_pass() => {
                warn!(interface = capture.interface(), "not watched until it is back: {error}");
                drop(unwatched.send(capture.interface().to_owned()));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Keeps the next epoch's hints coming.
async fn prepare(desk: Rc<Desk>) -> anyhow::Result<()> {
    loop {
        let now = Now::read().wall;
        let complete = desk.gate.borrow_mut().prepare(now);
        sleep(if complete { TICK } else { HINT_PAUSE }).await;
    }
}

/// Has knocks forgotten that cannot be replayed any more.
async fn forget(desk: Rc<Desk>) -> anyhow::Result<()> {
    loop {
        sleep(TICK).await;
        if desk.purge.borrow().is_none() {
            let purge = desk.gate.borrow().purgeable(Now::read());
            if purge.is_some() {
                *desk.purge.borrow_mut() = purge;
                desk.work.notify_one();
            }
        }
    }
}

/// Has those forgotten who did not go on with a sequence.
async fn sweep(desk: Rc<Desk>) -> anyhow::Result<()> {
    loop {
        sleep(SWEEP_PAUSE).await;
        desk.sequences.borrow_mut().sweep(Now::read());
    }
}

/// Has the warden know how the front does: when something has changed, and now and then, for a new one.
async fn note(desk: Rc<Desk>, orders: Rc<Sender<Order>>) -> anyhow::Result<()> {
    let mut last = None;
    for count in 0u64.. {
        let (counters, interfaces) = (desk.counters.borrow().clone(), desk.interfaces.borrow().clone());
        let note = Note { counters, interfaces };
        if count % NOTES_A_REPEAT == 0 || last.as_ref() != Some(&note) {
            orders.send(&Order::Note(note.clone())).await.context("the warden's link is gone")?;
            last = Some(note);
        }
        sleep(NOTE_PAUSE).await;
    }
    Ok(())
}

/// Records what waits, all of it in one commit, and only then lets it have its effect.
async fn record(desk: Rc<Desk>, mut store: Store, orders: Rc<Sender<Order>>) -> anyhow::Result<()> {
    loop {
        if desk.waiting.borrow().is_empty() {
            if desk.stopping.get() {
                return Ok(());
            }
            desk.work.notified().await;
        }
        let (batch, purge) = (desk.waiting.take(), desk.purge.take());
        let (back, batch, purge, receipt) = spawn_blocking(move || {
            let receipt = store.commit(batch.iter().filter_map(Unrecorded::record), purge.as_ref());
            (store, batch, purge, receipt)
        })
        .await
        .context("the store's thread failed")?;
        store = back;
        if let Some(receipt) = receipt {
            for unrecorded in batch {
                let outcome = unrecorded.release(&receipt);
                if let Some(order) = desk.conclude(outcome) {
                    orders.send(&order).await.context("the warden's link is gone")?;
                }
            }
            if let Some(purge) = purge {
                desk.gate.borrow_mut().forget(&purge);
            }
        } else {
            batch.into_iter().map(Unrecorded::fail).for_each(|refused| desk.refuse(refused));
            // The supervisor starts another front, which may use what is there now.
            ensure!(!store.is_out_of_reach(), "the folder of the replay store is another one than it was");
        }
    }
}

impl Desk {
    /// Counts a recorded outcome; gives what the warden is to do.
    fn conclude(&self, outcome: Outcome) -> Option<Order> {
        match outcome {
            Outcome::Refused(refused) => {
                self.refuse(refused);
                None
            }
            Outcome::Open(grant) => {
                self.counters.borrow_mut().accepted += 1;
                let gate::Grant { client, services, source, from_port, decided } = grant;
                Some(Order::Open { client, services, source, from_port, decided })
            }
            Outcome::Close(closure) => {
                self.counters.borrow_mut().accepted += 1;
                let services = closure.services.iter().cloned().collect();
                Some(Order::Close { client: closure.client, services, source: closure.source })
            }
        }
    }

    /// Counts a knock that its record, or the want of one, refused.
    fn refuse(&self, refused: Refused) {
        self.counters.borrow_mut().refuse(refused.reason);
        debug!(reason = %refused.reason, client = refused.client.map(tracing::field::display), "refused");
    }
}
