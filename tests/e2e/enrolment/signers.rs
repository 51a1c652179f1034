//! Which keys sign for a client: given when it is made, or later; and what is not taken for one.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use postern_tests::process::succeed;
use postern_tests::wait::LONG;

use super::delivery::TOUCHED;
use super::{AT, Desk, is_profile_of};

#[test]
fn what_is_no_key_to_sign_with_is_refused_and_never_repeated() -> Result<()> {
    let desk = Desk::new()?;
    let (private, public) = desk.keygen("ed25519", "id")?;
    let (_, rsa) = desk.keygen("rsa", "rsa")?;
    let several = desk.write("several", &format!("{}{TOUCHED}\n", fs::read_to_string(&public)?))?;
    let loose = desk.write("loose", TOUCHED)?;
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o666))?;
    let none = desk.write("none", "# nobody yet\n")?;
    let (add, key) = (&["add", "bob", "--service", "ssh"][..], &["key", "alice"][..]);
    for (command, more) in [(add, &AT[..]), (key, &[])] {
        for (arguments, code, says) in [
            (["--ssh-key", &private], 3, ".pub file"),
            (["--ssh-key", &rsa], 3, "ssh-keygen -t ed25519"),
            (["--ssh-key", &several], 3, "--authorized-keys"),
            (["--ssh-key", &none], 3, "one line"),
            (["--ssh-key", "/nowhere/id.pub"], 3, "/nowhere/id.pub"),
            (["--authorized-keys", "several"], 3, "from / on"),
            (["--authorized-keys", &loose], 3, "lets others change it"),
            (["--authorized-keys", &none], 3, "no key that can sign"),
        ] {
            desk.refuses(&[command, &arguments[..], more].concat(), code, says)?;
        }
        let both = ["--ssh-key", &public, "--authorized-keys", &several];
        desk.refuses(&[command, &both[..], more].concat(), 2, "cannot be used with")?;
    }
    let body = fs::read_to_string(&private)?;
    let refused = desk.gate().attempt(&[&["client"], add, &["--ssh-key", &private], &AT].concat())?;
    let repeated = body.lines().find(|line| refused.text().contains(line) || refused.stderr.contains(line));
    ensure!(repeated.is_none(), "of the private key: {repeated:?}");
    desk.refuses(&[add, &["--expires", "2020-01-01T00:00:00Z"], &AT].concat(), 1, "could never knock")
}

#[test]
fn a_client_signs_with_one_key_with_those_of_a_file_or_with_none() -> Result<()> {
    let desk = Desk::new()?;
    let (_, public) = desk.keygen("ed25519", "id")?;
    let signer = fs::read_to_string(&public)?;
    let file = desk.write("authorized", &format!("# of bob\n{signer}restrict {TOUCHED}\n"))?;
    desk.gate().edit(&desk.gate().keys(), "[[client]]\n", "[[client]] # alice\n")?;

    // By a pipe, as from `ssh-add -L`.
    let arguments = [&["client", "add", "bob", "--service", "ssh", "--ssh-key", "-"], &AT[..]].concat();
    let added = succeed(desk.gate().posternd(&arguments)?, signer.as_bytes(), LONG)?;
    is_profile_of(&added.text(), &desk.entry("bob")?, &[&signer])?;
    let added = desk.client(&["add", "carol", "--service", "ssh", "--authorized-keys", &file])?;
    let carol = desk.entry("carol")?;
    is_profile_of(&added.text(), &carol, &[&signer, TOUCHED])?;
    ensure!(
        carol.identity.is_none() && carol.authorized_keys.as_deref() == Some(file.as_ref()),
        "by the file"
    );

    let key = |arguments: &[&str]| desk.gate().administer(&[&["client", "key", "alice"], arguments].concat());
    let before = desk.keys()?;
    let mut unheard = desk.gate().posternd(&["client", "key", "alice", "--ssh-key", &public])?;
    let unheard = unheard.stdout(OpenOptions::new().write(true).open("/dev/full")?).output()?;
    let complaint = String::from_utf8(unheard.stderr)?;
    ensure!(complaint.starts_with("posternd: nothing was changed: cannot print: No space"), "{complaint}");
    ensure!(unheard.status.code() == Some(1) && desk.keys()? == before, "changed, and nobody told");
    let said = key(&["--authorized-keys", &file])?.text();
    ensure!(said.starts_with("identities = [\"ssh-ed25519 ") && said.contains(TOUCHED), "{said}");
    ensure!(desk.entry("alice")?.authorized_keys.is_some(), "in the key file");
    let said = key(&["--ssh-key", &public])?.text();
    assert_eq!(said, format!("identities = [\"{}\"]\n", signer.trim()));
    let alice = desk.entry("alice")?;
    ensure!(alice.authorized_keys.is_none() && alice.identity.is_some(), "one or the other");
    ensure!(alice.secret == desk.world.alice.entry.secret, "the secret stays");
    ensure!(
        key(&["--none"])?.stdout.is_empty() && desk.entry("alice")? == desk.world.alice.entry,
        "as before"
    );
    ensure!(desk.keys()?.contains("[[client]] # alice\n"), "a comment is lost");
    let before = desk.keys()?;
    for command in ["disable", "enable"] {
        desk.gate().administer(&["client", command, "alice"])?;
    }
    assert_eq!(desk.keys()?, before, "the rest of the file stays as it is");
    desk.refuses(&["key", "alice"], 2, "--none")
}
