//! Somebody has stolen the gate's key file, and has recorded the knocks of a client that must sign: he reads them all, and
//! opens nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use postern_proto::{Epoch, KeyFile, Payload, Proof, Source};
use postern_tests::capture::{Capture, Direction, Packet};
use postern_tests::gate::{SSH, Variant};
use postern_tests::knocks::{Client, Knock};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe};
use postern_tests::ssh_agent::SshAgent;

use crate::identity::{opens, world};
use crate::neighbours::at_once;
use crate::world::{World, refuses};

#[test]
fn a_stolen_key_file_and_recorded_knocks_open_nothing() -> Result<()> {
    let agent = SshAgent::start()?;
    let key = agent.new_key("alice")?;
    at_once(&Variant::BACKENDS, |&variant| {
        let world = world(variant, &key)?;
        let capture = Capture::start(world.gate.host(), Direction::In, "udp")?;
        opens(&world, Family::V4, &agent)?;
        let packets =
            capture.wait_for("the knock", |packets| packets.iter().any(|packet| knock(packet).is_some()))?;
        capture.finish()?;
        let recorded = packets.iter().find_map(knock).context("a knock was recorded")?;
        a_thief_opens_nothing(&world, &recorded)?;
        // Alive after all of it.
        world.gate.administer(&["revoke", "all"])?;
        opens(&world, Family::V4, &agent)
    })
    .map(drop)
}

fn knock(packet: &Packet) -> Option<Knock> {
    packet.udp_payload()?.try_into().ok()
}

fn a_thief_opens_nothing(world: &World, recorded: &Knock) -> Result<()> {
    let stolen = KeyFile::parse(&fs::read_to_string(world.gate.keys())?)?.into_clients();
    let thief = Client::at(world.gate.id(), stolen.into_iter().next().context("a client in the key file")?);
    let fresh = thief.asks_for("ssh")?;
    // An epoch may have begun since.
    let this = fresh.at.epoch();
    let read =
        [this, Epoch::new(this.number() - 1)].into_iter().find_map(|epoch| thief.reads(recorded, epoch).ok());
    let read = read.context("he reads what was recorded")?;
    ensure!(
        read.proof != Proof::None && read.request == fresh.request,
        "he reads the signature too: {read:?}"
    );
    let here = Source::Stated(world.stranger.ip(Family::V4));
    for (what, payload, reason) in [
        ("a knock of his own", fresh.clone(), "unsigned"),
        ("the recorded payload and proof, sealed again", read.clone(), "bad-signature"),
        ("the proof with a new time", Payload { at: fresh.at, ..read.clone() }, "bad-signature"),
        ("the proof with his own address", Payload { source: here, ..read }, "bad-signature"),
    ] {
        let knock = thief.seal_as_it_is(&payload);
        refuses(&world.gate, reason, || world.send(&world.stranger, Family::V4, &knock)).context(what)?;
        let seen = probe(&world.stranger, world.gate.at(Family::V4, SSH))?;
        ensure!(seen == Seen::Nothing, "{what}: {seen:?}");
    }
    refuses(&world.gate, "replayed", || world.send(&world.stranger, Family::V4, recorded))
}
