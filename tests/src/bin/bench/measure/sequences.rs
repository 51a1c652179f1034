//! Sequences: SYNs to the first step's port, from few and from many that nobody can tell from clients.

use anyhow::Context;

use super::junk::amid;
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
        for sources in SOURCES {
            let port = scene.contender.first_step().context("a first step")?;
            let mut figures = amid(scene, Junk::Syns { port, sources }, Some(RATE), KNOCKS)?;
            figures.push(Some(float(scene.meter.usage()?.resident)));
            section.enter(&format!("{sources} sources"), &contender.name(), figures);
        }
        Ok(())
    });
    section.notes.push(format!(
        "open: of {KNOCKS} sequences of three steps, 5 ms apart; from the last step on. resident: of all processes, when the \
         flood is over."
    ));
    section
}
