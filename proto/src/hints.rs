//! From a hint to a client: the table that makes refusing a stranger cost the same for one client as for a million.
//!
//! One map for each epoch that a fresh knock can belong to, and before them all a sieve that sends most strangers
//! away. The next epoch's map, and the sieve that goes with it, are filled ahead, a slice at a time
//! ([`HintTable::prepare`]), so that turning the epoch is a swap; when the clock has stepped, the table is rebuilt at
//! once. A client that is disabled, not yet valid or expired gives no key and so is not in it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::mem;
use std::ops::Range;

use crate::keys::{Hint, HintKey};
use crate::time::{Epoch, Tolerance, WallTime};

mod sieve;

use sieve::Sieve;

/// What the table needs of a client.
pub trait Hinted {
    /// The client's key for hints, unless it may not knock in this epoch.
    fn hint_key(&self, epoch: Epoch) -> Option<&HintKey>;
}

/// Hints of all clients for the epochs that a clock tolerance covers.
pub struct HintTable {
    tolerance: Tolerance,
    /// While `now` lies in here, the table covers what it should.
    settled: Range<WallTime>,
    /// Of all hints in `epochs`, and perhaps of some that were there.
    sieve: Sieve,
    /// Consecutive epochs, oldest first, all complete.
    epochs: Vec<EpochHints>,
    /// The epoch behind them, while it is being filled, with the clients done so far.
    next: EpochHints,
    /// Of all hints in `epochs` and `next`, of the clients done so far.
    next_sieve: Sieve,
}

impl HintTable {
    /// A table for `clients` around `now`. A client is named by its position from here on.
    #[must_use]
    pub fn new<C: Hinted>(tolerance: Tolerance, now: WallTime, clients: &[C]) -> Self {
        let next = EpochHints::new(*tolerance.epochs(now).start(), clients.len());
        let (sieve, next_sieve) = (Sieve::new(clients.len()), Sieve::new(clients.len()));
        let mut table = Self { tolerance, settled: now..now, sieve, epochs: Vec::new(), next, next_sieve };
        table.turn(now, clients);
        table
    }

    /// Makes the table cover what is fresh at `now`: nothing to do within an epoch, a swap when one ends, a rebuild
    /// when the clock has stepped.
    pub fn turn<C: Hinted>(&mut self, now: WallTime, clients: &[C]) {
        if !self.settled.contains(&now) {
            self.settle(now, clients);
        }
    }

    fn settle<C: Hinted>(&mut self, now: WallTime, clients: &[C]) {
        let wanted = self.tolerance.epochs(now);
        self.settled = self.tolerance.same_epochs(now);
        let follows = self.first().is_some_and(|first| first <= *wanted.start())
            && *wanted.start() <= self.next.epoch
            && self.next.epoch <= wanted.end().next();
        if !follows {
            self.epochs.clear();
            self.next_sieve.clear();
            self.next = EpochHints::new(*wanted.start(), clients.len());
        }
        while self.next.epoch <= *wanted.end() {
            self.prepare(clients, usize::MAX);
            let after = EpochHints::new(self.next.epoch.next(), clients.len());
            self.epochs.push(mem::replace(&mut self.next, after));
            mem::swap(&mut self.sieve, &mut self.next_sieve);
            self.next_sieve.clear();
        }
        self.epochs.retain(|hints| wanted.contains(&hints.epoch));
    }

    /// Fills at most `slice` clients of the next epoch; `true` once it is complete.
    pub fn prepare<C: Hinted>(&mut self, clients: &[C], slice: usize) -> bool {
        let done = self.next.of_client.len();
        self.next.fill(clients, slice);
        for hints in self.epochs.iter().chain([&self.next]) {
            let filled = &hints.of_client[done..self.next.of_client.len()];
            filled.iter().flatten().for_each(|&hint| self.next_sieve.add(hint));
        }
        self.next.of_client.len() == clients.len()
    }

    /// Whether this hint may be a client's: `false` for all but a few strangers', at the cost of one look into memory.
    #[must_use]
    pub fn may_hold(&self, hint: Hint) -> bool {
        self.sieve.may_hold(hint)
    }

    /// [`HintTable::may_hold`] for each of many hints, which do not wait for one another.
    pub fn may_hold_each(&self, hints: &[Hint]) -> impl Iterator<Item = bool> {
        black_box(self.sieve.fetch(hints));
        hints.iter().map(|&hint| self.may_hold(hint))
    }

    /// The clients with this hint, by position, each with the epoch in which it is theirs. Almost always none or one.
    pub fn look_up(&self, hint: Hint) -> impl Iterator<Item = (usize, Epoch)> {
        self.epochs.iter().flat_map(move |hints| hints.look_up(hint))
    }

    /// The hints of each epoch, oldest first, client by client, as far as they are known: of all clients but for the
    /// last epoch, which is being filled.
    pub fn hints(&self) -> impl Iterator<Item = (Epoch, &[Option<Hint>])> {
        self.epochs.iter().chain([&self.next]).map(|hints| (hints.epoch, hints.of_client.as_slice()))
    }

    /// Whether a hint is a client's in any of these epochs.
    #[must_use]
    pub fn holds(&self, hint: Hint) -> bool {
        self.epochs.iter().chain([&self.next]).any(|hints| hints.clients.contains_key(&hint))
    }

    fn first(&self) -> Option<Epoch> {
        self.epochs.first().map(|hints| hints.epoch)
    }
}

