//! 1. From the knock on the wire to the first SYN that is let through.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Plan, in_turns, millis};
use crate::commit::Journal;
use crate::contenders::{Contender, Setup};
use crate::prober::{Pace, Prober, be_ordinary};
use crate::processors::leave_one;
use crate::report::Section;
use crate::report::stats::percentile;
use crate::scene::Scene;
use crate::wire::Knock;

const TITLE: &str = "1. Knock to open";
const FIGURES: &[&str] = &["p50, ms", "p90, ms", "p99, ms", "commit p50, ms", "knocks", "not open in 5 s"];
const LIMIT: Duration = Duration::from_secs(5);
/// So long the probes go out beside a commit by itself.
const COMMITTED: Duration = Duration::from_millis(2);

/// What was measured of one contender in all rounds.
#[derive(Default)]
struct Samples {
    opened: Vec<f64>,
    commits: Vec<f64>,
    lost: u32,
}

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let mut all: HashMap<String, Samples> = HashMap::new();
    let setup = Setup { apart: true, ..Setup::PLAIN };
    in_turns(plan, &mut section, "", setup, |_, contender, scene| {
        let knocks = if contender.is_ours() { plan.knocks } else { plan.knocks.div_ceil(10) };
        round(contender, scene, knocks.div_ceil(plan.rounds), all.entry(contender.name()).or_default())
    });
    // In the order of the plan, whatever failed first.
    let failed = std::mem::take(&mut section.rows);
    for name in plan.contenders.iter().map(|contender| contender.name()) {
        if let Some(samples) = all.get(&name).filter(|samples| !samples.opened.is_empty()) {
            section.enter("", &name, samples.figures());
        }
        if let Some(reason) =
            failed.iter().find(|row| row.contender == name).and_then(|row| row.missing.as_ref())
        {
            section.miss("", &name, reason);
        }
    }
    section.notes.push(
        "A fresh SYN every 0.25 ms; measured up to the sending of the first that is answered, so too long by 0.125 ms in \
         the mean. Each knock from an address of its own. The commit: one like the gate's, by itself, on the same \
         disk, between the knocks and under the same probes. Who sends and measures has a processor of its own, which \
         also does what the kernel does with a packet that comes in; the contender and the commit have the others."
            .to_owned(),
    );
    section
}

fn round(contender: Contender, scene: &mut Scene, knocks: usize, samples: &mut Samples) -> Result<()> {
    let mut journal = scene.contender.state().map(Journal::below).transpose()?;
    // Made ahead: some clients take longer to start than a knock takes to open.
    let knocks = scene.knocks(knocks)?;
    ensure!(!knocks.is_empty(), "no knock to be made");
    let rest = || {
        let more = Duration::from_millis(contender.rest_millis()).mul_f64(fastrand::f64());
        thread::sleep(Duration::from_millis(2) + more);
    };
    for knock in knocks {
        if let Some(journal) = &mut journal {
            rest();
            let nobody = Knock { from: scene.address(), packets: vec![] };
            samples.commits.push(commit(journal, &scene.prober, nobody)?);
        }
        rest();
        match scene.prober.one(knock, Pace::Even, LIMIT)? {
            Some(time) => samples.opened.push(millis(time)),
            None => samples.lost += 1,
        }
    }
    Ok(())
}

/// A commit as a knock meets it: out of an idle moment, by a thread of its own, and while the same probes go out.
fn commit(journal: &mut Journal, prober: &Prober, nobody: Knock) -> Result<f64> {
    thread::scope(|scope| {
        let commit = scope.spawn(|| {
            leave_one()?;
            be_ordinary()?;
            journal.commit()
        });
        prober.one(nobody, Pace::Even, COMMITTED)?;
        commit.join().expect("a commit does not panic")
    })
}

impl Samples {
    fn figures(&self) -> Vec<Option<f64>> {
        let at = |per_cent| percentile(&self.opened, per_cent);
        let count = u32::try_from(self.opened.len()).unwrap_or(u32::MAX);
        vec![
            at(50.0),
            at(90.0),
            at(99.0),
            percentile(&self.commits, 50.0),
            Some(f64::from(count)),
            Some(f64::from(self.lost)),
        ]
    }
}
