//! Which leases hold an entry of the kernel's open. Several clients may come from one address: the entry ends with the
//! latest of their leases, and ending one leaves the others what they have. Pure, and as fast with many leases as with
//! one.

use std::collections::HashMap;

use super::elements::{Entry, end};
use crate::clock::BootTime;
use crate::warden::ledger::{Lease, LeaseId};

/// Who holds which entry, and until when.
#[derive(Clone, Debug, Default)]
pub(super) struct Book(HashMap<Entry, Vec<(LeaseId, BootTime)>>);

/// What has to happen to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is let in until then.
    Add(BootTime),
    /// It is let in, until another end from now on.
    Move(BootTime),
    /// It is let in no more.
    Remove,
    None,
}

impl Book {
    /// Everybody who is let in.
    pub(super) fn of<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Self {
        let mut book = Self::default();
        for lease in leases {
            for entry in Entry::of(lease) {
                book.enter(entry, lease);
            }
        }
        book
    }

    /// A lease holds an entry as well.
    pub(super) fn enter(&mut self, entry: Entry, lease: &Lease) -> Change {
        let holders = self.0.entry(entry).or_default();
        let before = latest(holders);
        holders.retain(|&(id, _)| id != lease.id);
        holders.push((lease.id, end(lease)));
        match before {
            None => Change::Add(end(lease)),
            Some(before) if before < end(lease) => Change::Move(end(lease)),
            Some(_) => Change::None,
        }
    }

    /// A lease holds an entry no more.
    pub(super) fn leave(&mut self, entry: Entry, lease: &Lease) -> Change {
        let Some(holders) = self.0.get_mut(&entry) else { return Change::None };
        let before = latest(holders);
        holders.retain(|&(id, _)| id != lease.id);
        let after = latest(holders);
        if holders.is_empty() {
            self.0.remove(&entry);
        }
        match after {
            None => Change::Remove,
            Some(after) if Some(after) != before => Change::Move(after),
            Some(_) => Change::None,
        }
    }

    /// Every entry with its end.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Entry, BootTime)> {
        self.0.iter().filter_map(|(&entry, holders)| Some((entry, latest(holders)?)))
    }
}

fn latest(holders: &[(LeaseId, BootTime)]) -> Option<BootTime> {
    holders.iter().map(|&(_, end)| end).max()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postern_proto::WallTime;

    use super::*;
    use crate::warden::ledger::LeaseKey;

    fn lease(client: &str, id: u32, secs: u64) -> Lease {
        Lease {
            key: LeaseKey {
                client: client.parse().unwrap(),
                service: "ssh".parse().unwrap(),
                source: "192.0.2.7".parse().unwrap(),
                from_port: None,
            },
            id: LeaseId(id),
            ports: vec!["22/tcp".parse().unwrap()],
            from: WallTime::from_secs(0),
            until: WallTime::from_secs(secs),
            ends: at(secs),
        }
    }

    fn at(secs: u64) -> BootTime {
        BootTime::from_boot(Duration::from_secs(secs))
    }

    #[test]
    fn an_entry_lasts_as_long_as_the_latest_of_its_leases() {
        let (alice, bob, renewed) = (lease("alice", 1, 30), lease("bob", 2, 20), lease("alice", 3, 40));
        let entry = Entry::of(&alice).next().unwrap();
        let mut book = Book::default();
        assert_eq!(book.enter(entry, &alice), Change::Add(at(30)));
        assert_eq!(book.enter(entry, &bob), Change::None, "it is open for longer");
        assert_eq!(book.enter(entry, &renewed), Change::Move(at(40)));
        assert_eq!(book.leave(entry, &alice), Change::None, "its renewal holds it");
        assert_eq!(book.leave(entry, &renewed), Change::Move(at(20)), "bob keeps what is his");
        assert_eq!(book.leave(entry, &renewed), Change::None, "and only that");
        assert_eq!(book.entries().collect::<Vec<_>>(), [(entry, at(20))]);
        assert_eq!(book.leave(entry, &bob), Change::Remove);
        assert_eq!(book.leave(entry, &bob), Change::None);
        assert_eq!(book.entries().count(), 0);
    }
}
