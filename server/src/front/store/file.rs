//! One open file of the store: a journal in front, tables behind it, and which file it is.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use postern_proto::WallTime;
use redb::StorageBackend;
use redb::backends::{FileBackend, InMemoryBackend};
use rustix::fs::{Advice, fadvise};

use super::error::StoreError;
use super::journal::{self, Journal, Position};
use super::tables::{Mark, Tables};
use crate::clock::BootTime;
use crate::front::gate::{Memory, Purge, Record};

/// Knocks that the tables are behind the journal, at the most: nobody reads packets while they are written. (Behind an outage,
/// the knocks of it that are still owed come on top.)
const UNWRITTEN: usize = 2_048;

/// An open store. It is locked; dropping it unlocks it.
pub(super) struct StoreFile {
    file: File,
    tables: Tables,
    journal: Journal,
    /// What the journal holds and the tables do not.
    unwritten: Vec<Record>,
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
        lock(path, &file)?;
        let metadata = file.metadata().map_err(failed)?;
        check_length(path, metadata.len())?;
        // Pages whose writing failed stay in the kernel's cache, looking as if they were on the disk. What is read
        // below is to come from the disk.
        file.sync_data().and_then(|()| Ok(fadvise(&file, 0, None, Advice::DontNeed)?)).map_err(failed)?;
        let mut journal = vec![0; journal::LEN];
        file.read_exact_at(&mut journal, 0).map_err(failed)?;
        let same = file.try_clone().map_err(failed)?;
        let tables = Tables::open(path, || Ok(FileBackend::new(same)?))?;
        let (journal, unwritten) = behind(path, &tables, &journal)?;
        let identity = identity(&metadata);
        let file = Self { file, tables, journal, unwritten, path: path.to_owned(), identity };
        file.check_place()?;
        Ok(file)
    }

    /// Makes an empty file a store that remembers nothing.
    pub(super) fn init(path: &Path, file: File, floor: WallTime) -> Result<(), StoreError> {
        file.write_all_at(&vec![0; journal::LEN], 0)
            .map_err(|cause| StoreError::Io { path: path.to_owned(), cause })?;
        Tables::open(path, || Ok(FileBackend::new(file)?))?.init(floor)
    }

    /// Everything that it remembers, as remembered since `now`.
    pub(super) fn read(&self, now: BootTime) -> Result<Memory, StoreError> {
        read(&self.tables, &self.unwritten, now)
    }

    /// The last commit.
    pub(super) const fn position(&self) -> Position {
        self.journal.position()
    }

    /// Commits durably: in the journal, or in the tables, where that has no room or something is to be forgotten. Gives
    /// itself back only when that succeeded.
    pub(super) fn commit(
        mut self,
        mark: Mark,
        records: &[&Record],
        purge: Option<&Purge>,
    ) -> Result<Self, StoreError> {
        if purge.is_some() || self.unwritten.len() + records.len() > UNWRITTEN || !self.append(records)? {
            return self.write(mark, records, purge);
        }
        self.unwritten.extend(records.iter().copied().cloned());
        Ok(self)
    }

    fn append(&mut self, records: &[&Record]) -> Result<bool, StoreError> {
        let appended = self.journal.append(&self.file, records);
        appended.map_err(|cause| StoreError::Io { path: self.path.clone(), cause })
    }

    /// Has the tables take over what the journal holds, and this.
    pub(super) fn settle(self, mark: Mark, records: &[&Record]) -> Result<Self, StoreError> {
        self.write(mark, records, None)
    }

    fn write(self, mark: Mark, records: &[&Record], purge: Option<&Purge>) -> Result<Self, StoreError> {
        let records = self.unwritten.iter().chain(records.iter().copied());
        let tables = self.tables.write(mark, records, purge)?;
        Ok(Self { tables, journal: Journal::behind(mark), unwritten: vec![], ..self })
    }

    /// Whether there is something that only the journal holds.
    pub(super) const fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
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

/// Everything that a store remembers of which this is a copy, as remembered since `now`.
pub(super) fn read_copy(path: &Path, bytes: &[u8], now: BootTime) -> Result<Memory, StoreError> {
    check_length(path, bytes.len() as u64)?;
    let tables = Tables::open(path, || {
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64)?;
        copy.write(0, bytes)?;
        Ok(copy)
    })?;
    let (_, unwritten) = behind(path, &tables, &bytes[..journal::LEN])?;
    read(&tables, &unwritten, now)
}

/// No other gate has it while this file, or a copy of its descriptor, is open.
pub(super) fn lock(path: &Path, file: &File) -> Result<(), StoreError> {
    let path = path.to_owned();
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked { path },
        TryLockError::Error(cause) => StoreError::Io { path, cause },
    })
}

/// What is left of a store whose content was lost may be empty, and so may what is left of its tables; redb would take
/// that for new ones.
fn check_length(path: &Path, len: u64) -> Result<(), StoreError> {
    const JOURNAL: u64 = journal::LEN as u64;
    let problem = match len {
        0 => "it is empty",
        1..=JOURNAL => "it ends before its tables",
        _ => return Ok(()),
    };
    Err(StoreError::Damaged { path: path.to_owned(), cause: problem.to_owned() })
}

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// What the journal holds that the tables do not.
fn behind(path: &Path, tables: &Tables, journal: &[u8]) -> Result<(Journal, Vec<Record>), StoreError> {
    Journal::read(journal, tables.mark()?)
        .map_err(|problem| StoreError::Damaged { path: path.to_owned(), cause: problem.to_owned() })
}

fn read(tables: &Tables, unwritten: &[Record], now: BootTime) -> Result<Memory, StoreError> {
    let mut memory = tables.read(now)?;
    for record in unwritten {
        memory.remember(record, now);
    }
    Ok(memory)
}
