//! `posternd sequence new`: sequences that nobody has used yet.

use std::collections::BTreeSet;
use std::io::{self, Write};

use anyhow::Context;
use postern_proto::sequence::Steps;
use postern_proto::{Port, Protocol};

use super::ports;
use crate::cli::SequenceCommand;

pub(crate) fn run(command: &SequenceCommand) -> anyhow::Result<()> {
    let SequenceCommand::New { steps, count } = command;
    let mut taken = ports::known()?;
    taken.extend(ports::in_use()?);
    for _ in 0..*count {
        let sequence = draw(*steps, &taken)?;
        writeln!(io::stdout(), "{sequence}").context("cannot print the sequence")?;
    }
    Ok(())
}

/// Two ports are always in the order of a scan, up or down.
const LEAST: usize = 3;

/// Reads how many steps a new sequence has.
pub(crate) fn length(text: &str) -> Result<usize, String> {
    let length = text.parse().ok().filter(|length| (LEAST..=Steps::MAX).contains(length));
    length.ok_or_else(|| format!("a new sequence has {LEAST} to {} steps", Steps::MAX))
}

/// So many different ports that are not taken, in an order that no scan goes in.
fn draw(steps: usize, taken: &BTreeSet<u16>) -> anyhow::Result<Steps> {
    loop {
        let mut used = taken.clone();
        let mut drawn = Vec::new();
        for _ in 0..steps {
            let number = ports::draw(&used)?;
            used.insert(number.get());
            drawn.push(Port { protocol: Protocol::Tcp, number });
        }
        if !drawn.is_sorted() && !drawn.iter().rev().is_sorted() {
            return Ok(Steps::new(drawn)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_has_no_port_twice_none_that_is_taken_and_no_order() {
        // Three ports are left: of their six orders, two are those of a scan.
        let free = [20_000, 20_001, 20_002];
        let taken = ports::DRAWN.filter(|port| !free.contains(port)).collect();
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let drawn = draw(3, &taken).unwrap();
            seen.insert(drawn.as_slice().iter().map(|step| step.number.get()).collect::<Vec<_>>());
        }
        let [a, b, c] = free;
        assert_eq!(seen, BTreeSet::from([vec![a, c, b], vec![b, a, c], vec![b, c, a], vec![c, a, b]]));
        assert!(draw(4, &taken).unwrap_err().to_string().contains("no port is free"));
    }

    #[test]
    fn a_sequence_has_three_steps_at_least_and_no_more_than_a_gate_reads() {
        for (text, length) in [("3", 3), ("32", 32)] {
            assert_eq!(super::length(text), Ok(length));
            assert_eq!(draw(length, &BTreeSet::new()).unwrap().as_slice().len(), length);
        }
        for text in ["", "2", "33", "-1", "four"] {
            assert!(super::length(text).is_err(), "{text}");
        }
    }
}
