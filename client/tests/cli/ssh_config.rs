//! `postern ssh-config`, and what the real ssh makes of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;

use crate::home::{Home, Outcome, postern, run};

/// Two gates that share an address, and one whose ssh is elsewhere.
const GATES: &str = r#"
[gates.bastion]
gate-id = "AAAAAAAAAAAAAAAAAAAAAA"
client-id = "AAAAAAAAAAA"
secret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
addresses = ["bastion.example.org", "192.0.2.7", "2001:db8::7"]
ports = [62201]
services = { ssh = ["22/tcp"], web = ["443/tcp"] }

[gates.high]
addresses = ["high.example.org"]
sequences.ssh = { steps = ["7000"], opens = ["2222/tcp"] }

[gates.one]
addresses = ["shared.example.org"]
sequences.any = { steps = ["7000"], opens = ["22/tcp", "80/tcp"] }

[gates.two]
addresses = ["Shared.example.org"]
sequences.any = { steps = ["7000"], opens = ["80/tcp", "8080/tcp"] }
"#;

/// What people have there: for every host first, then for some, and a proxy for all that would win if it came first.
const BY_HAND: &str = "# mine\nUser carol\nCompression yes\n\nHost inner # behind\r\n  Port 2200\n\
    Host *\n  ProxyCommand elsewhere %h\n  ServerAliveInterval 7";

fn ssh_config(home: &Home, args: &[&str]) -> Outcome {
    run(&mut home.postern(&[&["ssh-config"], args].concat()))
}

/// What ssh would do: its settings for a host, one a line.
#[track_caller]
fn settings(file: &Path, host: &str) -> Vec<String> {
    let mut ssh = Command::new("ssh");
    ssh.env_clear().arg("-F").arg(file).args(["-G", host]);
    let outcome = run(&mut ssh).expect(0);
    outcome.stdout.lines().map(ToOwned::to_owned).collect()
}

#[track_caller]
fn assert_has(settings: &[String], lines: &[&str]) {
    for line in lines {
        assert!(settings.iter().any(|setting| setting == line), "no {line:?} in {settings:#?}");
    }
}

fn program() -> PathBuf {
    fs::canonicalize(env!("CARGO_BIN_EXE_postern")).unwrap()
}

#[test]
fn a_block_names_the_gate_and_its_addresses() {
    let home = Home::with_text(GATES);
    let own = program();
    let own = own.display();
    for (gate, expected) in [
        (
            &["bastion"][..],
            format!(
                "Host bastion bastion.example.org 192.0.2.7 2001:db8::7\n    ProxyCommand {own} proxy --gate bastion %h %p\n"
            ),
        ),
        (
            &["high"],
            format!(
                "Host high high.example.org\n    Port 2222\n    ProxyCommand {own} proxy --gate high %h %p\n"
            ),
        ),
        (&["one"], format!("Host one shared.example.org\n    ProxyCommand {own} proxy --gate one %h %p\n")),
        (
            &["two", "--port", "8080"],
            format!(
                "Host two Shared.example.org\n    Port 8080\n    ProxyCommand {own} proxy --gate two %h %p\n"
            ),
        ),
    ] {
        assert_eq!(ssh_config(&home, gate).expect(0).stdout, expected);
        let report = ssh_config(&home, &[gate, &["--json"]].concat()).expect(0).json();
        assert_eq!(
            report,
            json!({
                "version": 1, "gate": gate[0], "block": expected, "file": null, "backup": null, "changed": false
            })
        );
    }
    assert!(!home.path(".ssh").exists());

    // A PATH that finds the program by its name is that of this shell alone: timers and editors have another one. And the
    // configuration is not where it always is.
    let folder = program().parent().unwrap().to_owned();
    let mut found = home.postern(&["ssh-config", "bastion", "--config", ".config/postern/config.toml"]);
    let stdout = run(found.env("PATH", format!("/nowhere:{}", folder.display()))).expect(0).stdout;
    let config = fs::canonicalize(home.config()).unwrap();
    let line = format!("    ProxyCommand {own} --config {} proxy --gate bastion %h %p\n", config.display());
    assert!(stdout.ends_with(&line), "{stdout}");
}

