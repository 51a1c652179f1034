//! The front: the only room that reads strangers' packets. It cannot touch the firewall: what it decides goes, once
//! recorded durably, as an order to the warden.
//!
//! ```text
//! wire ──capture──▶ Frame ──knock──────▶ Gate ──▶ Unrecorded ──store──▶ Outcome ──Order──▶ warden
//!         (pcap)   (frame) ╲             ╱(gate)               (recorder: one fsync for all that wait)
//!                           ╲──sequences╱
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use postern_proto::{GateId, GateKeys};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::alarm::Alarm;
use crate::clock::Now;
use crate::link::Sender;
use crate::order::{Note, Order, Orders};
use crate::process::{Line, Report};

pub(crate) mod capture;
mod desk;
pub(crate) mod filter;
pub(crate) mod frame;
pub mod gate;
pub(crate) mod kernel;
pub(crate) mod process;
mod recorder;
pub(crate) mod sequences;
pub mod store;

use capture::{BATCH, Capture, Opened};
use desk::Desk;
use gate::Gate;
use kernel::KernelFilter;
use process::{Command, Event, Settings};
use recorder::{Recorded, Recorder};
use sequences::Spent;
use store::Store;

/// How often the next epoch's hints go on, while they are not complete.
const HINT_PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked for knocks that may be forgotten, and the warden told though nobody came.
const TICK: Duration = Duration::from_secs(5);
/// How often a part of those is forgotten who did not go on with a sequence.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How soon the warden knows what was counted.
const NOTE_PAUSE: Duration = Duration::from_millis(500);
/// Packets are left to gather for so long behind those that came last: to be woken costs more than to refuse many.
const REST: Duration = Duration::from_millis(2);

/// The front, ready to run: everything that can fail at the start has not.
struct Front {
    captures: Vec<Capture>,
    gate_id: GateId,
    spent: mpsc::UnboundedReceiver<Spent>,
    desk: Rc<Desk>,
    recorder: Recorder,
    done: mpsc::UnboundedReceiver<Recorded>,
    orders: Arc<Sender<Orders>>,
}

impl Front {
    /// Opens the store, and reads from these captures.
    ///
    /// # Errors
    /// When the store cannot be used, or the clients' keys do not read.
    fn start(
        settings: &Settings,
        captures: Vec<Opened>,
        kernel: Option<KernelFilter>,
        orders: Sender<Orders>,
    ) -> anyhow::Result<Self> {
        let Settings { watch, enrolled, .. } = settings;
        let now = Now::read();
        let (store, memory) = Store::open(&watch.store, now)?;
        let keys = GateKeys::derive(&watch.gate);
        let clients = enrolled.clients(&watch.gate).context("the key file")?;
        let gate = Gate::new(keys, watch.tolerance, enrolled.services.clone(), clients, memory, now.wall);
        let captures = captures.into_iter().map(Capture::watch).collect::<Result<Vec<_>, _>>()?;
        let interfaces = captures.iter().map(|capture| capture.interface().to_owned()).collect();
        let mirror = kernel.map(|kernel| kernel.into_mirror(watch.tolerance));
        let orders = Arc::new(orders);
        let (recorder, (work, done)) = Recorder::start(store, Arc::clone(&orders))?;
        let sequences = enrolled.sequences.clone();
        let (desk, spent) =
            Desk::new(watch.sought.knocks.clone(), gate, mirror, sequences, interfaces, work)?;
        let gate_id = watch.gate.clone();
        Ok(Self { captures, gate_id, spent, desk: Rc::new(desk), recorder, done, orders })
    }

