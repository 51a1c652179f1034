//! A kill, and what it leaves: all processes of the gate stand still while disk and firewall are read.

use std::collections::HashSet;
use std::fs;
use std::thread;

use anyhow::{Context, Result};
use postern_proto::datagram::NONCE_LEN;
use postern_proto::keys::CLIENT_ID_LEN;
use postern_proto::{Datagram, UsedNonce};
use postern_tests::gate::{Gate, Grant, Role};
use postern_tests::knocks::Knock;
use postern_tests::netns::Family;
use postern_tests::process::has_ended;
use postern_tests::wait::{LONG, wait_for};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Moment;

/// The front's table: client id and nonce, to the time of the knock.
const NONCES: TableDefinition<[u8; CLIENT_ID_LEN + NONCE_LEN], u64> = TableDefinition::new("nonces");
/// One row: the mark of the last write.
const MARK: TableDefinition<(), Mark> = TableDefinition::new("mark");
type Mark = ([u8; 8], u64);

/// How much of the store's file its journal is; the tables follow.
const JOURNAL: usize = 2 << 20;
/// Where an entry of it may begin.
const PAGE: usize = 4096;

/// The processes of a gate, to be killed.
pub(super) struct Staff([(Role, Pid); 3]);

impl Staff {
    pub(super) fn of(gate: &Gate) -> Result<Self> {
        let pid = |role| Ok::<_, anyhow::Error>((role, gate.wait_for_pid(role, &[])?));
        // The front is stopped first: it takes a third of a millisecond to record a knock, and that is to be hit too.
        Ok(Self([pid(Role::Front)?, pid(Role::Warden)?, pid(Role::Supervisor)?]))
    }

    /// Stops everybody, and kills those who are to be killed. Who kills the warden with everybody, as systemd does, kills
    /// the iptables that it runs; who kills it alone, does not.
    pub(super) fn strike(&self, victims: &[Role]) -> Result<()> {
        self.signal(Signal::STOP, |_| true)?;
        self.signal(Signal::KILL, |role| victims.contains(&role))
    }

    /// Lets those go on that are alive.
    pub(super) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT, |_| true)
    }

    fn signal(&self, signal: Signal, to: impl Fn(Role) -> bool) -> Result<()> {
        let alone = !self.0.iter().all(|&(role, _)| to(role));
        for &(role, pid) in self.0.iter().filter(|&&(role, _)| to(role)) {
            // What the warden runs is in its group.
            let sent = if role == Role::Warden && !(alone && signal == Signal::KILL) {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
            match sent {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{signal:?} to the {}", role.name()));
                }
            }
        }
        Ok(())
    }

    /// Waits until nobody is left.
    pub(super) fn wait_for_end(&self) -> Result<()> {
        let ended = || Ok(self.0.iter().all(|&(_, pid)| has_ended(pid)).then_some(()));
        wait_for("the end of all processes", LONG, ended)
    }
}

/// What disk and firewall hold.
pub(super) struct Scene {
    recorded: HashSet<UsedNonce>,
    pub(super) grants: Vec<Grant>,
    /// The rules of others in iptables, as `iptables-save` prints them.
    pub(super) others: String,
}

impl Scene {
    /// # Errors
    /// When the store is none, or a grant has no end.
    pub(super) fn read(gate: &Gate) -> Result<Self> {
        thread::scope(|scope| {
            let saved = scope.spawn(|| gate.saved(Family::V4));
            let grants = scope.spawn(|| gate.grants(Family::V4));
            let recorded = recorded(gate).context("the replay store")?;
            let grants = grants.join().expect("reading does not panic")?;
            let saved = saved.join().expect("reading does not panic")?;
            Ok(Self { recorded, grants, others: of_others(&saved) })
        })
    }

    pub(super) fn has_recorded(&self, knock: &Knock) -> bool {
        Datagram::new(knock).is_some_and(|datagram| self.recorded.contains(datagram.nonce()))
    }

    /// What became of a knock.
    pub(super) fn moment(&self, knock: &Knock, from: std::net::IpAddr) -> Moment {
        if !self.has_recorded(knock) {
            Moment::BeforeCommit
        } else if self.grants.iter().any(|grant| grant.source == from) {
            Moment::AfterRule
        } else {
            Moment::AfterCommit
        }
    }
}

/// The rules of a firewall that are not Postern's.
pub(super) fn of_others(saved: &str) -> String {
    saved.split_inclusive('\n').filter(|line| !line.contains("POSTERN")).collect()
}

/// The nonces in a copy of the store, whose tables are opened as the next front will open them.
fn recorded(gate: &Gate) -> Result<HashSet<UsedNonce>> {
    let bytes = fs::read(gate.store())?;
    let (journal, tables) = bytes.split_at_checked(JOURNAL).context("a journal")?;
    let copy = gate.directory().join("copy.redb");
    fs::write(&copy, tables)?;
    let database = Database::open(&copy)?;
    let table = database.begin_read()?.open_table(NONCES)?;
    let nonce = |key: &[u8]| <[u8; NONCE_LEN]>::try_from(&key[CLIENT_ID_LEN..]).context("a nonce");
    let mut nonces = table.iter()?.map(|row| nonce(&row?.0.value())).collect::<Result<HashSet<_>>>()?;
    let mark = database.begin_read()?.open_table(MARK)?.get(())?.context("a mark")?.value();
    let entries = (0..JOURNAL).step_by(PAGE).filter_map(|at| entry(&journal[at..]));
    let counting = entries.filter(|(after, ..)| *after == mark);
    nonces.extend(counting.flat_map(|(.., records)| records).map(|((_, nonce), ..)| nonce));
    Ok(nonces)
}

/// Client id and nonce, the time of the knock, the services that it closes.
type Record = (([u8; CLIENT_ID_LEN], UsedNonce), u64, Vec<String>);

/// An entry of the journal, where a whole one begins: the tables' mark when it was made, its number and records.
fn entry(page: &[u8]) -> Option<(Mark, u64, Vec<Record>)> {
    let (sum, rest) = page.split_at(SHA256_OUTPUT_LEN);
    let (len, rest) = rest.split_first_chunk()?;
    let entry = rest.get(..u32::from_le_bytes(*len) as usize)?;
    (digest(&SHA256, entry).as_ref() == sum).then(|| postcard::from_bytes(entry).ok()).flatten()
}
