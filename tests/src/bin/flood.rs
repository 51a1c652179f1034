//! That no flood keeps a knock out, and what each kind costs a gate: half a minute of each, behind a warm-up.
//!
//! ```text
//! cargo run --release -p postern-tests --bin flood
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::flood::{Flood, Kind};

const WARM_UP: Duration = Duration::from_secs(5);
const LENGTH: Duration = Duration::from_secs(30);
const FLOODS: [(Kind, u32); 3] =
    [(Kind::Junk, 100_000), (Kind::WrongLength, 100_000), (Kind::Copies, 20_000)];

fn main() -> Result<()> {
    let mut failed = 0;
    for (kind, per_second) in FLOODS {
        let report = Flood { kind, per_second, warm_up: WARM_UP, length: LENGTH }.run()?;
        println!("{report}");
        if let Err(error) = report.check() {
            println!("  NOT AS IT SHOULD BE: {error}");
            failed += 1;
        }
    }
    ensure!(failed == 0, "{failed} of {} floods did what none may", FLOODS.len());
    Ok(())
}