    /// Works until the line to the supervisor ends. Says in the log what it counted, at the end and on each reload.
    ///
    /// # Errors
    /// When one of its tasks cannot go on.
    async fn run(self, mut line: Line<Command, Event>) -> anyhow::Result<()> {
        let Self { captures, gate_id, mut spent, desk, recorder, mut done, orders } = self;
        let mut tasks = JoinSet::new();
        let (unwatched, mut lost) = mpsc::unbounded_channel();
        let rests = Rc::new(Rests::default());
        for capture in captures {
            tasks.spawn_local(watch(Rc::clone(&desk), capture, unwatched.clone(), Rc::clone(&rests)));
        }
        tasks.spawn_local(tend(Rc::clone(&desk), orders));
        let result = loop {
            let done = tokio::select! {
                command = line.commands.receive() => match command {
                    Ok(Some(Command::Reload(enrolled))) => {
                        let result = desk.reload(&gate_id, enrolled);
                        line.reports.send(&Report::Reloaded(result)).await
                    }
                    Ok(Some(Command::Begin)) => Ok(()),
                    Ok(Some(Command::Noted(spent, done))) => {
                        desk.noted(&spent, done);
                        Ok(())
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => Err(error),
                },
                Some(spent) = spent.recv() => line.reports.send(&Report::Event(Event::Spent(spent))).await,
                Some(interface) = lost.recv() => {
                    desk.interfaces.borrow_mut().retain(|watched| *watched != interface);
                    desk.news.notify_one();
                    line.reports.send(&Report::Event(Event::Unwatched(interface))).await
                }
                Some(ended) = tasks.join_next() => {
                    match ended.context("a task of the front failed").and_then(|result| result) {
                        Ok(()) => Ok(()),
                        failed => break failed,
                    }
                }
                recorded = done.recv() => match recorded {
                    Some(recorded) => {
                        desk.conclude(recorded);
                        Ok(())
                    }
                    None => return recorder.ended(),
                },
            };
            if let Err(error) = done {
                break Err(error.into());
            }
        };
        tasks.shutdown().await;
        desk.close();
        while let Some(recorded) = done.recv().await {
            desk.conclude(recorded);
        }
        desk.counted().log();
        result.and(recorder.ended())
    }
}

/// Hands every packet of an interface to whom it concerns, until the interface goes down or away.
async fn watch(
    desk: Rc<Desk>,
    mut capture: Capture,
    unwatched: mpsc::UnboundedSender<String>,
    rests: Rc<Rests>,
) -> anyhow::Result<()> {
    let mut dropped = 0;
    loop {
        let batch = capture.batch(|frame| desk.take(&frame)).await;
        desk.settle_gathered();
        match batch {
            Ok(read) => {
                let stats = capture.stats()?;
                desk.counters.borrow_mut().dropped += u64::from(stats.dropped.saturating_sub(dropped));
                dropped = stats.dropped;
                desk.news.notify_one();
                if read < BATCH {
                    rests.rest(capture.interface());
                } else {
                    // Under a flood there is always a next batch: the others have their turn all the same.
                    yield_now().await;
                }
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

/// The rests that the captures take, in which packets gather.
#[derive(Default)]
struct Rests(RefCell<Option<(String, Instant)>>);

impl Rests {
    /// Stands still, but for once in a while at the most: where others' packets are left to gather, so are these.
    ///
    /// Not by the event loop, which each packet would wake. The recorder has the knocks among those before.
    fn rest(&self, interface: &str) {
        let mut last = self.0.borrow_mut();
        if last.as_ref().is_some_and(|(other, since)| other != interface && since.elapsed() < REST) {
            return;
        }
        thread::sleep(REST);
        *last = Some((interface.to_owned(), Instant::now()));
    }
}

/// Keeps the next epoch's hints coming, here and in the kernel, has forgotten what can be, and has the warden know how the
/// front does: soon after something was counted, and now and then, for what only the kernel counts and for a new warden.
/// All in one task: each timer of its own would wake an idle host.
async fn tend(desk: Rc<Desk>, orders: Arc<Sender<Orders>>) -> anyhow::Result<()> {
    let (mut alarm, mut last_tick) = (Alarm::new()?, Instant::now());
    loop {
        let is_complete = desk.prepare(Now::read().wall);
        desk.sequences.borrow_mut().sweep(Now::read());
        if last_tick.elapsed() >= TICK {
            last_tick = Instant::now();
            desk.purge();
        }
        let (counters, interfaces) = (desk.counted(), desk.interfaces.borrow().clone());
        let note = Order::Note(Note { counters, interfaces });
        // Where the link is full, the next one will do: it says all that this one does.
        orders.send_now(&Orders(vec![note])).context("the warden's link is gone")?;
        let has_sequences = !desk.sequences.borrow().is_empty();
        let pause = match (is_complete, has_sequences) {
            (false, _) => HINT_PAUSE,
            (true, true) => SWEEP_PAUSE,
            (true, false) => TICK,
        };
        tokio::select! {
            () = desk.news.notified() => sleep(pause.min(NOTE_PAUSE)).await,
            woken = alarm.after(pause) => woken?,
        }
    }
}
