//! 3. Whether junk costs more the more have a key.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use postern_tests::knocks::now;
use postern_tests::wait::{LONG, wait_for};

use super::junk::{FIGURES, amid, name};
use super::{Plan, in_turns};
use crate::contenders::{Contender, Setup};
use crate::report::Section;
use crate::scene::Scene;

const TITLE: &str = "3. Junk, by the number of clients";
const MOST: usize = 100_000;
const COUNTS: [usize; 5] = [1, 10, 100, 1_000, MOST];
/// What is offered to ours; to the others less, the more keys they try: an overflowing queue hides what a packet costs.
const OURS: u32 = 100_000;
const THEIRS: [u32; 4] = [2_000, 1_000, 500, 50];
const KNOCKS: usize = 20;
/// Longer than elsewhere: small differences count here.
const ALONE: Duration = Duration::from_secs(5);
/// Behind the beginning of an epoch a gate makes the hints of the next one; it is done by then.
const MAKES_HINTS: Duration = Duration::from_secs(10);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    // Each number of clients in turn, round after round: they are compared with one another.
    for round in 0..plan.rounds {
        for (index, clients) in COUNTS.into_iter().enumerate() {
            one(plan, &mut section, round, index, clients);
        }
    }
    let condition = |clients| format!("{clients} clients");
    for contender in plan.contenders.iter().filter(|contender| contender.is_ours()) {
        let who = at(*contender, 0);
        let cost = |clients| section.figure(&condition(clients), &who);
        if let (Some(with_one), Some(with_most)) = (cost(COUNTS[0]), cost(MOST))
            && with_one > 0.0
        {
            let ratio = with_most / with_one;
            section.notes.push(format!("{who}: {ratio:.2} times as much with {MOST} clients as with one."));
        }
    }
    section.notes.push(format!(
        "open: of {KNOCKS}. Each round of ours is a gate of its own, the others have one. What a gate of ours does for its \
         clients once in an epoch, their next hints, is not in it."
    ));
    section
}

fn one(plan: &Plan, section: &mut Section, round: usize, index: usize, clients: usize) {
    let takes_part = |who: &Contender| takes_part(*who, index) && (round == 0 || who.is_ours());
    let contenders = plan.contenders.iter().copied().filter(takes_part).collect();
    let (plan, setup) = (Plan { contenders, rounds: 1, ..*plan }, Setup { clients, ..Setup::PLAIN });
    let condition = format!("{clients} clients");
    in_turns(&plan, section, &condition, setup, |section, contender, scene| {
        if contender.is_ours() {
            rest(scene)?;
        }
        let figures = amid(scene, scene.contender.junk(), Some(rate(contender, index)), ALONE, KNOCKS)?;
        section.enter(&condition, &at(contender, index), figures);
        Ok(())
    });
}

const fn rate(contender: Contender, index: usize) -> u32 {
    if contender.is_ours() { OURS } else { THEIRS[index] }
}

fn at(contender: Contender, index: usize) -> String {
    format!("{}, at {}", contender.name(), name(Some(rate(contender, index))))
}

/// Waits until a gate has done what it does for its clients by itself, and does not begin it again amid what is measured:
/// the hints of the next epoch are no junk's cost.
fn rest(scene: &Scene) -> Result<()> {
    // Hints come in slices, with some tenths of a second between them.
    const LOOK: Duration = Duration::from_millis(500);
    /// A flood, and the knocks that are made for it.
    const NEEDED: Duration = Duration::from_secs(10);
    wait_for("a gate at rest", LONG, || {
        let before = scene.meter.cpu()?;
        thread::sleep(LOOK);
        Ok((scene.meter.cpu()?.saturating_sub(before) < LOOK / 1000).then_some(()))
    })?;
    let now = now();
    let this = now.epoch();
    let epoch = if now.after(NEEDED) < this.next().start() { this } else { this.next() };
    thread::sleep(epoch.start().after(MAKES_HINTS).since(now));
    Ok(())
}

/// The firewall has no part in this, and knockd and the ruleset have no clients.
fn takes_part(contender: Contender, index: usize) -> bool {
    match contender {
        Contender::Posternd(..) => contender.has_first_firewall(),
        Contender::Fwknopd(..) => index < THEIRS.len(),
        Contender::Knockd | Contender::Recent => false,
    }
}
