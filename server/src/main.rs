//! posternd: the gate. See the library for how it works.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use postern_server::{Cli, exit_code, printable, run};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("posternd: {}", printable(&format!("{error:#}")));
            exit_code(&error)
        }
    }
}
