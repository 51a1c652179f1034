//! The store on a disk that does what disks do: nothing that was recorded is lost without a word.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use postern_proto::{ClientId, Tolerance, WallTime};
use tempfile::{TempDir, tempdir};

use super::*;
use crate::clock::BootTime;
use crate::files::make_private;

mod damage;

/// When the stores of these tests begin.
const BEGIN: WallTime = WallTime::from_secs(1_000);

fn now() -> Now {
    Now { wall: BEGIN, boot: BootTime::from_boot(Duration::ZERO) }
}

fn record(nonce: u8, at: u64, closes: &[&str]) -> Record {
    Record {
        key: (ClientId::from_bytes([1; 8]), [nonce; 24]),
        at: WallTime::from_secs(at),
        closes: closes.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

/// A store in a folder of its own.
struct Bench {
    folder: TempDir,
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        prepare(folder.path(), now().wall).unwrap();
        let (store, _) = Store::open(folder.path(), now()).unwrap();
        Self { folder, store: Some(store) }
    }

    fn file(&self) -> PathBuf {
        path_in(self.folder.path())
    }

    fn aside(&self) -> PathBuf {
        self.folder.path().join("aside")
    }

    /// Whether a commit succeeds, as if the last failure was long ago.
    fn records(&mut self, record: &Record) -> bool {
        let store = self.store.as_mut().unwrap();
        if let Some(trouble) = &mut store.trouble {
            trouble.retry_at = Instant::now();
        }
        store.commit([record], None).is_some()
    }

    fn trouble(&self) -> &str {
        &self.store.as_ref().unwrap().trouble.as_ref().unwrap().told
    }

    /// What a gate that starts now remembers.
    fn memory(&mut self) -> Memory {
        self.store = None;
        let (store, memory) = Store::open(self.folder.path(), now()).unwrap();
        self.store = Some(store);
        memory
    }
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let mut bench = Bench::new();
    assert!(bench.memory().is_empty());
    let (a, b) = (record(1, 1_100, &[]), record(2, 1_200, &["ssh"]));
    bench.store.as_mut().unwrap().commit([&a, &b], None).unwrap();

    let memory = bench.memory();
    assert!(memory.contains(&a.key) && memory.contains(&b.key));
    assert!(memory.is_closed(b.key.0, &b.closes[0], WallTime::from_secs(1_200)));
    assert!(!memory.is_closed(b.key.0, &b.closes[0], WallTime::from_secs(1_201)));
    let purge = Purge { keys: vec![a.key], floor: WallTime::from_secs(1_100) };
    bench.store.as_mut().unwrap().commit([], Some(&purge)).unwrap();

    let memory = bench.memory();
    assert!(!memory.contains(&a.key) && memory.contains(&b.key));
    assert!(memory.is_below_floor(WallTime::from_secs(1_100)));
    assert!(!memory.is_below_floor(WallTime::from_secs(1_101)));
}

/// Whatever is in the journal and what in the tables, a gate that starts remembers all of it; so does one behind that.
#[test]
fn commits_without_end_are_all_there_after_a_kill() {
    let mut bench = Bench::new();
    let all: Vec<_> = (0..3_000_u32)
        .map(|number| {
            let mut record = record(0, 1_100, &[]);
            record.key.1[..4].copy_from_slice(&number.to_le_bytes());
            record
        })
        .collect();
    let (small, large) = all.split_at(600);
    for record in small {
        assert!(bench.records(record));
    }
    // More than a few of them have room for.
    for batch in large.chunks(600) {
        for _ in 0..12 {
            bench.store.as_mut().unwrap().commit(batch, None).unwrap();
        }
    }
    let killed = fs::read(bench.file()).unwrap();
    bench.store = None;
    fs::write(bench.file(), killed).unwrap();
    for _ in 0..2 {
        let memory = bench.memory();
        assert_eq!(memory.knocks(), all.len());
        assert!(all.iter().all(|record| memory.contains(&record.key)));
    }
}

#[test]
fn knocks_made_before_a_new_store_are_stale() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        let memory = bench.memory();
        assert!(
            memory.is_below_floor(BEGIN) && !memory.is_below_floor(BEGIN.after(Duration::from_micros(1)))
        );
    }
    assert_eq!(fs::metadata(bench.file()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 1, "nothing else is left in the folder");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_kept() {
    let journal = vec![0; journal::LEN];
    for content in [&b"this is not a store, but it is somebody's file"[..], b"", &journal] {
        let folder = tempdir().unwrap();
        let path = path_in(folder.path());
        fs::write(&path, content).unwrap();
        for error in [Store::open(folder.path(), now()).err().unwrap(), examine(folder.path()).unwrap_err()] {
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("replay.redb") && text.contains("posternd state reset"), "{text}");
        }
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn two_gates_cannot_have_it_open() {
    let bench = Bench::new();
    let error = Store::open(bench.folder.path(), now()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
}

#[test]
fn a_commit_to_a_deleted_file_is_none() {
    let mut bench = Bench::new();
    assert!(bench.records(&record(1, 1_100, &[])));
    fs::remove_file(bench.file()).unwrap();
    assert!(!bench.records(&record(2, 1_100, &[])), "written to a file without a name");
    assert!(bench.trouble().contains("it is gone"), "{}", bench.trouble());
    assert!(!bench.records(&record(3, 1_100, &[])));
    assert!(!bench.file().exists(), "the running gate makes no new one");

    let other = tempdir().unwrap();
    prepare(other.path(), now().wall).unwrap();
    drop(Store::open(other.path(), now()).unwrap());
    fs::rename(path_in(other.path()), bench.file()).unwrap();
    assert!(!bench.records(&record(4, 1_100, &[])));
    assert!(bench.trouble().contains("another gate"), "{}", bench.trouble());
    fs::remove_file(bench.file()).unwrap();
    prepare(bench.folder.path(), BEGIN).unwrap();
    assert!(!bench.records(&record(5, 1_100, &[])));
    assert!(bench.trouble().contains("it is new"), "{}", bench.trouble());
}

#[test]
fn what_failed_is_written_when_the_disk_is_back() {
    let mut bench = Bench::new();
    fs::rename(bench.file(), bench.aside()).unwrap();
    let (failed, waiting, good) = (record(1, 1_100, &[]), record(2, 1_100, &["ssh"]), record(3, 1_100, &[]));
    assert!(!bench.records(&failed), "its path leads nowhere");
    fs::rename(bench.aside(), bench.file()).unwrap();
    assert!(bench.store.as_mut().unwrap().commit([&waiting], None).is_none(), "not tried again at once");
    assert!(bench.records(&good));
    assert!(bench.store.as_ref().unwrap().trouble.is_none());

    let memory = bench.memory();
    for knock in [&failed, &waiting, &good] {
        assert!(memory.contains(&knock.key));
    }
    assert!(memory.is_closed(waiting.key.0, &waiting.closes[0], waiting.at));
}

#[test]
fn what_is_owed_is_written_at_the_end() {
    let mut bench = Bench::new();
    fs::rename(bench.file(), bench.aside()).unwrap();
    let owed = record(1, 1_100, &[]);
    assert!(!bench.records(&owed));
    fs::rename(bench.aside(), bench.file()).unwrap();
    bench.store.take().unwrap().close().unwrap();
    assert!(bench.memory().contains(&owed.key));
}

#[test]
fn an_older_copy_of_the_store_is_not_gone_on_with() {
    let mut bench = Bench::new();
    assert!(bench.records(&record(1, 1_100, &[])));
    fs::copy(bench.file(), bench.aside()).unwrap();
    assert!(bench.records(&record(2, 1_100, &[])));
    let whole = bench.folder.path().join("whole");
    fs::rename(bench.file(), &whole).unwrap();
    fs::rename(bench.aside(), bench.file()).unwrap();
    assert!(!bench.records(&record(3, 1_100, &[])));
    assert!(bench.trouble().contains("another file is in its place"), "{}", bench.trouble());
    assert!(!bench.records(&record(4, 1_100, &[])));
    assert!(bench.trouble().contains("an older copy"), "{}", bench.trouble());
    fs::rename(&whole, bench.file()).unwrap();
    assert!(bench.records(&record(5, 1_100, &[])), "the right one is back");
}

/// A copy is gone on with, and holds what came then; the file that it was made of, which was written to as often, does not.
#[test]
fn two_files_of_one_run_are_told_apart() {
    let mut bench = Bench::new();
    assert!(bench.records(&record(1, 1_100, &[])));
    fs::copy(bench.file(), bench.aside()).unwrap();
    let first = bench.folder.path().join("first");
    fs::rename(bench.file(), &first).unwrap();
    fs::rename(bench.aside(), bench.file()).unwrap();
    let purge = Purge { keys: vec![], floor: BEGIN };
    assert!(bench.store.as_mut().unwrap().commit([], Some(&purge)).is_none(), "written to the first file");
    let second = record(2, 1_100, &[]);
    assert!(bench.records(&second), "{}", bench.trouble());
    fs::rename(bench.file(), bench.aside()).unwrap();
    fs::rename(&first, bench.file()).unwrap();
    for nonce in 3..=5 {
        assert!(!bench.records(&record(nonce, 1_100, &[])));
    }
    assert!(bench.trouble().contains("an older copy"), "{}", bench.trouble());
    fs::rename(bench.aside(), bench.file()).unwrap();
    assert!(bench.records(&record(6, 1_100, &[])));
    assert!(bench.memory().contains(&second.key));
}

#[test]
fn a_store_that_another_gate_has_written_to_is_not_gone_on_with() {
    let mut bench = Bench::new();
    fs::rename(bench.file(), bench.aside()).unwrap();
    assert!(!bench.records(&record(1, 1_100, &[])));
    fs::rename(bench.aside(), bench.file()).unwrap();
    let (mut other, _) = Store::open(bench.folder.path(), now()).unwrap();
    assert!(!bench.records(&record(2, 1_100, &[])));
    assert!(bench.trouble().contains("another process has it open"), "{}", bench.trouble());
    other.commit([&record(3, 1_100, &[])], None).unwrap();
    drop(other);
    assert!(!bench.records(&record(4, 1_100, &[])), "what the other gate accepted is not remembered here");
    assert!(bench.trouble().contains("another gate"), "{}", bench.trouble());
}

/// A purge may reach the disk although its commit failed. The next one has a lower floor when other knocks are in it.
#[test]
fn the_floor_on_the_disk_is_never_lowered() {
    let mut bench = Bench::new();
    let (a, b) = (record(1, 1_200, &[]), record(2, 1_100, &[]));
    bench.store.as_mut().unwrap().commit([&a, &b], None).unwrap();
    fs::rename(bench.file(), bench.aside()).unwrap();
    let store = bench.store.as_mut().unwrap();
    assert!(store.commit([], Some(&Purge { keys: vec![a.key], floor: a.at })).is_none());
    fs::rename(bench.aside(), bench.file()).unwrap();
    assert!(bench.records(&record(3, 1_300, &[])));
    let store = bench.store.as_mut().unwrap();
    store.commit([], Some(&Purge { keys: vec![b.key], floor: b.at })).unwrap();

    let memory = bench.memory();
    assert!(!memory.contains(&a.key) && memory.is_below_floor(a.at));
}

#[test]
fn a_reset_keeps_the_old_store_and_shuts_out_what_it_forgets() {
    let mut bench = Bench::new();
    let (tolerance, used) = (Tolerance::default(), record(1, 1_059, &[]));
    assert!(bench.records(&used));
    let error = reset(bench.folder.path(), BEGIN, tolerance).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    bench.store = None;
    let before = fs::read(bench.file()).unwrap();

    let Reset { kept, floor } = reset(bench.folder.path(), BEGIN, tolerance).unwrap();
    let kept = kept.unwrap();
    assert_eq!(fs::read(&kept).unwrap(), before);
    assert_eq!(floor, WallTime::from_secs(1_060));
    let memory = bench.memory();
    assert!(memory.is_empty() && memory.is_below_floor(used.at));
    assert_eq!(fs::metadata(bench.file()).unwrap().permissions().mode() & 0o777, 0o600);

    bench.store = None;
    let current = fs::read(bench.file()).unwrap();
    let again = reset(bench.folder.path(), BEGIN, tolerance).unwrap_err();
    assert!(again.to_string().contains("exists"), "a second reset in the same second: {again}");
    assert_eq!((fs::read(&kept).unwrap(), fs::read(bench.file()).unwrap()), (before, current));
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 2, "nothing else is left in the folder");
}

#[test]
fn a_look_leaves_the_store_as_it_is() {
    let mut bench = Bench::new();
    assert!(bench.records(&record(1, 1_100, &[])));
    assert_eq!(examine(bench.folder.path()).unwrap(), Condition::InUse);
    // As after a kill: nobody has closed it.
    let killed = fs::read(bench.file()).unwrap();
    bench.store = None;
    fs::write(bench.file(), &killed).unwrap();
    assert_eq!(examine(bench.folder.path()).unwrap(), Condition::Sound { knocks: 1 });
    assert_eq!(fs::read(bench.file()).unwrap(), killed);
    fs::remove_file(bench.file()).unwrap();
    assert_eq!(examine(bench.folder.path()).unwrap(), Condition::Missing);
}

#[test]
fn the_folders_above_are_made() {
    let folder = tempdir().unwrap();
    let deep = folder.path().join("lib").join("postern").join("front");
    make_private(&deep).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&deep), mode(deep.parent().unwrap())), (0o700, 0o755));
}
