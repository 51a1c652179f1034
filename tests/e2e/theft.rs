//! Somebody has stolen the gate's key file, and has recorded the knocks of a client that must sign: he reads them all, and
//! opens nothing.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_proto::{KeyFile, Payload, Proof, Source};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::knocks::Client;
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe};

use crate::neighbours::at_once;
use crate::world::{World, refuses};

#[test]
fn a_stolen_key_file_and_recorded_knocks_open_nothing() -> Result<()> {
    at_once(&Variant::BACKENDS, |&variant| {
        let mut world = World::running(Settings { variant, ..Settings::default() })?;
        let gate = &world.gate;
        world.alice.take_identity()?;
        gate.write_clients(&[&world.alice])?;
        gate.reload()?;
        // The real client opens, and he records how.
        let recorded = world.alice.seal(&world.alice.asks_for("ssh")?);
        let opened = world.opens_with(&recorded, Family::V4)?;
        world.shuts_on_time(opened)?;

        let stolen = KeyFile::parse(&fs::read_to_string(gate.keys())?)?.into_clients();
        let entry = stolen.into_iter().next().context("a client in the key file")?;
        let thief = Client::at(gate.id(), entry);
        let fresh = thief.asks_for("ssh")?;
        let read = thief.reads(&recorded, fresh.at.epoch()).or_else(|_| {
            // An epoch has begun since.
            thief.reads(&recorded, fresh.at.before(Duration::from_secs(30)).epoch())
        })?;
        ensure!(read.proof != Proof::None, "he reads the signature too");
        let here = Source::Stated(world.stranger.ip(Family::V4));
        for (what, payload, reason) in [
            ("a knock of his own", fresh.clone(), "unsigned"),
            ("the recorded payload and proof, sealed again", read.clone(), "bad-signature"),
            ("the proof with a new time", Payload { at: fresh.at, ..read.clone() }, "bad-signature"),
            ("the proof with his own address", Payload { source: here, ..read.clone() }, "bad-signature"),
        ] {
            let knock = thief.seal_as_it_is(&payload);
            refuses(gate, reason, || world.send(&world.stranger, Family::V4, &knock)).context(what)?;
            let seen = probe(&world.stranger, gate.at(Family::V4, SSH))?;
            ensure!(seen == Seen::Nothing, "{what}: {seen:?}");
        }
        refuses(gate, "replayed", || world.send(&world.stranger, Family::V4, &recorded))?;
        // Alive after all of it.
        let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
        world.opens_with(&knock, Family::V4).map(drop)
    })
    .map(drop)
}
