//! What must be run whatever happens: for each lease whose command was run when it opened, the command for its end. It is
//! on the disk before the first one runs, with everything that the second one takes, so that neither a crash nor
//! another configuration leaves a door open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_proto::{Port, WallTime};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::command::Argv;
use crate::clock::{BootTime, Now};
use crate::errand::LeaseKey;

/// A lease to what is owed to it, both as postcard has them.
const OWED: TableDefinition<&[u8], &[u8]> = TableDefinition::new("owed");

/// The end that a lease is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owed {
    /// What is to be run; nothing, if only the beginning has a command.
    pub(super) on_close: Option<Argv>,
    /// How long it may take.
    pub(super) deadline: Duration,
    /// The ports that were opened, for it to know.
    pub(super) ports: Vec<Port>,
    /// When, by the wall clock.
    pub(super) until: WallTime,
    /// How long that was from the time of writing: no clock that is set back makes it longer.
    pub(super) lasts: Duration,
}

impl Owed {
    /// Whether nothing was opened and nothing is to be run: then there is nothing to wait for, and the command for the
    /// beginning is run each time.
    pub(super) fn is_nothing(&self) -> bool {
        self.on_close.is_none() && self.ports.is_empty()
    }

    /// When it is to be run, by the boot clock: however late this is read, no later than was meant.
    pub(super) fn due(&self, now: Now) -> BootTime {
        if self.is_nothing() {
            return now.boot;
        }
        now.boot.after(self.until.since(now.wall).min(self.lasts))
    }
}

/// A ledger that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub(super) struct LedgerError {
    path: PathBuf,
    cause: redb::Error,
}

impl LedgerError {
    /// Whether another runner has it open.
    pub(super) const fn is_in_use(&self) -> bool {
        matches!(self.cause, redb::Error::DatabaseAlreadyOpen)
    }
}

/// The file with what is owed. It is locked: no two runners use it.
pub(super) struct Ledger {
    database: Database,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger, or begins one, and reads what is owed.
    ///
    /// # Errors
    /// [`LedgerError`] when it is in use or damaged, or cannot be made.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(LeaseKey, Owed)>), LedgerError> {
        let failed = |cause| LedgerError { path: path.to_owned(), cause };
        let open = || {
            let database = Database::create(path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(OWED)?;
            transaction.commit()?;
            let mut owed = Vec::new();
            for row in database.begin_read()?.open_table(OWED)?.iter()? {
                let (lease, what) = row?;
                let both = (postcard::from_bytes(lease.value()), postcard::from_bytes(what.value()));
                let (Ok(lease), Ok(what)) = both else {
                    return Err(redb::Error::Corrupted("it holds what is no entry".to_owned()));
                };
                owed.push((lease, what));
            }
            Ok((database, owed))
        };
        let (database, owed) = open().map_err(failed)?;
        Ok((Self { database, path: path.to_owned() }, owed))
    }

    /// Writes what is owed from now on, and strikes out what was done, in one durable commit.
    ///
    /// # Errors
    /// [`LedgerError`]; then the ledger is as it was.
    pub(super) fn write<'a>(
        &self,
        owed: impl IntoIterator<Item = (&'a LeaseKey, &'a Owed)>,
        done: impl IntoIterator<Item = &'a LeaseKey>,
    ) -> Result<(), LedgerError> {
        let write = || -> Result<(), redb::Error> {
            let encoded = |error: postcard::Error| redb::Error::Corrupted(error.to_string());
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(OWED)?;
                for (lease, what) in owed {
                    let lease = postcard::to_allocvec(lease).map_err(encoded)?;
                    let what = postcard::to_allocvec(what).map_err(encoded)?;
                    table.insert(lease.as_slice(), what.as_slice())?;
                }
                for lease in done {
                    table.remove(postcard::to_allocvec(lease).map_err(encoded)?.as_slice())?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|cause| LedgerError { path: self.path.clone(), cause })
    }
}
