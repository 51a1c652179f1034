//! The recorder: makes decisions durable, all that came together in one commit, and only then orders what follows from them.

use anyhow::{Context, ensure};

use super::gate::{self, Outcome, Purge, Refused, Unrecorded};
use super::store::{Receipt, Store};
use crate::link::Sender;
use crate::order::{Note, Order, Orders};

/// What came of one commit.
#[derive(Default)]
pub(super) struct Recorded {
    /// Knocks whose orders went to the warden.
    pub(super) accepted: u64,
    pub(super) refused: Vec<Refused>,
}

pub(super) struct Recorder {
    store: Store,
    orders: Sender<Orders>,
}

impl Recorder {
    pub(super) fn new(store: Store, orders: Sender<Orders>) -> Self {
        Self { store, orders }
    }

    /// Makes decisions durable, and has them take their effect; those that cannot be recorded are refused.
    ///
    /// # Errors
    /// When the warden is gone.
    pub(super) fn record(&mut self, batch: Vec<Unrecorded>) -> anyhow::Result<Recorded> {
        match self.store.commit(batch.iter().filter_map(Unrecorded::record), None) {
            Some(receipt) => self.release(batch, &receipt),
            None => Ok(Recorded { accepted: 0, refused: batch.into_iter().map(Unrecorded::fail).collect() }),
        }
    }

    /// Has the store forget; whether it has.
    pub(super) fn forget(&mut self, purge: &Purge) -> bool {
        self.store.commit([], Some(purge)).is_some()
    }

    /// Has the warden know how the front does. Where the link is full, the next note will do: it says all that this one does.
    ///
    /// # Errors
    /// When the warden is gone.
    pub(super) fn note(&self, note: Note) -> anyhow::Result<()> {
        let note = Orders(vec![Order::Note(note)]);
        self.orders.send_now(&note).context("the warden's link is gone").map(drop)
    }

    /// Whether this process can go on with its store.
    ///
    /// # Errors
    /// When only another one can, which the supervisor starts.
    pub(super) fn check_reach(&self) -> anyhow::Result<()> {
        ensure!(!self.store.is_out_of_reach(), "the folder of the replay store is another one than it was");
        Ok(())
    }

    fn release(&self, batch: Vec<Unrecorded>, receipt: &Receipt) -> anyhow::Result<Recorded> {
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
            self.orders.send_blocking(&Orders(released)).context("cannot order what was recorded")?;
            released = rest;
        }
        Ok(Recorded { accepted, refused })
    }
}
