//! Sequences: SYNs to the first step's port, from few and from many that nobody can tell from clients.

use anyhow::{Context, Result};
use postern_tests::netns::Host;
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use super::junk::{ALONE, amid};
use super::{Plan, float, in_turns};
use crate::contenders::{Contender, Setup};
use crate::flood::Junk;
use crate::report::Section;

const TITLE: &str = "3b. Sequences amid 100,000 SYNs a second to the first step";
const RATE: u32 = 100_000;
const SOURCES: [u32; 3] = [1, 50, 5_000];
const KNOCKS: usize = 20;
const FIGURES: &[&str] = &[
    "CPU, us a packet",
    "of a core, %",
    "offered, 1/s",
    "delivered, 1/s",
    "open",
    "p50, ms",
    "max, ms",
    "resident, KiB",
];

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let takes_part = |who: &Contender| who.has_steps() && who.has_first_firewall() && who.is_as_installed();
    let who = plan.contenders.iter().copied().filter(takes_part).collect();
    let plan = Plan { contenders: who, rounds: 1, ..*plan };
    let setup = Setup { by_steps: true, ..Setup::PLAIN };
    in_turns(&plan, &mut section, "", setup, |section, contender, scene| {
        if contender != Contender::Recent {
            drop_unserved(scene.contender.host())?;
        }
        for sources in SOURCES {
            let port = scene.contender.first_step().context("a first step")?;
            let mut figures = amid(scene, Junk::Syns { port, sources }, Some(RATE), ALONE, KNOCKS)?;
            figures.push(Some(float(scene.meter.usage()?.resident)));
            section.enter(&format!("{sources} sources"), &contender.name(), figures);
        }
        Ok(())
    });
    section.notes.push(format!(
        "The host drops SYNs to the steps behind the captures: an answer to each would slow the sender down. open: of {KNOCKS} sequences of three steps, 5 ms apart; from the last step on. resident: of all processes, when the \
         flood is over."
    ));
    section
}

/// Has a host drop what nobody serves, as most do: who captures has it before that. (The ruleset is the firewall itself.)
fn drop_unserved(host: &Host) -> Result<()> {
    const RULES: &str = "table inet unserved {
        chain steps {
            type filter hook prerouting priority raw
            tcp dport 7000-9999 drop
        }
    }";
    let mut nft = host.command("nft");
    nft.arg(RULES);
    succeed(nft, b"", LONG).map(drop)
}
