//! Profiles in files, and encrypted ones.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::process::{run, succeed};
use postern_tests::wait::LONG;

use super::{AT, Desk, is_profile_of, keeps_secret, mode};

/// A key in a security key, which signs and cannot decrypt.
pub(super) const TOUCHED: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqtiAAAABHNzaDo= token";

#[test]
fn a_file_is_new_private_and_the_only_place_of_the_secret() -> Result<()> {
    let desk = Desk::new()?;
    let (out, other) = (desk.path("bob.profile"), desk.write("other", "kept")?);
    let added = desk.client(&["add", "bob", "--service", "ssh", "--out", &out])?;
    let bob = desk.entry("bob")?;
    keeps_secret(&added, &bob)?;
    ensure!(added.stdout.is_empty() && added.stderr.contains(&out), "{added:?}");
    assert_eq!(mode(&out)?, 0o600);
    is_profile_of(&fs::read_to_string(&out)?, &bob, &[])?;

    for taken in [&out, &other] {
        let before = fs::read_to_string(taken)?;
        desk.refuses(
            &[&["add", "eve", "--service", "ssh", "--out", taken], &AT[..]].concat(),
            1,
            "exists already",
        )?;
        desk.refuses(&[&["rotate", "bob", "--out", taken], &AT[..]].concat(), 1, "exists already")?;
        assert_eq!(fs::read_to_string(taken)?, before);
    }
    let nowhere = desk.path("no/folder");
    desk.refuses(&[&["rotate", "bob", "--out", &nowhere], &AT[..]].concat(), 1, "nothing was changed")
}

#[test]
fn where_the_key_file_cannot_be_written_no_profile_stays() -> Result<()> {
    let desk = Desk::new()?;
    let table = desk.write("table.csv", "name,services\nbob,ssh\neve,ssh\n")?;
    let out = desk.path("out");
    for arguments in [
        &["client", "add", "bob", "--service", "ssh", "--out", &out][..],
        &["client", "rotate", "alice", "--out", &out],
        &["client", "import", &table, "--out", &out],
    ] {
        desk.refuses_with(unwritable(&desk, arguments)?, 1, "cannot write")?;
    }
    // What was printed cannot be taken back: it is said.
    for arguments in [&["client", "rotate", "alice"][..], &["client", "import", &table]] {
        let before = desk.keys()?;
        let failed = run(unwritable(&desk, arguments)?, b"", LONG)?;
        ensure!(failed.code == 1 && failed.stderr.contains("good for nothing"), "{}", failed.stderr);
        ensure!(desk.keys()? == before && !failed.stdout.is_empty(), "printed first, and then not written");
    }
    desk.client(&["add", "bob", "--service", "ssh", "--out", &out]).map(drop)
}

/// `posternd` where the key file cannot be replaced, for something is mounted on it; the mount is gone with the command.
fn unwritable(desk: &Desk, arguments: &[&str]) -> Result<Command> {
    let mut command = desk.gate().host().command("sh");
    command.args(["-ec", "mount --bind \"$0\" \"$0\"; exec \"$@\""]).arg(desk.gate().keys());
    command.args(desk.words(&[arguments, &AT].concat())?);
    Ok(command)
}

#[test]
fn an_encrypted_profile_is_read_with_age_and_by_nobody_else() -> Result<()> {
    let desk = Desk::new()?;
    let (private, public) = desk.keygen("ed25519", "id")?;
    let (others, _) = desk.keygen("ed25519", "others")?;
    let signer = fs::read_to_string(&public)?;

    let added = desk.client(&["add", "bob", "--service", "ssh", "--ssh-key", &public, "--encrypt"])?;
    let bob = desk.entry("bob")?;
    ensure!(bob.identity.as_ref().map(ToString::to_string).as_deref() == Some(signer.trim()), "it signs");
    keeps_secret(&added, &bob)?;
    let fingerprint = succeed(keygen_l(&public), b"", LONG)?.text();
    let fingerprint = fingerprint.split(' ').nth(1).unwrap_or_default().to_owned();
    ensure!(added.stderr.contains(&fingerprint), "no {fingerprint} in {}", added.stderr);
    is_profile_of(&age(&private, &added.stdout)?, &bob, &[&signer])?;
    ensure!(run(age_command(&others), &added.stdout, LONG)?.code != 0, "another key reads it");
    let listed = desk.gate().administer(&["client", "list"])?.text();
    ensure!(listed.contains(&format!("identity={fingerprint}")), "{listed}");

    // The key of the entry is the one that a rotation encrypts to.
    let out = desk.path("bob.age");
    let rotated = desk.client(&["rotate", "bob", "--encrypt", "--out", &out])?;
    let bob = desk.entry("bob")?;
    keeps_secret(&rotated, &bob)?;
    assert_eq!((rotated.stdout.len(), mode(&out)?), (0, 0o600));
    is_profile_of(&age(&private, &fs::read(&out)?)?, &bob, &[&signer])
}

fn keygen_l(public: &str) -> Command {
    let mut command = Command::new("ssh-keygen");
    command.args(["-l", "-f", public]);
    command
}

#[test]
fn a_key_that_cannot_decrypt_is_told_before_anything_is_made() -> Result<()> {
    let desk = Desk::new()?;
    let (private, rsa) = desk.keygen("rsa", "rsa")?;
    let (_, ecdsa) = desk.keygen("ecdsa", "ecdsa")?;
    let token = desk.write("token.pub", TOUCHED)?;
    let add = ["add", "bob", "--service", "ssh"];
    for (arguments, code, says) in [
        (&["--encrypt"][..], 2, "--ssh-key"),
        (&["--ssh-key", &token, "--encrypt"], 2, "--encrypt-to FILE"),
        (&["--encrypt-to", &ecdsa], 3, "ssh-ed25519 and ssh-rsa"),
        (&["--encrypt-to", &private], 3, "private key"),
        (&["--encrypt-to", &token], 3, "ssh-ed25519 and ssh-rsa"),
        (&["--qr", "--encrypt-to", &rsa], 2, "cannot be used with"),
    ] {
        desk.refuses(&[&add, arguments, &AT].concat(), code, says)?;
    }
    let added = desk.client(&[&add[..], &["--ssh-key", &token, "--encrypt-to", &rsa]].concat())?;
    let bob = desk.entry("bob")?;
    keeps_secret(&added, &bob)?;
    is_profile_of(&age(&private, &added.stdout)?, &bob, &[TOUCHED])
}

/// What `age` makes of it with a private key.
pub(super) fn age(private: &str, sealed: &[u8]) -> Result<String> {
    Ok(succeed(age_command(private), sealed, LONG)?.text())
}

fn age_command(private: &str) -> Command {
    let mut command = Command::new("age");
    command.args(["--decrypt", "--identity", private]);
    command
}