#[test]
fn an_installed_block_takes_effect_and_nothing_else_changes() {
    let home = Home::with_text(GATES);
    let file = home.path(".ssh/config");
    fs::create_dir(home.path(".ssh")).unwrap();
    fs::write(&file, BY_HAND).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let before = settings(&file, "inner");

    let told = ssh_config(&home, &["bastion", "--install"]).expect(0).stdout;
    assert!(told.starts_with("put bastion into /") && told.contains("as it was: /"), "{told}");
    let installed = fs::read_to_string(&file).unwrap();
    assert!(installed.ends_with(&format!("\n# <<< postern bastion <<<\n\n{BY_HAND}")), "{installed}");
    assert_eq!(fs::read_to_string(home.path(".ssh/config.postern-backup")).unwrap(), BY_HAND);
    assert_eq!((home.mode(".ssh/config"), home.mode(".ssh/config.postern-backup")), (0o640, 0o640));
    let proxy = format!("proxycommand {} proxy --gate bastion %h %p", program().display());
    for host in ["bastion", "bastion.example.org", "192.0.2.7", "2001:db8::7"] {
        assert_has(
            &settings(&file, host),
            &[&proxy, "port 22", "user carol", "compression yes", "serveraliveinterval 7"],
        );
    }
    // Nobody else's settings are others than before.
    assert_eq!(settings(&file, "inner"), before);
    assert_has(&before, &["user carol", "port 2200", "proxycommand elsewhere %h"]);

    // A second time nothing happens; a changed gate replaces its own block. No backup is ever replaced.
    let again = ssh_config(&home, &["bastion", "--install"]).expect(0).stdout;
    assert!(again.ends_with(" already; nothing was changed\n"), "{again}");
    ssh_config(&home, &["high", "--install"]).expect(0);
    let both = fs::read_to_string(&file).unwrap();
    assert!(both.ends_with(&format!("\n\n{installed}")), "{both}");
    assert_has(&settings(&file, "high"), &["port 2222"]);
    assert_eq!(fs::read_to_string(home.path(".ssh/config.postern-backup.2")).unwrap(), installed);
    fs::write(home.config(), GATES.replace("\"192.0.2.7\"", "\"192.0.2.8\"")).unwrap();
    let report = ssh_config(&home, &["bastion", "--install", "--json"]).expect(0).json();
    assert_eq!(report["changed"], true);
    assert!(report["backup"].as_str().unwrap().ends_with("/.ssh/config.postern-backup.3"), "{report}");
    for (backup, text) in [("", BY_HAND), (".2", &*installed), (".3", &*both)] {
        let backup = home.path(&format!(".ssh/config.postern-backup{backup}"));
        assert_eq!(fs::read_to_string(backup).unwrap(), text);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), both.replace("192.0.2.7", "192.0.2.8"));
    let report = ssh_config(&home, &["bastion", "--install", "--json"]).expect(0).json();
    assert_eq!((&report["changed"], &report["backup"]), (&json!(false), &json!(null)));
    let mut files: Vec<_> =
        fs::read_dir(home.path(".ssh")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(
        files,
        ["config", "config.postern-backup", "config.postern-backup.2", "config.postern-backup.3"]
    );
}

#[test]
fn a_new_file_is_private_and_a_link_stays_a_link() {
    let home = Home::with_text(GATES);
    let told = ssh_config(&home, &["bastion", "--install"]).expect(0).stdout;
    assert!(told.contains(", a new file"), "{told}");
    assert_eq!((home.mode(".ssh"), home.mode(".ssh/config")), (0o700, 0o600));
    assert!(!home.path(".ssh/config.postern-backup").exists());

    fs::create_dir(home.path("dotfiles")).unwrap();
    fs::write(home.path("dotfiles/ssh"), BY_HAND).unwrap();
    symlink("dotfiles/ssh", home.path("link")).unwrap();
    ssh_config(&home, &["bastion", "--install", "--file", "link"]).expect(0);
    assert!(home.path("link").is_symlink());
    assert!(
        fs::read_to_string(home.path("dotfiles/ssh")).unwrap().starts_with("# >>> postern bastion >>>\n")
    );
    assert_eq!(fs::read_to_string(home.path("dotfiles/ssh.postern-backup")).unwrap(), BY_HAND);
}

