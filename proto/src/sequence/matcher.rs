//! Follows every source through the sequences of all doors.
//!
//! A source has at most one attempt at a door (at a rolling one, one in each epoch), and attempts know nothing of each
//! other: each packet is shown to every attempt of its source, and then begins one at every door of which it is the
//! first step and at which there is none under way. From this follow the rules:
//!
//! - A wrong step (to a port of the door's own, with flags that count) ends the attempt, and begins the next one at
//!   once if it is the first step. What came before it is not considered again: 7000, 7000, 7000, 8000 does not open
//!   7000, 7000, 8000.
//! - A door that is the beginning of another one, or begins like it, keeps nobody from the other.
//! - A TCP packet that was taken already (4-tuple and sequence number are the same) is no step, no wrong step and no
//!   stray. A datagram sent again is: UDP has nothing to tell it by. knock clients space them.
//! - The port of another door is a stray like any other port.
//!
//! # What a flood can do
//!
//! Each first step takes a slot until the time-out. With a table of [`Matcher::SLOTS`] and 25 s, crowding out begins
//! at 2^20 / 25 = some 40,000 first steps a second, of sources that are all different; below it hardly any bucket is
//! full. Above it, an attempt that has taken one step survives each further one that comes into its bucket with a
//! probability of 15/16, and so a time t at r a second with about e^(-r t / slots): 95 % for half a second at 100,000
//! a second. From the second step on nobody without the second port can crowd it out. Of a rolling sequence that is
//! bound to its source, the first port is another one for each spoofed address.
//!
//! Whoever can spoof a client's own address can always spoil its attempts, by a wrong step.

use std::net::IpAddr;

use super::attempt::{Aim, Attempt, Progress};
use super::door::{Door, Reading, Sequence};
use super::keyed::{Fingerprint, Keyed};
use super::packet::{Now, Packet};
use super::rolling::Use;
use super::table::{Table, WAYS};
use crate::port::Port;

/// The doors, and who is on the way to which.
pub struct Matcher {
    doors: Vec<Armed>,
    /// The first steps of fixed sequences, sorted, each with its door.
    firsts: Vec<(Port, u16)>,
    /// The doors with rolling sequences.
    rolling: Vec<u16>,
    table: Table,
    keyed: Keyed,
}

struct Armed {
    door: Door,
    generation: u8,
}

/// A sequence that was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The door's position among those of the matcher.
    pub door: usize,
    /// Of a rolling sequence: what to record, and to open nothing when it is recorded already.
    pub used: Option<Use>,
}

/// Why there is no matcher for these doors.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// There would be no room for one source's attempts at all of them.
    #[error("more than {max} sequences begin with port {0}", max = Matcher::MOST_ALIKE)]
    Alike(Port),
    /// Their positions are kept in 16 bits.
    #[error("more than 65,535 sequences")]
    Doors,
}

impl Matcher {
    /// Attempts under way at a time, unless configured: 2^20. They take 55 MiB when there are as many, and 1.6 MiB when
    /// there are none.
    pub const SLOTS: usize = 1 << 20;
    /// Most fixed sequences with the same first step.
    pub const MOST_ALIKE: usize = WAYS;

    /// A matcher for these doors that follows about `slots` attempts at a time (rounded up to a multiple of 16). The key
    /// is secret and random; it need not be kept.
    ///
    /// # Errors
    /// When there are too many doors, or too many with one first step.
    pub fn new(doors: Vec<Door>, slots: usize, key: [u8; 16]) -> Result<Self, MatcherError> {
        u16::try_from(doors.len()).map_err(|_| MatcherError::Doors)?;
        let doors = doors.into_iter().map(|door| Armed { door, generation: 0 }).collect();
        let (table, keyed) = (Table::new(slots), Keyed::new(&key));
        let mut matcher = Self { doors, firsts: Vec::new(), rolling: Vec::new(), table, keyed };
        matcher.index();
        matcher.check()?;
        Ok(matcher)
    }

    /// Takes a packet: the doors whose sequence it completes, almost always none. It allocates for those only.
    ///
    /// What belongs to no sequence costs a look into the table, and with no attempt under way not even that. What lies
    /// in the range of rolling sequences costs three HMACs for each of them.
    #[must_use]
    pub fn advance(&mut self, now: Now, packet: &Packet) -> Vec<Completed> {
        let packet = packet.canonical();
        let may_begin = self.may_begin(packet.port);
        if !may_begin && self.table.len() == 0 {
            return Vec::new();
        }
        let source = self.keyed.source(packet.source);
        let holds = self.table.holds(source);
        if !may_begin && !holds {
            return Vec::new();
        }
        let known = self.keyed.fingerprint(&packet);
        let mut completed = Vec::new();
        if holds {
            self.follow(now, &packet, source, known, &mut completed);
        }
        if may_begin {
            self.begin(now, &packet, source, known, &mut completed);
        }
        completed
    }

