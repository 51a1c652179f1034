//! The replay store: what the gate remembers, on disk. A commit is durable when it returns (one for all knocks in it),
//! and returns the [`Receipt`] without which no knock has an effect. Where it fails, the door stays shut (P4).
//!
//! ```text
//! Store       commits; goes on when the disk does      (this file)
//! StoreFile   one open file: journal, then tables      (file)
//!   Journal   what the tables do not hold yet: one write and one flush, and as a rule all that a knock waits for
//!   Tables    all that is remembered, and the floor: redb; written behind many knocks, and to forget
//! manage      begin · look at · reset                  (what is done while no gate has it open)
//! ```
//!
//! A disk fills up, goes read-only, is unmounted, and comes back, while the gate runs on with what it remembers. So:
//!
//! - What the running gate remembers covers what its store holds. A failed commit may have reached the disk or not;
//!   its knocks stay remembered and refused either way, and are written with the next commit that succeeds.
//! - After a failure the file is closed, and opened anew for a later commit. It is gone on with only when the last
//!   commit in it is of this run, and not older than the last that was durable: not a new store, not a copy from a
//!   backup, not one that another gate has written to.
//! - A commit counts only if the path still leads to the file it went to. What is written to a deleted file is durable
//!   and forgotten all the same.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tracing::{error, info};

use super::gate::{Memory, Purge, Record};
use crate::clock::Now;

mod error;
mod file;
mod journal;
mod manage;
mod tables;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use manage::prepare;
pub(crate) use manage::{Condition, FILE, Reset, examine, path_in, reset};

use file::StoreFile;
use journal::Position;
use tables::{Mark, Run};

/// A store that failed is tried again with the first knock after so much time: a disk that is full or dead is not
/// asked for every knock.
const RETRY: Duration = Duration::from_secs(2);
/// Knocks that could not be recorded and are to be written later, at the most; about 5 MB.
const OWED: usize = 65_536;

/// The replay store of one gate. The file is locked: two gates cannot share it by mistake.
pub struct Store {
    path: PathBuf,
    /// Closed while it cannot be used.
    file: Option<StoreFile>,
    run: Run,
    /// The last commit that is known to be durable.
    durable: Position,
    /// The number of the last commit that was tried. None is tried twice by this run, not in another file either.
    tried: u64,
    trouble: Option<Trouble>,
    /// Knocks that were refused because they could not be recorded. Without them in the store, the first replay after
    /// a restart would be as good as a new knock.
    owed: Vec<Record>,
}

/// The store cannot be used at the moment.
struct Trouble {
    /// What the log was told last.
    told: String,
    retry_at: Instant,
    out_of_reach: bool,
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

impl Store {
    /// Opens the store in `folder`, and reads what it remembers: as remembered since `now`. It has to be there:
    /// [`prepare`] sees to that.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be made, locked or read, or is damaged. It is never replaced.
    pub fn open(folder: &Path, now: Now) -> Result<(Self, Memory), StoreError> {
        let path = path_in(folder);
        let failed = |cause| StoreError::Io { path: path.clone(), cause };
        let mut run = [0; 8];
        SystemRandom::new()
            .fill(&mut run)
            .map_err(|_| failed(io::Error::other("the system gives no random bytes")))?;
        let file = StoreFile::open(&path)?;
        let memory = file.read(now.boot)?;
        let durable = file.position();
        let tried = durable.mark.map_or(0, |last| last.number);
        let mut store = Self { path, file: Some(file), run, durable, tried, trouble: None, owed: vec![] };
        // From now on it is this run's.
        store.write(&[], StoreFile::settle)?;
        Ok((store, memory))
    }

    /// Writes records, and forgets what may be forgotten, in one durable commit. `None` when that failed: nothing of
    /// it is to have any effect then. Why it failed is logged when it begins, and when it is over.
    pub fn commit<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
        purge: Option<&Purge>,
    ) -> Option<Receipt> {
        let new: Vec<_> = records.into_iter().collect();
        let too_early = self.trouble.as_ref().is_some_and(|trouble| Instant::now() < trouble.retry_at);
        if !too_early {
            match self.write(&new, |file, mark, records| file.commit(mark, records, purge)) {
                Ok(()) => {
                    if self.trouble.take().is_some() {
                        info!("knocks are recorded again");
                    }
                    return Some(Receipt(()));
                }
                Err(error) => self.shut(&error),
            }
        }
        let room = OWED.saturating_sub(self.owed.len());
        self.owed.extend(new.into_iter().take(room).cloned());
        None
    }

    /// Whether this process may not open the file: another disk was mounted in the place of the one that it was confined
    /// to. Only another process can go on there.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.out_of_reach)
    }

    /// Has the tables take over what the journal holds, where all damage is noticed: some time behind a commit, since they
    /// take longer than a knock should wait, but not much.
    pub(crate) fn settle(&mut self) {
        if self.file.as_ref().is_some_and(StoreFile::has_unwritten)
            && let Err(error) = self.write(&[], StoreFile::settle)
        {
            self.shut(&error);
        }
    }

    /// Ends with everything in the tables, what was owed too, if the disk lets it.
    ///
    /// # Errors
    /// [`StoreError`] when it does not: what the journal holds is read from there.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        let is_behind = self.file.as_ref().is_some_and(StoreFile::has_unwritten) || !self.owed.is_empty();
        if is_behind { self.write(&[], StoreFile::settle) } else { Ok(()) }
    }

    /// Any failure, in whatever state it leaves the file, leaves it closed.
    fn write(
        &mut self,
        new: &[&Record],
        write: impl FnOnce(StoreFile, Mark, &[&Record]) -> Result<StoreFile, StoreError>,
    ) -> Result<(), StoreError> {
        let file = self.file.take().map_or_else(|| self.reopen(), Ok)?;
        self.tried += 1;
        let mark = Mark { run: self.run, number: self.tried };
        let records: Vec<_> = self.owed.iter().chain(new.iter().copied()).collect();
        let file = write(file, mark, &records)?;
        // Behind the commit, not before it: a file that is still there now was there when it was written.
        file.check_place()?;
        self.owed.clear();
        self.durable = file.position();
        self.file = Some(file);
        Ok(())
    }

    fn reopen(&self) -> Result<StoreFile, StoreError> {
        let file = StoreFile::open(&self.path)?;
        let problem = match file.position().mark {
            Some(Mark { run, .. }) if run != self.run => "another gate or a reset has written to it",
            None => "it is new",
            Some(_) if file.position().is_before(self.durable) => "it is an older copy",
            Some(_) => return Ok(file),
        };
        Err(StoreError::Strange { path: self.path.clone(), problem })
    }

    /// Says why once, not for every knock: nobody who knocks can fill the log.
    fn shut(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.trouble.as_ref().is_none_or(|trouble| trouble.told != text) {
            error!(error = text, "knocks cannot be recorded: every door stays shut");
        }
        let out_of_reach =
            matches!(error, StoreError::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied);
        self.trouble = Some(Trouble { told: text, retry_at: Instant::now() + RETRY, out_of_reach });
    }
}
