//! `posternd rules recent`: a ruleset that opens a door to a sequence of knocks without posternd.

use super::print::whole;
use crate::cli::RulesCommand;
use crate::rules::Ruleset;

pub(crate) fn run(command: RulesCommand) -> anyhow::Result<()> {
    let RulesCommand::Recent { sequence, port, window, timeout, name, output } = command;
    let ruleset = Ruleset::new(name, &sequence, port, window, timeout)?;
    whole(|out| out.write_all(ruleset.print(output).as_bytes()))
}
