//! The front: the only room that reads strangers' packets. It cannot touch the firewall: what it decides goes, once
//! recorded durably, through the pipe to the warden.
//!
//! ```text
//! wire ──capture──▶ Frame ──▶ Gate ──▶ Unrecorded ──store──▶ Outcome ──pipe──▶ warden
//!         (pcap)   (frame)   (gate)                (one fsync for all that wait)
//! ```

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postern_proto::{Datagram, GateKeys, Tolerance};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinSet, spawn_blocking, spawn_local, yield_now};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::clock::Now;
use crate::pipe::{Order, OrderSender};

pub(crate) mod capture;
mod counters;
mod filter;
pub(crate) mod frame;
pub mod gate;
pub mod store;

use capture::Capture;
use counters::Counters;
use gate::{Client, Gate, Outcome, Purge, ServiceTable, Unrecorded, Verdict};
use store::Store;

/// Decisions that may wait for the store; beyond it a knock is refused unrecorded.
const WAITING: usize = 65_536;
/// How often the next epoch's hints go on, while they are not complete.
const HINT_PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked for knocks that may be forgotten, and for an interface to come back.
const TICK: Duration = Duration::from_secs(5);

/// What the front is told at its start.
pub(crate) struct Settings {
    pub(crate) interfaces: Vec<String>,
    pub(crate) ports: Vec<NonZeroU16>,
    pub(crate) keys: GateKeys,
    pub(crate) tolerance: Tolerance,
    /// Folder of the replay store.
    pub(crate) store: PathBuf,
    pub(crate) enrolled: Enrolled,
}

/// Who may knock for what.
pub(crate) struct Enrolled {
    pub(crate) services: ServiceTable,
    pub(crate) clients: Vec<Client>,
}

/// The front, ready to run: everything that can fail at the start has not.
pub(crate) struct Front {
    captures: Vec<(String, Capture)>,
    ports: Vec<NonZeroU16>,
    desk: Rc<Desk>,
    store: Arc<Store>,
}

/// What the tasks of the front share; they take turns on one thread.
struct Desk {
    gate: RefCell<Gate>,
    counters: RefCell<Counters>,
    waiting: RefCell<Vec<Unrecorded>>,
    purge: RefCell<Option<Purge>>,
    /// Something waits to be recorded, or it is time to stop.
    work: Notify,
    /// Nothing comes in any more: what waits is recorded, and that is all.
    stopping: Cell<bool>,
}

impl Front {
    /// Opens the store and the captures.
    ///
    /// # Errors
    /// When the store cannot be used, or an interface cannot be watched.
    pub(crate) fn start(settings: Settings) -> anyhow::Result<Self> {
        let Settings { interfaces, ports, keys, tolerance, store, enrolled } = settings;
        let now = Now::read();
        let (store, memory) = Store::open(&store, now.boot)?;
        let gate = Gate::new(keys, tolerance, enrolled.services, enrolled.clients, memory, now.wall);
        let captures = interfaces
            .into_iter()
            .map(|name| Ok((name.clone(), Capture::open(&name, &ports)?)))
            .collect::<anyhow::Result<_>>()?;
        let desk = Desk {
            gate: RefCell::new(gate),
            counters: RefCell::default(),
            waiting: RefCell::default(),
            purge: RefCell::default(),
            work: Notify::new(),
            stopping: Cell::new(false),
        };
        Ok(Self { captures, ports, desk: Rc::new(desk), store: Arc::new(store) })
    }

