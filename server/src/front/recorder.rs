//! The recorder: makes decisions durable, all that came together in one commit, and only then orders what follows from them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, ensure};
use postern_proto::datagram::NONCE_LEN;
use postern_proto::{ClientId, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use tracing::warn;

use super::gate::{self, Outcome, Purge, Refused, Released, Reply, Unrecorded};
use super::store::{Receipt, Store};
use crate::link::Sender;
use crate::order::{Note, Order, Orders, SealedAnswer};

/// What came of one commit.
#[derive(Default)]
pub(super) struct Recorded {
    /// Knocks whose orders went to the warden.
    pub(super) accepted: u64,
    /// Whose these were, without those that asked for nothing.
    pub(super) used: Vec<ClientId>,
    pub(super) refused: Vec<Refused>,
}

pub(super) struct Recorder {
    store: Store,
    orders: Sender<Orders>,
    /// Orders that the link had no room for: those of one commit, since none is made before they are gone.
    waiting: VecDeque<Orders>,
    random: SystemRandom,
}

impl Recorder {
    pub(super) fn new(store: Store, orders: Sender<Orders>) -> Self {
        Self { store, orders, waiting: VecDeque::new(), random: SystemRandom::new() }
    }

    /// Makes decisions durable, and has them take their effect; those that cannot be recorded are refused.
    ///
    /// # Errors
    /// When the link to the warden is closed.
    pub(super) fn record(&mut self, batch: Vec<Unrecorded>) -> anyhow::Result<Recorded> {
        let Some(receipt) = self.store.commit(batch.iter().filter_map(Unrecorded::record), None) else {
            let refused = batch.into_iter().map(Unrecorded::fail).collect();
            return Ok(Recorded { refused, ..Recorded::default() });
        };
        self.release(batch, &receipt)
    }

    /// Whether orders wait for room in the link.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The link that they wait for.
    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.orders.as_fd()
    }

    /// Sends orders that wait, as far as there is room for them.
    ///
    /// # Errors
    /// When the link to the warden is closed.
    pub(super) fn hand_over(&mut self) -> anyhow::Result<()> {
        while let Some(orders) = self.waiting.front() {
            if !self.orders.send_now(orders).context("cannot order what was recorded")? {
                break;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Has the store do what no knock should wait for.
    pub(super) fn settle(&mut self) {
        self.store.settle();
    }

    /// Ends with the store in order.
    pub(super) fn close(self) {
        if let Err(error) = self.store.close() {
            warn!("the store is not in order at the end: {error}");
        }
    }

    /// Has the store forget; whether it has.
    pub(super) fn forget(&mut self, purge: &Purge) -> bool {
        self.store.commit([], Some(purge)).is_some()
    }

    /// Has the warden know how the front does. Where the link is full, the next note will do: it says all that this one does.
    ///
    /// # Errors
    /// When the link to the warden is closed.
    pub(super) fn note(&self, note: Note) -> anyhow::Result<()> {
        if self.has_waiting() {
            return Ok(());
        }
        let note = Orders(vec![Order::Note(note)]);
        self.orders.send_now(&note).context("the link to the warden is closed").map(drop)
    }

    /// Whether this process can go on with its store.
    ///
    /// # Errors
    /// When only another one can, which the supervisor starts.
    pub(super) fn check_reach(&self) -> anyhow::Result<()> {
        ensure!(!self.store.is_out_of_reach(), "the folder of the replay store is another one than it was");
        Ok(())
    }

    fn release(&mut self, batch: Vec<Unrecorded>, receipt: &Receipt) -> anyhow::Result<Recorded> {
        let (mut orders, mut recorded) = (Vec::new(), Recorded::default());
        for Released { outcome, reply } in batch.into_iter().map(|unrecorded| unrecorded.release(receipt)) {
            let sealed = reply.and_then(|reply| Some((reply.client, self.seal(&reply)?)));
            let only_answer = |(client, answer)| Order::Answer { client, answer };
            let answer = |sealed: Option<(_, _)>| sealed.map(|(_, answer)| answer);
            recorded.accepted += u64::from(!matches!(outcome, Outcome::Refused(_)));
            recorded.used.extend(outcome.client());
            match outcome {
                Outcome::Open(gate::Grant { client, services, source, from_port, decided }) => {
                    let answer = answer(sealed);
                    orders.push(Order::Open { client, services, source, from_port, decided, answer });
                }
                Outcome::Close(gate::Closure { client, services, source }) => {
                    let services = services.iter().cloned().collect();
                    orders.push(Order::Close { client, services, source, answer: answer(sealed) });
                }
                Outcome::Heard => orders.extend(sealed.map(only_answer)),
                Outcome::Refused(by_policy) => {
                    recorded.refused.push(by_policy);
                    orders.extend(sealed.map(only_answer));
                }
            }
        }
        while !orders.is_empty() {
            let rest = orders.split_off(Orders::together(&orders));
            self.waiting.push_back(Orders(orders));
            orders = rest;
        }
        self.hand_over()?;
        Ok(recorded)
    }

    /// An answer, ready to be sent. Where the system has no random bytes, nobody is answered.
    fn seal(&self, reply: &Reply) -> Option<SealedAnswer> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        Some(SealedAnswer { way: reply.way, bytes: reply.seal(Nonce::from_random(nonce)) })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use postern_proto::{ClientId, WallTime, Window};
    use tempfile::{TempDir, tempdir};

    use super::super::store;
    use super::*;
    use crate::clock::{BootTime, Now};
    use crate::link::{self, Receiver};

    fn recorder_in(folder: &TempDir) -> (Recorder, Receiver<Orders>) {
        let now = Now { wall: WallTime::from_secs(1_000), boot: BootTime::from_boot(Duration::ZERO) };
        store::prepare(folder.path(), now.wall).unwrap();
        let (store, _) = Store::open(folder.path(), now).unwrap();
        let (ours, theirs) = link::pair().unwrap();
        (Recorder::new(store, Sender::new(ours)), Receiver::new(theirs).unwrap())
    }

    fn grant(number: u32) -> Unrecorded {
        let services = vec![("ssh".parse().unwrap(), Window::from_secs(60).unwrap())];
        let source = IpAddr::V4(Ipv4Addr::from_bits(number));
        let (client, decided) = (ClientId::from_bytes([1; 8]), BootTime::from_boot(Duration::ZERO));
        let grant = gate::Grant { client, services, source, from_port: None, decided };
        Unrecorded::for_tests(Outcome::Open(grant))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn orders_that_find_the_link_full_wait_and_come_whole_and_in_order() {
        const ORDERS: u32 = 1_000;
        let folder = tempdir().unwrap();
        let (mut recorder, mut warden) = recorder_in(&folder);
        let mut notes = 0;
        while recorder.orders.send_now(&Orders(vec![Order::Note(Note::default())])).unwrap() {
            notes += 1;
        }
        let Recorded { accepted, .. } = recorder.record((0..ORDERS).map(grant).collect()).unwrap();
        assert_eq!(accepted, u64::from(ORDERS));
        assert!(recorder.has_waiting());
        recorder.note(Note::default()).unwrap();

        let mut came = Vec::new();
        while came.len() < notes + ORDERS as usize {
            let Orders(orders) = warden.receive_now().unwrap().expect("there is something in a full link");
            came.extend(orders);
            recorder.hand_over().unwrap();
        }
        assert!(!recorder.has_waiting());
        assert_eq!(warden.receive_now().unwrap(), None, "no note is sent while orders wait");
        assert!(came.drain(..notes).all(|order| matches!(order, Order::Note(_))));
        let sources = came.iter().map(|order| match order {
            Order::Open { source, .. } => *source,
            other => panic!("{other:?}"),
        });
        assert!(sources.eq((0..ORDERS).map(|number| IpAddr::V4(Ipv4Addr::from_bits(number)))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_link_that_is_closed_is_an_error() {
        let folder = tempdir().unwrap();
        let (mut recorder, warden) = recorder_in(&folder);
        drop(warden);
        assert!(recorder.note(Note::default()).is_err());
        assert!(recorder.record(vec![grant(1)]).is_err());
    }
}
