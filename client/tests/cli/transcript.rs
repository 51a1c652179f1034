//! What the client prints, word for word, against `tests/transcript.txt`: each command behind a `$`, its output below.

use std::fmt::Write as _;

use crate::home::{Home, run};

#[test]
fn the_output_is_the_transcript() {
    let transcript = include_str!("../transcript.txt");
    let home = Home::with_text(include_str!("../../config.example.toml"));
    let mut actual = String::new();
    for command in transcript.lines().filter_map(|line| line.strip_prefix("$ postern ")) {
        let args: Vec<_> = command.split(' ').collect();
        let outcome = run(&mut home.postern(&args));
        writeln!(actual, "$ postern {command}").unwrap();
        // clap leaves blanks in empty lines.
        for line in outcome.stdout.lines().chain(outcome.stderr.lines()) {
            writeln!(actual, "{}", line.trim_end()).unwrap();
        }
        actual.push('\n');
    }
    assert!(actual == transcript, "the output is now:\n{actual}");
}
