//! `postern completions` and `postern man`, as shells and groff read them, and `--quiet`.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::gate::profile;
use crate::home::{Home, Outcome, postern, run, run_with};

/// Every command, in the order of `postern --help`.
pub(crate) fn commands() -> Vec<String> {
    let help = run(&mut postern(&["--help"])).expect(0).stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.map_while(|line| line.split_whitespace().next());
    let names: Vec<_> = names.map(ToOwned::to_owned).collect();
    assert!(names.len() > 5, "{help}");
    names
}

/// A script in the place of a person at the shell.
#[track_caller]
fn shell(program: &str, args: &[&str], stdin: &str) -> Outcome {
    run_with(Command::new(program).args(args), stdin)
}

#[test]
fn bash_completes_commands_and_options() {
    let script = run(&mut postern(&["completions", "bash"])).expect(0).stdout;
    let home = Home::new();
    fs::write(home.path("postern"), &script).unwrap();
    let completed = |words: &[&str]| {
        let words = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let ask = format!(
            "set -eu\nsource ./postern\nset +eu\nCOMP_WORDS=({words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             _postern postern \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\necho \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &ask]).current_dir(home.path(""));
        let outcome = run(&mut bash).expect(0);
        assert_eq!(outcome.stderr, "");
        outcome.stdout.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let offered = completed(&["postern", ""]);
    for command in commands() {
        assert!(offered.contains(&command), "{command}: {offered:?}");
    }
    assert_eq!(completed(&["postern", "ssh"]), ["ssh-config"]);
    assert_eq!(completed(&["postern", "knock", "--wi"]), ["--window"]);
    assert_eq!(completed(&["postern", "completions", "b"]), ["bash"]);
}

#[test]
fn zsh_and_fish_read_their_completions() {
    let zsh = run(&mut postern(&["completions", "zsh"])).expect(0).stdout;
    assert!(zsh.starts_with("#compdef postern\n"));
    shell("zsh", &["-n"], &zsh).expect(0);
    let fish = run(&mut postern(&["completions", "fish"])).expect(0).stdout;
    shell("fish", &["--no-execute"], &fish).expect(0);
    let ask = format!("{fish}\ncomplete --do-complete 'postern ssh-c'");
    let offered = shell("fish", &["--no-config"], &ask).expect(0).stdout;
    assert!(offered.starts_with("ssh-config\t"), "{offered}");
}

#[test]
fn each_command_has_a_page_of_which_groff_has_nothing_to_say() {
    let home = Home::new();
    let told = run(&mut home.postern(&["man", "--out", "share/man1"])).expect(0).stdout;
    let commands = commands();
    assert_eq!(told, format!("wrote {} pages into share/man1\n", commands.len() + 1));
    let names: Vec<_> = std::iter::once("postern.1".to_owned())
        .chain(commands.iter().map(|name| format!("postern-{name}.1")))
        .collect();
    let written = run(&mut home.postern(&["man", "--out", "share/man1", "--json"])).expect(0).json();
    let pages: Vec<_> = names.iter().map(|name| json!({"name": name, "text": null})).collect();
    assert_eq!(written, json!({"version": 1, "folder": "share/man1", "pages": pages}));

    for (index, name) in names.iter().enumerate() {
        let page = fs::read_to_string(home.path("share/man1").join(name)).unwrap();
        let args: Vec<_> =
            ["man"].into_iter().chain(index.checked_sub(1).map(|at| commands[at].as_str())).collect();
        assert_eq!(run(&mut postern(&args)).expect(0).stdout, page);
        let formatted = shell("groff", &["-man", "-ww", "-Tascii", "-P-cbou"], &page).expect(0);
        assert_eq!(formatted.stderr, "", "{name}");
        let title = name.trim_end_matches(".1").to_uppercase();
        assert!(formatted.stdout.starts_with(&format!("{title}(1)")), "{}", formatted.stdout);
        // As a person reads it: with what the help says, line by line.
        assert!(
            formatted.stdout.contains("\n         3  bad configuration or key\n"),
            "{}",
            formatted.stdout
        );
    }
    let unknown = run(&mut postern(&["man", "nothing"])).expect(2);
    assert!(
        unknown.stderr.starts_with("postern: there is no command nothing; there are knock, "),
        "{}",
        unknown.stderr
    );
    let unwritable = run(&mut home.postern(&["man", "--out", "/proc/nowhere"])).expect(1);
    assert!(unwritable.stderr.starts_with("postern: /proc/nowhere: cannot write: "), "{}", unwritable.stderr);
}

#[test]
fn the_change_log_names_every_command() {
    let readme = include_str!("../../../README.md");
    let changes = readme.split("\n## Changes\n").nth(1).unwrap();
    for command in commands() {
        assert!(changes.contains(&format!("`{command}`")), "no {command} in README's change log");
    }
}

#[test]
fn quiet_is_silent_about_all_but_errors() {
    let mut two = profile(22);
    // The second cannot be sent to, which is said as a rule.
    two.addresses = ["127.0.0.1", "255.255.255.255"].map(|address| address.parse().unwrap()).into();
    let home = Home::with("home", &two);
    let line = two.to_line();
    for args in [
        &["-q", "knock", "home"][..],
        &["knock", "--quiet", "home"],
        &["sequence", "127.0.0.1", "9:udp", "-q"],
        &["gates", "-q"],
        &["import", "other", &line, "-q"],
        &["ssh-config", "home", "--install", "-q"],
        &["man", "-q", "--out", "pages"],
        &["completions", "bash", "-q"],
    ] {
        let outcome = run(&mut home.postern(args)).expect(0);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{args:?}");
    }
    assert!(home.path("pages/postern.1").exists() && home.text().contains("[gates.other]"));
    let told = run(&mut home.postern(&["knock", "home"])).expect(0);
    assert!(told.stderr.starts_with("postern: not knocked at 255.255.255.255"), "{}", told.stderr);

    for (args, code, says) in [
        (&["knock", "nobody", "-q"][..], 3, "no gate nobody"),
        (&["knock", "home", "-q", "--repeat", "x"], 2, "invalid value 'x'"),
        (&["knock", "home", "-q", "--hex"], 2, "--quiet prints nothing: leave it out"),
        (&["close", "home", "-q", "--dry-run"], 2, "--quiet prints nothing: leave it out"),
        (&["sequence", "127.0.0.1", "1", "-qv"], 2, "--quiet prints nothing: leave it out"),
        (&["sequence", "127.0.0.1", "1", "-q", "--print"], 2, "--quiet prints nothing: leave it out"),
    ] {
        let outcome = run(&mut home.postern(args)).expect(code);
        assert!(
            outcome.stderr.starts_with("postern: ") && outcome.stderr.contains(says),
            "{}",
            outcome.stderr
        );
        assert_eq!(outcome.stdout, "");
    }
    let both = run(&mut home.postern(&["gates", "-q", "--json"])).expect(2);
    assert_eq!(both.stderr, "");
    assert!(both.json()["error"]["message"].as_str().unwrap().contains("--quiet does not go with --json"));
}
