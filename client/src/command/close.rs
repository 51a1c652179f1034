//! `postern close`: asks a gate to close services again.

use postern_proto::Request;

use super::dry_run::rehearse;
use super::{failures, gate_of, knocks};
use crate::cli::{Cli, CloseArgs};
use crate::error::Error;
use crate::report::{CloseReport, Report, warn_of_clock};

pub(super) async fn run(cli: &Cli, args: &CloseArgs) -> Result<Report, Error> {
    let options = args.aim.options(args.timeout)?;
    let gate = gate_of(cli, &args.gate, &args.aim)?;
    let services = gate.wanted(&args.services)?;
    let names = services.iter().cloned().collect();
    let request = Request::Close { services };
    if args.dry_run.is_dry() {
        let (knocks, failed) = rehearse(cli, &gate, &request, &options, &args.dry_run).await?;
        let gate = gate.name().to_owned();
        return Ok(Report::Close(CloseReport {
            gate,
            services: names,
            knocks,
            failed,
            answer: None,
            dry_run: true,
        }));
    }
    let mut sending = gate.send(request, &options).await?;
    let failed = failures(cli, &sending);
    let answer = sending.decision().await?;
    if let Some(answer) = answer.filter(|_| !cli.json) {
        warn_of_clock(answer.offset);
    }
    Ok(Report::Close(CloseReport {
        gate: gate.name().to_owned(),
        services: names,
        knocks: knocks(&sending),
        failed,
        answer: answer.as_ref().map(Into::into),
        dry_run: false,
    }))
}
