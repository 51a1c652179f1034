//! The journal: what was committed since the tables were last written. It is the first part of the store's file. A knock
//! waits for one write here and one flush; the tables, which take two flushes of many pages, are written behind many.
//!
//! ```text
//! page    SHA-256 of the entry · its length (4, little-endian) · the entry (postcard) · zeros to the end of a page
//! entry   the tables' last mark · its number · records
//! ```
//! - An entry counts while the mark in it is the tables' own, and entries of one mark are numbered from 0. So when the
//!   tables are written, all entries count no more, at once, and nothing has to be cleared.
//! - An entry stands there twice, and either copy will do. Where neither reads, and none behind it does, its flush has not
//!   returned, and nobody was let in; where one behind it does, the journal is damaged. (What remains is damage to all from
//!   some entry on to the last. It would have to hit what came in the half second before a crash, or while the tables
//!   could not be written.)
//! - Its room is fixed and was written once: on most file systems an append changes nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::tables::Mark;
use crate::front::gate::Record;

/// How much of the file is the journal: room for 256 small entries.
pub(super) const LEN: usize = 2 << 20;
/// Where an entry may begin.
pub(super) const PAGE: usize = 4096;

/// Where the journal is.
pub(super) struct Journal {
    position: Position,
    /// Where the next entry goes. Nothing is appended before the tables were written by this process.
    end: Option<usize>,
}

/// Which commit was the last: a write of the tables, none in a new store, and so many entries of the journal behind it.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) mark: Option<Mark>,
    entries: u64,
}

impl Position {
    /// Whether it is of an earlier commit than another one of the same run.
    pub(super) fn is_before(self, other: Self) -> bool {
        let order = |position: Self| (position.mark.map(|mark| mark.number), position.entries);
        order(self) < order(other)
    }
}

impl Journal {
    /// Behind tables with this mark, which hold everything.
    pub(super) const fn behind(mark: Mark) -> Self {
        Self { position: Position { mark: Some(mark), entries: 0 }, end: Some(0) }
    }

    /// What a journal holds that tables with this mark do not.
    ///
    /// # Errors
    /// What is wrong, when it was damaged, or the tables were.
    pub(super) fn read(bytes: &[u8], last: Option<Mark>) -> Result<(Self, Vec<Record>), &'static str> {
        let mut entries = BTreeMap::new();
        for entry in (0..bytes.len()).step_by(PAGE).filter_map(|at| decode(&bytes[at..])) {
            let ((after, number), records) = split(entry).ok_or("an entry of its journal does not read")?;
            if Some(after) == last {
                let records: Vec<Record> =
                    postcard::from_bytes(records).map_err(|_| "a record of its journal does not read")?;
                entries.insert(number, records);
            } else if last.is_none_or(|last| after.number > last.number) {
                return Err("its tables are older than its journal");
            }
        }
        if !entries.keys().copied().eq(0..entries.len() as u64) {
            return Err("its journal has lost an entry");
        }
        let position = Position { mark: last, entries: entries.len() as u64 };
        Ok((Self { position, end: None }, entries.into_values().flatten().collect()))
    }

    /// The last commit.
    pub(super) const fn position(&self) -> Position {
        self.position
    }

    /// Appends an entry durably; `false` when there is no room for it.
    pub(super) fn append(&mut self, file: &File, records: &[&Record]) -> io::Result<bool> {
        let Position { mark, entries } = self.position;
        let (Some(mark), Some(at)) = (mark, self.end) else { return Ok(false) };
        // Beside one another, they are one write for the disk.
        let copies = encode(mark, entries, records)?.repeat(2);
        let end = at + copies.len();
        if end > LEN {
            return Ok(false);
        }
        file.write_all_at(&copies, at as u64)?;
        file.sync_data()?;
        (self.position.entries, self.end) = (entries + 1, Some(end));
        Ok(true)
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

/// The entry that begins here, if a whole one does.
fn decode(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, bytes) = bytes.split_first_chunk::<SHA256_OUTPUT_LEN>()?;
    let (len, bytes) = bytes.split_first_chunk()?;
    let entry = bytes.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    (digest(&SHA256, entry).as_ref() == sum).then_some(entry)
}

/// An entry's place, and its records, which only matter where that place does.
fn split(entry: &[u8]) -> Option<((Mark, u64), &[u8])> {
    postcard::take_from_bytes(entry).ok()
}
