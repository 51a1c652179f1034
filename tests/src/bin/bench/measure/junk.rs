//! 2. What a packet costs that means nothing, and who still gets in meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Plan, float, in_turns, millis};
use crate::contenders::Setup;
use crate::flood::Junk;
use crate::prober::Pace;
use crate::report::Section;
use crate::report::stats::percentile;
use crate::scene::Scene;

const TITLE: &str = "2. Junk";
pub(super) const FIGURES: &[&str] =
    &["CPU, us a packet", "of a core, %", "offered, 1/s", "delivered, 1/s", "open", "p50, ms", "max, ms"];
/// As fast as it goes comes last.
pub(crate) const RATES: [Option<u32>; 5] = [Some(10_000), Some(50_000), Some(100_000), Some(200_000), None];
/// At the most: there are many rates.
const ROUNDS: usize = 2;
/// Before anything is measured, and for how long the flood alone is.
const SETTLE: Duration = Duration::from_millis(200);
pub(super) const ALONE: Duration = Duration::from_secs(2);
/// Valid knocks amid the flood, one datagram each.
pub(super) const KNOCKS: usize = 50;
const DISTANCE: Duration = Duration::from_millis(25);
/// In which a knock opens, or never.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let plan = Plan { rounds: plan.rounds.min(ROUNDS), ..plan.clone() };
    in_turns(&plan, &mut section, "", Setup::PLAIN, |section, contender, scene| {
        for rate in RATES {
            let figures = amid(scene, scene.contender.junk(), rate, ALONE, KNOCKS)?;
            section.enter(&name(rate), &contender.name(), figures);
        }
        Ok(())
    });
    section.notes.push(
        "Junk: 256 random bytes for posternd, 204 characters of base64 for fwknopd, SYNs to the first step from 5,000 \
         sources for knockd and xt_recent. CPU: of all processes, by their cgroup, while nobody knocks; what a packet costs \
         in the kernel before it is in the ring is the sender's. A packet that finds a queue full costs nothing and opens \
         nothing. open: valid knocks of 50, one every 25 ms, that open within \
         2 s."
            .to_owned(),
    );
    section
}

pub(super) fn name(rate: Option<u32>) -> String {
    match rate {
        None => "full speed".to_owned(),
        Some(rate) if rate >= 1_000 => format!("{}k/s", rate / 1_000),
        Some(rate) => format!("{rate}/s"),
    }
}

/// One flood, for so long alone, and then with knocks amid it.
pub(super) fn amid(
    scene: &mut Scene,
    junk: Junk,
    rate: Option<u32>,
    alone: Duration,
    knocks: usize,
) -> Result<Vec<Option<f64>>> {
    let knocks = scene.knocks(knocks)?;
    let flood = scene.flood(junk, rate)?;
    thread::sleep(SETTLE);
    let host = scene.contender.host();
    let before = (Instant::now(), scene.meter.cpu()?, host.packets_in()?, flood.sent());
    thread::sleep(alone);
    let (lasted, cpu) =
        (before.0.elapsed().as_secs_f64(), scene.meter.cpu()?.saturating_sub(before.1).as_secs_f64());
    let (delivered, sent) = (float(host.packets_in()? - before.2), float(flood.sent() - before.3));
    let opened = scene.prober.all(&knocks, DISTANCE, Pace::Slowing, LIMIT)?;
    flood.end()?;
    let times: Vec<_> = opened.iter().flatten().map(|&time| millis(time)).collect();
    Ok(vec![
        Some(cpu * 1e6 / delivered),
        Some(cpu / lasted * 100.0),
        Some(sent / lasted),
        Some(delivered / lasted),
        Some(float(times.len() as u64)),
        percentile(&times, 50.0),
        percentile(&times, 100.0),
    ])
}
