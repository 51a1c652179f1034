//! The recorder: a thread of its own that makes decisions durable, all that wait in one commit, and only then orders what
//! follows from them. The disk keeps nobody from reading packets, and an order goes to the warden from where its commit has
//! returned: to hand it back first would wake another thread on each knock's way.
//!
//! ```text
//! desk ──Work──▶ one commit for all that wait ──Orders──▶ warden
//!   ◀──Recorded── what came of it, to be counted
//! ```

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use tokio::sync::mpsc;

use super::gate::{self, Outcome, Purge, Refused, Unrecorded};
use super::store::{Receipt, Store};
use crate::link::Sender;
use crate::order::{Order, Orders};

/// Decisions that may wait for the store; beyond it a knock is refused unrecorded.
const WAITING: usize = 65_536;

/// Decisions of one commit, at the most.
const AT_ONCE: usize = 4096;

/// What the recorder is given to do.
pub(super) enum Work {
    /// A decision that takes effect once it is durable.
    Decided(Unrecorded),
    /// What the store may forget.
    Forget(Purge),
}

/// What came of one commit.
#[derive(Default)]
pub(super) struct Recorded {
    /// Knocks whose orders went to the warden.
    pub(super) accepted: u64,
    pub(super) refused: Vec<Refused>,
    /// What the store was to forget, and whether it has.
    pub(super) purge: Option<(Purge, bool)>,
}

/// The thread: it ends with the desk's end of the line, once all that waits is recorded.
pub(super) struct Recorder(JoinHandle<anyhow::Result<()>>);

/// The ends of the lines to and from the recorder.
pub(super) type Ends = (mpsc::Sender<Work>, mpsc::UnboundedReceiver<Recorded>);

impl Recorder {
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(store: Store, orders: Arc<Sender<Orders>>) -> io::Result<(Self, Ends)> {
        let (work, to_do) = mpsc::channel(WAITING);
        let (done, recorded) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name("recorder".to_owned());
        let thread = thread.spawn(move || record(store, to_do, &orders, &done))?;
        Ok((Self(thread), (work, recorded)))
    }

    /// How it ended. To be asked once nothing more comes from it.
    ///
    /// # Errors
    /// When it could not go on.
    pub(super) fn ended(self) -> anyhow::Result<()> {
        self.0.join().ok().context("the recorder failed")?
    }
}

fn record(
    mut store: Store,
    mut to_do: mpsc::Receiver<Work>,
    orders: &Sender<Orders>,
    done: &mpsc::UnboundedSender<Recorded>,
) -> anyhow::Result<()> {
    let mut work = Vec::new();
    while to_do.blocking_recv_many(&mut work, AT_ONCE) > 0 {
        let (mut batch, mut purge) = (Vec::new(), None);
        for work in work.drain(..) {
            match work {
                Work::Decided(unrecorded) => batch.push(unrecorded),
                Work::Forget(known) => purge = Some(known),
            }
        }
        let receipt = store.commit(batch.iter().filter_map(Unrecorded::record), purge.as_ref());
        let purge = purge.map(|purge| (purge, receipt.is_some()));
        let recorded = match receipt {
            Some(receipt) => release(batch, &receipt, orders)?,
            None => {
                Recorded { refused: batch.into_iter().map(Unrecorded::fail).collect(), ..Recorded::default() }
            }
        };
        // Where nobody counts any more, the front is at its end.
        let _ = done.send(Recorded { purge, ..recorded });
        // The supervisor starts another front, which may use what is there now.
        ensure!(!store.is_out_of_reach(), "the folder of the replay store is another one than it was");
    }
    Ok(())
}

/// Has what was recorded take its effect.
fn release(batch: Vec<Unrecorded>, receipt: &Receipt, orders: &Sender<Orders>) -> anyhow::Result<Recorded> {
    let (mut released, mut refused) = (Vec::new(), Vec::new());
    for outcome in batch.into_iter().map(|unrecorded| unrecorded.release(receipt)) {
        match outcome {
            Outcome::Refused(by_policy) => refused.push(by_policy),
            Outcome::Open(gate::Grant { client, services, source, from_port, decided }) => {
                released.push(Order::Open { client, services, source, from_port, decided });
            }
            Outcome::Close(closure) => {
                let services = closure.services.iter().cloned().collect();
                released.push(Order::Close { client: closure.client, services, source: closure.source });
            }
        }
    }
    let accepted = released.len() as u64;
    while !released.is_empty() {
        let rest = released.split_off(Orders::together(&released));
        orders.send_blocking(&Orders(released)).context("cannot order what was recorded")?;
        released = rest;
    }
    Ok(Recorded { accepted, refused, ..Recorded::default() })
}
