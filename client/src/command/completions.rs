//! `postern completions`: what a shell completes, from the definitions of the arguments.

use clap::CommandFactory as _;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::cli::{Cli, Shell};
use crate::report::Report;

pub(super) fn run(shell: Shell) -> Report {
    let (mut command, mut script) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    match shell {
        Shell::Bash => generate(Bash, &mut command, name, &mut script),
        Shell::Zsh => generate(Zsh, &mut command, name, &mut script),
        Shell::Fish => generate(Fish, &mut command, name, &mut script),
    }
    let script = String::from_utf8(script).expect("a script is made of texts");
    Report::Completions { shell: shell.name().to_owned(), script }
}
