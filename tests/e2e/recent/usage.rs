//! The two commands as they are called.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Result;
use postern_proto::sequence::Steps;
use postern_tests::process::{Finished, run};
use postern_tests::programs;
use postern_tests::wait::LONG;

fn posternd(arguments: &str) -> Result<Finished> {
    let mut command = Command::new(programs::directory()?.join("posternd"));
    command.args(arguments.split(' '));
    run(command, b"", LONG)
}

#[test]
fn what_cannot_be_printed_is_bad_usage_and_prints_nothing() -> Result<()> {
    let seventeen = (1..=17).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    for (options, reason) in [
        (format!("--sequence {seventeen} --port 22/tcp"), "rules take 1 to 16 steps, these are 17"),
        ("--sequence 7000,22 --port 22/tcp".to_owned(), "the door's own port, 22/tcp, cannot be a step"),
        ("--sequence 7000,7000 --port 22/tcp".to_owned(), "comes twice in a row"),
        ("--sequence 7000 --port 22".to_owned(), "a port is a number from 1 to 65535 and a protocol"),
        ("--sequence 7000;ls --port 22/tcp".to_owned(), "is no step"),
        ("--sequence 7000 --port 22/tcp --name A;ls".to_owned(), "a name has 1 to 15 letters and digits"),
        ("--sequence 7000 --port 22/tcp --window 0s".to_owned(), "a whole number of seconds"),
        ("--sequence 7000 --port 22/tcp --timeout 11m".to_owned(), "a timeout is 10m at the most"),
    ] {
        let finished = posternd(&format!("rules recent {options}"))?;
        assert_eq!((finished.code, finished.text().as_str()), (2, ""), "{options}");
        assert!(finished.stderr.contains(reason), "{options}: {}", finished.stderr);
    }
    Ok(())
}

#[test]
fn new_sequences_print_one_a_line() -> Result<()> {
    let finished = posternd("sequence new --count 50 --steps 5")?;
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let sequences: Vec<Steps> = finished.text().lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(sequences.len(), 50);
    for sequence in &sequences {
        let steps = sequence.as_slice();
        assert_eq!(steps.iter().collect::<BTreeSet<_>>().len(), 5, "{sequence}");
        assert!(!steps.is_sorted() && !steps.iter().rev().is_sorted(), "{sequence}");
    }
    assert_eq!(sequences.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(posternd("sequence new --steps 2")?.code, 2);
    Ok(())
}