#[test]
fn blocks_that_are_put_in_at_once_are_all_kept() {
    let gate = |number| {
        format!(
            "[gates.gate-{number}]\naddresses = [\"h{number}.example.org\"]\n\
        sequences.ssh = {{ steps = [\"7\"], opens = [\"22/tcp\"] }}\n"
        )
    };
    let home = Home::with_text(&(0..16).map(gate).collect::<String>());
    thread::scope(|scope| {
        for number in 0..16 {
            let home = &home;
            scope.spawn(move || ssh_config(home, &[&format!("gate-{number}"), "--install"]).expect(0));
        }
    });
    for number in 0..16 {
        let settings = settings(&home.path(".ssh/config"), &format!("h{number}.example.org"));
        assert_has(
            &settings,
            &[&format!("proxycommand {} proxy --gate gate-{number} %h %p", program().display())],
        );
    }
}

/// ssh and the shell that it starts hand the paths over as they are.
#[test]
fn any_path_gets_through_ssh_and_the_shell() {
    let home = Home::with_text(GATES);
    let folder = home.path("it's 100% $HOME \"&\" ; #1 ~");
    fs::create_dir(&folder).unwrap();
    let copy = folder.join("postern");
    // Not by this process: what another test starts at that moment would hold the copy open for writing until it
    // executes, and nobody executes a file that is written (ETXTBSY).
    assert!(Command::new("cp").args([program().as_path(), &copy]).status().unwrap().success());
    let config = folder.join("config.toml");
    fs::copy(home.config(), &config).unwrap();

    let mut command = Command::new(&copy);
    command.env_clear().env("HOME", home.path("")).env("POSTERN_CONFIG", &config);
    run(command.args(["ssh-config", "bastion", "--install"])).expect(0);
    fs::remove_file(&config).unwrap();
    let mut ssh = Command::new("ssh");
    ssh.env_clear().arg("-F").arg(home.path(".ssh/config")).args(["bastion", "true"]);
    let stderr = run(&mut ssh).expect(255).stderr;
    let says = format!("postern: {}: no such file", config.display());
    assert!(stderr.starts_with(&says), "{stderr}");
}

#[test]
fn what_cannot_be_installed_is_left_alone() {
    let home = Home::with_text(GATES);
    fs::write(home.path("begun"), "User x\n# >>> postern bastion >>>\n").unwrap();
    fs::write(home.path("ended"), "# <<< postern bastion <<<\n").unwrap();
    symlink("nowhere", home.path("dangling")).unwrap();
    for (file, code, says) in [
        (
            "begun",
            3,
            "begun: line 2: the block that begins here does not end: put `# <<< postern bastion <<<` behind it",
        ),
        (
            "ended",
            3,
            "ended: line 1: the block of this gate ends here, and does not begin before: take the line out",
        ),
        (".", 3, "it is no regular file"),
        ("begun/config", 1, "begun/config: cannot write: Not a directory"),
        ("dangling", 1, "dangling: cannot write: No such file"),
    ] {
        let outcome = ssh_config(&home, &["bastion", "--install", "--file", file]).expect(code);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
    }
    assert_eq!(fs::read_to_string(home.path("begun")).unwrap(), "User x\n# >>> postern bastion >>>\n");
    assert!(!home.path("begun.postern-backup").exists());

    for (args, code, says) in [
        (&["nobody"][..], 3, "no gate nobody in "),
        (&["two"], 3, "it has the TCP ports 80, 8080: say which with --port"),
        (&["bastion", "--port", "23"], 3, "gate bastion has no service at port 23/tcp"),
        (&["bastion", "--file", "x"], 2, "--install"),
        (&["-"], 2, "a gate name is"),
    ] {
        let outcome = ssh_config(&home, args).expect(code);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
    let no_home = run(postern(&["ssh-config", "bastion", "--install"]).env("POSTERN_CONFIG", home.config()));
    let stderr = no_home.expect(2).stderr;
    assert!(stderr.contains("HOME is not set: name ssh's configuration with --file FILE"), "{stderr}");
}
