//! Knocks that are signed: with real ssh-agents, real key files, and OpenSSH's dummy security key.

mod failing;
mod import;
mod security_key;

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use postern_proto::IdentityKey;
use serde_json::json;

use crate::gate::{Arrived, Gate};
use crate::home::{Home, run, run_with, start};
use crate::ssh::{Agent, Terminal, keygen, script, tool};

/// A gate that does not answer, and the home of a client who has to sign with one of these.
fn signed(home: Home, keys: &[&IdentityKey]) -> (Gate, Home) {
    let mut gate = Gate::listen(&["127.0.0.1"], 1, 22);
    gate.profile.identities = keys.iter().map(|&key| key.clone()).collect();
    run_with(&mut home.postern(&["import", "home", "-", "--force"]), &gate.profile.to_line()).expect(0);
    (gate, home)
}

/// A home with a key in the usual file, and a gate that wants it.
fn with_usual_file() -> (IdentityKey, Gate, Home) {
    let home = Home::new();
    let key = keygen(&home, ".ssh/id_ed25519", "");
    let (gate, home) = signed(home, &[&key]);
    (key, gate, home)
}

fn is_signed(gate: &Gate, arrived: &Arrived, key: &IdentityKey) -> bool {
    gate.is_signed_by(arrived, std::slice::from_ref(key))
}

const KNOCK: [&str; 3] = ["knock", "home", "ssh"];

#[test]
fn the_agent_signs_with_the_key_that_the_gate_knows_among_keys_of_all_kinds() {
    let home = Home::new();
    let key = keygen(&home, "key", "");
    for (kind, file) in [("rsa", "rsa"), ("ecdsa", "ecdsa"), ("ed25519", "ca")] {
        tool(&home, "ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", "\u{fc}", "-f", file]).expect(0);
    }
    // ssh-add adds the certificate beside the key, too.
    tool(&home, "ssh-keygen", &["-q", "-s", "ca", "-I", "id", "-n", "x", "rsa.pub"]).expect(0);
    let (gate, home) = signed(home, &[&key]);
    let agent = Agent::start(&home, "/bin/false");
    agent.add(&["rsa", "ecdsa", "ca", "key"]).expect(0);
    fs::remove_file(home.path("key")).unwrap();
    for command in ["knock", "close"] {
        run(&mut agent.postern(&[command, "home", "ssh"])).expect(0);
        let arrived = gate.knock();
        assert!(is_signed(&gate, &arrived, &key), "{command}");
        assert!(!is_signed(&gate, &arrived, &keygen(&home, &format!("other-{command}"), "")));
    }
    // Each is signed for itself.
    run(&mut agent.postern(&[&KNOCK[..], &["--repeat", "3"]].concat())).expect(0);
    for _ in 0..3 {
        assert!(is_signed(&gate, &gate.knock(), &key));
    }
    let hex = run(&mut agent.postern(&[&KNOCK[..], &["--hex"]].concat())).expect(0).stdout;
    let bytes = (0..256).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap());
    assert!(gate.open(&bytes.collect::<Vec<_>>().try_into().unwrap()).is_signed());
}

#[test]
fn a_key_in_a_file_signs() {
    let (key, gate, home) = with_usual_file();
    run(&mut home.postern(&KNOCK)).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &key));

    // By another name, as an argument or in the configuration, with or without the home before it.
    fs::rename(home.path(".ssh"), home.path("keys")).unwrap();
    run(&mut home.postern(&KNOCK)).expect(3);
    run(&mut home.postern(&[&KNOCK[..], &["-i", "keys/id_ed25519"]].concat())).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &key));
    let text = home.text();
    fs::write(home.config(), format!("{text}identity-file = \"~/keys/id_ed25519\"\n")).unwrap();
    run(&mut home.postern(&KNOCK)).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &key));
    // The public half names it, and nobody has the private one.
    let refused = run(&mut home.postern(&[&KNOCK[..], &["-i", "keys/id_ed25519.pub"]].concat())).expect(3);
    assert!(refused.stderr.contains("keys/id_ed25519.pub is the public half alone"), "{}", refused.stderr);
    gate.assert_no_more();
}

