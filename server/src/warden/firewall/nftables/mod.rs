//! The firewall through nftables: one table for both address families, over one netlink socket. No program is run.
//!
//! ```text
//! leases ──book──▶ entries that let in: address, protocol, port (and source port), with the latest end
//!        └───────▶ records: one a lease and port, with its text, for the next warden
//! ```
//! Every element carries its own time, by a clock of the kernel's that no step of the wall clock touches. That clock
//! stands still while the machine is suspended: what is open then stays open for as much longer, unless a warden lives
//! to end it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

mod book;
mod damage;
mod elements;
mod netlink;
mod rule;
mod sets;
mod socket;
mod table;

use super::{Family, FirewallError, Found};
use crate::clock::{BootTime, Now};
use crate::warden::guard::{Guard, Session};
use crate::warden::ledger::Lease;
use book::{Book, Change};
use damage::{Look, Printed, damage};
use elements::{Element, Entry, Held, LIST_ELEMENTS, LIST_SET};
use netlink::{Attributes, Kind, Message};
use sets::Set;
use socket::{Refused, Socket};
use table::TABLE_NAME;
pub(super) use table::{PRIORITY, TABLE};

/// Sent again with what the kernel says of its elements, at the most so many times.
const ATTEMPTS: usize = 4;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// nftables, for some families.
#[derive(Clone)]
pub(crate) struct Nftables {
    families: Vec<Family>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    socket: Option<Socket>,
    /// What was put into the kernel.
    book: Book,
    /// Whether the kernel may hold more than the book: something could not be taken out.
    is_behind: bool,
    /// How the table looked right after it went in.
    printed: Option<Printed>,
}

/// A change of one element.
struct Step {
    kind: Kind,
    element: Element,
}

/// Whether something is told of that others did in our table: over another socket than the one of this port.
pub(super) fn tells_of_others(told: &[u8], own_port: u32) -> bool {
    netlink::messages(told).any(|message| socket::is_of_others(&message, own_port, TABLE))
}

/// Whether a chain of another table is there.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn has_chain(family: Family, table: &str, chain: &str) -> io::Result<bool> {
    let family = if family == Family::V4 { IPV4 } else { IPV6 };
    let what = Attributes::default().text(TABLE_NAME, table).text(table::CHAIN_NAME, chain);
    has(Kind::GET_CHAIN, family, &what)
}

/// Whether our table is there.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn is_there() -> io::Result<bool> {
    has(Kind::GET_TABLE, netlink::INET, &table::named())
}

fn has(kind: Kind, family: u8, what: &Attributes) -> io::Result<bool> {
    match Socket::open().and_then(|mut socket| socket.has(kind, family, what)) {
        // A kernel without nf_tables has no table of it.
        Err(error) if is_any(&error, &[Errno::INVAL, Errno::OPNOTSUPP, Errno::PROTONOSUPPORT]) => Ok(false),
        answer => answer,
    }
}

fn is_any(error: &io::Error, errors: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|error| errors.contains(&error))
}

impl Nftables {
    pub(super) fn new(families: &[Family]) -> Self {
        Self { families: families.to_vec(), state: Arc::default() }
    }

    pub(super) fn families(&self) -> &[Family] {
        &self.families
    }

    /// The number of the socket that it writes over.
    pub(super) fn port(&self) -> io::Result<u32> {
        self.state().socket().map(|socket| socket.port())
    }

    /// Whether the guard is up.
    pub(super) fn is_guarded(&self) -> Result<bool, FirewallError> {
        let what = table::named().text(table::CHAIN_NAME, table::DOORS);
        let mut state = self.state();
        let has = state.socket().and_then(|socket| socket.has(Kind::GET_CHAIN, netlink::INET, &what));
        has.map_err(|error| failed("whether the guard is up", &error))
    }

    /// Our elements that let somebody in, as the kernel holds them.
    pub(super) fn found(&self) -> Result<Vec<Found>, FirewallError> {
        let mut found = Vec::new();
        let mut state = self.state();
        let now = Now::read();
        for &family in &self.families {
            let leases = state.held(sets::leases(family))?;
            found.extend(leases.iter().filter_map(|held| elements::read_lease(family, held, now)));
            let sessions = state.held(sets::standing(family))?;
            found.extend(sessions.iter().filter_map(|held| elements::read_standing(family, held)));
        }
        Ok(found)
    }

    /// Puts the guard up with these leases and sessions let in, and nobody else, in one transaction.
    pub(super) fn install(
        &self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
    ) -> Result<(), FirewallError> {
        let now = Now::read();
        let book = Book::of(leases.iter().copied());
        let mut batch = table::build(guard, &self.families);
        batch.extend(elements::fill(&contents(&self.families, guard, &book, leases, sessions, now)));
        let mut state = self.state();
        state.transact(batch, "the guard")?;
        (state.book, state.is_behind) = (book, false);
        let printed = state.print()?;
        let rules = table::chains(guard, &self.families).iter().map(|chain| chain.rules.len()).sum();
        // Somebody may have been there already: then it is looked at and put up once more.
        state.printed = Some(printed).filter(|printed| printed.has_rules(rules));
        Ok(())
    }

