//! No flood keeps a valid knock out, or fills memory or log (P7). These are short, at rates that a gate can stand that
//! was not optimized and does not have the machine to itself; the whole measure is
//! `bash tests/bench junk copies`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use postern_tests::flood::{Flood, Kind};

const WARM_UP: Duration = Duration::from_secs(2);
const LENGTH: Duration = Duration::from_secs(5);

#[test]
fn random_datagrams_keep_no_knock_out() -> Result<()> {
    flood(Kind::Junk, 20_000)
}

#[test]
fn datagrams_of_other_lengths_keep_no_knock_out() -> Result<()> {
    flood(Kind::WrongLength, 20_000)
}

#[test]
fn copies_of_recorded_knocks_keep_no_knock_out() -> Result<()> {
    flood(Kind::Copies, 3_000)
}

fn flood(kind: Kind, per_second: u32) -> Result<()> {
    // Two at once would be one flood of both.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let report = Flood { kind, per_second, warm_up: WARM_UP, length: LENGTH }.run()?;
    println!("{report}");
    report.check()
}