#[test]
fn a_file_signs_that_was_named_where_the_profile_wants_none() {
    let home = Home::new();
    let key = keygen(&home, "key", "");
    let (gate, home) = signed(home, &[]);
    run(&mut home.postern(&KNOCK)).expect(0);
    assert!(!gate.knock().knock.is_signed(), "nobody asked for it");
    run(&mut home.postern(&[&KNOCK[..], &["--identity", "key"]].concat())).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &key));
}

#[test]
fn a_public_file_names_the_key_of_the_agent() {
    let home = Home::new();
    let (first, second) = (keygen(&home, "first", ""), keygen(&home, "second", ""));
    let (gate, home) = signed(home, &[&first, &second]);
    let agent = Agent::start(&home, "/bin/false");
    agent.add(&["first", "second"]).expect(0);
    fs::remove_file(home.path("second")).unwrap();
    run(&mut agent.postern(&KNOCK)).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &first));
    // The private half's name stands for the public one beside it, as with ssh.
    for file in ["second.pub", "second"] {
        run(&mut agent.postern(&[&KNOCK[..], &["-i", file]].concat())).expect(0);
        assert!(is_signed(&gate, &gate.knock(), &second), "{file}");
    }
}

#[test]
fn a_passphrase_is_asked_for_on_the_terminal_once() {
    let home = Home::new();
    let key = keygen(&home, ".ssh/id_ed25519", "correct horse");
    let (gate, home) = signed(home, &[&key]);
    let prompt = format!("Enter passphrase for key '{}': ", home.path(".ssh/id_ed25519").display());

    let mut terminal = Terminal::start(&home, "postern knock home ssh --repeat 2 < /dev/null | cat");
    terminal.answer(&prompt, "wrong horse");
    terminal.answer(&prompt, "correct horse");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("that is not the passphrase") && !shown.contains("horse"), "{shown}");
    assert!(is_signed(&gate, &gate.knock(), &key) && is_signed(&gate, &gate.knock(), &key));

    let mut terminal = Terminal::start(&home, "postern knock home ssh");
    for _ in 0..3 {
        terminal.answer(&prompt, "wrong horse");
    }
    let (code, shown) = terminal.finish();
    assert!(
        code == 3 && shown.contains("id_ed25519 was not unlocked: no right passphrase was given"),
        "{shown}"
    );
    gate.assert_no_more();

    // Where the agent has it, nobody is asked.
    let agent = Agent::start(&home, "/bin/false");
    agent.add_typing("correct horse", &[".ssh/id_ed25519"]).expect(0);
    run(&mut agent.postern(&[&KNOCK[..], &["-i", ".ssh/id_ed25519"]].concat())).expect(0);
    assert!(is_signed(&gate, &gate.knock(), &key));
}

/// Also behind ssh, which would not notice.
#[test]
fn who_does_not_say_the_passphrase_gets_the_terminal_back() {
    let home = Home::new();
    let key = keygen(&home, "key", "correct horse");
    let (gate, home) = signed(home, &[&key]);
    // Ctrl-C, also after a few letters, and Ctrl-D.
    for keys in ["\u{3}", "corr\u{3}", "\u{4}"] {
        let mut terminal = Terminal::start(&home, "postern knock home ssh -i key; echo code $?; stty -a");
        terminal.answer_with("Enter passphrase for key 'key': ", keys);
        let (_, shown) = terminal.finish();
        assert!(shown.contains("key was not unlocked") && shown.contains("code 3"), "{shown}");
        for setting in [" echo ", " icanon ", "\nisig ", " icrnl ", "eol = <undef>"] {
            assert!(shown.contains(setting), "{setting}: {shown}");
        }
    }
    gate.assert_no_more();
}