    /// Looks whether everything of ours stands as it was put up, and puts it up anew where it does not; gives what was
    /// wrong and is right again.
    pub(super) fn heal(
        &self,
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
        taking_out: bool,
    ) -> (Vec<String>, Result<(), FirewallError>) {
        let wrong = match self.state().damage(&self.families, guard, leases, sessions, taking_out) {
            Ok(wrong) if wrong.is_empty() => return (vec![], Ok(())),
            Ok(wrong) => wrong,
            Err(error) => return (vec![], Err(error)),
        };
        match self.install(guard, leases, sessions) {
            Ok(()) => (wrong.into_iter().map(ToOwned::to_owned).collect(), Ok(())),
            Err(error) => (vec![], Err(error)),
        }
    }

    /// The guard as text, as `nft` prints it.
    pub(super) fn describe(&self, guard: &Guard) -> Vec<String> {
        table::text(guard, &self.families)
    }

    /// Lets the sources of leases in: all or none, in one transaction.
    pub(super) fn open(&self, leases: &[Lease]) -> Result<(), FirewallError> {
        for lease in leases {
            if !self.families.contains(&Family::of(lease.key.source)) {
                return Err(FirewallError::NotServed { address: lease.key.source });
            }
        }
        let now = Now::read().boot;
        let mut state = self.state();
        let mut steps = Vec::new();
        for lease in leases {
            for entry in Entry::of(lease) {
                steps.extend(changes(entry, state.book.enter(entry, lease), now));
                let record = entry.record(lease, elements::end(lease).since(now));
                steps.push(Step { kind: Kind::NEW_ELEMENTS, element: record });
            }
        }
        let result = state.carry_out(steps, "a grant");
        if result.is_err() {
            for lease in leases {
                for entry in Entry::of(lease) {
                    state.book.leave(entry, lease);
                }
            }
        }
        result
    }

    /// Takes leases and standing sessions out again. What is gone already does not keep the others.
    pub(super) fn close(&self, leases: &[Lease], sessions: &[Session]) -> Result<(), FirewallError> {
        let now = Now::read().boot;
        let mut state = self.state();
        let mut steps = Vec::new();
        for lease in leases {
            for entry in Entry::of(lease) {
                steps.extend(changes(entry, state.book.leave(entry, lease), now));
                let element = entry.record(lease, Duration::ZERO);
                steps.push(Step { kind: Kind::DELETE_ELEMENTS, element });
            }
        }
        let sessions = sessions.iter().map(elements::standing);
        steps.extend(sessions.map(|element| Step { kind: Kind::DELETE_ELEMENTS, element }));
        let result = state.carry_out(steps, "the end of a grant");
        if result.is_err() {
            // The next look puts everything up anew, also where it excuses what is on its way out.
            state.is_behind = true;
        }
        result
    }

    /// Takes everything of ours away; `false` when there was nothing.
    pub(super) fn remove(&self) -> Result<bool, FirewallError> {
        let mut state = self.state();
        let there =
            state.socket().and_then(|socket| socket.has(Kind::GET_TABLE, netlink::INET, &table::named()));
        if !there.map_err(|error| failed("whether its table is there", &error))? {
            return Ok(false);
        }
        state.book = Book::default();
        state.transact(table::remove(), "the end of the guard").map(|()| true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands in the sets when these leases and sessions are let in, and nobody else. Where a family is not guarded, its
/// sessions need nothing.
fn contents(
    families: &[Family],
    guard: &Guard,
    book: &Book,
    leases: &[&Lease],
    sessions: &[Session],
    now: Now,
) -> Vec<Element> {
    let entries = book.entries().map(|(entry, end)| entry.element(end.since(now.boot)));
    let records = leases.iter().flat_map(|lease| {
        Entry::of(lease).map(|entry| entry.record(lease, elements::end(lease).since(now.boot)))
    });
    let guarded = |session: &&Session| families.contains(&Family::of(session.remote.ip()));
    let standing = sessions.iter().filter(guarded).map(elements::standing);
    let ports = table::guarded(guard, guard.until.map(|until| until.since(now.wall)));
    ports.into_iter().chain(entries).chain(records).chain(standing).collect()
}

/// The steps that a change of an entry takes. A new end is a new element, in the place of the old one at once.
fn changes(entry: Entry, change: Change, now: BootTime) -> Vec<Step> {
    let step = |kind, end: BootTime| Step { kind, element: entry.element(end.since(now)) };
    match change {
        Change::Add(end) => vec![step(Kind::NEW_ELEMENTS, end)],
        Change::Move(end) => vec![step(Kind::DELETE_ELEMENTS, end), step(Kind::NEW_ELEMENTS, end)],
        Change::Remove => vec![step(Kind::DELETE_ELEMENTS, now)],
        Change::None => vec![],
    }
}

impl State {
    fn socket(&mut self) -> io::Result<&mut Socket> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(Socket::open()?)),
        }
    }

