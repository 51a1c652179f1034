//! 5. What it costs that it is there: nobody knocks for a minute.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Plan, float};
use crate::contenders::{Contender, Setup};
use crate::forks::Forks;
use crate::meter::Usage;
use crate::report::Section;
use crate::scene::Scene;

const TITLE: &str = "5. Idle for 60 s";
const FIGURES: &[&str] =
    &["CPU, ms", "wake-ups, 1/s", "RSS, KiB", "PSS, KiB", "processes", "processes started"];
/// What follows a first knock is over by then.
const SETTLE: Duration = Duration::from_secs(5);
const LENGTH: Duration = Duration::from_mins(1);

struct Idle {
    name: String,
    scene: Scene,
    before: (Usage, Duration),
}

/// All of them at the same time: they are idle.
pub(crate) fn measure(plan: &Plan) -> Section {
    let mut section = Section::new(TITLE, FIGURES);
    let mut scenes = Vec::new();
    for contender in plan.contenders.iter().copied().filter(|contender| *contender != Contender::Recent) {
        eprintln!("{TITLE}: {}", contender.name());
        match Scene::start(contender, Setup::PLAIN) {
            Ok(scene) => scenes.push((contender.name(), scene)),
            Err(error) => section.miss("", &contender.name(), &format!("{error:#}")),
        }
    }
    thread::sleep(SETTLE);
    if let Err(error) = all(&mut section, scenes) {
        section.notes.push(format!("not measured: {error:#}"));
    }
    section.notes.push(
        "wake-ups: voluntary context switches of all threads. RSS counts what processes share for each of them, PSS in \
         parts. Processes started: the kernel's proc connector, forks whose parent is one of the contender's."
            .to_owned(),
    );
    section
}

fn all(section: &mut Section, scenes: Vec<(String, Scene)>) -> Result<()> {
    let mut forks = Forks::listen();
    let idle = scenes.into_iter().map(|(name, scene)| {
        let before = (scene.meter.usage()?, scene.meter.cpu()?);
        Ok(Idle { name, scene, before })
    });
    let idle: Vec<_> = idle.collect::<Result<_>>()?;
    let begun = Instant::now();
    // Forks are read while they come, since a child that is gone tells nothing; it is the parent that counts.
    let parents = match &mut forks {
        Ok(forks) => forks.parents(LENGTH).map_err(|error| format!("{error:#}")),
        Err(error) => Err(format!("{error:#}")),
    };
    thread::sleep(LENGTH.saturating_sub(begun.elapsed()));
    let lasted = begun.elapsed().as_secs_f64();
    for Idle { name, scene, before: (usage, cpu) } in &idle {
        let (later, pids) = (scene.meter.usage()?, scene.meter.pids()?);
        let started = parents.as_ref().ok().map(|parents| {
            let own =
                parents.iter().filter(|parent| pids.iter().any(|pid| pid.as_raw_nonzero().get() == **parent));
            float(own.count() as u64)
        });
        section.enter(
            "",
            name,
            vec![
                Some(scene.meter.cpu()?.saturating_sub(*cpu).as_secs_f64() * 1e3),
                Some(float(later.sleeps.saturating_sub(usage.sleeps)) / lasted),
                Some(float(later.resident)),
                Some(float(later.proportional)),
                Some(float(later.processes as u64)),
                started,
            ],
        );
    }
    if let Err(reason) = parents {
        section.notes.push(format!("Processes started: not measured: {reason}"));
    }
    Ok(())
}
