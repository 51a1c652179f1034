//! `postern`: knocks at a gate. See `postern --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use postern_client::{Cli, finish, run};

fn main() -> ExitCode {
    match Cli::read() {
        Ok(cli) => finish(cli.json, run(&cli)),
        Err(not_run) => not_run.finish(),
    }
}
