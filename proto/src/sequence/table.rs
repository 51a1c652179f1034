//! The attempts of all sources, within bounds.
//!
//! A source's attempts are in one bucket, chosen by a keyed hash, and a bucket holds [`WAYS`] at most. An attacker
//! with many addresses, or with spoofed ones, can fill the table, but not aim at a bucket. Buckets take memory only for
//! what is in them.
//!
//! When a bucket is full, room is made for the newcomer: what is over goes; else one that has taken a single step, by
//! chance; else any, by chance. Whoever knows but the first port can thus crowd out only those who are at their first
//! step, too, and none of those with certainty. To turn the newcomer away instead would let whoever knows two ports
//! shut the door to all, by holding the slots; this way the most that he can do is to make clients begin again.

use super::attempt::{Aim, Attempt};
use super::keyed::{Keyed, remainder};

/// Most attempts in a bucket.
pub(super) const WAYS: usize = 16;
/// Buckets that one sweep looks at.
const SWEEP: usize = 1024;

pub(super) struct Table {
    buckets: Vec<Vec<Attempt>>,
    attempts: usize,
    /// Where the next sweep begins.
    swept: usize,
}

impl Table {
    /// A table for at least one attempt, and for `slots` of them rounded up to whole buckets.
    pub(super) fn new(slots: usize) -> Self {
        Self { buckets: vec![Vec::new(); slots.div_ceil(WAYS).max(1)], attempts: 0, swept: 0 }
    }

    /// How many attempts are under way, with those that are over and not yet swept away.
    pub(super) const fn len(&self) -> usize {
        self.attempts
    }

    pub(super) fn holds(&self, source: u64) -> bool {
        self.bucket(source).iter().any(|attempt| attempt.source == source)
    }

    pub(super) fn has(&self, source: u64, aim: Aim) -> bool {
        self.bucket(source).iter().any(|attempt| attempt.source == source && attempt.aim() == aim)
    }

    /// Shows each attempt of a source; it goes if it is not to be kept.
    pub(super) fn retain(&mut self, source: u64, mut keep: impl FnMut(&mut Attempt) -> bool) {
        let bucket = remainder(source, self.buckets.len());
        self.retain_in(bucket, |attempt| attempt.source != source || keep(attempt));
    }

    /// Adds an attempt, and makes room for it if it must.
    pub(super) fn insert(&mut self, attempt: Attempt, keyed: &mut Keyed, is_over: impl Fn(&Attempt) -> bool) {
        let index = remainder(attempt.source, self.buckets.len());
        if self.buckets[index].len() >= WAYS {
            self.retain_in(index, |attempt| !is_over(attempt));
        }
        let bucket = &mut self.buckets[index];
        if bucket.len() >= WAYS {
            bucket.swap_remove(victim(bucket, attempt.source, keyed));
            self.attempts -= 1;
        }
        bucket.push(attempt);
        self.attempts += 1;
    }

    /// Drops what is over in some buckets, another part of the table each time, and gives back the memory of empty ones.
    pub(super) fn sweep(&mut self, is_over: impl Fn(&Attempt) -> bool) {
        for _ in 0..SWEEP.min(self.buckets.len()) {
            self.retain_in(self.swept, |attempt| !is_over(attempt));
            if self.buckets[self.swept].is_empty() {
                self.buckets[self.swept] = Vec::new();
            }
            self.swept = (self.swept + 1) % self.buckets.len();
        }
    }

    fn bucket(&self, source: u64) -> &[Attempt] {
        &self.buckets[remainder(source, self.buckets.len())]
    }

    fn retain_in(&mut self, bucket: usize, keep: impl FnMut(&mut Attempt) -> bool) {
        let bucket = &mut self.buckets[bucket];
        let before = bucket.len();
        bucket.retain_mut(keep);
        self.attempts -= before - bucket.len();
    }
}

