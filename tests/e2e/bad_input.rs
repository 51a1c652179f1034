//! Each mistake in a configuration, a key file or the arguments has its own error, which says where it is and what to
//! do, and an exit code that a script can tell from other failures. A key file's error never repeats a secret.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::process::Finished;

use crate::world::World;

const FAILED: i32 = 1;
const BAD_USAGE: i32 = 2;
const BAD_FILE: i32 = 3;

/// A good configuration, for the tables to break.
const CONFIG: &str = r#"[gate]
id = "AAECAwQFBgcICQoLDA0ODw"
ports = [62201]

[services.ssh]
ports = ["22/tcp"]
window = "30s"

[services.dns]
ports = ["53/udp"]

[firewall]
variant = "nft"

[process]
user = "nobody"

[sequences.legacy]
steps = ["7000", "8000:udp"]
services = ["ssh"]
strays = 3
"#;

/// A good key file.
const KEYS: &str = r#"[[client]]
name = "alice"
id = "QkM4d2RxN2s"
secret = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
services = ["ssh"]
"#;

/// What stands there, what is written instead, the line of the error (0: none), what the error says.
type Mistake = (&'static str, &'static str, usize, &'static str);

const BAD_CONFIGS: &[Mistake] = &[
    ("[gate]", "[gate", 1, ""),
    ("[gate]", "[gates]", 1, "unknown field `gates`"),
    ("[gate]", "[gate]\ncolor = 1", 2, "unknown field `color`"),
    ("id = \"AAECAwQFBgcICQoLDA0ODw\"\n", "", 1, "missing field `id`"),
    ("AAECAwQFBgcICQoLDA0ODw", "AAEC", 2, "a gate id is 16 bytes"),
    ("id = \"AAECAwQFBgcICQoLDA0ODw\"", "id = 5", 2, "invalid type"),
    ("window = \"30s\"", "on-open = []", 7, "a command is a program and its arguments"),
    ("window = \"30s\"", "on-open = \"true\"", 7, "invalid type"),
    ("ports = [\"22/tcp\"]\nwindow", "window", 5, "service ssh has no ports"),
    ("\"7000\"", "\"99999\"", 19, "a step is a port from 1 to 65535"),
    ("\"7000\"", "\"22\"", 18, "sequence legacy: 22/tcp is guarded, for service ssh; choose another"),
    ("\"8000:udp\"", "\"62201:udp\"", 18, "62201/udp is a knock port of this gate"),
    ("steps = [\"7000\", \"8000:udp\"]", "steps = []", 19, "1 to 32 steps"),
    ("steps = [\"7000\", \"8000:udp\"]", "", 18, "it has no ports: list steps"),
    ("steps = [\"7000\", \"8000:udp\"]", "rolling = \"20000-29999\"", 18, "a range (rolling) and a key"),
    ("steps = [\"7000\", \"8000:udp\"]", "rolling = \"9-8\"", 19, "does not lie before the first"),
    ("services = [\"ssh\"]\nstrays", "services = []\nstrays", 18, "it opens nothing"),
    ("services = [\"ssh\"]\nstrays", "services = [\"ftp\"]\nstrays", 18, "there is no [services.ftp]"),
    ("strays = 3", "strays = -1", 21, "a number from 0 to 65535"),
    ("strays = 3", "flags = \"syn,!syn\"", 21, "both set and clear"),
    ("strays = 3", "timeout = \"1h\"", 18, "ten minutes at the most"),
    ("strays = 3", "target = \"here\"", 21, "invalid IP address"),
    ("strays = 3", "length = 3", 18, "choose one"),
    ("[62201]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]", 3, "list 1 to 8 different UDP ports"),
    ("[62201]", "[7, 7]", 3, "list 1 to 8 different UDP ports"),
    ("[62201]", "[0]", 3, "nonzero"),
    ("[62201]", "[70000]", 3, "u16"),
    ("[62201]", "62201", 3, "expected a sequence"),
    ("[62201]", "[62201]\ninterfaces = []", 4, "list at least one interface"),
    ("[62201]", "[62201]\ntolerance = \"11m\"", 4, "the clock tolerance must lie between 1s and 10m"),
    ("[62201]", "[62201]\ntolerance = \"soon\"", 4, "whole number of seconds"),
    ("[62201]", "[62201]\naddresses = [\"a b\"]", 4, "a host is an IP address"),
    ("[services.ssh]", "[services.\"s s h\"]", 5, "a service name is"),
    ("[services.ssh]", "[services.ssh]\ncommand = \"rm\"", 6, "unknown field `command`"),
    ("[\"22/tcp\"]", "[]", 5, "service ssh has no ports"),
    ("[\"22/tcp\"]", "[22]", 6, "invalid type"),
    ("22/tcp", "22", 6, "a port is a number from 1 to 65535 and a protocol"),
    ("22/tcp", "53/udp", 5, "port 53/udp is listed twice"),
    ("53/udp", "62201/udp", 9, "62201/udp is a knock port"),
    ("\"30s\"", "\"30\"", 7, "a window is a whole number of seconds"),
    ("\"30s\"", "\"2h\"", 5, "longer than its max-window"),
    ("\"30s\"", "\"30s\"\nestablished = \"kill\"", 8, "unknown variant `kill`"),
    ("\"nft\"", "\"bpf\"", 13, "unknown variant `bpf`"),
    ("variant = \"nft\"", "backend = \"ipfw\"", 13, "unknown variant `ipfw`"),
    ("variant = \"nft\"", "families = []", 13, "families is empty"),
    ("variant = \"nft\"", "families = [\"ipv5\"]", 13, "unknown variant `ipv5`"),
    ("variant = \"nft\"", "guard = \"reject\"", 13, "unknown variant `reject`"),
    ("variant = \"nft\"", "grants = \"maybe\"", 13, "unknown variant `maybe`"),
    ("variant = \"nft\"", "always-allow = [\"10.0.0.0/33\"]", 13, "invalid IP address syntax"),
    ("user = \"nobody\"", "group = \"nobody\"", 16, "unknown field `group`"),
    ("user = \"nobody\"", "landlock = \"no\"", 16, "unknown variant `no`"),
];

const BAD_KEYS: &[Mistake] = &[
    ("[[client]]", "[[client]", 1, ""),
    ("[[client]]", "[[clients]]", 1, "unknown field `clients`"),
    ("alice", "al ice", 2, "a client name is"),
    ("QkM4d2RxN2s", "QkM4", 3, "a client id is 8 bytes"),
    (
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "AAECAwQFBgcICQoLDA0ODxAREhMU",
        4,
        "a client secret is 32 bytes",
    ),
    ("services = [\"ssh\"]", "services = []", 1, "no services"),
    ("[\"ssh\"]", "[\"gopher\"]", 2, "no [services.gopher]"),
    ("[\"ssh\"]", "[\"ssh\"]\nmax-window = 5", 6, "invalid type"),
    ("[\"ssh\"]", "[\"ssh\"]\nsources = [\"10.0.0.0\"]", 6, "invalid IP address syntax"),
    ("[\"ssh\"]", "[\"ssh\"]\nexpires = \"soon\"", 6, "a date is written in UTC"),
    ("[\"ssh\"]", "[\"ssh\"]\nexpire = \"2027-01-01T00:00:00Z\"", 6, "unknown field `expire`"),
];

#[test]
fn every_mistake_is_named_with_its_place() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    let good_config = fs::read_to_string(world.gate.config())?;
    let keys = world.gate.directory().join("keys");
    let good_keys = fs::read_to_string(&keys)?;
    world.listen(&[SSH])?;
    world.gate.start(&[])?;
    world.opens(Family::V4)?;
    world.gate.stop()?;
    world.gate.administer(&["remove"])?;

    fs::write(world.gate.config(), CONFIG)?;
    fs::write(&keys, KEYS)?;
    ensure!(world.gate.attempt(&["check"])?.code == 0, "what the tables break is good");
    broken(&world, &world.gate.config(), CONFIG, BAD_CONFIGS)?;
    broken(&world, &keys, KEYS, BAD_KEYS)?;
    for (twice, says) in [
        (KEYS.to_owned(), "the same name"),
        (KEYS.replace("alice", "bob"), "the same id"),
        (KEYS.replace("alice", "bob").replace("QkM4", "QkM5"), "the same secret"),
    ] {
        fs::write(&keys, format!("{KEYS}{twice}"))?;
        says_once(&world.gate.attempt(&["check"])?, &format!("{}: line 6, column ", keys.display()), says)?;
    }
    fs::write(&keys, KEYS)?;
    // Without knocks and without sequences.
    let (without, _) = CONFIG.split_once("[sequences").context("the section")?;
    fs::write(world.gate.config(), without.replace("[62201]", "[]"))?;
    says_once(&world.gate.attempt(&["check"])?, "line 3, column 1", "list 1 to 8 different UDP ports")?;
    fs::write(
        world.gate.config(),
        CONFIG.replace("steps = [\"7000\", \"8000:udp\"]", "one-time = \"none\""),
    )?;
    says_once(&world.gate.attempt(&["check"])?, "/none: ", "No such file")?;
    fs::write(world.gate.config(), "[gate]")?;
    says_once(&world.gate.attempt(&["run"])?, "line 1, column 1", "missing field")?;
    fs::write(world.gate.config(), CONFIG)?;
    exposed(&world, &world.gate.config(), 0o622, "lets others change it")?;
    exposed(&world, &keys, 0o640, "lets others read or change it")?;
    missing(&world, &keys)?;
    missing(&world, &world.gate.config())?;

    fs::write(world.gate.config(), good_config)?;
    fs::write(&keys, good_keys)?;
    world.gate.start(&[])?;
    world.opens(Family::V4).map(drop)
}

