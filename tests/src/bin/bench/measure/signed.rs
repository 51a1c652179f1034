//! 1a. What it costs that a client must sign.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Plan, float, in_turns, millis};
use crate::contenders::{Contender, Setup};
use crate::prober::Pace;
use crate::report::Section;
use crate::report::stats::percentile;
use crate::scene::Scene;

const TITLE: &str = "1a. Signed knocks";
const FIGURES: &[&str] = &["p50, ms", "p90, ms", "processor time a knock, us", "knocks", "not open in 5 s"];
const CONDITIONS: [(&str, bool); 2] = [("not signed", false), ("signed, Ed25519", true)];
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Samples {
    opened: Vec<f64>,
    lost: u32,
    cpu: Duration,
}

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let takes_part = |who: &Contender| who.is_ours() && who.is_as_installed() && who.has_first_firewall();
    let contenders: Vec<_> = plan.contenders.iter().copied().filter(takes_part).collect();
    let mut all: BTreeMap<_, Samples> = BTreeMap::new();
    for _ in 0..plan.rounds {
        for (condition, signed) in CONDITIONS {
            let setup = Setup { signed, apart: true, ..Setup::PLAIN };
            let plan = Plan { contenders: contenders.clone(), rounds: 1, ..*plan };
            in_turns(&plan, &mut section, condition, setup, |_, contender, scene| {
                let knocks = plan.knocks.div_ceil(plan.rounds);
                round(contender, scene, knocks, all.entry((signed, contender.name())).or_default())
            });
        }
    }
    for ((signed, name), samples) in all.iter().filter(|(_, samples)| !samples.opened.is_empty()) {
        let condition = CONDITIONS[usize::from(*signed)].0;
        section.enter(condition, name, samples.figures());
    }
    section.notes.push(
        "As in 1, the two in turns. The processor time is that of all processes of the gate, from the knock to its rule, and \
         what they do while nobody knocks."
            .to_owned(),
    );
    section
}

fn round(contender: Contender, scene: &mut Scene, knocks: usize, samples: &mut Samples) -> Result<()> {
    // Made ahead: a signature takes the sender time as well.
    let knocks = scene.knocks(knocks)?;
    ensure!(!knocks.is_empty(), "no knock to be made");
    let before = scene.meter.cpu()?;
    for knock in knocks {
        let more = Duration::from_millis(contender.rest_millis()).mul_f64(fastrand::f64());
        thread::sleep(Duration::from_millis(2) + more);
        match scene.prober.one(knock, Pace::Even, LIMIT)? {
            Some(time) => samples.opened.push(millis(time)),
            None => samples.lost += 1,
        }
    }
    samples.cpu += scene.meter.cpu()?.saturating_sub(before);
    Ok(())
}

impl Samples {
    fn figures(&self) -> Vec<Option<f64>> {
        let at = |per_cent| percentile(&self.opened, per_cent);
        let opened = float(self.opened.len() as u64);
        vec![
            at(50.0),
            at(90.0),
            Some(self.cpu.as_secs_f64() * 1e6 / opened),
            Some(opened),
            Some(f64::from(self.lost)),
        ]
    }
}
