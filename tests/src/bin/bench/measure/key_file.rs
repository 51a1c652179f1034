//! 8. How long key files of many clients take to be read, at the start and while knocks come.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use super::{Plan, float, in_turns};
use crate::contenders::{Contender, Setup};
use crate::prober::Pace;
use crate::report::Section;
use crate::report::stats::percentile;
use crate::scene::Scene;

const TITLE: &str = "8. Key files of many clients";
const FIGURES: &[&str] =
    &["start to ready, s", "reload, s", "knocks amid reloads", "not open in 5 s", "p50 to open then, ms"];
/// How many, and whether they must sign.
const CONDITIONS: [(usize, bool); 4] = [(1, false), (1_000, false), (100_000, false), (100_000, true)];
const RELOADS: usize = 5;
/// From one knock to the next, while the file is read again.
const APART: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let takes_part = |who: &Contender| who.is_ours() && who.is_as_installed() && who.has_first_firewall();
    let contenders: Vec<_> = plan.contenders.iter().copied().filter(takes_part).collect();
    for (clients, signed) in CONDITIONS {
        let plan = Plan { contenders: contenders.clone(), rounds: 1, ..*plan };
        let condition = format!("{clients} clients{}", if signed { " that sign" } else { "" });
        let setup = Setup { clients, signed, ..Setup::PLAIN };
        in_turns(&plan, &mut section, &condition, setup, |section, contender, scene| {
            section.enter(&condition, &contender.name(), amid_reloads(scene)?);
            Ok(())
        });
    }
    section.notes.push(format!(
        "From the start of `posternd run` until it says that it is ready, with the guard up; and from the start of `posternd \
         reload` to its end, the median of {RELOADS}. Each knock is from an address of its own, one after the other."
    ));
    section
}

fn timed(command: Command) -> Result<Duration> {
    let begun = Instant::now();
    succeed(command, b"", LONG)?;
    Ok(begun.elapsed())
}

/// Knocks all the time, while the key file is read again and again.
fn amid_reloads(scene: &mut Scene) -> Result<Vec<Option<f64>>> {
    let (mut opened, mut lost) = (Vec::new(), 0);
    let started = scene.contender.started().map(|took| took.as_secs_f64());
    let commands = (0..RELOADS).map(|_| scene.contender.reload()).collect::<Result<Vec<_>>>()?;
    let is_over = AtomicBool::new(false);
    let reloads = thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            let times: Result<Vec<_>> = commands.into_iter().map(timed).collect();
            is_over.store(true, Ordering::Relaxed);
            times
        });
        while !is_over.load(Ordering::Relaxed) {
            let knock = scene.knocks(1)?.remove(0);
            match scene.prober.one(knock, Pace::Slowing, LIMIT)? {
                Some(time) => opened.push(super::millis(time)),
                None => lost += 1,
            }
            thread::sleep(APART);
        }
        reloads.join().expect("a reload does not panic")
    })?;
    let seconds: Vec<_> = reloads.iter().map(Duration::as_secs_f64).collect();
    Ok(vec![
        started,
        percentile(&seconds, 50.0),
        Some(float(opened.len() as u64 + lost)),
        Some(float(lost)),
        percentile(&opened, 50.0),
    ])
}
