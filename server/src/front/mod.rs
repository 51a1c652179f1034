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
use postern_proto::{GateId, GateKeys, Tolerance};
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
use process::{Command, Enrolled, Event, Settings};
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
    gate: GateId,
    tolerance: Tolerance,
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
        let (pulse, gate, tolerance) = (Pulse::default(), watch.gate.clone(), watch.tolerance);
        let watch = Watch::new(captures, desk, recorder, bell, to_supervisor, pulse.clone())?;
        let thread = thread::Builder::new().name("watch".to_owned());
        let watch = thread.spawn(move || watch.run())?;
        Ok(Self { watch, pulse, told, gate, tolerance, events })
    }

    /// Reads packets until the line to the supervisor ends.
    ///
    /// # Errors
    /// When the watch or the line cannot go on.
    async fn run(self, mut line: Line<Command, Event>) -> anyhow::Result<()> {
        self.told.tell(Told::Begin);
        let mut front = self;
        let result = front.hand_on(&mut line).await;
        let Self { watch, told, mut events, .. } = front;
        drop(told);
        // What waits is recorded before it ends.
        while events.recv().await.is_some() {}
        result.and(watch.join().ok().context("the watch failed")?)
    }

    /// Has the watch know what the supervisor says, and the supervisor what the watch does, until either is at its end.
    async fn hand_on(&mut self, line: &mut Line<Command, Event>) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                command = line.commands.receive() => match command? {
                    // None comes from a watch that is at its end: that is seen below.
                    Some(Command::Reload(enrolled)) => if let Some(result) = self.reload(enrolled).await {
                        line.reports.send(&Report::Reloaded(result)).await?;
                    },
                    Some(Command::Begin) => {}
                    Some(Command::Noted(spent, is_done)) => self.told.tell(Told::Noted(spent, is_done)),
                    None => return Ok(()),
                },
                event = self.events.recv() => match event {
                    Some(event) => line.reports.send(&Report::Event(event)).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Lets others knock. Keys are derived here and not by the watch: those of very many clients take a second, in which it
    /// would read no knock.
    async fn reload(&self, enrolled: Enrolled) -> Option<Result<(), String>> {
        match enrolled.prepare(&self.gate, self.tolerance) {
            Ok(newcomers) => {
                let (answer, answered) = oneshot::channel();
                self.told.tell(Told::Reload(Box::new(newcomers), answer));
                answered.await.ok()
            }
            Err(error) => Some(Err(format!("the key file: {error}"))),
        }
    }
}