/// The hints of one epoch.
struct EpochHints {
    epoch: Epoch,
    /// The hint of each client done so far, by position; none for one that may not knock.
    of_client: Vec<Option<Hint>>,
    clients: HashMap<Hint, u32, BuildHasherDefault<HintHasher>>,
    /// Clients whose hint another one had already: chance makes this one in 2^64 pairs, but they must open too.
    shared: Vec<(Hint, u32)>,
}

impl EpochHints {
    fn new(epoch: Epoch, clients: usize) -> Self {
        let of_client = Vec::with_capacity(clients);
        let clients = HashMap::with_capacity_and_hasher(clients, BuildHasherDefault::default());
        Self { epoch, of_client, clients, shared: Vec::new() }
    }

    fn fill<C: Hinted>(&mut self, clients: &[C], slice: usize) {
        for (position, client) in clients.iter().enumerate().skip(self.of_client.len()).take(slice) {
            let hint = client.hint_key(self.epoch).map(|key| key.hint(self.epoch));
            self.of_client.push(hint);
            let Some(hint) = hint else { continue };
            let position = u32::try_from(position).expect("fewer than 2^32 clients");
            match self.clients.entry(hint) {
                Entry::Vacant(place) => {
                    place.insert(position);
                }
                Entry::Occupied(_) => self.shared.push((hint, position)),
            }
        }
    }

    fn look_up(&self, hint: Hint) -> impl Iterator<Item = (usize, Epoch)> {
        let first = self.clients.get(&hint).copied();
        let shared = self.shared.iter().filter(move |(other, _)| *other == hint).map(|&(_, client)| client);
        first.into_iter().chain(shared).map(|client| (client as usize, self.epoch))
    }
}

/// A hint is the output of a keyed hash already: its own bits spread it.
#[derive(Default)]
struct HintHasher(u64);

impl Hasher for HintHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(hint) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*hint);
        }
    }

    // The length prefix of an array says nothing about a hint.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::{ClientKeys, ClientSecret, GateId};

    struct Client {
        keys: ClientKeys,
        from: Epoch,
    }

    impl Hinted for Client {
        fn hint_key(&self, epoch: Epoch) -> Option<&HintKey> {
            (epoch >= self.from).then_some(&self.keys.hint)
        }
    }

    fn client(secret: u8, from: u64) -> Client {
        let keys = ClientKeys::derive(&GateId::from_bytes([0; 16]), &ClientSecret::from_bytes([secret; 32]));
        Client { keys, from: Epoch::new(from) }
    }

    fn found(table: &HintTable, client: &Client, epoch: u64) -> Vec<(usize, u64)> {
        let hint = client.keys.hint.hint(Epoch::new(epoch));
        table.look_up(hint).map(|(position, epoch)| (position, epoch.number())).collect()
    }

    #[test]
    fn covers_the_tolerance_and_turns_with_the_clock() {
        let clients = [client(1, 0), client(2, 103)];
        let mut now = WallTime::from_secs(100 * 30 + 15);
        let mut table = HintTable::new(Tolerance::default(), now, &clients);
        let covered = |table: &HintTable| {
            (0..200).filter(|&e| !found(table, &clients[0], e).is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(covered(&table), [98, 99, 100, 101, 102]);
        assert_eq!(found(&table, &clients[1], 102), [], "a client that may not knock yet");

        for (step, want) in [(30, 99..=103), (300, 109..=113), (0, 109..=113)] {
            now = now.after(Duration::from_secs(step));
            assert!(
                !table.prepare(&clients, 1)
                    || clients.len() == 1
                    || step == 0
                    || table.next.of_client.len() == 2
            );
            table.turn(now, &clients);
            assert_eq!(covered(&table), want.collect::<Vec<_>>());
        }
        table.turn(WallTime::from_secs(100 * 30 + 15), &clients);
        assert_eq!(covered(&table), [98, 99, 100, 101, 102], "the clock stepped back");
    }

    #[test]
    fn the_next_epoch_is_filled_in_slices() {
        let clients = [client(1, 0), client(2, 0), client(3, 0)];
        let now = WallTime::from_secs(3015);
        let mut table = HintTable::new(Tolerance::default(), now, &clients);
        assert_eq!([table.prepare(&clients, 2), table.prepare(&clients, 2)], [false, true]);
        table.turn(now.after(Duration::from_secs(30)), &clients);
        assert_eq!(found(&table, &clients[2], 103), [(2, 103)]);
    }

    #[test]
    fn all_hints_of_clients_pass_and_few_of_strangers() {
        let clients: Vec<_> = (0..=255).map(|secret| client(secret, 0)).collect();
        let table = HintTable::new(Tolerance::default(), WallTime::from_secs(3015), &clients);
        let theirs: Vec<_> = clients.iter().map(|client| client.keys.hint.hint(Epoch::new(100))).collect();
        assert!(table.may_hold_each(&theirs).all(|may| may));
        // Their hints of epochs that are long over are nobody's.
        let epochs = 1_000..1_100;
        let hints = epochs
            .flat_map(|epoch| clients.iter().map(move |client| client.keys.hint.hint(Epoch::new(epoch))));
        let strangers: Vec<_> = hints.collect();
        let passed = table.may_hold_each(&strangers).filter(|&may| may).count();
        assert!(passed * 100 <= strangers.len(), "{passed} of {}", strangers.len());
        let one_by_one = strangers.iter().filter(|&&hint| table.may_hold(hint)).count();
        assert_eq!(passed, one_by_one);
    }

    #[test]
    fn two_clients_with_one_hint_are_both_found() {
        let clients = [client(1, 0), client(1, 0)];
        let table = HintTable::new(Tolerance::default(), WallTime::from_secs(3000), &clients);
        assert_eq!(found(&table, &clients[0], 100), [(0, 100), (1, 100)]);
    }
}
