//! 6. Whether a knock opens later, the more doors are open.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Plan, float, in_turns, millis};
use crate::contenders::{Contender, Setup};
use crate::prober::Pace;
use crate::report::Section;
use crate::report::stats::percentile;
use crate::scene::Scene;

const TITLE: &str = "6. Knock to open, by the number of live grants";
const FIGURES: &[&str] = &["p50, ms", "p90, ms", "not open in 5 s"];
const COUNTS: [usize; 3] = [0, 100, 5_000];
/// To be measured, and longer than any of them takes.
const KNOCKS: usize = 100;
const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for all of it.
const WINDOW_SECS: u32 = 1_800;
const CLIENTS: usize = 20;
/// Knocks under way at a time while doors are opened for later.
const TOGETHER: usize = 100;

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let who = plan.contenders.iter().copied().filter(|contender| contender.is_as_installed()).collect();
    let plan = Plan { contenders: who, rounds: 1, ..*plan };
    let setup = Setup { clients: CLIENTS, window_secs: WINDOW_SECS, apart: true, ..Setup::PLAIN };
    in_turns(&plan, &mut section, "", setup, |section, contender, scene| {
        let mut live = 0;
        for count in COUNTS {
            let condition = format!("{count} grants");
            if !contender.is_ours() && count > 100 {
                section.miss(&condition, &contender.name(), too_many(contender));
                continue;
            }
            open(contender, scene, count.saturating_sub(live))?;
            section.enter(&condition, &contender.name(), knock(contender, scene)?);
            live = count + KNOCKS;
        }
        Ok(())
    });
    section.notes.push("Who sends and measures has a processor of its own, as in 1.".to_owned());
    section
}

/// Why it cannot have thousands.
const fn too_many(contender: Contender) -> &'static str {
    match contender {
        Contender::Recent => "it remembers 100 addresses",
        _ => "to open so many one by one takes it minutes",
    }
}

/// Opens so many doors, and lets what follows settle.
fn open(contender: Contender, scene: &mut Scene, mut count: usize) -> Result<()> {
    let together = if contender.is_ours() { TOGETHER } else { 1 };
    while count > 0 {
        let knocks = scene.knocks(count.min(together))?;
        let opened = scene.prober.all(&knocks, Duration::from_micros(500), Pace::Slowing, LIMIT)?;
        ensure!(opened.iter().all(Option::is_some), "not all doors open that are to be open");
        count -= knocks.len();
    }
    thread::sleep(Duration::from_secs(1));
    Ok(())
}

fn knock(contender: Contender, scene: &mut Scene) -> Result<Vec<Option<f64>>> {
    let count = if contender.is_ours() { KNOCKS } else { KNOCKS / 4 };
    let (mut opened, mut lost) = (Vec::new(), 0);
    for knock in scene.knocks(count)? {
        thread::sleep(Duration::from_millis(contender.rest_millis()).mul_f64(fastrand::f64()));
        match scene.prober.one(knock, Pace::Even, LIMIT)? {
            Some(time) => opened.push(millis(time)),
            None => lost += 1,
        }
    }
    Ok(vec![percentile(&opened, 50.0), percentile(&opened, 90.0), Some(float(lost))])
}
