//! 4. How many different valid knocks a second are let in, without losing one.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, float, in_turns};
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
/// Doors close soon: a gate has room for some thousands at a time.
const WINDOW_SECS: u32 = 3;
/// So that none of them knocks more often than fifty times a second.
const CLIENTS: usize = 200;
/// Where the search begins and where it ends.
const OURS: (u32, u32) = (50, 5_000);
const THEIRS: (u32, u32) = (5, 100);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES, 0);
    let who = plan
        .contenders
        .iter()
        .copied()
        .filter(|contender| contender.has_datagrams() && contender.has_default_filter());
    let plan = Plan { contenders: who.collect(), rounds: 1, ..*plan };
    let clients = |contender: Contender| if contender.is_ours() { CLIENTS } else { 1 };
    for &contender in &plan.contenders {
        let alone = Plan { contenders: vec![contender], ..plan };
        let setup = Setup { clients: clients(contender), window_secs: WINDOW_SECS, by_steps: false };
        in_turns(&alone, &mut section, "", setup, |section, contender, scene| {
            let figures = search(scene, if contender.is_ours() { OURS } else { THEIRS })?;
            section.enter("", &contender.name(), figures);
            Ok(())
        });
    }
    section.notes.push(
        "Each knock from an address of its own, and one SYN from there a second later: the knock counts if that is answered. \
         Rates rise by half until one is lost, then fall until 20 s go without a loss."
            .to_owned(),
    );
    section
}

fn search(scene: &mut Scene, (mut rate, end): (u32, u32)) -> Result<Vec<Option<f64>>> {
    let mut lossy = None;
    loop {
        let (lost, _) = knock(scene, rate, STEP)?;
        eprintln!("  {rate} a second: {lost} lost");
        if lost > 0 {
            lossy = Some(rate);
            break;
        }
        if rate >= end {
            break;
        }
        rate = (rate * 3).div_ceil(2).min(end);
    }
    // What holds for seconds may not hold for long.
    while rate > 1 {
        if lossy == Some(rate) {
            rate = rate * 4 / 5;
            continue;
        }
        let (lost, busy) = knock(scene, rate, SUSTAINED)?;
        eprintln!("  {rate} a second for 20 s: {lost} lost");
        if lost == 0 {
            return Ok(vec![Some(f64::from(rate)), lossy.map(f64::from), Some(busy)]);
        }
        lossy = Some(rate);
    }
    Ok(vec![None, lossy.map(f64::from), None])
}

/// How many of the knocks are lost, and how busy that keeps a core, in per cent.
fn knock(scene: &mut Scene, rate: u32, length: Duration) -> Result<(usize, f64)> {
    let count = usize::try_from(u64::from(rate) * length.as_secs())?;
    let knocks = scene.knocks(count)?;
    let before = scene.meter.cpu()?;
    let open = scene.prober.once(&knocks, Duration::from_secs(1) / rate, OPEN_AFTER)?;
    let cpu = scene.meter.cpu()?.saturating_sub(before).as_secs_f64();
    // All doors close before the next ones open.
    std::thread::sleep(Duration::from_secs(u64::from(WINDOW_SECS)));
    Ok((count - open, cpu / float(length.as_secs()) * 100.0))
}
