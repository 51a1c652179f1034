//! Doors of our own that open to a sequence: what may happen meanwhile, twenty tries each; scans; and floods of first steps.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use postern_tests::netns::Family;
use postern_tests::seed::seeded;

use crate::neighbours::at_once;

mod scene;

use scene::{ASCENDING, Door, PLAIN, STRICT, Scene, UNRELATED};

const TRIES: usize = 20;
/// The last port that a short scan tries.
const SHORT: u16 = 10_000;
/// Strays that a door allows unless it says otherwise.
const STRAYS: u16 = 5;
/// Something that happens, and whether the door is open behind it.
struct Row {
    what: &'static str,
    door: Door,
    opens: bool,
    happens: fn(&Scene, Door, IpAddr) -> Result<()>,
}

const fn row(
    what: &'static str,
    door: Door,
    opens: bool,
    happens: fn(&Scene, Door, IpAddr) -> Result<()>,
) -> Row {
    Row { what, door, opens, happens }
}

const ROWS: &[Row] = &[
    row("nothing else", PLAIN, true, Scene::knock),
    row("nothing else", STRICT, true, Scene::knock),
    row("nothing else", ASCENDING, true, Scene::knock),
    row("the first SYN is retransmitted", PLAIN, true, |scene, door, from| {
        scene.steps(door, from, &[0, 0, 1, 2])
    }),
    row("every SYN is retransmitted", STRICT, true, |scene, door, from| {
        scene.steps(door, from, &[0, 0, 1, 1, 2, 2])
    }),
    row("the first SYN is retransmitted late", STRICT, true, |scene, door, from| {
        scene.steps(door, from, &[0, 1, 0, 2])
    }),
    row("the client gives up, and begins anew", PLAIN, true, |scene, door, from| {
        scene.steps(door, from, &[0, 1])?;
        (0..3).try_for_each(|index| scene.new_syn(from, door.steps[usize::from(index)], index))
    }),
    row("the client also connects to an unrelated port", PLAIN, true, among_strays::<1>),
    row("the client also connects to an unrelated port", STRICT, false, among_strays::<1>),
    row("it connects to as many as are allowed", PLAIN, true, among_strays::<STRAYS>),
    row("it connects to one more than are allowed", PLAIN, false, among_strays::<{ STRAYS + 1 }>),
    row("another address knocks right, then wrong", PLAIN, true, |scene, door, from| {
        scene.steps(door, from, &[0])?;
        scene.steps(door, scene.stranger(), &[0, 1, 0, 2])?;
        scene.syn(scene.stranger(), UNRELATED)?;
        scene.steps(door, from, &[1, 2])
    }),
    row("another address touches the first port 3 times", PLAIN, true, |scene, door, from| {
        scene.steps(door, from, &[0])?;
        (0..3).try_for_each(|number| scene.new_syn(scene.stranger(), door.steps[0], number))?;
        scene.steps(door, from, &[1, 2])
    }),
    row("another address interleaves every step", ASCENDING, true, |scene, door, from| {
        [0, 1, 2].into_iter().try_for_each(|index| {
            scene.steps(door, scene.stranger(), &[2 - index, index])?;
            scene.steps(door, from, &[index])
        })
    }),
    row("150 spoofed addresses send the first knock", PLAIN, true, amid_spoofed::<150>),
    row("1,000 spoofed addresses send the first knock", PLAIN, true, amid_spoofed::<1000>),
    row("after the grant, a SYN to another port", PLAIN, true, |scene, door, from| {
        scene.knock(door, from)?;
        scene.opens_to(&[from])?;
        scene.syn(from, UNRELATED)
    }),
    row("after the grant, the first step, and a wrong one", STRICT, true, |scene, door, from| {
        scene.knock(door, from)?;
        scene.opens_to(&[from])?;
        scene.new_syn(from, door.steps[0], 0)?;
        scene.new_syn(from, door.steps[2], 1)
    }),
    row("two knocks are swapped", PLAIN, false, |scene, door, from| scene.steps(door, from, &[0, 2, 1])),
    row("the first two knocks are swapped", PLAIN, false, |scene, door, from| {
        scene.steps(door, from, &[1, 0, 2])
    }),
    row("a recorded sequence is sent from another address", PLAIN, true, |scene, door, from| {
        scene.knock(door, scene.stranger())?;
        scene.knock(door, from)
    }),
];

