//! What is measured, one file each.

use std::time::Duration;

use anyhow::Result;

use crate::contenders::{Contender, Setup};
use crate::report::Section;
use crate::scene::Scene;

pub(crate) mod clients;
pub(crate) mod copies;
pub(crate) mod grants;
pub(crate) mod idle;
pub(crate) mod junk;
pub(crate) mod key_file;
pub(crate) mod latency;
pub(crate) mod profile;
pub(crate) mod rate;
pub(crate) mod sequences;
pub(crate) mod signed;
pub(crate) mod ssh;

/// What the caller wants.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rounds: usize,
    /// Of ours, in all rounds; the others knock a tenth as often.
    pub(crate) knocks: usize,
}

/// Starts each contender in turn, round after round, so that a bad minute of the machine hits all of them, and enters what
/// comes of it. One that does not start is not tried again.
fn in_turns(
    plan: &Plan,
    section: &mut Section,
    condition: &str,
    setup: Setup,
    mut measure: impl FnMut(&mut Section, Contender, &mut Scene) -> Result<()>,
) {
    let mut failed = Vec::new();
    for round in 0..plan.rounds {
        for &contender in &plan.contenders {
            if failed.contains(&contender) {
                continue;
            }
            eprintln!(
                "{}: {} {condition} ({} of {})",
                section.title,
                contender.name(),
                round + 1,
                plan.rounds
            );
            let measured =
                Scene::start(contender, setup).and_then(|mut scene| measure(section, contender, &mut scene));
            if let Err(error) = measured {
                eprintln!("  {error:#}");
                section.miss(
                    condition,
                    &contender.name(),
                    format!("{error:#}").lines().next().unwrap_or_default(),
                );
                failed.push(contender);
            }
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "nothing here is counted up to 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