/// ssh ends its proxy when its own time is over. The thread that has looked the name up may still be there, and take the signal.
#[test]
fn who_is_ended_while_somebody_types_leaves_the_terminal_as_it_was() {
    let home = Home::new();
    let key = keygen(&home, "key", "correct horse");
    let (mut gate, home) = signed(home, &[&key]);
    gate.profile.addresses = vec!["localhost".parse().unwrap()];
    run_with(&mut home.postern(&["import", "home", "-", "--force"]), &gate.profile.to_line()).expect(0);
    for signal in ["-TERM", "-HUP", "-QUIT"] {
        let line = "sh -c 'echo $$ > pid; exec postern knock home ssh -i key'; echo code $?; stty -a";
        let mut terminal = Terminal::start(&home, line);
        terminal.answer_with("Enter passphrase for key 'key': ", "corr");
        let pid = fs::read_to_string(home.path("pid")).unwrap();
        run(Command::new("kill").args([signal, pid.trim()])).expect(0);
        let (_, shown) = terminal.finish();
        assert!(!shown.contains("not unlocked"), "it has ended: {shown}");
        for setting in [" echo ", " icanon ", "\nisig ", "eol = <undef>"] {
            assert!(shown.contains(setting), "{signal} {setting}: {shown}");
        }
    }
    gate.assert_no_more();
}

/// The second question comes when the first is answered: otherwise the first would show what is typed for the second.
#[test]
fn two_that_ask_on_one_terminal_ask_one_after_the_other() {
    let home = Home::new();
    let key = keygen(&home, "key", "correct horse");
    let (gate, home) = signed(home, &[&key]);
    let line = "postern knock home ssh -i key & postern knock home ssh -i key & wait; stty -a";
    let mut terminal = Terminal::start(&home, line);
    let (prompt, waits) =
        ("Enter passphrase for key 'key': ", "waiting until another question on this terminal is answered");
    terminal.answer_to(&[prompt, waits], "correct horse\n");
    terminal.answer(prompt, "correct horse");
    let (_, shown) = terminal.finish();
    assert!(shown.contains(" echo ") && shown.contains("\nisig ") && !shown.contains("horse"), "{shown}");
    assert!(is_signed(&gate, &gate.knock(), &key) && is_signed(&gate, &gate.knock(), &key));
}

/// It is stopped until then, and keeps nobody from asking meanwhile.
#[test]
fn who_is_in_the_background_asks_when_he_is_brought_to_the_foreground() {
    let home = Home::new();
    let key = keygen(&home, "key", "correct horse");
    let (gate, home) = signed(home, &[&key]);
    let line = "set -m; postern knock home ssh -i key & \
                until grep -q '^State:.T' /proc/$!/status; do sleep 0.02; done; \
                postern knock home ssh -i key; echo code $?; fg; stty -a";
    let mut terminal = Terminal::start(&home, line);
    for _ in 0..2 {
        terminal.answer("Enter passphrase for key 'key': ", "correct horse");
    }
    let (_, shown) = terminal.finish();
    assert!(shown.contains("code 0") && !shown.contains("waiting until another"), "{shown}");
    assert!(shown.contains(" echo ") && shown.contains("\nisig ") && !shown.contains("horse"), "{shown}");
    assert!(is_signed(&gate, &gate.knock(), &key) && is_signed(&gate, &gate.knock(), &key));
}

/// Somebody takes longer to confirm than an answer may take.
#[test]
fn the_time_for_an_answer_begins_when_the_knock_has_left() {
    let home = Home::new();
    let key = keygen(&home, "key", "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut gate = Gate::answering(&["127.0.0.1"], 1, port);
    gate.profile.identities = vec![key];
    run_with(&mut home.postern(&["import", "home", "-"]), &gate.profile.to_line()).expect(0);
    let slow = script(&home, "slow", "sleep 2.5");
    let agent = Agent::start(&home, slow.to_str().unwrap());
    agent.add(&["-c", "key"]).expect(0);
    for command in [&KNOCK[..], &["proxy", "home", &port.to_string()]] {
        let client = start(&mut agent.postern(&[command, &["--timeout", "2"]].concat()));
        gate.answer(&gate.knock(), gate.opened());
        if command[0] == "proxy" {
            drop(listener.accept().unwrap());
        }
        client.finish().expect(0);
        gate.assert_no_more();
    }
}

#[test]
fn the_gates_are_listed_with_what_signs_for_them() {
    let (key, _, home) = with_usual_file();
    let text = run(&mut home.postern(&["gates"])).expect(0).stdout;
    assert!(text.contains(&format!("  signed by  {}\n", key.fingerprint())), "{text}");
    let gates = run(&mut home.postern(&["gates", "--json"])).expect(0).json();
    let named = json!([{"fingerprint": key.fingerprint(), "comment": "", "needs_touch": false}]);
    assert_eq!(gates["gates"][0]["identities"], named);
}