    /// Works until `commands` ends; needs a `LocalSet`. Says in the log what it counted, at the end and on each reload.
    ///
    /// # Errors
    /// When the warden is gone.
    pub(crate) async fn run(
        self,
        orders: OrderSender,
        mut commands: mpsc::Receiver<Enrolled>,
    ) -> anyhow::Result<()> {
        let Self { captures, ports, desk, store } = self;
        let mut tasks = JoinSet::new();
        for (name, capture) in captures {
            tasks.spawn_local(watch(Rc::clone(&desk), name, ports.clone(), capture));
        }
        tasks.spawn_local(prepare(Rc::clone(&desk)));
        tasks.spawn_local(forget(Rc::clone(&desk)));
        let mut recorder = spawn_local(record(Rc::clone(&desk), store, orders));
        let result = loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Enrolled { services, clients }) => {
                        desk.gate.borrow_mut().reload(services, clients, Now::read().wall);
                        desk.counters.borrow().log();
                    }
                    None => break Ok(()),
                },
                Some(ended) = tasks.join_next() => {
                    break ended.context("a task of the front failed").and_then(|result| result);
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
    /// A knock-sized datagram came in.
    fn knock(&self, source: IpAddr, datagram: Datagram<'_>) {
        let mut counters = self.counters.borrow_mut();
        counters.received += 1;
        match self.gate.borrow_mut().handle(Now::read(), source, datagram) {
            Verdict::Refused(refused) => {
                counters.refuse(refused.reason);
                debug!(reason = %refused.reason, %source, client = refused.client.map(tracing::field::display), "refused");
            }
            Verdict::Decided(unrecorded) => {
                let mut waiting = self.waiting.borrow_mut();
                if waiting.len() < WAITING {
                    waiting.push(unrecorded);
                    self.work.notify_one();
                } else {
                    let refused = unrecorded.fail();
                    counters.refuse(refused.reason);
                    debug!(reason = %refused.reason, %source, "refused");
                }
            }
        }
    }
}

/// Hands every datagram of an interface to the gate. An interface that goes away is waited for.
async fn watch(
    desk: Rc<Desk>,
    name: String,
    ports: Vec<NonZeroU16>,
    mut capture: Capture,
) -> anyhow::Result<()> {
    let mut dropped = 0;
    loop {
        let each = |frame: frame::Frame<'_>| {
            if let Some(datagram) = Datagram::new(frame.payload) {
                desk.knock(frame.source, datagram);
            }
        };
        let Err(error) = capture.batch(each).await else {
            let stats = capture.stats()?;
            desk.counters.borrow_mut().dropped += u64::from(stats.dropped.saturating_sub(dropped));
            dropped = stats.dropped;
            // Under a flood there is always a next batch: the others have their turn all the same.
            yield_now().await;
            continue;
        };
        if !error.may_pass() {
            return Err(error.into());
        }
        let error = anyhow::Error::from(error);
        warn!(
            interface = name,
            error = format!("{error:#}"),
            "cannot watch this interface; waiting for it to come back"
        );
        capture = loop {
            sleep(TICK).await;
            if let Ok(capture) = Capture::open(&name, &ports) {
                info!(interface = name, "watching again");
                dropped = 0;
                break capture;
            }
        };
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

/// Records what waits, all of it in one commit, and only then lets it have its effect.
async fn record(desk: Rc<Desk>, store: Arc<Store>, mut orders: OrderSender) -> anyhow::Result<()> {
    loop {
        if desk.waiting.borrow().is_empty() {
            if desk.stopping.get() {
                return Ok(());
            }
            desk.work.notified().await;
        }
        let (batch, purge) = (desk.waiting.take(), desk.purge.take());
        let store = Arc::clone(&store);
        let (batch, purge, receipt) = spawn_blocking(move || {
            let receipt = store.commit(batch.iter().map(Unrecorded::record), purge.as_ref());
            (batch, purge, receipt)
        })
        .await
        .context("the store's thread failed")?;
        match receipt {
            Ok(receipt) => {
                for unrecorded in batch {
                    let outcome = unrecorded.release(&receipt);
                    if let Some(order) = desk.conclude(outcome) {
                        orders.send(&order).await.context("the warden is gone")?;
                    }
                }
                if let Some(purge) = purge {
                    desk.gate.borrow_mut().forget(&purge);
                }
            }
            Err(error) => {
                error!(%error, knocks = batch.len(), "not recorded");
                for refused in batch.into_iter().map(Unrecorded::fail) {
                    desk.counters.borrow_mut().refuse(refused.reason);
                }
            }
        }
    }
}

impl Desk {
    /// Counts a recorded outcome; gives what the warden is to do.
    fn conclude(&self, outcome: Outcome) -> Option<Order> {
        let mut counters = self.counters.borrow_mut();
        match outcome {
            Outcome::Refused(refused) => {
                counters.refuse(refused.reason);
                debug!(reason = %refused.reason, client = refused.client.map(tracing::field::display), "refused");
                None
            }
            Outcome::Open(grant) => {
                counters.accepted += 1;
                let gate::Grant { client, services, source, from_port } = grant;
                Some(Order::Open { client, services, source, from_port })
            }
            Outcome::Close(closure) => {
                counters.accepted += 1;
                let services = closure.services.iter().cloned().collect();
                Some(Order::Close { client: closure.client, services, source: closure.source })
            }
        }
    }
}
