//! Each form of a profile, from `posternd client` to an open door, by `postern import`.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, probe, wait_to_see};
use postern_tests::process::succeed;
use postern_tests::programs;
use postern_tests::wait::LONG;

use super::Desk;
use super::picture::{WHITE_ON_BLACK, decode, photograph};
use crate::world::World;

#[test]
fn a_line_is_imported_and_opens() -> Result<()> {
    let desk = Desk { world: World::running(Settings::default())? };
    let line = desk.client(&["add", "bob", "--service", "ssh"])?.text();
    imports_and_opens(&desk, &["-"], line.as_bytes(), &[])
}

#[test]
fn a_file_is_imported_and_opens() -> Result<()> {
    let desk = Desk { world: World::running(Settings::default())? };
    let out = desk.path("bob.profile");
    desk.client(&["add", "bob", "--service", "ssh", "--out", &out])?;
    imports_and_opens(&desk, &["--file", &out], b"", &[])
}

#[test]
fn a_picture_is_imported_and_opens() -> Result<()> {
    let desk = Desk { world: World::running(Settings::default())? };
    let picture = desk.client(&["add", "bob", "--service", "ssh", "--qr"])?.text();
    let lines: Vec<_> = picture.lines().map(ToOwned::to_owned).collect();
    // Without --raw, the kind of the code comes before it.
    let read = decode(&desk, &photograph(&lines, WHITE_ON_BLACK)?, &[])?;
    imports_and_opens(&desk, &["-"], format!("QR-Code:{read}").as_bytes(), &[])
}

#[test]
fn an_encrypted_profile_is_imported_with_the_key_that_signs_and_opens() -> Result<()> {
    let desk = Desk { world: World::running(Settings::default())? };
    let (private, public) = desk.keygen("ed25519", "id")?;
    let out = desk.path("bob.age");
    desk.client(&["add", "bob", "--service", "ssh", "--ssh-key", &public, "--encrypt", "--out", &out])?;
    let with_key = ["--identity", &private];
    imports_and_opens(&desk, &[&["--file", &out], &with_key[..]].concat(), b"", &with_key)?;
    // What came by mail is pasted.
    let sealed = fs::read(&out)?;
    let import = [&["import", "again", "-"], &with_key[..]].concat();
    succeed(postern(&desk, &import)?, &sealed, LONG).map(drop)
}

/// A client imports its profile, and its knock opens.
fn imports_and_opens(desk: &Desk, import: &[&str], stdin: &[u8], knock: &[&str]) -> Result<()> {
    let (home, door) = (&desk.world.home, desk.gate().at(Family::V4, SSH));
    ensure!(probe(home, door)? == Seen::Nothing, "shut before the knock");
    succeed(postern(desk, &[&["import", "gate"], import].concat())?, stdin, LONG)?;
    succeed(postern(desk, &[&["knock", "gate", "ssh"], knock].concat())?, b"", LONG)?;
    wait_to_see(home, door, Seen::Open)
}

/// `postern` of somebody who has nothing but a configuration.
fn postern(desk: &Desk, words: &[&str]) -> Result<Command> {
    let mut command = desk.world.home.command(programs::directory()?.join("postern"));
    command.args(words).env("POSTERN_CONFIG", desk.path("config.toml")).env("HOME", "/nonexistent");
    for foreign in ["POSTERN_PROFILE", "XDG_CONFIG_HOME", "CREDENTIALS_DIRECTORY", "SSH_AUTH_SOCK"] {
        command.env_remove(foreign);
    }
    Ok(command)
}
