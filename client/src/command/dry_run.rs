//! What `--dry-run` and `--hex` stand for: all that a knock is made of, and nothing sent.

use std::fmt::Write as _;
use std::net::SocketAddr;

use postern_proto::{KNOCK_LEN, Request};

use super::{say_failures, source_text};
use crate::cli::{Cli, DryRunArgs};
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::knock::routed;
use crate::report::{FailedReport, KnockedReport, say};
use crate::resolve::resolve;

/// What would be sent to where, and what could not be.
///
/// # Errors
/// [`Error::Usage`] where nobody is to be told.
pub(super) async fn rehearse(
    cli: &Cli,
    gate: &Gate,
    request: &Request,
    options: &Options,
    args: &DryRunArgs,
) -> Result<(Vec<KnockedReport>, Vec<FailedReport>), Error> {
    if cli.quiet {
        return Err(Error::Usage("--quiet prints nothing: leave it out, or --dry-run and --hex".into()));
    }
    let resolved = resolve(&gate.profile().addresses, options.family).await;
    resolved.require_one()?;
    let names = resolved.failed.iter().map(|(host, message)| (host.to_string(), message.clone()));
    let mut failed: Vec<_> = names.map(|(host, message)| FailedReport { host, message }).collect();
    let mut knocks = Vec::new();
    if options.repeat > 1 && gate.knocker.needs_touch()? {
        return Err(Error::Usage("each knock takes a touch of the security key: leave --repeat out".into()));
    }
    for &address in &resolved.addresses {
        for port in &gate.profile().ports {
            let to = SocketAddr::new(address, port.get());
            match routed(to) {
                Ok(local) => {
                    let source = options.source.source(local);
                    let report = |times, datagram| KnockedReport {
                        address,
                        port: port.get(),
                        sent: 0,
                        source: source_text(source),
                        times,
                        datagram,
                    };
                    if !args.hex {
                        knocks.push(report(options.repeat, None));
                        continue;
                    }
                    for _ in 0..options.repeat {
                        let datagram = gate.knocker.seal(request, source, gate.knocker.clock.now())?;
                        knocks.push(report(1, Some(hex(&datagram))));
                    }
                }
                Err(error) => {
                    failed.push(FailedReport { host: to.to_string(), message: error.to_string() });
                }
            }
        }
    }
    if knocks.is_empty() {
        return Err(Error::Unsent(
            failed.iter().map(|one| format!("{}: {}", one.host, one.message)).collect(),
        ));
    }
    say_failures(cli, &failed);
    if !cli.json {
        say_where(&knocks);
    }
    Ok((knocks, failed))
}

/// Tells a person what the lines of digits are.
fn say_where(knocks: &[KnockedReport]) {
    let datagrams = knocks.iter().filter(|knock| knock.datagram.is_some()).count();
    if datagrams > 1 {
        say(&format!(
            "{datagrams} datagrams, one a line: send each by itself (-4 or -6, and --repeat 1, leave fewer)"
        ));
    }
    for KnockedReport { address, port, datagram, .. } in knocks {
        if datagram.is_some() {
            say(&format!(
                "for {address} port {port}: good once, for a minute, and whoever has it may send it"
            ));
        }
    }
}

fn hex(datagram: &[u8; KNOCK_LEN]) -> String {
    datagram.iter().fold(String::with_capacity(2 * KNOCK_LEN), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a text takes whatever is written to it");
        digits
    })
}
