//! What the client says of a gate's answers, word for word: `tests/answers.txt` is replayed, and never rewritten.
//!
//! Each line behind a `$` is run, and a gate on loopback does what stands behind its `#`. In what is printed, its knock port is
//! PORT, the ports of this host OWN and THEIRS as it and the gate have them, the time until which something is open TIME.

use std::cell::Cell;
use std::fmt::Write as _;

use postern_proto::{ANSWER_LEN, Outcome, Refusal};

use crate::gate::{Arrived, Gate};
use crate::home::{Home, start};

pub(crate) const ANSWERS: &str = include_str!("../answers.txt");
/// The source port that a gate sees behind address translation that changes it.
const TRANSLATED: u16 = 4;

#[test]
fn what_is_said_of_answers_is_the_transcript() {
    let gate = Gate::answering(&["127.0.0.1"], 1, 1);
    let home = Home::with("home", &gate.profile);
    let mut actual = String::new();
    for line in ANSWERS.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let (command, answer) = line.split_once(" # ").expect("what the gate does");
        let args: Vec<_> = command.split(' ').skip(1).collect();
        let mut client = start(&mut home.postern(&args));
        let own = Cell::new(0);
        gate.serve(&mut client, |gate, arrived| {
            own.set(arrived.from.port());
            answered(gate, arrived, answer)
        });
        let outcome = client.finish();
        writeln!(actual, "$ {line}").unwrap();
        let printed = without_time(&(outcome.stdout + &outcome.stderr));
        let printed = printed.replace(&format!("for {})", own.get()), "for OWN)");
        let printed = printed.replace(&format!("gate saw {TRANSLATED} "), "gate saw THEIRS ");
        actual += &printed.replace(&gate.profile.ports[0].to_string(), "PORT");
        if outcome.code != 0 {
            writeln!(actual, "[{}]", outcome.code).unwrap();
        }
        actual.push('\n');
    }
    assert!(actual == ANSWERS, "the output is now:\n{actual}");
    // Those that a gate answers (SPEC 9): of the policy.
    let policy = Refusal::ALL.iter().skip_while(|refusal| **refusal != Refusal::NotYetValid);
    for refusal in policy.take_while(|refusal| **refusal != Refusal::Busy) {
        assert!(ANSWERS.contains(&format!("({refusal})")), "{refusal} is not in it");
    }
}

fn answered(gate: &Gate, arrived: &Arrived, answer: &str) -> Option<[u8; ANSWER_LEN]> {
    let refusal = |name: &str| Refusal::ALL.iter().copied().find(|refusal| refusal.name() == name);
    match answer {
        "says nothing" => None,
        "grants it" => Some(gate.sealed(arrived, gate.granted(arrived))),
        "sees another port" => {
            let mut elsewhere = arrived.from;
            elsewhere.set_port(TRANSLATED);
            Some(gate.sealed_as_seen(arrived, gate.granted(arrived), elsewhere))
        }
        other => {
            let name = other.strip_prefix("refuses: ").expect("what a gate can do");
            Some(gate.sealed(arrived, Outcome::Refused(refusal(name).expect("a reason"))))
        }
    }
}

fn without_time(printed: &str) -> String {
    match printed.strip_prefix("open until ").and_then(|rest| rest.split_once(" for ")) {
        Some((_, rest)) => format!("open until TIME for {rest}"),
        None => printed.to_owned(),
    }
}
