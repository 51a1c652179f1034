//! `postern sequence`: sends a classic sequence, or prints it, and waits for what it opens where told to.
//!
//! A name is sent to at all its addresses, as with a knock: nobody can tell from here which of them the connection
//! will take.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use postern_proto::profile::Host;
use postern_proto::{Protocol, SequenceName};

use super::doors::{Door, wait};
use crate::cli::{Cli, SequenceArgs, Which};
use crate::config::{Config, Sequence, locate};
use crate::course::{Course, Ports};
use crate::error::{Advice, Error};
use crate::report::{FailedReport, Report, SequenceReport, print_hit, say};
use crate::resolve::{Resolved, resolve};
use crate::sequence::{Sent, send};

/// What is to be sent, from wherever it is known.
struct Plan {
    /// The host or the gate, as it was named.
    host: String,
    name: Option<SequenceName>,
    hosts: Vec<Host>,
    course: Course,
    /// What tells whether it opened.
    doors: Vec<Door>,
}

pub(super) async fn run(cli: &Cli, args: &SequenceArgs) -> Result<Report, Error> {
    if cli.json && args.verbose {
        return Err(Error::Usage("--json does not go with --verbose: its stdout is one object".into()));
    }
    if cli.quiet && (args.verbose || args.print) {
        return Err(Error::Usage("--quiet prints nothing: leave it out, or --verbose or --print".into()));
    }
    let family = args.family()?;
    let Plan { host, name, hosts, mut course, doors } = plan(cli, args)?;
    let mut report = SequenceReport {
        host,
        sequence: name,
        steps: None,
        count: course.len(),
        good_for_seconds: None,
        addresses: Vec::new(),
        failed: Vec::new(),
        open: None,
        print: args.print,
    };
    if args.print {
        let (steps, good) = course.steps_now()?;
        report.steps = Some(steps);
        report.good_for_seconds = good.map(|good| good.as_secs());
        if let Some(seconds) = report.good_for_seconds.filter(|_| !cli.json) {
            say(&format!("good once, if begun within {seconds} s"));
        }
        return Ok(Report::Sequence(report));
    }
    if let Course::Fixed(steps) = &course {
        report.steps = Some(steps.clone());
    }
    let resolved = resolve(&hosts, family).await;
    resolved.require_one()?;
    let hitting = |protocol: Protocol, to: SocketAddr| {
        if args.verbose {
            print_hit(protocol, to);
        }
    };
    let sent =
        send(resolved.addresses.iter().copied(), |to| course.steps_to(to), args.delay(), hitting).await?;
    report.failed = failures(&resolved, &sent);
    if !cli.json {
        for FailedReport { host, message } in &report.failed {
            say(&format!("not sent to {host}: {message}"));
        }
    }
    if let Some(limit) = args.wait {
        report.open = Some(wait(doors, &sent.addresses, limit, Advice::Sequence).await?);
    }
    report.addresses = sent.addresses;
    Ok(Report::Sequence(report))
}

fn plan(cli: &Cli, args: &SequenceArgs) -> Result<Plan, Error> {
    let plan = match args.which()? {
        Which::Steps(host, steps) => {
            let course = Course::new(&Ports::Fixed(steps), None, false)?;
            Plan { host: host.to_string(), name: None, hosts: vec![host], course, doors: doors(args, None) }
        }
        Which::Named(gate, name) => {
            let path = locate(cli.config.as_deref())?;
            let mut entry = Config::load(&path)?.into_gate(&gate, &path)?;
            let Some(sequence) = entry.sequences.remove(&name) else {
                let known = entry.sequences.keys().map(ToString::to_string).collect();
                return Err(Error::UnknownSequence { gate, sequence: name, known });
            };
            let doors = doors(args, Some(&sequence));
            let host = gate.to_string();
            let course = Course::new(&sequence.ports, args.source, args.next)?;
            Plan { host, name: Some(name), hosts: entry.addresses, course, doors }
        }
    };
    if args.wait.is_some() && plan.doors.is_empty() {
        return Err(Error::Usage(
            "--wait needs a TCP port to try: give --port, or say in the configuration what the sequence opens".into(),
        ));
    }
    Ok(plan)
}

/// The port that was named, else the TCP ports that the sequence opens. UDP does not answer.
fn doors(args: &SequenceArgs, sequence: Option<&Sequence>) -> Vec<Door> {
    let opens = sequence.iter().flat_map(|sequence| &sequence.opens);
    let known = opens.filter(|port| port.protocol == Protocol::Tcp).map(|port| port.number);
    let ports: BTreeSet<_> = args.port.map_or_else(|| known.collect(), |port| BTreeSet::from([port]));
    ports.into_iter().map(|port| Door { service: None, port }).collect()
}

fn failures(resolved: &Resolved, sent: &Sent) -> Vec<FailedReport> {
    let names = resolved.failed.iter().map(|(host, message)| (host.to_string(), message.clone()));
    let steps = sent.failed.iter().map(|(to, error)| (to.clone(), error.to_string()));
    names.chain(steps).map(|(host, message)| FailedReport { host, message }).collect()
}
