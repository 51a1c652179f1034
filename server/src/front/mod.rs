//! The front: the only room that reads strangers' packets. It cannot touch the firewall: what it decides goes, once
//! recorded durably, as an order to the warden.
//!
//! ```text
//! wire ──capture──▶ Frame ──knock──────▶ Gate ──▶ Unrecorded ──store──▶ Released ──Order──▶ warden
//!         (pcap)   (frame) ╲             ╱(gate)               (recorder: one fsync for all that came)
//!                           ╲──sequences╱
//! ```
//! A packet's way is all in one thread, the `watch`; the event loop beside it keeps the line to the supervisor.

use std::thread::{self, JoinHandle};

use anyhow::Context;
use postern_proto::GateKeys;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Now;
use crate::link::Sender;
use crate::order::Orders;
use crate::process::{Line, Report};

mod bell;
pub(crate) mod capture;
mod desk;
pub(crate) mod filter;
pub(crate) mod frame;
pub mod gate;
pub(crate) mod kernel;
pub(crate) mod process;
mod pulse;
mod recorder;
pub(crate) mod sequences;
pub mod store;
mod watch;

use bell::Ringer;
use capture::Capture;
use desk::Desk;
use gate::Gate;
use kernel::KernelFilter;
use process::{Command, Event, Settings};
use pulse::Pulse;
use recorder::Recorder;
use store::Store;
use watch::{Told, Watch};

/// The front, ready to run: everything that can fail at the start has not.
struct Front {
    /// Its thread is there already, and waits for the word: the supervisor looks at every thread before it says that.
    watch: JoinHandle<anyhow::Result<()>>,
    pulse: Pulse,
    told: Ringer<Told>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Front {
    /// Opens the store, and reads from these captures.
    ///
    /// # Errors
    /// When the store cannot be used, or the clients' keys do not read.
    fn start(
        settings: &Settings,
        captures: Vec<Capture>,
        kernel: Option<KernelFilter>,
        orders: Sender<Orders>,
    ) -> anyhow::Result<Self> {
        let Settings { watch, enrolled, .. } = settings;
        let now = Now::read();
        let (store, memory) = Store::open(&watch.store, now)?;
        let keys = GateKeys::derive(&watch.gate);
        let clients = enrolled.clients(&watch.gate).context("the key file")?;
        let services = enrolled.services.clone();
        let gate = Gate::new(keys, watch.tolerance, services, clients, memory, now.wall, watch.answers);
        let mirror = kernel.map(|kernel| kernel.into_mirror(watch.tolerance));
        let (to_supervisor, events) = mpsc::unbounded_channel();
        let (ports, sequences) = (watch.sought.knocks.clone(), enrolled.sequences.clone());
        let desk = Desk::new(ports, gate, mirror, sequences, to_supervisor.clone())?;
        let (told, bell) = bell::bell()?;
        let recorder = Recorder::new(store, orders);
        let (pulse, gate) = (Pulse::default(), watch.gate.clone());
        let watch = Watch::new(gate, captures, desk, recorder, bell, to_supervisor, pulse.clone())?;
        let thread = thread::Builder::new().name("watch".to_owned());
        let watch = thread.spawn(move || watch.run())?;
        Ok(Self { watch, pulse, told, events })
    }

    /// Reads packets until the line to the supervisor ends.
    ///
    /// # Errors
    /// When the watch or the line cannot go on.
    async fn run(self, mut line: Line<Command, Event>) -> anyhow::Result<()> {
        let Self { watch, told, mut events, .. } = self;
        told.tell(Told::Begin);
        let result = hand_on(&mut line, &told, &mut events).await;
        drop(told);
        // What waits is recorded before it ends.
        while events.recv().await.is_some() {}
        result.and(watch.join().ok().context("the watch failed")?)
    }
}

/// Has the watch know what the supervisor says, and the supervisor what the watch does, until either is at its end.
async fn hand_on(
    line: &mut Line<Command, Event>,
    told: &Ringer<Told>,
    events: &mut mpsc::UnboundedReceiver<Event>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            command = line.commands.receive() => match command? {
                Some(Command::Reload(enrolled)) => {
                    let (answer, answered) = oneshot::channel();
                    told.tell(Told::Reload(enrolled, answer));
                    // None comes from a watch that is at its end: that is seen below.
                    if let Ok(result) = answered.await {
                        line.reports.send(&Report::Reloaded(result)).await?;
                    }
                }
                Some(Command::Begin) => {}
                Some(Command::Noted(spent, is_done)) => told.tell(Told::Noted(spent, is_done)),
                None => return Ok(()),
            },
            event = events.recv() => match event {
                Some(event) => line.reports.send(&Report::Event(event)).await?,
                None => return Ok(()),
            },
        }
    }
}