    fn transact(&mut self, batch: Vec<Message>, what: &'static str) -> Result<(), FirewallError> {
        let socket = self.socket().map_err(|error| failed(what, &error))?;
        socket.transact(batch).map_err(|refused| self::refused(what, &refused))
    }

    /// Changes elements, all or none. The kernel knows best which of them have ended meanwhile: what is gone need not be
    /// deleted, and what is there yet is replaced.
    fn carry_out(&mut self, mut steps: Vec<Step>, what: &'static str) -> Result<(), FirewallError> {
        for attempt in 1.. {
            if steps.is_empty() {
                return Ok(());
            }
            let batch = steps.iter().map(|step| step.element.message(step.kind)).collect();
            let socket = self.socket().map_err(|error| failed(what, &error))?;
            let Err(refused) = socket.transact(batch) else { return Ok(()) };
            if attempt == ATTEMPTS || !adapt(&mut steps, &refused) {
                return Err(self::refused(what, &refused));
            }
        }
        unreachable!("the last attempt returns")
    }

    fn held(&mut self, set: Set) -> Result<Vec<Held>, FirewallError> {
        let what = table::named().text(LIST_SET, set.name);
        let listed = self.socket().and_then(|socket| {
            socket.list(Kind::GET_ELEMENTS, &what, Vec::new, |held, attributes| {
                held.extend(attributes.nest(LIST_ELEMENTS).list().filter_map(Held::read));
            })
        });
        match listed {
            // There is no such set, and so nothing in it.
            Err(error) if is_any(&error, &[Errno::NOENT]) => Ok(Vec::new()),
            listed => listed.map_err(|error| failed("what its sets hold", &error)),
        }
    }

    fn print(&mut self) -> Result<Printed, FirewallError> {
        self.socket().and_then(Printed::read).map_err(|error| failed("what its table holds", &error))
    }

    fn damage(
        &mut self,
        families: &[Family],
        guard: &Guard,
        leases: &[&Lease],
        sessions: &[Session],
        taking_out: bool,
    ) -> Result<Vec<&'static str>, FirewallError> {
        let mut wrong = Vec::new();
        let printed = self.print()?;
        if self.printed.as_ref() != Some(&printed) {
            wrong.push("table");
        }
        if self.is_behind {
            wrong.push("grants");
        }
        let now = Now::read();
        let book = Book::of(leases.iter().copied());
        let wanted = contents(families, guard, &book, leases, sessions, now);
        for set in sets::ALL {
            let held = self.held(set)?;
            let what =
                if [sets::PORTS, sets::KNOCKS, sets::KEPT].contains(&set) { "guard" } else { "grants" };
            let later = Now::read().boot.since(now.boot);
            let look = Look { taking_out: taking_out && what == "grants", later };
            if damage(set, &wanted, &held, look) && !wrong.contains(&what) {
                wrong.push(what);
            }
        }
        Ok(wrong)
    }
}

/// Takes what was refused for a reason that can be dealt with; `false` where something else was.
fn adapt(steps: &mut Vec<Step>, refused: &[Refused]) -> bool {
    let (mut gone, mut there) = (Vec::new(), Vec::new());
    for Refused { message, error } in refused {
        let Some((at, step)) = message.and_then(|at| Some((at, steps.get(at)?))) else { return false };
        match (step.kind, *error) {
            (Kind::DELETE_ELEMENTS, Errno::NOENT) => gone.push(at),
            (Kind::NEW_ELEMENTS, Errno::EXIST) => there.push(at),
            _ => return false,
        }
    }
    let old = std::mem::take(steps);
    for (at, step) in old.into_iter().enumerate() {
        if there.contains(&at) {
            steps.push(Step { kind: Kind::DELETE_ELEMENTS, element: step.element.clone() });
        }
        if !gone.contains(&at) {
            steps.push(step);
        }
    }
    true
}

fn failed(what: &'static str, error: &io::Error) -> FirewallError {
    FirewallError::Refused { what, reason: error.to_string(), is_gone: false }
}

fn refused(what: &'static str, refused: &[Refused]) -> FirewallError {
    let error = refused.first().map_or(Errno::IO, |refused| refused.error);
    let reason = match error {
        Errno::NOENT => "our table, or what it needs of the kernel, is not there".to_owned(),
        Errno::NFILE | Errno::NOSPC => "a set is full".to_owned(),
        Errno::PERM => format!("CAP_NET_ADMIN is missing, or another program owns a table inet {TABLE}"),
        Errno::OPNOTSUPP | Errno::INVAL => format!("this kernel lacks a part of nf_tables ({error})"),
        error => error.to_string(),
    };
    FirewallError::Refused { what, reason, is_gone: error == Errno::NOENT }
}
