//! The program when it is called as `knock`: knockd's client, with its options, its output and its exit codes.
//!
//! It differs where knock does what nobody meant: steps that are no port (`22:foo`, 99999) are refused before anything is
//! sent, where knock sends them to another one; and that a step could not be sent is an error. Ports have no names.

use std::env;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use postern_proto::profile::Host;

use crate::cli::{delay, one_family, parse_steps};
use crate::command::wait_for;
use crate::error::Error;
use crate::report::print_hit;
use crate::resolve::first;
use crate::sequence::send;

/// The name that a link has to have.
const NAME: &str = "knock";

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (postern)");

/// Touches ports of a host in their order (postern in the place of knockd's client).
#[derive(Parser)]
#[command(name = NAME, version = VERSION, infer_long_args = true, args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
struct Line {
    host: Host,
    #[arg(value_name = "PORT[:PROTO]", required = true)]
    steps: Vec<String>,
    /// Make all steps UDP, whatever they say
    #[arg(short = 'u', long)]
    udp: bool,
    /// Milliseconds from one step to the next
    #[arg(short = 'd', long, value_name = "MS", value_parser = delay, default_value = "0")]
    delay: Duration,
    /// Use IPv4
    #[arg(short = '4', long, overrides_with = "ipv6")]
    ipv4: bool,
    /// Use IPv6
    #[arg(short = '6', long, overrides_with = "ipv4")]
    ipv6: bool,
    /// Say each step as it is sent
    #[arg(short = 'v', long)]
    verbose: bool,
}

/// Whether this process was called so, by a link or a copy.
#[must_use]
pub fn is_knock() -> bool {
    let called = env::args_os().next();
    called.is_some_and(|path| Path::new(&path).file_name() == Some(NAME.as_ref()))
}

/// Does what knock would, and gives knock's exit code: 1 for whatever is wrong, and for help.
#[must_use]
pub fn run_as_knock() -> ExitCode {
    let failed = match Line::try_parse() {
        Ok(line) => match wait_for(line.run()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == ErrorKind::DisplayVersion => {
            return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(error) => {
            // As knock does it, usage goes to stdout even then. Where that is gone, nobody wants it.
            let _ = write!(io::stdout(), "{}", Line::command().render_help());
            if error.kind() == ErrorKind::DisplayHelp {
                return ExitCode::FAILURE;
            }
            let message = error.to_string();
            let message = message.split("\n\n").next().unwrap_or_default();
            message.trim_start_matches("error: ").to_owned()
        }
    };
    // Where stderr is gone, nobody is left to tell.
    let _ = writeln!(io::stderr(), "{NAME}: {failed}");
    ExitCode::FAILURE
}

impl Line {
    async fn run(&self) -> Result<(), Error> {
        let steps = parse_steps(&self.steps, self.udp)?;
        // To the first address alone, as knock does it.
        let address = first(&self.host, one_family(self.ipv4, self.ipv6)).await?;
        let hitting = |protocol, to| {
            if self.verbose {
                print_hit(protocol, to);
            }
        };
        send([address], |_| Ok(steps.clone()), self.delay, hitting).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Family;

    #[test]
    fn options_are_read_as_getopt_reads_them() {
        Line::command().debug_assert();
        for (line, steps, delay, family) in [
            ("knock h 1 2:udp", "1:tcp,2:udp", 0, None),
            ("knock -uvd5 h 1 2:tcp", "1:udp,2:udp", 5, None),
            ("knock h 1 -d 5 2 --del=7", "1:tcp,2:tcp", 7, None),
            ("knock -46 h 1", "1:tcp", 0, Some(Family::V6)),
            ("knock -6 --ipv4 -4 h 1", "1:tcp", 0, Some(Family::V4)),
        ] {
            let read =
                Line::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            let read_steps = parse_steps(&read.steps, read.udp).unwrap();
            assert_eq!(read_steps.to_string(), steps, "{line}");
            assert_eq!(read.delay, Duration::from_millis(delay), "{line}");
            assert_eq!(one_family(read.ipv4, read.ipv6), family, "{line}");
        }
    }
}
