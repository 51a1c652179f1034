//! What `--json` prints against `docs/output.schema.json`, by a real validator: every object that any test here reads.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::gate::profile;
use crate::home::{Home, run, run_with};
use crate::manual::commands;

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/output.schema.json");

/// One for all tests: to start it takes longer than to validate. It ends with the tests, whose end of its stdin goes.
struct Validator {
    _child: Child,
    stdin: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Validator {
    fn start() -> Self {
        let mut python = Command::new("python3");
        python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/validate.py")).arg(SCHEMA);
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, stdin, answers: BufReader::new(stdout) }
    }

    fn ask(&mut self, name: &str, text: &str) -> String {
        writeln!(self.stdin, "{name} {text}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

/// What is wrong with an object; "ok" when nothing is.
pub(crate) fn validate(name: &str, text: &str) -> String {
    static VALIDATOR: Mutex<Option<Validator>> = Mutex::new(None);
    let mut validator = VALIDATOR.lock().unwrap_or_else(PoisonError::into_inner);
    validator.get_or_insert_with(Validator::start).ask(name, text.trim_end())
}

#[test]
fn every_command_that_prints_an_object_is_in_the_schema() {
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let of_any: Vec<_> = schema["anyOf"].as_array().unwrap().iter().map(|one| one["$ref"].clone()).collect();
    for name in commands().into_iter().filter(|name| name != "proxy").chain(["failure".to_owned()]) {
        assert!(schema["$defs"][&name].is_object(), "the schema has no object {name}");
        assert!(of_any.contains(&json!(format!("#/$defs/{name}"))), "{name} is none of anyOf");
    }
}

/// Lines that no other test has with --json; reading them validates them.
#[test]
fn each_object_is_what_the_schema_says_and_jq_reads_it() {
    let home = Home::with("home", &profile(22));
    for args in [
        &["knock", "home", "ssh", "--window", "1m", "--source", "192.0.2.1"][..],
        &["sequence", "127.0.0.1", "9:udp"],
        &["gates"],
        &["import", "other", "--file", "profile"],
        &["ssh-config", "home", "--install"],
        &["ssh-config", "home", "--install"],
        &["completions", "bash"],
        &["man"],
        &["man", "--out", "pages"],
        &["knock", "nobody"],
        &["frobnicate"],
    ] {
        std::fs::write(home.path("profile"), profile(22).to_line().as_bytes()).unwrap();
        let outcome = run(&mut home.postern(&[&["--json"], args].concat()));
        let version = outcome.json()["version"].clone();
        let jq = run_with(Command::new("jq").args(["--exit-status", ".version"]), &outcome.stdout).expect(0);
        assert_eq!(jq.stdout.trim_end(), version.to_string(), "{args:?}");
    }
}

#[test]
fn the_schema_refuses_what_was_not_printed() {
    for (name, object) in [
        ("failure", json!({"version": 1, "error": {"code": 7, "message": "x"}, "answer": null})),
        ("failure", json!({"version": 2, "error": {"code": 3, "message": "x"}, "answer": null})),
        ("import", json!({"version": 1, "gate": "x", "config": "y"})),
        ("import", json!({"version": 1, "gate": "x", "config": "y", "replaced": false, "more": 1})),
        (
            "gates",
            json!({"version": 1, "gates": [{"name": "x", "addresses": [], "ports": [0], "services": {}}]}),
        ),
        ("man", json!({"version": 1, "gate": "x", "config": "y", "replaced": false})),
    ] {
        assert_ne!(validate(name, &object.to_string()), "ok", "{name}: {object}");
    }
}
