//! What the client prints, word for word: the transcripts beside this folder are replayed, and never rewritten.
//!
//! Each line behind a `$` goes to a shell, in a home whose configuration is the example and which all lines of a
//! transcript share. Below it stands what comes out, stdout before stderr, with the home as `~` and the folder of
//! the program as `PROGRAMS`, and in brackets the exit code that is not 0.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::answered::ANSWERS;
use crate::home::{Home, run};
use crate::manual::commands;

const TRANSCRIPT: &str = include_str!("../transcript.txt");
const ERRORS: &str = include_str!("../errors.txt");
const MANUAL: &str = include_str!("../manual.txt");

#[track_caller]
fn replay(transcript: &str) {
    let home = Home::with_text(include_str!("../../config.example.toml"));
    let place = home.path("").display().to_string();
    let programs = fs::canonicalize(env!("CARGO_BIN_EXE_postern")).unwrap();
    let programs = programs.parent().unwrap().display().to_string();
    let mut actual = String::new();
    for line in transcript.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let mut shell = Command::new("sh");
        shell.env_clear().env("HOME", place.trim_end_matches('/')).current_dir(&place);
        shell.env("PATH", format!("{programs}:/usr/bin:/bin"));
        let outcome = run(shell.args(["-c", line]));
        writeln!(actual, "$ {line}").unwrap();
        let printed = outcome.stdout + &outcome.stderr;
        let printed = printed.replace(place.trim_end_matches('/'), "~").replace(&programs, "PROGRAMS");
        for line in printed.lines() {
            // clap leaves blanks in empty lines.
            writeln!(actual, "{}", line.trim_end()).unwrap();
        }
        if outcome.code != 0 {
            writeln!(actual, "[{}]", outcome.code).unwrap();
        }
        actual.push('\n');
    }
    assert!(actual == transcript, "the output is now:\n{actual}");
}

#[test]
fn the_output_is_the_transcript() {
    replay(TRANSCRIPT);
    for command in commands() {
        assert!(TRANSCRIPT.contains(&format!("$ postern {command} --help\n")), "no help of {command}");
    }
}

#[test]
fn the_manual_is_the_transcript() {
    replay(MANUAL);
    for command in commands() {
        assert!(MANUAL.contains(&format!("$ postern man {command}\n")), "no page of {command}");
    }
}

#[test]
fn the_errors_are_the_transcript() {
    replay(ERRORS);
    let sources = [include_str!("../../src/error.rs"), include_str!("../../src/identity/error.rs")];
    // What it takes a strange agent or a terminal to say is asked for by these tests.
    let elsewhere = [
        include_str!("identity.rs"),
        include_str!("identity/failing.rs"),
        include_str!("identity/security_key.rs"),
        include_str!("../../src/identity/agent.rs"),
    ];
    // These take a system or a network that fails, or somebody who does not answer for minutes.
    let unprovoked = [
        "the connection broke: ",
        "the system gives no random bytes",
        " was not unlocked: another question on this terminal was not answered for two minutes",
    ];
    let mut seen = 0;
    for attribute in sources.iter().flat_map(|source| source.split("#[error(").skip(1)) {
        let Some(words) = longest_words(attribute).filter(|words| !unprovoked.contains(&words.as_str()))
        else {
            continue;
        };
        let is_said = ERRORS.contains(&words) || ANSWERS.contains(&words);
        assert!(is_said || elsewhere.iter().any(|test| test.contains(&words)), "no error says: {words}");
        seen += 1;
    }
    assert!(seen > 15, "only {seen} errors were found in the source");
}

/// The longest piece of an error's format string that is printed as it is; `None` where it has no words of its own.
fn longest_words(attribute: &str) -> Option<String> {
    let text = attribute.trim_start().strip_prefix('"')?.replace("\\\"", "\u{0}");
    let text = text.split('"').next()?;
    let joined: String = text.split("\\\n").map(str::trim_start).collect();
    let pieces = joined.split(['{', '}']).step_by(2).map(|piece| piece.replace('\u{0}', "\""));
    pieces.max_by_key(String::len).filter(|piece| piece.contains(char::is_alphabetic) && piece.len() > 8)
}
