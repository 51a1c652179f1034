//! The mirror, with the kernel's set and the kernel's own clock: only the gate's clock is another one here.

use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::hints::Hinted;
use postern_proto::keys::HintKey;
use postern_proto::{ClientKeys, ClientSecret, Datagram, GateId, GateKeys};

use super::super::super::filter::Sought;
use super::super::super::frame::Link;
use super::super::super::frame::craft::{Craft, KNOCK, PORT};
use super::super::program;
use super::*;
use crate::clock::Now;
use crate::system::bpf::Filter;

/// How many clients are looked at between one look at the kernel and the next.
const STEP: usize = 7;

struct Client(ClientKeys);

impl Hinted for Client {
    fn hint_key(&self, _: Epoch) -> Option<&HintKey> {
        Some(&self.0.hint)
    }
}

fn gate() -> GateId {
    GateId::from_bytes([7; 16])
}

fn clients(count: u16) -> Vec<Client> {
    let secret = |number: u16| {
        let mut secret = [1; 32];
        secret[..2].copy_from_slice(&number.to_le_bytes());
        ClientSecret::from_bytes(secret)
    };
    (0..count).map(|number| Client(ClientKeys::derive(&gate(), &secret(number)))).collect()
}

/// A mirror, and a filter that asks its set.
struct Glass {
    filter: Filter,
    mirror: Mirror,
}

impl Glass {
    fn with_room_for(hints: usize) -> Self {
        let maps = Maps::create(hints).unwrap();
        let sought = Sought { knocks: vec![NonZeroU16::new(PORT).unwrap()], ..Sought::default() };
        let keys = GateKeys::derive(&gate());
        let filter = Filter::load(&program::program(Link::Raw, &sought, &keys, &maps)).unwrap();
        Self { filter, mirror: Mirror::new(maps, Tolerance::default()) }
    }

    /// Whether the kernel admits a knock with this hint now.
    fn admits(&self, hint: [u8; 8]) -> bool {
        let mut frame = Craft::default().frame(Link::Raw);
        // The veiled hint comes first.
        let at = frame.len() - KNOCK;
        let knock = &mut frame[at..];
        knock[..hint.len()].fill(0);
        let veil = Datagram::new(knock).unwrap().unveil(&GateKeys::derive(&gate())).bytes();
        for ((veiled, veil), hint) in knock.iter_mut().zip(veil).zip(hint) {
            *veiled = veil ^ hint;
        }
        self.filter.test(&[&[0; 12][..], &[0x08, 0x00], &frame].concat()).unwrap() > 0
    }

    /// Whether it admits whatever a client may send whose clock is within the tolerance.
    fn admits_all_of(&self, clients: &[Client]) -> bool {
        let hints = |client: &Client| {
            let epochs = fresh().into_iter().map(|epoch| client.0.hint.hint(epoch).bytes());
            epochs.collect::<Vec<_>>()
        };
        clients.iter().flat_map(hints).all(|hint| self.admits(hint))
    }

    fn admits_strangers(&self) -> bool {
        self.admits([0xa5; 8])
    }

    /// Follows until there is nothing more to do, and looks at each step that nobody is locked out.
    fn follow(&mut self, table: &mut HintTable, clients: &[Client]) {
        loop {
            let is_complete = table.prepare(clients, STEP);
            let follows = self.mirror.follow(table, clients.len());
            assert!(self.admits_all_of(clients));
            if is_complete && follows {
                return;
            }
        }
    }
}

fn fresh() -> Vec<Epoch> {
    let epochs = Tolerance::default().epochs(Now::read().wall);
    let (mut epoch, mut all) = (*epochs.start(), Vec::new());
    while epoch <= *epochs.end() {
        all.push(epoch);
        epoch = epoch.next();
    }
    all
}

fn table(clients: &[Client]) -> HintTable {
    HintTable::new(Tolerance::default(), Now::read().wall, clients)
}

#[test]
fn strangers_are_refused_once_every_client_is_known() {
    let (clients, mut glass) = (clients(30), Glass::with_room_for(1 << 10));
    let mut table = table(&clients);
    assert!(glass.admits_strangers(), "nothing is refused before");
    glass.follow(&mut table, &clients);
    assert!(!glass.admits_strangers());
    assert_eq!(glass.mirror.refused(), 1);
}

#[test]
fn a_clock_that_steps_lets_the_gate_decide_alone_until_it_is_right_again() {
    let (clients, mut glass) = (clients(30), Glass::with_room_for(1 << 10));
    let mut table = table(&clients);
    glass.follow(&mut table, &clients);
    for steps in [Duration::from_hours(1), Duration::from_mins(1)] {
        for stepped in [Now::read().wall.after(steps), Now::read().wall.before(steps)] {
            table.turn(stepped, &clients);
            glass.follow(&mut table, &clients);
            // By an hour, the windows have nothing in common; by a minute, the kernel's time may be in both.
            assert!(steps < Duration::from_hours(1) || glass.admits_strangers());
            table.turn(Now::read().wall, &clients);
            glass.follow(&mut table, &clients);
            assert!(!glass.admits_strangers());
        }
    }
}

#[test]
fn whom_a_reload_takes_out_is_a_stranger_and_nobody_else() {
    let (all, mut glass) = (clients(30), Glass::with_room_for(1 << 10));
    let mut with_all = table(&all);
    glass.follow(&mut with_all, &all);
    let (stay, gone) = all.split_at(20);
    let mut with_some = table(stay);
    glass.mirror.begin_anew(&with_some, stay.len());
    glass.follow(&mut with_some, stay);
    for client in gone {
        let known = fresh().into_iter().any(|epoch| glass.admits(client.0.hint.hint(epoch).bytes()));
        assert!(!known, "one that is gone");
    }
    assert!(!glass.admits_strangers());
    let mut with_all = table(&all);
    glass.mirror.begin_anew(&with_all, all.len());
    glass.follow(&mut with_all, &all);
}

#[test]
fn a_set_that_is_full_refuses_nobody_until_a_reload_that_fits() {
    // There is room for 1024 hints, and seven times as many are looked for.
    let (many, mut glass) = (clients(1024), Glass::with_room_for(1));
    let mut with_many = table(&many);
    while !(with_many.prepare(&many, usize::MAX) && glass.mirror.follow(&with_many, many.len())) {}
    assert!(glass.admits_strangers());
    assert!(glass.admits_all_of(&many[..30]));

    let few = &many[..30];
    let mut with_few = table(few);
    glass.mirror.begin_anew(&with_few, few.len());
    glass.follow(&mut with_few, few);
    assert!(!glass.admits_strangers());
}
