//! The replay store: what the gate remembers, on disk (redb). A commit is durable when it returns (one fsync for all
//! knocks in it), and returns the [`Receipt`] without which no knock has an effect. Where it fails, the door stays
//! shut (P4).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use postern_proto::datagram::NONCE_LEN;
use postern_proto::keys::CLIENT_ID_LEN;
use postern_proto::{ClientId, ServiceName, WallTime};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::gate::{Memory, Purge, Record, ReplayKey};
use crate::clock::BootTime;

const KEY_LEN: usize = CLIENT_ID_LEN + NONCE_LEN;

/// Client id and nonce, to the `at` of the knock.
const NONCES: TableDefinition<[u8; KEY_LEN], u64> = TableDefinition::new("nonces");
/// Client id and service, to the `at` of its latest close.
const CLOSED: TableDefinition<([u8; CLIENT_ID_LEN], &str), u64> = TableDefinition::new("closed");
/// One row: the floor.
const FLOOR: TableDefinition<(), u64> = TableDefinition::new("floor");

/// The replay store of one gate. The file is locked: two gates cannot share it by mistake.
pub struct Store {
    database: Database,
    path: PathBuf,
}

/// Proof that a batch of records is durable. Only [`Store::commit`] makes one.
#[derive(Debug)]
pub struct Receipt(());

impl Receipt {
    /// For tests of the gate without a disk.
    #[cfg(test)]
    pub(crate) const fn for_tests() -> Self {
        Self(())
    }
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be opened or created.
    #[error("replay store {path}: {cause}; no knock can be accepted without it")]
    Open {
        /// Its file.
        path: PathBuf,
        /// Why.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A commit failed.
    #[error("replay store {path}: cannot write: {cause}; the door stays shut")]
    Commit {
        /// Its file.
        path: PathBuf,
        /// Why.
        cause: Box<redb::Error>,
    },
}

impl Store {
    /// Opens the store in `folder`, made with mode 0700 when missing, and reads what it remembers. Everything read
    /// counts as remembered since `now`.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the file cannot be made, locked or read, or is not a store.
    pub fn open(folder: &Path, now: BootTime) -> Result<(Self, Memory), StoreError> {
        let path = folder.join("replay.redb");
        let open = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            make_private(folder)?;
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
            let memory = load(&database, now)?;
            // A file whose name is lost with the power would be a store that has forgotten everything.
            File::open(folder)?.sync_all()?;
            Ok((database, memory))
        };
        match open() {
            Ok((database, memory)) => Ok((Self { database, path }, memory)),
            Err(cause) => Err(StoreError::Open { path, cause }),
        }
    }

    /// Writes records, and forgets what may be forgotten, in one durable commit.
    ///
    /// # Errors
    /// [`StoreError::Commit`]; then nothing of it is to have any effect.
    pub fn commit<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        purge: Option<&Purge>,
    ) -> Result<Receipt, StoreError> {
        self.write(records, purge)
            .map_err(|cause| StoreError::Commit { path: self.path.clone(), cause: Box::new(cause) })
    }

    fn write<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        purge: Option<&Purge>,
    ) -> Result<Receipt, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(redb::Durability::Immediate)?;
        {
            let mut nonces = transaction.open_table(NONCES)?;
            let mut closed = transaction.open_table(CLOSED)?;
            for Record { key, at, closes } in records {
                nonces.insert(key_bytes(key), at.as_micros())?;
                for service in closes {
                    closed.insert((*key.0.expose(), service.as_str()), at.as_micros())?;
                }
            }
            if let Some(Purge { keys, floor }) = purge {
                for key in keys {
                    nonces.remove(key_bytes(key))?;
                }
                closed.retain(|_, at| at > floor.as_micros())?;
                transaction.open_table(FLOOR)?.insert((), floor.as_micros())?;
            }
        }
        transaction.commit()?;
        Ok(Receipt(()))
    }
}

/// Reads everything; makes the tables of a new store.
fn load(database: &Database, now: BootTime) -> Result<Memory, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(NONCES)?;
    transaction.open_table(CLOSED)?;
    transaction.open_table(FLOOR)?;
    transaction.commit()?;

    let transaction = database.begin_read()?;
    let floor = transaction.open_table(FLOOR)?.get(())?.map_or(0, |floor| floor.value());
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
        let service: ServiceName = service.parse().map_err(|error| {
            redb::Error::Corrupted(format!("a closed service's name does not read: {error}"))
        })?;
        memory.remember_closed(ClientId::from_bytes(client), service, WallTime::from_micros(at.value()));
    }
    Ok(memory)
}

fn make_private(folder: &Path) -> io::Result<()> {
    // As a rule the supervisor has made it: the front may not.
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(nonce: u8, at: u64, closes: &[&str]) -> Record {
        Record {
            key: (ClientId::from_bytes([1; 8]), [nonce; 24]),
            at: WallTime::from_secs(at),
            closes: closes.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("front");
        let now = BootTime::from_boot(Duration::ZERO);
        let (store, memory) = Store::open(&folder, now).unwrap();
        assert!(memory.is_empty());
        let (a, b) = (record(1, 100, &[]), record(2, 200, &["ssh"]));
        store.commit([&a, &b], None).unwrap();
        assert!(Store::open(&folder, now).is_err(), "the store is locked while it is open");
        drop(store);

        let (store, memory) = Store::open(&folder, now).unwrap();
        assert!(memory.contains(&a.key) && memory.contains(&b.key));
        assert!(memory.is_closed(b.key.0, &b.closes[0], WallTime::from_secs(200)));
        assert!(!memory.is_closed(b.key.0, &b.closes[0], WallTime::from_secs(201)));
        store.commit([], Some(&Purge { keys: vec![a.key], floor: WallTime::from_secs(100) })).unwrap();
        drop(store);

        let (_, memory) = Store::open(&folder, now).unwrap();
        assert!(!memory.contains(&a.key) && memory.contains(&b.key));
        assert!(memory.is_below_floor(WallTime::from_secs(100)));
        assert!(!memory.is_below_floor(WallTime::from_secs(101)));
    }

    #[test]
    fn a_file_that_is_no_store_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay.redb");
        fs::write(&path, b"this is not a store, but it is somebody's file").unwrap();
        let error = Store::open(folder.path(), BootTime::from_boot(Duration::ZERO)).err().unwrap();
        assert!(error.to_string().contains("replay.redb"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"this is not a store, but it is somebody's file");
    }
}
