//! The journal: what was committed since the tables were last written. It is the first part of the store's file. A knock
//! waits for one write here and one flush; the tables, which take two flushes of many pages, are written behind many.
//!
//! ```text
//! page    SHA-256 of the entry · its length (4, little-endian) · the entry (postcard) · zeros to the end of a page
//! entry   the tables' last mark · its number · records
//! ```
//! - An entry counts while the mark in it is the tables' own, and entries of one mark are numbered from 0. So when the
//!   tables are written, all entries count no more, at once, and nothing has to be cleared.
//! - An entry stands there twice, and either copy will do. Where neither reads, and it is the last one, its flush has not
//!   returned, and nobody was let in; where there is another one behind it, the journal is damaged. (What remains is damage
//!   to both copies of the very last one.)
//! - Its room is fixed and was written once: an append changes nothing that a file system would have to note.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::tables::Mark;
use crate::front::gate::Record;

/// How much of the file is the journal: room for 256 small entries, or for some 25,000 knocks in larger ones.
pub(super) const LEN: usize = 2 << 20;
const PAGE: usize = 4096;

/// Where the next entry goes.
#[derive(Default)]
pub(super) struct Journal {
    /// The tables' mark, once they were written by this process; nothing is appended before.
    after: Option<Mark>,
    entries: u64,
    end: usize,
}

impl Journal {
    /// Begins it again, behind tables that hold everything.
    pub(super) const fn behind(mark: Mark) -> Self {
        Self { after: Some(mark), entries: 0, end: 0 }
    }

    /// Appends an entry durably; `false` when there is no room for it.
    pub(super) fn append(&mut self, file: &File, records: &[&Record]) -> io::Result<bool> {
        let Some(after) = self.after else { return Ok(false) };
        let entry = encode(after, self.entries, records)?;
        if self.end + 2 * entry.len() > LEN {
            return Ok(false);
        }
        file.write_all_at(&entry.repeat(2), self.end as u64)?;
        file.sync_data()?;
        self.end += 2 * entry.len();
        self.entries += 1;
        Ok(true)
    }
}

/// What the journal holds that the tables do not, by their last mark.
///
/// # Errors
/// What is wrong, when it was damaged.
pub(super) fn read(journal: &[u8], last: Option<Mark>) -> Result<BTreeMap<u64, Vec<Record>>, &'static str> {
    let mut entries = BTreeMap::new();
    let pages = (0..journal.len()).step_by(PAGE);
    for (after, number, records) in pages.filter_map(|at| decode(&journal[at..])) {
        if Some(after) == last {
            entries.insert(number, records);
        } else if last.is_none_or(|last| after.number > last.number) {
            return Err("its tables are older than its journal");
        }
    }
    if entries.keys().copied().eq(0..entries.len() as u64) {
        Ok(entries)
    } else {
        Err("its journal has lost an entry")
    }
}

/// In whole pages.
fn encode(after: Mark, number: u64, records: &[&Record]) -> io::Result<Vec<u8>> {
    let entry = postcard::to_allocvec(&(after, number, records)).map_err(io::Error::other)?;
    let len = u32::try_from(entry.len()).map_err(io::Error::other)?;
    let mut bytes = digest(&SHA256, &entry).as_ref().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(entry);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    Ok(bytes)
}

/// The entry that begins here, if one does.
fn decode(bytes: &[u8]) -> Option<(Mark, u64, Vec<Record>)> {
    let (sum, bytes) = bytes.split_first_chunk::<SHA256_OUTPUT_LEN>()?;
    let (len, bytes) = bytes.split_first_chunk()?;
    let entry = bytes.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    (digest(&SHA256, entry).as_ref() == sum).then(|| postcard::from_bytes(entry).ok()).flatten()
}
