//! The benchmarks run: a gate and a fwknopd are let knock at, and the figures are figures.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::succeed;
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(2);

#[test]
fn a_short_round_measures_both_contenders() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("bench.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args([
        "latency",
        "--rounds",
        "1",
        "--knocks",
        "5",
        "--only",
        "posternd-iptables-nft,fwknopd-udp",
    ]);
    command.arg("--json").arg(&json);
    let table = succeed(command, b"", LIMIT)?.text();

    let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let rows = report["sections"][0]["rows"].as_array().context("rows")?;
    let medians: BTreeMap<_, _> =
        rows.iter().map(|row| (row["contender"].as_str(), row["rounds"][0][0].as_f64())).collect();
    let names: Vec<_> = medians.keys().flatten().copied().collect();
    ensure!(names == ["fwknopd-udp", "posternd-iptables-nft"], "measured: {names:?}\n{table}");
    for (name, median) in medians {
        let median = median.with_context(|| format!("{name:?} was not measured:\n{table}"))?;
        ensure!((0.05..5_000.0).contains(&median), "{name:?} opens in {median} ms\n{table}");
        ensure!(table.contains(name.unwrap_or_default()), "{name:?} is not in the table:\n{table}");
    }
    Ok(())
}
