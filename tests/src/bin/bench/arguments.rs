//! What is to be measured, and of whom.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::contenders::Contender;
use crate::measure::{
    Plan, clients, copies, grants, idle, junk, key_file, latency, profile, rate, sequences, signed, ssh,
};
use crate::report::Section;

pub(crate) const USAGE: &str = "\
usage: bash tests/bench [MEASUREMENT...] [--only CONTENDER,...] [--rounds N] [--knocks N] [--json FILE]";

type Measure = fn(&Plan) -> Section;

/// By name, in the order of the report.
const MEASUREMENTS: &[(&str, Measure)] = &[
    ("latency", latency::measure),
    ("signed", signed::measure),
    ("junk", junk::measure),
    ("clients", clients::measure),
    ("copies", copies::measure),
    ("sequences", sequences::measure),
    ("rate", rate::measure),
    ("idle", idle::measure),
    ("grants", grants::measure),
    ("key-file", key_file::measure),
    ("ssh", ssh::measure),
];

/// What is measured only when it is asked for.
const FURTHER: &[(&str, Measure)] = &[("profile", profile::measure)];

const ROUNDS: usize = 3;
const KNOCKS: usize = 1000;

pub(crate) struct Arguments {
    pub(crate) measurements: Vec<Measure>,
    pub(crate) plan: Plan,
    pub(crate) json: Option<PathBuf>,
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Plan { contenders: Contender::ALL.to_vec(), rounds: ROUNDS, knocks: KNOCKS };
        let (mut measurements, mut json) = (Vec::new(), None);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
            match word.as_str() {
                "--only" => plan.contenders = contenders(&value()?)?,
                "--rounds" => plan.rounds = value()?.parse().context("--rounds")?,
                "--knocks" => plan.knocks = value()?.parse().context("--knocks")?,
                "--json" => json = Some(value()?.into()),
                name => measurements.push(measurement(name)?),
            }
        }
        if measurements.is_empty() {
            measurements.extend(MEASUREMENTS.iter().map(|(_, measure)| *measure));
        }
        if plan.rounds == 0 || plan.knocks == 0 {
            bail!("at least one\n{USAGE}");
        }
        Ok(Self { measurements, plan, json })
    }
}

fn measurement(name: &str) -> Result<Measure> {
    let all = || MEASUREMENTS.iter().chain(FURTHER);
    let found = all().find(|(known, _)| *known == name);
    let names: Vec<_> = all().map(|(name, _)| *name).collect();
    let found = found.with_context(|| format!("no measurement {name:?}: {}\n{USAGE}", names.join(", ")))?;
    Ok(found.1)
}

fn contenders(names: &str) -> Result<Vec<Contender>> {
    let find = |name: &str| {
        let found = Contender::ALL.into_iter().find(|contender| contender.name() == name);
        let all = || Contender::ALL.map(Contender::name).join(", ");
        found.with_context(|| format!("no contender {name:?}: {}\n{USAGE}", all()))
    };
    names.split(',').map(find).collect()
}
