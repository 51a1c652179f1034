//! One source's attempt at one door: how far it has come, and what the next packet makes of it.

use std::time::Duration;

use super::door::{Door, Reading, Strays};
use super::keyed::Fingerprint;
use super::packet::Packet;
use crate::port::Port;
use crate::time::Epoch;

/// The last steps whose packets are known again. A SYN is sent again after a second, so that a client who begins all
/// its connections faster than 6 in a second may go wrong with more steps than that.
const STEPS_KNOWN: usize = 6;
/// The last strays whose packets are known again: as many as are allowed by default.
const STRAYS_KNOWN: usize = 5;

/// Small, because there may be a million: 48 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// Whose, as a keyed hash.
    pub(super) source: u64,
    /// Microseconds of elapsed time.
    began: u64,
    // What it is an attempt at, see Aim; as one field that would take more room.
    epoch: u32,
    door: u16,
    generation: u8,
    /// Steps taken, at least one; all of them once it has succeeded.
    taken: u8,
    /// Strays since the first step, if the door counts them.
    strays: u16,
    /// Of the taken step number n at n modulo the length.
    steps_known: [Fingerprint; STEPS_KNOWN],
    /// In the same way.
    strays_known: [Fingerprint; STRAYS_KNOWN],
}

/// A door, as it is in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    /// The epoch of a rolling sequence, 0 for others.
    pub(super) epoch: u32,
    /// The door's position.
    pub(super) door: u16,
    /// How often its sequence was replaced, modulo 256: what was begun before is over.
    pub(super) generation: u8,
}

/// What a packet makes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is still under way, or has succeeded before.
    Stays,
    /// That was the last step.
    Completes,
    /// It has failed.
    Ends,
}

impl Attempt {
    /// An attempt whose first step has just been taken.
    pub(super) fn begin(source: u64, now: Duration, aim: Aim, first: Fingerprint) -> Self {
        let Aim { epoch, door, generation } = aim;
        let (mut steps_known, strays_known) = ([None; STEPS_KNOWN], [None; STRAYS_KNOWN]);
        steps_known[0] = first;
        let began = micros(now);
        Self { source, began, epoch, door, generation, taken: 1, strays: 0, steps_known, strays_known }
    }

    pub(super) const fn aim(&self) -> Aim {
        Aim { epoch: self.epoch, door: self.door, generation: self.generation }
    }

    /// Whether its time has passed. Time that went back counts as time that passed: it must not keep an attempt for ever.
    pub(super) fn is_late(&self, now: Duration, timeout: Duration) -> bool {
        Duration::from_micros(micros(now).abs_diff(self.began)) >= timeout
    }

    pub(super) const fn is_of_one_step(&self) -> bool {
        self.taken == 1
    }

    /// Takes one more packet of its source. One that has succeeded stays, so that its packets are known when they are
    /// sent again.
    pub(super) fn follow(&mut self, door: &Door, packet: &Packet, known: Fingerprint) -> Progress {
        match door.read(packet) {
            Reading::Own => {
                let steps = door.sequence.steps(self.aim().epoch(), packet.source);
                self.touch(&steps, packet.port, known)
            }
            Reading::Stray => self.stray(door.strays, known),
            Reading::Ignored => Progress::Stays,
        }
    }

    fn touch(&mut self, steps: &[Port], port: Port, known: Fingerprint) -> Progress {
        let taken = usize::from(self.taken);
        let mut last = taken.saturating_sub(STEPS_KNOWN)..taken;
        if known.is_some()
            && last.any(|n| steps.get(n) == Some(&port) && self.steps_known[n % STEPS_KNOWN] == known)
        {
            return Progress::Stays;
        }
        if steps.get(taken) != Some(&port) {
            return Progress::Ends;
        }
        self.steps_known[taken % STEPS_KNOWN] = known;
        self.taken += 1;
        if taken + 1 == steps.len() { Progress::Completes } else { Progress::Stays }
    }

    fn stray(&mut self, allowed: Strays, known: Fingerprint) -> Progress {
        match allowed {
            Strays::Unlimited => Progress::Stays,
            Strays::AtMost(_) if known.is_some() && self.strays_known.contains(&known) => Progress::Stays,
            Strays::AtMost(strays) if self.strays >= strays => Progress::Ends,
            Strays::AtMost(_) => {
                self.strays_known[usize::from(self.strays) % STRAYS_KNOWN] = known;
                self.strays += 1;
                Progress::Stays
            }
        }
    }
}

impl Aim {
    pub(super) fn epoch(self) -> Epoch {
        Epoch::new(self.epoch.into())
    }
}

/// Whole microseconds; 2^64 of them are longer than any machine runs.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::sequence::flags::SYN;
    use crate::sequence::{Sequence, Tcp};

    /// Two packets of 65,000 have one fingerprint: that must not swallow a step.
    #[test]
    fn a_fingerprint_counts_for_its_port_only() {
        let door = Door::new(Sequence::Fixed("1,2,3".parse().unwrap()));
        let packet = |port: &str| Packet {
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            port: port.parse().unwrap(),
            source_port: 1,
            tcp: Some(Tcp { flags: SYN, sequence: 0 }),
        };
        let (same, other) = (NonZeroU16::new(7), NonZeroU16::new(8));
        let aim = Aim { epoch: 0, door: 0, generation: 0 };
        let mut attempt = Attempt::begin(0, Duration::ZERO, aim, same);
        let schedule = [
            ("1/tcp", same, Progress::Stays),
            ("2/tcp", same, Progress::Stays),
            ("2/tcp", same, Progress::Stays),
            ("3/tcp", same, Progress::Completes),
            ("3/tcp", other, Progress::Ends),
        ];
        for (port, known, want) in schedule {
            assert_eq!(attempt.follow(&door, &packet(port), known), want, "{port}");
        }
    }

    #[test]
    fn an_attempt_is_small() {
        assert_eq!(size_of::<Attempt>(), 48);
    }
}
