//! `postern knock`: asks a gate to open services, and waits for them where told to.

use std::pin::pin;
use std::time::Duration;

use postern_proto::{Request, ServiceName, Services};
use tokio::time::timeout;

use super::doors::{Door, wait};
use super::dry_run::rehearse;
use super::{failures, gate_of, knocks};
use crate::cli::{Cli, KnockArgs};
use crate::error::{Advice, Error};
use crate::gate::{Gate, Options, Sending};
use crate::reply::Reply;
use crate::report::{KnockReport, OpenReport, Report, warn_of_clock};

/// How long an answer may come behind the first connection through the door.
const ANSWER_BEHIND: Duration = Duration::from_millis(300);

pub(super) async fn run(cli: &Cli, args: &KnockArgs) -> Result<Report, Error> {
    let options = Options { from_port: args.from_port, ..args.how.options(args.timeout)? };
    let gate = gate_of(cli, &args.gate, &args.how.aim)?;
    let services = gate.wanted(&args.services)?;
    let doors = if args.wait.is_some() { first_tcp_ports(&gate, &services)? } else { Vec::new() };

    let names = services.iter().cloned().collect();
    let Options { window, from_port, .. } = options;
    let request = Request::Open { services, window, from_port };
    let report = |knocks, failed, answer: Option<Reply>, open| {
        Report::Knock(KnockReport {
            gate: gate.name().to_owned(),
            services: names,
            window_seconds: window.map(postern_proto::Window::as_secs),
            knocks,
            failed,
            answer: answer.as_ref().map(Into::into),
            from_port,
            open,
            dry_run: args.dry_run.is_dry(),
        })
    };
    if args.dry_run.is_dry() {
        let (knocks, failed) = rehearse(cli, &gate, &request, &options, &args.dry_run).await?;
        return Ok(report(knocks, failed, None, None));
    }
    let mut sending = gate.send(request, &options).await?;
    let failed = failures(cli, &sending);
    let (answer, open) = match args.wait {
        Some(limit) => decision_and_doors(&gate, &mut sending, doors, limit).await?,
        None => (sending.decision().await?, None),
    };
    if let Some(answer) = answer.filter(|_| !cli.json) {
        warn_of_clock(answer.offset);
    }
    Ok(report(knocks(&sending), failed, answer, open))
}

/// Waits for both. A connection through the door says more than an answer: where that was lost, it is enough.
async fn decision_and_doors(
    gate: &Gate,
    sending: &mut Sending<'_>,
    doors: Vec<Door>,
    limit: Duration,
) -> Result<(Option<Reply>, Option<Vec<OpenReport>>), Error> {
    let addresses = sending.knocked();
    if !gate.answers() {
        sending.decision().await?;
        return Ok((None, Some(wait(doors, &addresses, limit, Advice::Knock).await?)));
    }
    let mut opening = pin!(wait(doors, &addresses, limit, Advice::Unanswered));
    let mut deciding = pin!(sending.decision());
    tokio::select! {
        answer = &mut deciding => {
            let answer = match answer {
                Err(Error::InVain { .. }) => None,
                answer => answer?,
            };
            let open = opening.await.map_err(|error| match error {
                Error::InVain { waited, what, .. } if answer.is_some() => {
                    Error::InVain { waited, what, advice: Advice::Opened }
                }
                error => error,
            })?;
            Ok((answer, Some(open)))
        }
        open = &mut opening => {
            let open = open?;
            let answer = match timeout(ANSWER_BEHIND, deciding).await {
                Err(_) | Ok(Err(Error::InVain { .. })) => None,
                Ok(answer) => answer?,
            };
            Ok((answer, Some(open)))
        }
    }
}

/// Only TCP answers.
fn first_tcp_ports(gate: &Gate, services: &Services) -> Result<Vec<Door>, Error> {
    let door = |service: &ServiceName| {
        let port = gate.first_tcp_port(service);
        port.map(|port| Door { service: Some(service.clone()), port }).ok_or_else(|| {
            Error::Usage(format!("service {service} has no TCP port that --wait could try: leave it out"))
        })
    };
    services.iter().map(door).collect()
}
