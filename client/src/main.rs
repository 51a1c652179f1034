//! `postern`: knocks at a gate. See `postern --help`. Called as `knock`, it is knockd's client.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use postern_client::{Cli, finish, is_knock, run, run_as_knock};

fn main() -> ExitCode {
    if is_knock() {
        return run_as_knock();
    }
    match Cli::read() {
        Ok(cli) => finish(cli.json, run(&cli)),
        Err(not_run) => not_run.finish(),
    }
}