    /// Gives a door another sequence, and ends the attempts at the old one: after the use of a one-time sequence.
    ///
    /// # Errors
    /// [`MatcherError::Alike`], and then the door is [`Sequence::Spent`].
    ///
    /// # Panics
    /// When there is no such door.
    pub fn replace(&mut self, door: usize, sequence: Sequence) -> Result<(), MatcherError> {
        let armed = &mut self.doors[door];
        armed.door.sequence = sequence;
        armed.generation = armed.generation.wrapping_add(1);
        self.index();
        self.check().inspect_err(|_| {
            self.doors[door].door.sequence = Sequence::Spent;
            self.index();
        })
    }

    /// Drops attempts that are over and gives their memory back, in a part of the table: to be called now and then,
    /// once a second, say. Nothing depends on it but the memory.
    pub fn sweep(&mut self, now: Now) {
        let doors = &self.doors;
        self.table.sweep(|attempt| is_over(doors, attempt, now));
    }

    /// How many attempts the table holds, with those that are over and not yet swept away.
    #[must_use]
    pub const fn attempts(&self) -> usize {
        self.table.len()
    }

    /// The door at a position.
    #[must_use]
    pub fn door(&self, door: usize) -> Option<&Door> {
        self.doors.get(door).map(|armed| &armed.door)
    }

    fn follow(
        &mut self,
        now: Now,
        packet: &Packet,
        source: u64,
        known: Fingerprint,
        completed: &mut Vec<Completed>,
    ) {
        let doors = &self.doors;
        self.table.retain(source, |attempt| {
            if is_over(doors, attempt, now) {
                return false;
            }
            let aim = attempt.aim();
            let door = &doors[usize::from(aim.door)].door;
            let progress = attempt.follow(door, packet, known);
            if progress == Progress::Completes {
                completed.push(complete(door, aim, packet.source));
            }
            progress != Progress::Ends
        });
    }

    fn begin(
        &mut self,
        now: Now,
        packet: &Packet,
        source: u64,
        known: Fingerprint,
        completed: &mut Vec<Completed>,
    ) {
        let Self { doors, firsts, rolling, table, keyed } = self;
        let fixed = firsts_at(firsts, packet.port).iter().map(|&(_, door)| (door, 0..=0));
        let epoch = now.wall.epoch().number();
        let around = epoch.saturating_sub(1)..=epoch.saturating_add(1);
        let rolling = rolling.iter().map(|&door| (door, around.clone()));
        for (position, epochs) in fixed.chain(rolling) {
            let Armed { door, generation } = &doors[usize::from(position)];
            if door.read(packet) != Reading::Own {
                continue;
            }
            // Epochs have 32 bits until the year 6053.
            for epoch in epochs.filter_map(|epoch| u32::try_from(epoch).ok()) {
                let aim = Aim { epoch, door: position, generation: *generation };
                let sequence = &door.sequence;
                if table.has(source, aim) || sequence.first(aim.epoch(), packet.source) != Some(packet.port) {
                    continue;
                }
                if sequence.len() == 1 {
                    completed.push(complete(door, aim, packet.source));
                }
                let attempt = Attempt::begin(source, now.elapsed, aim, known);
                table.insert(attempt, keyed, |attempt| is_over(doors, attempt, now));
            }
        }
    }

    /// Whether a packet to this port can be a first step.
    fn may_begin(&self, port: Port) -> bool {
        let in_range = |&door: &u16| self.doors[usize::from(door)].door.sequence.has(port);
        !firsts_at(&self.firsts, port).is_empty() || self.rolling.iter().any(in_range)
    }

    fn index(&mut self) {
        self.firsts.clear();
        self.rolling.clear();
        for (armed, position) in self.doors.iter().zip(0_u16..) {
            match &armed.door.sequence {
                Sequence::Fixed(steps) => self.firsts.push((steps.as_slice()[0], position)),
                Sequence::Rolling(_) => self.rolling.push(position),
                Sequence::Spent => {}
            }
        }
        self.firsts.sort_unstable();
    }

    fn check(&self) -> Result<(), MatcherError> {
        let mut alike = self.firsts.chunk_by(|(one, _), (other, _)| one == other);
        match alike.find(|doors| doors.len() > Self::MOST_ALIKE) {
            Some(doors) => Err(MatcherError::Alike(doors[0].0)),
            None => Ok(()),
        }
    }
}

fn firsts_at(firsts: &[(Port, u16)], port: Port) -> &[(Port, u16)] {
    let from = firsts.partition_point(|&(first, _)| first < port);
    let count = firsts[from..].iter().take_while(|&&(first, _)| first == port).count();
    &firsts[from..from + count]
}

fn is_over(doors: &[Armed], attempt: &Attempt, now: Now) -> bool {
    let Aim { door, generation, .. } = attempt.aim();
    let armed = &doors[usize::from(door)];
    armed.generation != generation || attempt.is_late(now.elapsed, armed.door.timeout)
}

fn complete(door: &Door, aim: Aim, source: IpAddr) -> Completed {
    let used = match &door.sequence {
        Sequence::Rolling(rolling) => Some(rolling.used(aim.epoch(), source)),
        Sequence::Fixed(_) | Sequence::Spent => None,
    };
    Completed { door: usize::from(aim.door), used }
}