/// Each mistake of a table, alone in its file. All are tried before the test fails, so that it shows them all.
fn broken(world: &World, path: &Path, good: &str, mistakes: &[Mistake]) -> Result<()> {
    let mut wrong = Vec::new();
    for (instead_of, written, line, says) in mistakes {
        let text = good.replacen(instead_of, written, 1);
        ensure!(text != good, "{instead_of:?} stands in the file");
        fs::write(path, text)?;
        let place = format!("{}: line {line}, column ", path.display());
        wrong.extend(says_once(&world.gate.attempt(&["check"])?, &place, says).err());
    }
    fs::write(path, good)?;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// It ends as for a bad file, and says where and what, once, and no secret.
fn says_once(finished: &Finished, place: &str, says: &str) -> Result<()> {
    let Finished { code, stderr, .. } = finished;
    ensure!(*code == BAD_FILE, "exit code {code} for {says:?}: {stderr}");
    ensure!(stderr.contains(place) && stderr.contains(says), "no {place:?} or {says:?} in: {stderr}");
    ensure!(stderr.matches("line ").count() <= 1, "the place stands twice: {stderr}");
    ensure!(!stderr.contains("AAECAwQFBgcI"), "an error repeats a key: {stderr}");
    Ok(())
}

fn exposed(world: &World, path: &Path, mode: u32, says: &str) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    says_once(&world.gate.attempt(&["check"])?, &path.display().to_string(), says)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o600))?)
}

