//! `posternd sequence new`: sequences that nobody has used yet, and, with `--rolling`, the key of one that is never the
//! same.

use std::collections::BTreeSet;
use std::io::Write;
use std::iter::repeat_with;
use std::num::NonZeroU16;

use anyhow::bail;
use postern_proto::keys::SequenceKey;
use postern_proto::sequence::{PortRange, Rolling, Steps};
use postern_proto::{Port, Protocol};

use super::print::{say, whole};
use super::{ports, random};
use crate::cli::SequenceCommand;

pub(crate) fn run(command: &SequenceCommand) -> anyhow::Result<()> {
    let SequenceCommand::New { steps, count, rolling, length, range } = command;
    if *rolling {
        return roll(*length, *range);
    }
    let free = ports::free(&taken()?);
    for _ in 0..*count {
        let sequence = draw(*steps, &free)?;
        say!("{sequence}")?;
    }
    Ok(())
}

/// The ports that services are known by, or that something uses here.
fn taken() -> anyhow::Result<BTreeSet<u16>> {
    let mut taken = ports::known()?;
    taken.extend(ports::in_use()?);
    Ok(taken)
}

/// Prints a new key and a range, as both sides read them. The key is a secret: nothing else says it.
fn roll(length: usize, range: Option<PortRange>) -> anyhow::Result<()> {
    let range = if let Some(range) = range {
        range
    } else {
        PortRange::new(Protocol::Tcp, ports::draw_row(&taken()?)?)?
    };
    if let Some(port) = ports::heard_in(range)?.first() {
        bail!("something listens on {port}, in the range {range}: choose another");
    }
    let key = SequenceKey::from_bytes(random()?);
    // Whatever a gate would refuse is refused here.
    Rolling::new(&key, range, length, true)?;
    let text = key.to_text();
    let common =
        |out: &mut dyn Write| writeln!(out, "rolling = \"{range}\"\nkey = \"{}\"\nlength = {length}", *text);
    whole(|out| {
        writeln!(out, "# For posternd.toml, mode 0600; NAME, and what it opens, are yours to choose.")?;
        writeln!(out, "# Behind address translation, clients need bound-to-source = false, here and below.")?;
        writeln!(out, "[sequences.NAME]")?;
        common(out)?;
        writeln!(out, "services = [\"ssh\"]\n")?;
        writeln!(out, "# For the config.toml of its clients, mode 0600; GATE is what they call this gate.")?;
        writeln!(out, "[gates.GATE.sequences.NAME]")?;
        common(out)?;
        writeln!(out, "opens = [\"22/tcp\"]")
    })
}

/// Two ports are always in the order of a scan, up or down.
const LEAST: usize = 3;

/// Reads how many steps a new sequence has.
pub(crate) fn length(text: &str) -> Result<usize, String> {
    let length = text.parse().ok().filter(|length| (LEAST..=Steps::MAX).contains(length));
    length.ok_or_else(|| format!("a new sequence has {LEAST} to {} steps", Steps::MAX))
}

/// So many different ports out of those that are free, in an order that no scan goes in.
fn draw(steps: usize, free: &[NonZeroU16]) -> anyhow::Result<Steps> {
    loop {
        let mut free = free.to_vec();
        let step = || Ok(Port { protocol: Protocol::Tcp, number: ports::draw(&mut free)? });
        let drawn: Vec<_> = repeat_with(step).take(steps).collect::<anyhow::Result<_>>()?;
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
        let ports = [20_000, 20_001, 20_002];
        let free = ports.map(|port| NonZeroU16::new(port).unwrap());
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let drawn = draw(3, &free).unwrap();
            seen.insert(drawn.as_slice().iter().map(|step| step.number.get()).collect::<Vec<_>>());
        }
        let [a, b, c] = ports;
        assert_eq!(seen, BTreeSet::from([vec![a, c, b], vec![b, a, c], vec![b, c, a], vec![c, a, b]]));
        assert!(draw(4, &free).unwrap_err().to_string().contains("no port is free"));
    }

    #[test]
    fn a_sequence_has_three_steps_at_least_and_no_more_than_a_gate_reads() {
        for (text, steps) in [("3", 3), ("32", 32)] {
            assert_eq!(length(text), Ok(steps));
            assert_eq!(draw(steps, &ports::free(&BTreeSet::new())).unwrap().as_slice().len(), steps);
        }
        for text in ["", "2", "33", "-1", "four"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
