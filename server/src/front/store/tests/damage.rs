//! A store whose file was damaged opens with all that it held, or not at all.

use std::fs;

use postern_proto::ServiceName;

use super::*;
use crate::front::store::file::{StoreFile, guard};

/// The byte of redb's header whose lowest bit says which of the last two commits is the last: the one place where
/// damage cannot be told from a commit that never was.
const LAST_COMMIT_FLAG: usize = 9;

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
    /// As a gate that was killed leaves it.
    killed: Vec<u8>,
    /// As a gate that was stopped leaves it.
    stopped: Vec<u8>,
}

/// A store after many commits, a purge among them.
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
    let mut records: Vec<_> = (0..200).map(record).collect();
    let store = bench.store.as_mut().unwrap();
    for batch in records.chunks(10) {
        store.commit(batch, None).unwrap();
    }
    let forgotten: Vec<_> = records.drain(..20).collect();
    let purge = Purge { keys: forgotten.iter().map(|record| record.key).collect(), floor: forgotten[19].at };
    store.commit([], Some(&purge)).unwrap();
    let killed = fs::read(bench.file()).unwrap();
    bench.store = None;
    Sample { records, killed, stopped: fs::read(bench.file()).unwrap() }
}

/// What a disk, or somebody, may do to a file.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    const PAGE: usize = 4096;
    let at = random.below(bytes.len());
    let (page, other) = (at / PAGE * PAGE, random.below(bytes.len() / PAGE) * PAGE);
    match random.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.extend(vec![0; at]),
        2 => bytes[at / 512 * 512..][..512].fill(0),
        3 => bytes.copy_within(other..other + PAGE, page),
        4 => (0..PAGE).for_each(|i| bytes[page + i] = u8::try_from(random.below(256)).unwrap()),
        5 => bytes[at % 320] = u8::try_from(random.below(256)).unwrap(),
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
        if bytes.get(LAST_COMMIT_FLAG) != good.get(LAST_COMMIT_FLAG) {
            continue;
        }
        let memory = StoreFile::open_copy(Path::new("copy"), &bytes).and_then(|file| file.read(now().boot));
        match memory {
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

#[test]
fn a_database_that_panics_is_a_damaged_one() {
    let error = guard::<()>(Path::new("copy"), || panic!("an assertion about a page")).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}
