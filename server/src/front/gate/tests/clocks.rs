//! The gate under clocks that step: no knock opens twice, and nobody honest is locked out.

use std::collections::HashSet;
use std::time::Duration;

use postern_proto::payload::Source;
use postern_proto::{GateKeys, KNOCK_LEN, Tolerance, UsedNonce};
use proptest::prelude::*;

use super::super::*;
use super::{Receipt, World, entry, gate_id, here, open_payload, services};

/// What can happen to a gate and its clock.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Time passes, for everybody.
    Pass(u64),
    /// The gate's clock is set this many seconds off the right time.
    Step(i64),
    /// A client whose clock is right knocks.
    Honest,
    /// A client whose clock agrees with the gate's, right or wrong, knocks.
    Along,
    /// Every knock that was ever made is sent again.
    Replay,
    /// What may be forgotten is forgotten.
    Purge,
    /// The gate starts again from its store.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop_oneof![1..90_u64, 500..900_u64, Just(3_600), Just(86_400)].prop_map(Event::Pass),
        3 => prop::sample::select(vec![0, 0, 3_600, -3_600, 86_400, -86_400]).prop_map(Event::Step),
        4 => Just(Event::Honest),
        2 => Just(Event::Along),
        3 => Just(Event::Replay),
        3 => Just(Event::Purge),
        1 => Just(Event::Restart),
    ]
}

/// A gate whose clock can be wrong, with a store that survives it.
struct Stepping {
    world: World,
    /// The right time.
    right: WallTime,
    off: i64,
    store: Vec<Record>,
    floor: WallTime,
    sent: Vec<[u8; KNOCK_LEN]>,
    /// The nonces of the knocks that opened.
    opened: HashSet<UsedNonce>,
    opened_twice: bool,
    /// The floor was lifted beyond the right time though the gate's clock was not ahead.
    floor_astray: bool,
}

impl Stepping {
    fn new() -> Self {
        let world = World::new("max-leases = 100000");
        let (right, floor) = (world.wall, WallTime::from_micros(0));
        Self {
            world,
            right,
            off: 0,
            store: vec![],
            floor,
            sent: vec![],
            opened: HashSet::new(),
            opened_twice: false,
            floor_astray: false,
        }
    }

    fn set_clock(&mut self) {
        let off = Duration::from_secs(self.off.unsigned_abs());
        self.world.wall = if self.off < 0 { self.right.before(off) } else { self.right.after(off) };
    }

    /// Whether a knock made at `at` is let in; recorded as the store would.
    fn knock(&mut self, at: WallTime) -> Result<(), Refusal> {
        let knock = self.world.seal(&open_payload(at, Source::Observed, "ssh", None));
        self.sent.push(knock);
        self.deliver(&knock)
    }

    fn deliver(&mut self, knock: &[u8]) -> Result<(), Refusal> {
        match self.world.gate.handle(self.world.now(), here(), Datagram::new(knock).unwrap()) {
            Verdict::Refused(refused) => Err(refused.reason),
            Verdict::Decided(decided) => {
                self.store.extend(decided.record().cloned());
                if let Outcome::Refused(refused) = decided.release(&Receipt::for_tests()).outcome {
                    return Err(refused.reason);
                }
                self.opened_twice |= !self.opened.insert(*Datagram::new(knock).unwrap().nonce());
                Ok(())
            }
        }
    }

    fn restart(&mut self) {
        let mut memory = Memory::new(self.floor);
        let now = self.world.now();
        self.store.iter().for_each(|record| memory.remember(record, now.boot));
        let clients = Client::all(&gate_id(), &[entry(1, "max-leases = 100000")], &Authorized::new());
        let keys = GateKeys::derive(&gate_id());
        self.world.gate = Gate::new(keys, Tolerance::default(), services(), clients, memory, now.wall, true);
    }

    fn purge(&mut self) {
        while let Some(purge) = self.world.gate.purgeable(self.world.now()) {
            self.store.retain(|record| !purge.keys.contains(&record.key));
            self.floor_astray |= purge.floor > self.floor.max(self.right) && self.off <= 0;
            self.floor = purge.floor;
            self.world.gate.forget(&purge);
        }
    }

    /// Carries out an event; `Err` says which promise it broke.
    fn carry_out(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Pass(secs) => {
                self.right = self.right.after(Duration::from_secs(secs));
                self.world.boot += Duration::from_secs(secs);
                self.set_clock();
            }
            Event::Step(off) => {
                self.off = off;
                self.set_clock();
            }
            Event::Honest => {
                let result = self.knock(self.right);
                // Where the gate's clock ran ahead, and it forgot knocks of clients whose clocks did too, the floor is ahead.
                if self.off == 0 && self.floor < self.right && result.is_err() {
                    return Err(format!("an honest client is locked out: {result:?}"));
                }
            }
            Event::Along => {
                // It may be refused: below a floor, a wrong clock is a stale one.
                let _ = self.knock(self.world.wall);
            }
            Event::Replay => {
                for knock in self.sent.clone() {
                    // Most are refused; one that opens a second time is what deliver() notices.
                    let _ = self.deliver(&knock);
                }
            }
            Event::Purge => self.purge(),
            Event::Restart => self.restart(),
        }
        if self.opened_twice {
            return Err("a knock opened twice".to_owned());
        }
        if self.floor_astray { Err("the floor ran ahead of the right time".to_owned()) } else { Ok(()) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// P4, and no lock-out: whatever the gate's clock does, no knock opens twice, and once the clock is right again an
    /// honest client is let in.
    #[test]
    fn no_schedule_of_clock_steps_opens_twice_or_locks_out(events in prop::collection::vec(event(), 1..60)) {
        let mut world = Stepping::new();
        for (number, event) in events.iter().enumerate() {
            let result = world.carry_out(*event);
            prop_assert!(result.is_ok(), "{} at event {}: {:?}", result.unwrap_err(), number, event);
        }
        for event in [Event::Step(0), Event::Pass(1), Event::Honest, Event::Replay] {
            let result = world.carry_out(event);
            prop_assert!(result.is_ok(), "{} at the end: {:?}", result.unwrap_err(), event);
        }
    }
}

/// The schedule that a memory without a floor fails: forgotten under a clock that ran ahead, fresh again once it is set
/// back.
#[test]
fn a_knock_forgotten_by_a_clock_that_ran_ahead_stays_dead() {
    let mut world = Stepping::new();
    let schedule = [
        Event::Honest,
        Event::Step(3_600),
        Event::Pass(601),
        Event::Purge,
        Event::Step(-570),
        Event::Replay,
        Event::Restart,
        Event::Replay,
        Event::Step(0),
        Event::Honest,
        Event::Replay,
    ];
    for event in schedule {
        world.carry_out(event).unwrap();
    }
    assert_eq!(world.opened.len(), 2);
}
