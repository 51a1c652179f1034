//! From ssh to a shell: through `postern proxy` and a port that is shut, and with the port open anyway. Of Postern alone,
//! with nftables; by hyperfine, side by side in one run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use postern_tests::gate::{Gate, Settings, Variant};
use postern_tests::home::Home;
use postern_tests::netns::{Family, Network};
use postern_tests::process::succeed;
use postern_tests::programs;
use postern_tests::sshd::Sshd;
use serde_json::Value;

use super::Plan;
use crate::report::Section;

const TITLE: &str = "7. From `ssh bastion true` to its end, posternd with nftables";
const FIGURES: &[&str] = &["p50, ms", "mean, ms", "standard deviation, ms", "ratio of means"];
/// The port is open anyway: a knock before each run has opened it.
const OPEN: &str = "the port open anyway";
/// The port is shut before each run.
const PROXY: &str = "through postern proxy";
const RUNS: &str = "100";
const LIMIT: std::time::Duration = std::time::Duration::from_mins(3);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    for _ in 0..plan.rounds {
        match one_run() {
            Ok(rows) => rows.into_iter().for_each(|(what, figures)| section.enter("", what, figures)),
            Err(error) => section.miss("", PROXY, &format!("{error:#}")),
        }
    }
    section.notes.push(format!("{RUNS} runs each, by hyperfine; over a cable within this machine."));
    section
}

/// A way to the shell, and its figures.
type Row = (&'static str, Vec<Option<f64>>);

/// Both ways in one run of hyperfine.
fn one_run() -> Result<Vec<Row>> {
    let mut network = Network::new()?;
    let (host, client) = (network.host([1])?, network.host([2])?);
    let settings =
        Settings { variant: Variant::Nftables, window_secs: 600, log: "info", ..Settings::default() };
    let mut gate = Gate::new(host, settings)?;
    let sshd = Sshd::start(gate.host())?;
    gate.start(&[])?;
    let address = gate.host().ip(Family::V4).to_string();
    let added = gate.administer(&["client", "add", "bob", "--service", "ssh", "--address", &address])?;

    let home = Home::new()?;
    sshd.befriend(&home, &["bastion".to_owned(), address.clone()])?;
    let open = format!("BatchMode yes\nHost open\n    HostName {address}\n    HostKeyAlias bastion\n");
    fs::write(home.path(".ssh/config"), open)?;
    for (words, stdin) in [
        (&["postern", "import", "bastion", "-"][..], &added.stdout[..]),
        (&["postern", "ssh-config", "bastion", "--install"], b""),
    ] {
        succeed(home.command(&client, words)?, stdin, LIMIT)?;
    }
    let posternd = programs::directory()?.join("posternd");
    let shut = format!(
        "{} revoke all --socket {}",
        posternd.display(),
        gate.directory().join("admin.sock").display()
    );
    let mut words =
        vec!["hyperfine", "--shell=none", "--warmup=5", "--runs", RUNS, "--export-json", "figures"];
    words.extend(["--prepare", "postern knock bastion", "ssh open true"]);
    words.extend(["--prepare", &shut, "ssh bastion true"]);
    succeed(home.command(&client, &words)?, b"", LIMIT)?;
    figures(&home.path("figures"))
}

fn figures(file: &Path) -> Result<Vec<Row>> {
    let report: Value = serde_json::from_slice(&fs::read(file)?)?;
    let figure = |index: usize, name: &str| {
        let seconds = report["results"][index][name].as_f64();
        seconds.map(|seconds| seconds * 1000.0).context(format!("hyperfine gives no {name}"))
    };
    let open = figure(0, "mean")?;
    let row = |(index, what): (usize, &'static str)| {
        let (median, mean, deviation) =
            (figure(index, "median")?, figure(index, "mean")?, figure(index, "stddev")?);
        Ok((what, vec![Some(median), Some(mean), Some(deviation), Some(mean / open)]))
    };
    [OPEN, PROXY].into_iter().enumerate().map(row).collect()
}
