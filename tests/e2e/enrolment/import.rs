//! Many clients at once.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_proto::{KeyFile, Profile};
use postern_tests::gate::Settings;
use postern_tests::knocks::Client;
use postern_tests::netns::Family;
use postern_tests::process::{run, succeed};
use postern_tests::wait::LONG;

use super::delivery::{TOUCHED, age};
use super::{AT, Desk, is_profile_of, keeps_secret, mode};
use crate::world::{World, grants};

/// How many clients one gate is to bear.
const MANY: usize = 100_000;
/// For that many, by programs that were not optimized, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);

#[test]
fn a_table_makes_its_clients_and_a_folder_of_their_profiles() -> Result<()> {
    let desk = Desk::new()?;
    let (private, public) = desk.keygen("ed25519", "id")?;
    let signer = fs::read_to_string(&public)?;
    let signer = signer.trim();
    desk.gate().edit(&desk.gate().keys(), "[[client]]\n", "[[client]] # alice\n")?;
    let csv = format!(
        "name,services,ssh-key,max-window,sources\nbob,ssh web,{signer},20s,192.0.2.0/24;2001:db8::/32\ncarol,ssh,{signer},,\n"
    );
    let toml = format!(
        "[[client]]\nname = \"dave\"\nservices = [\"ssh\"]\nidentity = \"{signer}\"\n\n\
         [[client]]\nname = \"erin\"\nservices = [\"ssh\"]\nidentity = \"{signer}\"\nmax-leases = 3\n"
    );
    let (csv, toml) = (desk.write("table.csv", &csv)?, desk.write("table.toml", &toml)?);
    let out = desk.path("profiles");
    let imported = desk.client(&["import", &csv, "--out", &out])?;
    assert_eq!((imported.stdout.len(), mode(&out)?, fs::read_dir(&out)?.count()), (0, 0o700, 2));
    for name in ["bob", "carol"] {
        let (file, entry) = (format!("{out}/{name}.profile"), desk.entry(name)?);
        assert_eq!(mode(&file)?, 0o600);
        keeps_secret(&imported, &entry)?;
        is_profile_of(&fs::read_to_string(&file)?, &entry, &[signer])?;
    }
    let bob = desk.entry("bob")?;
    ensure!(bob.sources.len() == 2 && bob.max_window.is_some() && bob.services.len() == 2, "as the row says");

    let sealed = desk.path("sealed");
    let imported = desk.client(&["import", &toml, "--out", &sealed, "--encrypt"])?;
    for name in ["dave", "erin"] {
        let (file, entry) = (format!("{sealed}/{name}.age"), desk.entry(name)?);
        assert_eq!(mode(&file)?, 0o600);
        keeps_secret(&imported, &entry)?;
        is_profile_of(&age(&private, &fs::read(&file)?)?, &entry, &[signer])?;
    }
    assert_eq!(desk.entry("erin")?.max_leases, Some(3));
    ensure!(desk.keys()?.contains("[[client]] # alice\n"), "what was there stays");
    Ok(())
}

#[test]
fn without_a_folder_the_profiles_are_lines_and_a_gate_that_runs_knows_them_at_once() -> Result<()> {
    let world = World::running(Settings::default())?;
    let arguments = [&["client", "import", "-", "--format", "csv"], &AT[..]].concat();
    let table = b"name,services\nbob,ssh\ncarol,ssh\n";
    let imported = succeed(world.gate.posternd(&arguments)?, table, LONG)?.text();
    let keys = KeyFile::parse(&fs::read_to_string(world.gate.keys())?)?;
    for (line, name) in imported.lines().zip(["bob", "carol"]) {
        let profile = line.strip_prefix(&format!("{name},")).context("its name and a comma")?;
        let entry =
            keys.clients().iter().find(|client| client.name.as_str() == name).context("in the key file")?;
        is_profile_of(profile, entry, &[])?;
        let client = Client::at(world.gate.id(), entry.clone());
        let knock = client.seal(&client.asks_for("ssh")?);
        grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    }
    assert_eq!(imported.lines().count(), 2, "{imported}");
    Ok(())
}

