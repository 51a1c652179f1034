//! 4. How many different valid knocks a second are let in, without losing one.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, float};
use crate::contenders::{Contender, Setup};
use crate::report::Section;
use crate::scene::Scene;

const TITLE: &str = "4. Valid knocks a second";
const FIGURES: &[&str] = &["sustained for 20 s, 1/s", "first loss at, 1/s", "of a core, %"];
/// Each step of the search, and what has to hold in the end.
const STEP: Duration = Duration::from_secs(4);
const SUSTAINED: Duration = Duration::from_secs(20);
/// A knock counts if its door is open so long after it.
const OPEN_AFTER: Duration = Duration::from_secs(1);
/// Doors close within a step, so that it shows what that costs; and a gate has room for some thousands at a time.
const WINDOW_SECS: u32 = 2;
/// Nobody may knock more often than fifty times a second.
const CLIENTS: usize = 250;
/// Where the search begins, and where it ends.
const OURS: (u32, u32) = (64, 8_192);
const THEIRS: (u32, u32) = (4, 64);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let takes_part = |who: &Contender| who.has_datagrams() && who.is_as_installed();
    for contender in plan.contenders.iter().copied().filter(takes_part) {
        eprintln!("{TITLE}: {}", contender.name());
        match search(contender) {
            Ok(figures) => section.enter("", &contender.name(), figures),
            Err(error) => section.miss("", &contender.name(), &format!("{error:#}")),
        }
    }
    section.notes.push(
        "Each knock from an address of its own, and one SYN from there a second later: the knock counts if that is answered. \
         The rate doubles until one is lost, and the gap is halved twice; then it falls by a fifth until 20 s go without \
         a loss."
            .to_owned(),
    );
    section
}

fn search(contender: Contender) -> Result<Vec<Option<f64>>> {
    let (mut rate, end) = if contender.is_ours() { OURS } else { THEIRS };
    let (mut good, mut lossy) = (0, None);
    while rate <= end {
        if stands(contender, rate, STEP)?.is_none() {
            lossy = Some(rate);
            break;
        }
        good = rate;
        rate *= 2;
    }
    if let Some(lossy) = &mut lossy {
        for _ in 0..2 {
            let between = u32::midpoint(good, *lossy);
            match stands(contender, between, STEP)? {
                Some(_) => good = between,
                None => *lossy = between,
            }
        }
    }
    while good > 0 {
        // What holds for seconds may not hold for long.
        if let Some(busy) = stands(contender, good, SUSTAINED)? {
            return Ok(vec![Some(f64::from(good)), lossy.map(f64::from), Some(busy)]);
        }
        lossy = Some(good);
        good = good * 4 / 5;
    }
    Ok(vec![None, lossy.map(f64::from), None])
}

/// How busy a rate keeps a core, in per cent, if no knock is lost. Each time it is another gate: none has to catch up.
fn stands(contender: Contender, rate: u32, length: Duration) -> Result<Option<f64>> {
    let clients = if contender.is_ours() { CLIENTS } else { 1 };
    let mut scene = Scene::start(contender, Setup { clients, window_secs: WINDOW_SECS, ..Setup::PLAIN })?;
    let knocks = scene.knocks(usize::try_from(u64::from(rate) * length.as_secs())?)?;
    let before = scene.meter.cpu()?;
    let all = scene.prober.once(&knocks, Duration::from_secs(1) / rate, OPEN_AFTER)?;
    eprintln!("  {rate} a second for {length:?}: {}", if all { "none lost" } else { "lost" });
    let cpu = scene.meter.cpu()?.saturating_sub(before).as_secs_f64();
    Ok(all.then(|| cpu / float(length.as_secs()) * 100.0))
}
