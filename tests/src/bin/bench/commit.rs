//! What a durable commit costs on the disk of the state, by itself: the floor under every knock that is recorded before it
//! opens. What the gate writes for one knock, and one flush, in a file like its journal.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use postern_tests::knocks::random;

const JOURNAL: usize = 2 << 20;
/// Two pages: an entry, and its copy.
const ENTRY: usize = 8192;

pub(crate) struct Journal {
    file: File,
    end: usize,
}

impl Journal {
    pub(crate) fn below(folder: &Path) -> Result<Self> {
        let file = File::create_new(folder.join("floor.journal"))?;
        file.write_all_at(&vec![0; JOURNAL], 0)?;
        file.sync_all()?;
        Ok(Self { file, end: 0 })
    }

    /// Records one knock; gives how many milliseconds it took.
    pub(crate) fn commit(&mut self) -> Result<f64> {
        let entry = random::<ENTRY>();
        let begun = Instant::now();
        self.file.write_all_at(&entry, self.end as u64)?;
        self.file.sync_data()?;
        self.end = (self.end + ENTRY) % JOURNAL;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}
