//! 3. Whether junk costs more the more have a key.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use postern_tests::wait::{LONG, wait_for};

use super::junk::{FIGURES, amid, name};
use super::{Plan, in_turns};
use crate::contenders::{Contender, Setup};
use crate::report::Section;
use crate::scene::Scene;

const TITLE: &str = "3. Junk, by the number of clients";
const COUNTS: [usize; 5] = [1, 10, 100, 1_000, 100_000];
/// What is offered to ours; to the others less, the more keys they try: an overflowing queue hides what a packet costs.
const OURS: u32 = 100_000;
const THEIRS: [u32; 4] = [2_000, 1_000, 500, 50];
const KNOCKS: usize = 20;

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    for (index, clients) in COUNTS.into_iter().enumerate() {
        let plan = Plan {
            contenders: plan.contenders.iter().copied().filter(|who| takes_part(*who, index)).collect(),
            rounds: 1,
            ..*plan
        };
        let setup = Setup { clients, ..Setup::PLAIN };
        in_turns(&plan, &mut section, &format!("{clients} clients"), setup, |section, contender, scene| {
            rest(scene)?;
            let rate = if contender.is_ours() { OURS } else { THEIRS[index] };
            let figures = amid(scene, scene.contender.junk(), Some(rate), KNOCKS)?;
            let who = format!("{}, at {}", contender.name(), name(Some(rate)));
            section.enter(&format!("{clients} clients"), &who, figures);
            Ok(())
        });
    }
    section.notes.push(format!("open: of {KNOCKS}."));
    section
}

/// Waits until a gate has done what it does for its clients by itself, such as the hints of the next epoch: that is no junk's
/// cost.
fn rest(scene: &Scene) -> Result<()> {
    // Hints come in slices, with some tenths of a second between them.
    const LOOK: Duration = Duration::from_millis(500);
    wait_for("a gate at rest", LONG, || {
        let before = scene.meter.cpu()?;
        thread::sleep(LOOK);
        Ok((scene.meter.cpu()?.saturating_sub(before) < LOOK / 1000).then_some(()))
    })
}

/// The firewall has no part in this, and knockd and the ruleset have no clients.
fn takes_part(contender: Contender, index: usize) -> bool {
    match contender {
        Contender::Posternd(..) => contender.has_first_firewall(),
        Contender::Fwknopd(..) => index < THEIRS.len(),
        Contender::Knockd | Contender::Recent => false,
    }
}
