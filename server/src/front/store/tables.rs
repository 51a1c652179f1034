//! The tables of the store: all that is remembered, by redb, in the part of the file behind the journal.
//!
//! They are written in two phases. redb's default flushes once, and where the last write does not read, goes back to the
//! one before: right after a power cut, but a flipped bit would make it forget used knocks without a word. The second
//! flush makes whatever does not read an error. (What remains is one bit of the file, which says which of the last two
//! writes is the last; and where the journal went on behind that one, this too is noticed.)

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use postern_proto::datagram::NONCE_LEN;
use postern_proto::keys::CLIENT_ID_LEN;
use postern_proto::{ClientId, ServiceName, WallTime};
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::journal;
use crate::clock::BootTime;
use crate::front::gate::{Memory, Purge, Record, ReplayKey};

const KEY_LEN: usize = CLIENT_ID_LEN + NONCE_LEN;

/// Client id and nonce, to the `at` of the knock.
const NONCES: TableDefinition<[u8; KEY_LEN], u64> = TableDefinition::new("nonces");
/// Client id and service, to the `at` of its latest close.
const CLOSED: TableDefinition<([u8; CLIENT_ID_LEN], &str), u64> = TableDefinition::new("closed");
/// One row: the floor.
const FLOOR: TableDefinition<(), u64> = TableDefinition::new("floor");
/// One row: the last write's mark.
const MARK: TableDefinition<(), ([u8; 8], u64)> = TableDefinition::new("mark");

/// Of the file's content that is kept in memory, at the most; redb's own default is 1 GB.
const CACHE: usize = 8 * 1024 * 1024;

/// Which run of the gate it is: random.
pub(super) type Run = [u8; 8];

/// Which write of the tables it is, and by which run of the gate: it has a higher number than those before it in its file, and
/// than those of its run in whatever file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) run: Run,
    pub(super) number: u64,
}

/// The tables of an open file.
pub(super) struct Tables {
    database: Database,
    path: PathBuf,
}

impl Tables {
    /// Opens those in a file that has some, and verifies every page of them.
    pub(super) fn open<B: StorageBackend>(
        path: &Path,
        backend: impl FnOnce() -> Result<B, redb::Error>,
    ) -> Result<Self, StoreError> {
        let database = guard(path, || open(backend()?))?;
        Ok(Self { database, path: path.to_owned() })
    }

    /// Makes those of a store that remembers nothing, in a file that has a journal and nothing behind it.
    pub(super) fn init(self, floor: WallTime) -> Result<(), StoreError> {
        guard(&self.path, || {
            let transaction = begin(&self.database)?;
            transaction.open_table(NONCES)?;
            transaction.open_table(CLOSED)?;
            transaction.open_table(FLOOR)?.insert((), floor.as_micros())?;
            transaction.commit()?;
            Ok(self.database.close()?)
        })
    }

    /// Everything that they hold, as remembered since `now`.
    pub(super) fn read(&self, now: BootTime) -> Result<Memory, StoreError> {
        guard(&self.path, || read(&self.database, now))
    }

    /// The mark of the last write; new ones have none.
    pub(super) fn mark(&self) -> Result<Option<Mark>, StoreError> {
        guard(&self.path, || {
            let table = match self.database.begin_read()?.open_table(MARK) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            let mark = table.get(())?.map(|row| row.value());
            Ok(mark.map(|(run, number)| Mark { run, number }))
        })
    }

    /// Writes durably. Gives itself back only when that succeeded: redb does not go on with a file after an error of the
    /// disk.
    pub(super) fn write<'a>(
        self,
        mark: Mark,
        records: impl IntoIterator<Item = &'a Record>,
        purge: Option<&Purge>,
    ) -> Result<Self, StoreError> {
        let path = self.path.clone();
        guard(&path, move || {
            let transaction = begin(&self.database)?;
            insert(&transaction, records)?;
            if let Some(purge) = purge {
                forget(&transaction, purge)?;
            }
            transaction.open_table(MARK)?.insert((), (mark.run, mark.number))?;
            transaction.commit()?;
            Ok(self)
        })
    }
}

