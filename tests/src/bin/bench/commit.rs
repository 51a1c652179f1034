//! What a durable commit costs on the disk of the state, by itself: the floor under every knock that is recorded before it
//! opens. A store like the gate's, with the gate's settings and tables.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use postern_tests::knocks::random;
use redb::{Database, Durability, TableDefinition};

const NONCES: TableDefinition<[u8; 32], u64> = TableDefinition::new("nonces");
const CLOSED: TableDefinition<([u8; 8], &str), u64> = TableDefinition::new("closed");
const MARK: TableDefinition<(), ([u8; 8], u64)> = TableDefinition::new("mark");
const CACHE: usize = 8 << 20;

pub(crate) struct Store {
    database: Database,
    number: u64,
}

impl Store {
    pub(crate) fn below(folder: &Path) -> Result<Self> {
        let file = folder.join("floor.redb");
        let mut store = Self { database: Database::builder().set_cache_size(CACHE).create(file)?, number: 0 };
        store.commit()?;
        Ok(store)
    }

    /// Records one knock; gives how many milliseconds it took.
    pub(crate) fn commit(&mut self) -> Result<f64> {
        self.number += 1;
        let begun = Instant::now();
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(true);
        {
            let mut nonces = transaction.open_table(NONCES)?;
            transaction.open_table(CLOSED)?;
            nonces.insert(random::<32>(), self.number)?;
        }
        transaction.open_table(MARK)?.insert((), ([0; 8], self.number))?;
        transaction.commit()?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}