#[test]
fn a_person_sees_how_far_it_is_and_a_program_does_not() -> Result<()> {
    let desk = Desk::new()?;
    let first = desk.write("first.csv", "name,services\nbob,ssh\ncarol,ssh\n")?;
    let second = desk.write("second.csv", "name,services\ndave,ssh\n")?;
    let (seen, unseen) = (desk.path("seen"), desk.path("unseen"));
    let words = [&["client", "import", &first, "--out", &seen], &AT[..]].concat();
    let shown = succeed(desk.on_terminal("exec", &words)?, b"", LONG)?.text();
    ensure!(shown.contains("/2 profiles"), "{shown:?}");
    let said = desk.client(&["import", &second, "--out", &unseen])?.stderr;
    ensure!(!said.contains('\x1b') && said.lines().count() == 1, "{said:?}");
    Ok(())
}

#[test]
fn one_bad_row_and_nothing_has_happened() -> Result<()> {
    let desk = Desk::new()?;
    let taken = desk.write("taken", "kept")?;
    let out = desk.path("profiles");
    let good = "name,services,ssh-key,expires,authorized-keys\nbob,ssh,,,\n";
    let folder = ["--out", &out];
    for (row, more, says) in [
        ("carol,gopher,,,", &folder[..], "line 3, services: posternd.toml has no [services.gopher]"),
        ("bob,ssh,,,", &folder, "line 3, name: line 2 has a client bob as well"),
        ("alice,ssh,,,", &folder, "line 3, name: the key file has a client alice already"),
        ("carol,ssh,,2020-01-01T00:00:00Z,", &folder, "line 3, expires: 2020-01-01T00:00:00Z is over"),
        (
            "carol,ssh,-----BEGIN OPENSSH PRIVATE KEY-----,,",
            &folder,
            "line 3, ssh-key: this is a private key",
        ),
        ("carol,ssh,,,keys", &folder, "line 3, authorized-keys: keys: write the whole path"),
        (&format!("carol,ssh,{TOUCHED},,/k"), &folder, "line 3, authorized-keys: leave it out"),
        ("carol,ssh", &folder, "line 3: it has 2 fields"),
        ("carol,,,,", &[], "line 3, services: list at least one"),
        ("carol,gopher,,,", &[], "line 3, services"),
        // The first row has no key to encrypt to, and every row is looked at before.
        ("carol,ssh,,,", &["--out", &out, "--encrypt"], "line 2, --encrypt needs a key"),
    ] {
        let table = desk.write("table", &format!("{good}{row}\n"))?;
        let arguments = [&["import", &table, "--format", "csv"], more, &AT].concat();
        desk.refuses(&arguments, 3, &format!("{table}: {says}"))?;
    }
    let table = desk.write("table.csv", good)?;
    desk.refuses(&[&["import", &table, "--out", &taken], &AT[..]].concat(), 1, "exists already")?;
    desk.refuses(&[&["import", &table, "--encrypt"], &AT[..]].concat(), 2, "--out")?;
    desk.refuses(&[&["import", &taken], &AT[..]].concat(), 2, "--format")?;
    desk.refuses(&["import", &table], 3, "--address")?;
    assert_eq!(fs::read_to_string(&taken)?, "kept");
    desk.client(&["import", &table, "--out", &out]).map(drop)
}

#[test]
fn a_hundred_thousand_clients_are_imported() -> Result<()> {
    let desk = Desk::new()?;
    let mut table = String::from("name,services\n");
    for number in 0..MANY {
        writeln!(table, "client-{number},ssh")?;
    }
    let (table, out) = (desk.write("table.csv", &table)?, desk.path("profiles"));
    let began = Instant::now();
    let arguments = [&["client", "import", &table, "--out", &out], &AT[..]].concat();
    let imported = run(desk.gate().posternd(&arguments)?, b"", PATIENCE)?;
    ensure!(imported.code == 0 && imported.stdout.is_empty(), "{}", imported.stderr);
    // For who runs the test with --nocapture: how long is a matter of the machine.
    println!("{MANY} clients were imported in {:?}", began.elapsed());

    let began = Instant::now();
    let listed = run(desk.gate().posternd(&["client", "list", "--json"])?, b"", PATIENCE)?;
    println!("and listed in {:?}", began.elapsed());
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout)?;
    assert_eq!(listed.len(), MANY + 1);
    let keys = KeyFile::parse(&desk.keys()?)?;
    let entries: HashMap<_, _> = keys.clients().iter().map(|entry| (entry.name.to_string(), entry)).collect();
    for number in [0, MANY / 2, MANY - 1] {
        let name = format!("client-{number}");
        let profile = Profile::from_line(&fs::read_to_string(format!("{out}/{name}.profile"))?)?;
        ensure!(entries[&name].secret == profile.secret, "the profile of {name} is another's");
    }
    assert_eq!(fs::read_dir(&out)?.count(), MANY);
    Ok(())
}