/// A file can be damaged in more ways than redb's checks foresee, and where they end are assertions. A front that dies
/// of one would die of it again at every start; as an error it keeps the door shut, and says why.
pub(super) fn guard<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    // What a panic leaves half done is not seen again: the database is dropped with it, or was only read from.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("the database gave up on it".to_owned())))
        .map_err(|error| StoreError::from_redb(path, error))
}

/// The part of the file that is redb's: all behind the journal. Locks it has none: the whole file has one.
#[derive(Debug)]
struct BehindJournal<B>(B);

impl<B: StorageBackend> StorageBackend for BehindJournal<B> {
    fn len(&self) -> io::Result<u64> {
        // Never less: that was looked at before.
        Ok(self.0.len()?.saturating_sub(journal::LEN as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(behind_journal(offset)?, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(behind_journal(len)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(behind_journal(offset)?, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// Of a damaged file redb may ask for a place that no file has.
fn behind_journal(offset: u64) -> io::Result<u64> {
    offset.checked_add(journal::LEN as u64).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn open(backend: impl StorageBackend) -> Result<Database, redb::Error> {
    // Without the check a page that was damaged while nobody had the file open is trusted, or ends in an abort.
    let mut builder = Database::builder();
    Ok(builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true)
        .create_with_backend(BehindJournal(backend))?)
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn insert<'a>(
    transaction: &WriteTransaction,
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<(), redb::Error> {
    let mut nonces = transaction.open_table(NONCES)?;
    let mut closed = transaction.open_table(CLOSED)?;
    for Record { key, at, closes } in records {
        nonces.insert(key_bytes(key), at.as_micros())?;
        for service in closes {
            closed.insert((*key.0.expose(), service.as_str()), at.as_micros())?;
        }
    }
    Ok(())
}

fn forget(transaction: &WriteTransaction, Purge { keys, floor }: &Purge) -> Result<(), redb::Error> {
    let mut nonces = transaction.open_table(NONCES)?;
    for key in keys {
        nonces.remove(key_bytes(key))?;
    }
    let mut floors = transaction.open_table(FLOOR)?;
    // A commit that failed may have raised it already, and deleted what only this floor keeps out.
    let floor = floor.as_micros().max(floors.get(())?.map_or(0, |floor| floor.value()));
    floors.insert((), floor)?;
    transaction.open_table(CLOSED)?.retain(|_, at| at > floor)?;
    Ok(())
}

fn read(database: &Database, now: BootTime) -> Result<Memory, redb::Error> {
    let transaction = database.begin_read()?;
    let corrupted = |what: String| redb::Error::Corrupted(what);
    let floor = transaction.open_table(FLOOR)?.get(())?.map(|floor| floor.value());
    let floor = floor.ok_or_else(|| corrupted("it has no floor".to_owned()))?;
    let mut memory = Memory::new(WallTime::from_micros(floor));
    for row in transaction.open_table(NONCES)?.iter()? {
        let (key, at) = row?;
        let record =
            Record { key: split_key(&key.value()), at: WallTime::from_micros(at.value()), closes: vec![] };
        memory.remember(&record, now);
    }
    for row in transaction.open_table(CLOSED)?.iter()? {
        let (key, at) = row?;
        let (client, service) = key.value();
        let service: ServiceName = service
            .parse()
            .map_err(|error| corrupted(format!("a closed service's name does not read: {error}")))?;
        memory.remember_closed(ClientId::from_bytes(client), service, WallTime::from_micros(at.value()));
    }
    Ok(memory)
}

fn key_bytes((client, nonce): &ReplayKey) -> [u8; KEY_LEN] {
    let mut bytes = [0; KEY_LEN];
    bytes[..CLIENT_ID_LEN].copy_from_slice(client.expose());
    bytes[CLIENT_ID_LEN..].copy_from_slice(nonce);
    bytes
}

fn split_key(bytes: &[u8; KEY_LEN]) -> ReplayKey {
    let (client, nonce) = bytes.split_first_chunk().expect("a key is longer than a client id");
    (ClientId::from_bytes(*client), *nonce.first_chunk().expect("a key is a client id and a nonce"))
}