/// Which attempt of a full bucket makes room. The newcomer's own source suffers last, so that a source's attempts at
/// doors that begin alike do not displace each other.
fn victim(bucket: &[Attempt], newcomer: u64, keyed: &mut Keyed) -> usize {
    let rank = |attempt: &Attempt| (attempt.source == newcomer, !attempt.is_of_one_step());
    let first = bucket.iter().map(rank).min();
    let mut victims = bucket.iter().enumerate().filter(|(_, attempt)| Some(rank(attempt)) == first);
    let chosen = keyed.draw(victims.clone().count().max(1));
    victims.nth(chosen).map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const AIM: Aim = Aim { epoch: 0, door: 0, generation: 0 };

    fn attempt(source: u64) -> Attempt {
        Attempt::begin(source, Duration::ZERO, AIM, None)
    }

    /// A table of one bucket.
    fn full() -> (Table, Keyed) {
        let (mut table, mut keyed) = (Table::new(1), Keyed::new(&[7; 16]));
        (0..WAYS as u64).for_each(|source| table.insert(attempt(source), &mut keyed, |_| false));
        (table, keyed)
    }

    #[test]
    fn a_bucket_never_grows_beyond_its_ways() {
        let (mut table, mut keyed) = full();
        for source in 100..1000 {
            table.insert(attempt(source), &mut keyed, |_| false);
            assert!(table.holds(source), "the newcomer is in");
            assert_eq!((table.len(), table.buckets[0].len()), (WAYS, WAYS));
        }
        assert_eq!(table.buckets[0].capacity(), WAYS, "and takes no more memory");
    }

    #[test]
    fn what_is_over_makes_room_first() {
        let (mut table, mut keyed) = full();
        table.insert(attempt(99), &mut keyed, |attempt| attempt.source == 3);
        assert_eq!((0..100).filter(|&source| table.holds(source)).count(), WAYS);
        assert!(!table.holds(3) && table.holds(99));
    }

    #[test]
    fn then_those_of_one_step_and_the_newcomers_own_last() {
        let at_port = |port: &str| crate::sequence::Packet {
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            port: port.parse().unwrap(),
            source_port: 1,
            tcp: None,
        };
        let steps = "1:udp,2:udp,3:udp".parse().unwrap();
        let door = crate::sequence::Door::new(crate::sequence::Sequence::Fixed(steps));
        let (mut table, mut keyed) = full();
        for source in 0..10 {
            table.retain(source, |attempt| {
                attempt.follow(&door, &at_port("2/udp"), None);
                true
            });
        }
        for source in 100..1100 {
            table.insert(attempt(source), &mut keyed, |_| false);
        }
        assert!((0..10).all(|source| table.holds(source)), "those of two steps are still there");
        assert!(!(10..16).any(|source| table.holds(source)), "those of one step had no luck for ever");

        let (mut table, mut keyed) = full();
        for door in 1..=6 {
            let aim = Aim { door, ..AIM };
            table.insert(Attempt::begin(0, Duration::ZERO, aim, None), &mut keyed, |_| false);
        }
        assert!((1..=6).all(|door| table.has(0, Aim { door, ..AIM })) && table.has(0, AIM));
    }

    #[test]
    fn memory_is_taken_for_what_is_there_and_given_back() {
        let (mut table, mut keyed) = (Table::new(WAYS * 4000), Keyed::new(&[7; 16]));
        let taken = |table: &Table| table.buckets.iter().filter(|bucket| bucket.capacity() > 0).count();
        assert_eq!(taken(&table), 0);
        for source in 0..3000 {
            table.insert(attempt(source), &mut keyed, |_| false);
        }
        assert_eq!((taken(&table), table.len()), (3000, 3000));
        (0..3).for_each(|_| table.sweep(|attempt| attempt.source % 2 == 0));
        assert_eq!((taken(&table), table.len()), (1500, 1500), "a sweep goes on where the last one ended");
        (0..4).for_each(|_| table.sweep(|_| true));
        assert_eq!((taken(&table), table.len()), (0, 0));
    }
}