fn missing(world: &World, path: &Path) -> Result<()> {
    let text = fs::read(path)?;
    fs::remove_file(path)?;
    says_once(&world.gate.attempt(&["check"])?, &path.display().to_string(), "No such file")?;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o600))?)
}

/// Arguments, the exit code, what the error says.
const BAD_ARGUMENTS: &[(&[&str], i32, &str)] = &[
    (&[], BAD_USAGE, "Usage"),
    (&["open"], BAD_USAGE, "unrecognized subcommand 'open'"),
    (&["run", "--trial", "soon"], BAD_USAGE, "--trial"),
    (&["run", "--log-format", "xml"], BAD_USAGE, "--log-format"),
    (&["init", "--address", "a b"], BAD_USAGE, "a host is an IP address"),
    (&["init"], FAILED, "exists already"),
    (&["explain"], BAD_USAGE, "<FILE>"),
    (&["explain", "/nonexistent.pcap"], FAILED, "/nonexistent.pcap"),
    (&["explain", "/dev/null"], FAILED, "/dev/null"),
    (&["state"], BAD_USAGE, "Usage"),
    (&["client"], BAD_USAGE, "Usage"),
    (&["client", "add", "bob"], BAD_USAGE, "--service"),
    (&["client", "add", "b b", "--service", "ssh"], BAD_USAGE, "a client name is"),
    (&["client", "add", "bob", "--service", "s s h"], BAD_USAGE, "a service name is"),
    (&["client", "add", "bob", "--service", "gopher", "--address", "h"], FAILED, "no [services.gopher]"),
    (&["client", "add", "bob", "--service", "ssh"], BAD_FILE, "--address"),
    (
        &["client", "add", "bob", "--service", "ssh", "--address", "h", "--max-window", "1"],
        BAD_USAGE,
        "--max-window",
    ),
    (
        &["client", "add", "bob", "--service", "ssh", "--address", "h", "--source", "10"],
        BAD_USAGE,
        "--source",
    ),
    (
        &["client", "add", "bob", "--service", "ssh", "--address", "h", "--max-leases", "x"],
        BAD_USAGE,
        "--max-leases",
    ),
    (
        &["client", "add", "bob", "--service", "ssh", "--address", "h", "--expires", "soon"],
        BAD_USAGE,
        "--expires",
    ),
    (
        &["client", "add", "bob", "--service", "ssh", "--address", "h", "--not-before", "1"],
        BAD_USAGE,
        "--not-before",
    ),
    (&["client", "add", "alice", "--service", "ssh", "--address", "h"], BAD_FILE, "the same name"),
    (&["client", "disable", "nobody"], BAD_FILE, "no client nobody"),
    (&["client", "remove", "nobody"], BAD_FILE, "no client nobody"),
];

#[test]
fn bad_arguments_are_told_apart() -> Result<()> {
    let world = World::running(Settings::default())?;
    world.shuts_on_time(world.opens(Family::V4)?)?;
    for (arguments, code, says) in BAD_ARGUMENTS {
        let finished = world.gate.attempt(arguments)?;
        ensure!(finished.code == *code, "{arguments:?} ends with {}: {}", finished.code, finished.stderr);
        ensure!(finished.stderr.contains(says), "no {says:?} for {arguments:?} in: {}", finished.stderr);
        ensure!(finished.stdout.is_empty(), "{arguments:?} prints {}", finished.text());
    }
    world.opens(Family::V4).map(drop)
}