fn among_strays<const COUNT: u16>(scene: &Scene, door: Door, from: IpAddr) -> Result<()> {
    scene.steps(door, from, &[0])?;
    (0..COUNT).try_for_each(|number| scene.syn(from, UNRELATED + number))?;
    scene.steps(door, from, &[1, 2])
}

fn amid_spoofed<const COUNT: u32>(scene: &Scene, door: Door, from: IpAddr) -> Result<()> {
    scene.steps(door, from, &[0])?;
    scene.syns((0..COUNT).map(|number| (scene.spoofed(number), door.steps[0])))?;
    scene.steps(door, from, &[1, 2])
}

#[test]
fn each_row_of_the_table_is_as_it_says() -> Result<()> {
    at_once(&Family::ALL, |&family| rows(family)).map(drop)
}

fn rows(family: Family) -> Result<()> {
    let mut scene = Scene::new(family)?;
    for Row { what, door, opens, happens } in ROWS {
        let addresses = scene.addresses(TRIES)?;
        assert_eq!(scene.open_to(&addresses)?, 0, "before {what}");
        addresses.iter().try_for_each(|&from| happens(&scene, *door, from))?;
        scene.settle()?;
        let wanted = if *opens { TRIES } else { 0 };
        let open = scene.open_to(&addresses)?;
        println!("{family:?}, {}: {what}: open to {open} of {TRIES}", door.name);
        assert_eq!(open, wanted, "{family:?}, {}: {what}", door.name);
    }
    unseen(&scene)
}

/// In any order, of some ports or of all, by twenty addresses or by one. It is all seen: nothing is let in because
/// nothing was missed.
#[test]
fn a_scan_opens_nothing() -> Result<()> {
    let mut rng = seeded()?;
    let mut scene = Scene::new(Family::V4)?;
    for last in [SHORT, u16::MAX] {
        for in_random_order in [false, true] {
            let addresses = scene.addresses(if last == SHORT { TRIES } else { 1 })?;
            for &from in &addresses {
                let mut ports: Vec<_> = (1..=last).collect();
                if in_random_order {
                    rng.shuffle(&mut ports);
                }
                scene.syns(ports.into_iter().map(|port| (from, port)))?;
            }
            scene.settle()?;
            let open = scene.open_to(&addresses)?;
            assert_eq!(open, 0, "a scan up to {last}, in random order: {in_random_order}");
            // It keeps nobody out either.
            addresses.iter().try_for_each(|&from| scene.knock(ASCENDING, from))?;
            scene.opens_to(&addresses)?;
        }
    }
    unseen(&scene)
}

/// As many as begin in a few seconds; crowding out begins at 40,000 a second for all of the time that a sequence may take.
#[test]
fn a_hundred_thousand_spoofed_first_steps_crowd_nobody_out() -> Result<()> {
    const SPOOFED: u32 = 100_000;
    /// KiB of the gate's own.
    const GROWTH: u64 = 64 << 10;
    let mut scene = Scene::new(Family::V4)?;
    scene.settle()?;
    let (before, during) = (scene.addresses(TRIES)?, scene.addresses(TRIES)?);
    let first = |scene: &Scene, of: &[IpAddr]| of.iter().try_for_each(|&from| scene.steps(PLAIN, from, &[0]));
    let memory = scene.gate.usage()?.anonymous;
    first(&scene, &before)?;
    scene.syns((0..SPOOFED / 2).map(|number| (scene.spoofed(number), PLAIN.steps[0])))?;
    first(&scene, &during)?;
    scene.syns((SPOOFED / 2..SPOOFED).map(|number| (scene.spoofed(number), PLAIN.steps[0])))?;
    let all = [before, during].concat();
    all.iter().try_for_each(|&from| scene.steps(PLAIN, from, &[1, 2]))?;
    scene.opens_to(&all)?;
    let grown = scene.gate.usage()?.anonymous.saturating_sub(memory);
    println!("{SPOOFED} attempts under way: {grown} KiB more");
    ensure!(grown < GROWTH, "{grown} KiB more");
    unseen(&scene)
}

/// The gate has seen everything that was sent.
fn unseen(scene: &Scene) -> Result<()> {
    let dropped = scene.gate.reload()?.dropped;
    ensure!(dropped == 0, "{dropped} packets were dropped before the gate saw them");
    Ok(())
}
