//! One open file of the store: tables and transactions (redb), and which file it is.
//!
//! Commits are two-phase. redb's default flushes once, and where the last commit does not read, goes back to the one
//! before: right after a power cut, but a flipped bit would make it forget used knocks without a word. The second
//! flush makes whatever does not read an error. (What remains is one bit of the file, which says which of the last two
//! commits is the last.)

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use postern_proto::datagram::NONCE_LEN;
use postern_proto::keys::CLIENT_ID_LEN;
use postern_proto::{ClientId, ServiceName, WallTime};
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError, WriteTransaction,
};
use rustix::fs::{Advice, fadvise};

use super::error::StoreError;
use crate::clock::BootTime;
use crate::front::gate::{Memory, Purge, Record, ReplayKey};

const KEY_LEN: usize = CLIENT_ID_LEN + NONCE_LEN;

/// Client id and nonce, to the `at` of the knock.
const NONCES: TableDefinition<[u8; KEY_LEN], u64> = TableDefinition::new("nonces");
/// Client id and service, to the `at` of its latest close.
const CLOSED: TableDefinition<([u8; CLIENT_ID_LEN], &str), u64> = TableDefinition::new("closed");
/// One row: the floor.
const FLOOR: TableDefinition<(), u64> = TableDefinition::new("floor");
/// One row: the last commit's mark.
const MARK: TableDefinition<(), ([u8; 8], u64)> = TableDefinition::new("mark");

/// Of the file's content that is kept in memory, at the most; redb's own default is 1 GB.
const CACHE: usize = 8 * 1024 * 1024;

/// Whose commit it is, and which: every commit of a run of the gate has a higher number than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) run: [u8; 8],
    pub(super) number: u64,
}

/// An open store. It is locked; dropping it unlocks it.
pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
    identity: Identity,
}

/// Which file it is, whatever leads to it: device and inode. No other file can have the inode while it is open.
type Identity = (u64, u64);

impl StoreFile {
    /// Opens an existing store, and verifies every page of it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause| StoreError::Io { path: path.to_owned(), cause };
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let identity = identity(&file.metadata().map_err(failed)?);
        refuse_empty(path, &file)?;
        // Pages whose writing failed stay in the kernel's cache, looking as if they were on the disk. What is read
        // below is to come from the disk.
        file.sync_data().and_then(|()| Ok(fadvise(&file, 0, None, Advice::DontNeed)?)).map_err(failed)?;
        let database = guard(path, || open(FileBackend::new(file)?))?;
        let file = Self { database, path: path.to_owned(), identity };
        file.check_place()?;
        Ok(file)
    }

    /// Opens a copy in memory: a look at a file that stays as it is.
    pub(super) fn open_copy(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let copy = || {
            let backend = InMemoryBackend::new();
            backend.set_len(bytes.len() as u64)?;
            backend.write(0, bytes)?;
            open(backend)
        };
        Ok(Self { database: guard(path, copy)?, path: path.to_owned(), identity: (0, 0) })
    }

    /// Makes an empty file a store that remembers nothing.
    pub(super) fn init(path: &Path, file: File, floor: WallTime) -> Result<(), StoreError> {
        guard(path, || {
            let database = open(FileBackend::new(file)?)?;
            let transaction = begin(&database)?;
            transaction.open_table(NONCES)?;
            transaction.open_table(CLOSED)?;
            transaction.open_table(FLOOR)?.insert((), floor.as_micros())?;
            transaction.commit()?;
            Ok(database.close()?)
        })
    }

    /// Everything that it remembers, as remembered since `now`.
    pub(super) fn read(&self, now: BootTime) -> Result<Memory, StoreError> {
        guard(&self.path, || read(&self.database, now))
    }

    /// The mark of the last commit; a new store has none.
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

    /// Writes in one durable commit. Gives itself back only when that succeeded: redb does not go on with a file after
    /// an error of the disk.
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

    /// Whether its path still leads to it.
    pub(super) fn check_place(&self) -> Result<(), StoreError> {
        let strange = |problem| Err(StoreError::Strange { path: self.path.clone(), problem });
        match fs::metadata(&self.path) {
            Ok(metadata) if identity(&metadata) == self.identity => Ok(()),
            Ok(_) => strange("another file is in its place"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => strange("it is gone"),
            Err(cause) => Err(StoreError::Io { path: self.path.clone(), cause }),
        }
    }
}

/// An empty file is what is left of a store whose content was lost; redb would take it for a new one.
pub(super) fn refuse_empty(path: &Path, file: &File) -> Result<(), StoreError> {
    match file.metadata() {
        Ok(metadata) if metadata.len() > 0 => Ok(()),
        Ok(_) => Err(StoreError::Damaged { path: path.to_owned(), cause: "it is empty".to_owned() }),
        Err(cause) => Err(StoreError::Io { path: path.to_owned(), cause }),
    }
}

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// A file can be damaged in more ways than redb's checks foresee, and where they end are assertions. A front that dies
/// of one would die of it again at every start; as an error it keeps the door shut, and says why.
pub(super) fn guard<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    // What a panic leaves half done is not seen again: the database is dropped with it, or was only read from.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("the database gave up on it".to_owned())))
        .map_err(|error| StoreError::from_redb(path, error))
}

fn open(backend: impl StorageBackend) -> Result<Database, redb::Error> {
    // Without the check a page that was damaged while nobody had the file open is trusted, or ends in an abort.
    let mut builder = Database::builder();
    Ok(builder.set_cache_size(CACHE).set_check_integrity_on_open(true).create_with_backend(backend)?)
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
