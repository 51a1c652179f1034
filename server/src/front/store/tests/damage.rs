//! A store whose file was damaged opens with all that it held, or not at all.

use std::fs;

use postern_proto::ServiceName;

use super::*;
use crate::front::store::file::read_copy;
use crate::front::store::journal::{self, PAGE};
use crate::front::store::tables::guard;

/// The byte of redb's header whose lowest bit says which of the last two commits is the last: the one place where
/// damage cannot be told from a commit that never was, until the journal goes on behind that commit.
const LAST_COMMIT_FLAG: usize = journal::LEN + 9;

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }
}

struct Sample {
    records: Vec<Record>,
    /// As a gate that was killed leaves it: some of it is in the journal alone.
    killed: Vec<u8>,
    /// As a gate that was stopped leaves it.
    stopped: Vec<u8>,
}

/// A store after many commits, a purge before the last of them.
fn sample() -> Sample {
    let mut bench = Bench::new();
    let record = |number: usize| {
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let closes: Vec<ServiceName> =
            if number.is_multiple_of(7) { vec![format!("s{number}").parse().unwrap()] } else { vec![] };
        let client = ClientId::from_bytes([u8::try_from(number % 3).unwrap(); 8]);
        Record { key: (client, nonce), at: WallTime::from_secs(2_000 + number as u64), closes }
    };
    let mut records: Vec<_> = (0..400).map(record).collect();
    let (before, behind) = records.split_at(200);
    let store = bench.store.as_mut().unwrap();
    for batch in before.chunks(10) {
        store.commit(batch, None).unwrap();
    }
    let forgotten = &before[..20];
    let purge = Purge { keys: forgotten.iter().map(|record| record.key).collect(), floor: forgotten[19].at };
    store.commit([], Some(&purge)).unwrap();
    // Small ones, and one of two pages.
    for batch in [&behind[..1], &behind[1..120], &behind[120..199], &behind[199..]] {
        store.commit(batch, None).unwrap();
    }
    let killed = fs::read(bench.file()).unwrap();
    bench.store.as_mut().unwrap().settle();
    bench.store = None;
    records.drain(..20);
    Sample { records, killed, stopped: fs::read(bench.file()).unwrap() }
}

/// What a disk, or somebody, may do to a file.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    // Every other time where there is something of the journal.
    let bound = if random.below(2) == 0 { 10 * PAGE } else { bytes.len() };
    let at = random.below(bound);
    let (page, other) = (at / PAGE * PAGE, random.below(bytes.len() / PAGE) * PAGE);
    match random.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.extend(vec![0; at]),
        2 => bytes[at / 512 * 512..][..512].fill(0),
        3 => bytes.copy_within(other..other + PAGE, page),
        4 => (0..PAGE).for_each(|i| bytes[page + i] = u8::try_from(random.below(256)).unwrap()),
        5 => bytes[journal::LEN + at % 320] = u8::try_from(random.below(256)).unwrap(),
        _ => bytes[at] ^= 1 << random.below(8),
    }
    format!("at {at}, other {other}")
}

#[test]
fn a_damaged_store_opens_whole_or_not_at_all() {
    let Sample { records, killed, stopped } = sample();
    let mut random = Random(0x5eed);
    let (mut whole, mut refused) = (0, 0);
    for round in 0..1_500 {
        let good = if round % 2 == 0 { &killed } else { &stopped };
        let mut bytes = good.clone();
        let what = damage(&mut bytes, &mut random);
        if round % 2 == 1 && bytes.get(LAST_COMMIT_FLAG) != good.get(LAST_COMMIT_FLAG) {
            continue;
        }
        match read_copy(Path::new("copy"), &bytes, now().boot) {
            Ok(memory) => {
                whole += 1;
                assert_eq!(memory.knocks(), records.len(), "round {round}, {what}");
                for record in &records {
                    assert!(memory.contains(&record.key), "round {round}, {what}");
                    let closed = |name| memory.is_closed(record.key.0, name, record.at);
                    assert!(record.closes.iter().all(closed), "round {round}, {what}");
                }
                assert!(memory.is_below_floor(WallTime::from_secs(2_019)), "round {round}, {what}");
            }
            Err(StoreError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("round {round}, {what}: {error}"),
        }
    }
    assert!(whole > 100 && refused > 100, "{whole} opened, {refused} were refused");
}

/// The same through the file, which a refusal leaves as it is.
#[test]
fn a_damaged_file_stays_as_it_is() {
    let Sample { records, killed, stopped } = sample();
    let (folder, mut random) = (tempdir().unwrap(), Random(0xf11e));
    let path = path_in(folder.path());
    let mut refused = 0;
    for round in 0..300 {
        let good = if round % 2 == 0 { &killed } else { &stopped };
        let mut bytes = good.clone();
        let what = damage(&mut bytes, &mut random);
        if bytes.get(LAST_COMMIT_FLAG) != good.get(LAST_COMMIT_FLAG) {
            continue;
        }
        fs::write(&path, &bytes).unwrap();
        match Store::open(folder.path(), now()) {
            Ok((_, memory)) => assert_eq!(memory.knocks(), records.len(), "round {round}, {what}"),
            Err(StoreError::Damaged { .. }) => {
                refused += 1;
                assert!(fs::read(&path).unwrap() == bytes, "round {round}, {what}: the file was changed");
            }
            Err(error) => panic!("round {round}, {what}: {error}"),
        }
    }
    assert!(refused > 10, "{refused} were refused");
}

/// Where tables go back to the commit before, whether by damage or by a copy, what the journal holds shows it.
#[test]
fn tables_that_are_older_than_their_journal_are_noticed() {
    let mut bench = Bench::new();
    assert!(bench.records(&record(1, 1_100, &[])));
    let older = fs::read(bench.file()).unwrap();
    bench.store.as_mut().unwrap().settle();
    assert!(bench.records(&record(2, 1_100, &[])));
    let mut bytes = fs::read(bench.file()).unwrap();
    assert_eq!(read_copy(Path::new("copy"), &bytes, now().boot).unwrap().knocks(), 2);
    bytes.truncate(journal::LEN);
    bytes.extend(&older[journal::LEN..]);
    let error = read_copy(Path::new("copy"), &bytes, now().boot).err().unwrap();
    assert!(error.to_string().contains("its tables are older than its journal"), "{error}");
}

/// An entry whose flush has not returned, in whatever part it is on the disk, is none; a lost one before it is damage.
#[test]
fn only_the_last_entry_may_be_torn() {
    let mut bench = Bench::new();
    for nonce in 1..=3 {
        assert!(bench.records(&record(nonce, 1_100, &[])));
    }
    let good = fs::read(bench.file()).unwrap();
    let knocks = |wiped: &[usize]| {
        let mut bytes = good.clone();
        for page in wiped {
            bytes[page * PAGE..][..PAGE / 2].fill(0);
        }
        read_copy(Path::new("copy"), &bytes, now().boot).map(|memory| memory.knocks())
    };
    for whole in [&[][..], &[0], &[1], &[0, 3, 5]] {
        assert_eq!(knocks(whole).unwrap(), 3);
    }
    assert_eq!(knocks(&[4, 5]).unwrap(), 2);
    for lost in [[0, 1], [2, 3]] {
        let error = knocks(&lost).unwrap_err();
        assert!(error.to_string().contains("its journal has lost an entry"), "{error}");
    }
}

#[test]
fn a_database_that_panics_is_a_damaged_one() {
    let error = guard::<()>(Path::new("copy"), || panic!("an assertion about a page")).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}
