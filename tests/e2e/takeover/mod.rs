//! A front or a warden that somebody has taken over: by what has it make system calls (`debugger`), and by the sockets that it
//! holds. It gets no further than its part in the gate (P6).
//!
//! What is left to a front that was taken over: it has every client's keys in its memory, and its store; it can order,
//! for each client, what the roll gives that client, and end its leases; it can have the warden send 256 bytes to an address, as
//! an answer, as often as a client may order; it can hold knocks back, and end; it can write
//! lines to the log, fill the disk from its folder and the memory with threads, as far as the host lets it; and it can
//! learn which files there are and how large they are, though not what is in them.
//!
//! What is left to a warden: the firewall is its work. It can open and shut every port of the host, configure its network,
//! redirect packets or queue them to itself; it can run programs, none of which gains anything by that; it can read what
//! /proc tells everybody, write to the log, and talk by UDP and to sockets with a path that lets its user in. With
//! iptables-legacy it can send raw packets. It has no key and no store, and gets at no other process.

mod answers;
mod attempts;
mod files;
mod flood;
mod holdings;
mod hostile;
mod kernel;
mod orders;
mod reports;
mod scene;
mod sockets;

use anyhow::Result;
use postern_tests::gate::{Settings, Variant};
use postern_tests::netns::Family;

use crate::neighbours::at_once;
use attempts::Attempts;
use scene::{Scene, Subject};

#[test]
fn a_front_that_was_taken_over_can_do_nothing_but_its_work() -> Result<()> {
    let scene = Scene::new(Settings::default())?;
    let attempts = |subject: &Subject| {
        let mut attempts = Attempts::default();
        files::of_others(&mut attempts, &scene, [scene.warden, scene.supervisor]);
        files::of_the_front(&mut attempts, &scene);
        sockets::any(&mut attempts);
        sockets::held_by_the_front(&mut attempts, subject);
        kernel::other_processes(&mut attempts, &scene, scene.warden);
        kernel::signals_by_calls_for_itself(&mut attempts, scene.warden);
        kernel::privileges(&mut attempts);
        kernel::interfaces(&mut attempts);
        kernel::programs_and_code(&mut attempts);
        attempts
    };
    scene.is_confined("front", scene.front, attempts)?;
    scene.runs_no_program(scene.front)?;
    scene.goes_on()
}

#[test]
fn a_warden_that_was_taken_over_has_the_firewall_and_nothing_else() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let scene = Scene::new(Settings { variant, ..Settings::default() })?;
        let attempts = |_: &Subject| {
            let mut attempts = Attempts::default();
            files::of_others(&mut attempts, &scene, [scene.front, scene.supervisor]);
            files::of_nobody_but_the_front(&mut attempts, &scene);
            sockets::beside_the_firewall(&mut attempts);
            kernel::other_processes(&mut attempts, &scene, scene.front);
            kernel::privileges(&mut attempts);
            kernel::interfaces(&mut attempts);
            attempts
        };
        scene.is_confined("warden", scene.warden, attempts)?;
        scene.goes_on()?;
        scene.world.opens(Family::V6).map(drop)
    })
    .map(drop)
}
