//! Agents and files that do not sign, each with a text of its own; and then nothing is sent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{KNOCK, signed, with_usual_file};
use crate::home::{Home, run, run_with, start};
use crate::ssh::{Agent, false_agent, keygen, string, tool};

#[test]
fn an_agent_that_is_locked_or_empty_or_has_other_keys_says_so() {
    let home = Home::new();
    let (key, other) = (keygen(&home, "key", ""), keygen(&home, "other", ""));
    let (gate, home) = signed(home, &[&key]);
    let agent = Agent::start(&home, "/bin/false");
    let says = |what: &str| {
        let refused = run(&mut agent.postern(&KNOCK)).expect(3).stderr;
        assert!(refused.contains(what), "{refused}");
        assert!(refused.contains(&key.fingerprint()) && refused.contains("id_ed25519 does not exist"));
        gate.assert_no_more();
    };
    says("the ssh-agent shows no key: it has none (ssh-add -l), or is locked (ssh-add -X unlocks it)");
    agent.add(&["other"]).expect(0);
    says("the ssh-agent has another key, and not this one;");
    agent.add(&["key"]).expect(0);
    agent.add_typing("password", &["-x"]).expect(0);
    says("or is locked (ssh-add -X unlocks it)");
    agent.add_typing("password", &["-X"]).expect(0);
    run(&mut agent.postern(&KNOCK)).expect(0);
    gate.knock();

    // It helps where the file is there, and says what is wrong with both where that is another key.
    agent.add(&["-D"]).expect(0);
    fs::create_dir(home.path(".ssh")).unwrap();
    fs::rename(home.path("other"), home.path(".ssh/id_ed25519")).unwrap();
    let refused = run(&mut agent.postern(&KNOCK)).expect(3).stderr;
    assert!(refused.contains("shows no key") && refused.contains(&other.fingerprint()), "{refused}");
    fs::rename(home.path("key"), home.path(".ssh/id_ed25519")).unwrap();
    run(&mut agent.postern(&KNOCK)).expect(0);
    gate.knock();
}

#[test]
fn a_confirmation_that_is_refused_ends_the_knock() {
    let home = Home::new();
    let key = keygen(&home, "key", "");
    let (gate, home) = signed(home, &[&key]);
    for (asker, code) in [("/bin/false", 1), ("/bin/true", 0)] {
        let agent = Agent::start(&home, asker);
        agent.add(&["-c", "key"]).expect(0);
        let knocked = run(&mut agent.postern(&KNOCK)).expect(code);
        if code == 0 {
            gate.knock();
        } else {
            let said = format!("the ssh-agent refused to sign with {}: somebody declined", key.fingerprint());
            assert!(knocked.stderr.contains(&said), "{}", knocked.stderr);
            gate.assert_no_more();
        }
    }
}

#[test]
fn a_socket_without_an_agent_says_so_and_the_file_signs_all_the_same() {
    let (_, gate, home) = with_usual_file();
    drop(std::os::unix::net::UnixListener::bind(home.path("dead")).unwrap());
    for socket in ["dead", "none"] {
        run(home.postern(&KNOCK).env("SSH_AUTH_SOCK", socket)).expect(0);
        gate.knock();
    }
    fs::remove_file(home.path(".ssh/id_ed25519")).unwrap();
    let refused = run(home.postern(&KNOCK).env("SSH_AUTH_SOCK", "dead")).expect(3).stderr;
    assert!(refused.contains("no ssh-agent answers at dead, where SSH_AUTH_SOCK says (Connection refused"));
    let refused = run(&mut home.postern(&KNOCK)).expect(3).stderr;
    assert!(refused.contains("there is no ssh-agent (SSH_AUTH_SOCK is not set)"), "{refused}");
    gate.assert_no_more();
}

/// What an agent answers that has this key.
fn list(key: &postern_proto::IdentityKey) -> Vec<u8> {
    string(&[&[12, 0, 0, 0, 1][..], &string(&key.public().to_bytes().unwrap()), &string(b"")].concat())
}

#[test]
fn an_agent_that_answers_nonsense_is_not_believed() {
    let home = Home::new();
    let key = keygen(&home, "key", "");
    let (gate, home) = signed(home, &[&key]);
    let forged = string(&[&string(b"ssh-ed25519")[..], &string(&[7; 64])].concat());
    let malformed = "the ssh-agent answers what no agent does (to a question for its keys)";
    let cases: [(&str, Vec<Vec<u8>>, i32, &str); 7] = [
        ("count", vec![string(&[12, 0, 0, 0, 9])], 3, malformed),
        ("kind", vec![string(&[6])], 3, malformed),
        (
            "long",
            vec![vec![0xff; 8]],
            3,
            "the ssh-agent answers what no agent does (a message of 4294967295 bytes)",
        ),
        ("short", vec![vec![0, 0]], 3, "no ssh-agent answers at short"),
        (
            "forged",
            vec![list(&key), string(&[&[14][..], &forged].concat())],
            1,
            "; ssh-add -D and ssh-add again, or restart it",
        ),
        (
            "cut",
            vec![list(&key), string(&[14, 0, 0, 0, 1, 0])],
            1,
            "no signature from the ssh-agent: the ssh-agent answers",
        ),
        ("refused", vec![list(&key), string(&[5])], 1, "the ssh-agent refused to sign with SHA256:"),
    ];
    for (socket, answers, code, says) in cases {
        false_agent(&home.path(socket), answers);
        let refused = run(home.postern(&KNOCK).env("SSH_AUTH_SOCK", socket)).expect(code).stderr;
        assert!(refused.contains(says), "{socket}: {refused}");
        gate.assert_no_more();
    }
}

#[test]
fn a_file_that_does_not_fit_says_why() {
    let (key, gate, home) = with_usual_file();
    let other = keygen(&home, "other", "");
    keygen(&home, "locked", "a passphrase");
    tool(&home, "ssh-keygen", &["-q", "-t", "rsa", "-N", "", "-f", "rsa"]).expect(0);
    tool(&home, "ssh-keygen", &["-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", "pem"]).expect(0);
    fs::write(home.path("text"), "hello\n").unwrap();
    fs::copy(home.path(".ssh/id_ed25519"), home.path("open")).unwrap();
    fs::set_permissions(home.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    let names_both =
        format!("other: this is {}, and the profile names {}", other.fingerprint(), key.fingerprint());
    for (file, says) in [
        ("other", names_both.as_str()),
        ("other.pub", &names_both.replace("other:", "other.pub:")),
        ("rsa", "rsa: only ssh-ed25519 and sk-ssh-ed25519@openssh.com keys can sign knocks"),
        ("pem", "pem: neither a private key as ssh-keygen writes it"),
        ("text", "text: neither a private key as ssh-keygen writes it"),
        ("none", "none: cannot read: No such file or directory"),
        ("open", "open: others can read or write it (mode 0644)"),
    ] {
        let refused = run(&mut home.postern(&[&KNOCK[..], &["-i", file]].concat())).expect(3).stderr;
        assert!(refused.contains(says), "{file}: {refused}");
    }
    // One that is as good as the right one, but for its passphrase.
    let (gate, home) = {
        drop(gate);
        let locked = fs::read_to_string(home.path("locked.pub")).unwrap().parse().unwrap();
        signed(home, &[&locked])
    };
    let postern = env!("CARGO_BIN_EXE_postern");
    let refused = tool(&home, postern, &["knock", "home", "ssh", "-i", "locked"]).expect(3).stderr;
    assert!(refused.contains("locked has a passphrase, and no terminal is there to ask for it"), "{refused}");
    assert!(refused.contains("\"ssh-add FILE\" gives the agent a key"), "{refused}");
    gate.assert_no_more();
}

#[test]
fn a_diagnosis_names_the_key_or_says_why_there_is_none() {
    let home = Home::new();
    let key = keygen(&home, ".ssh/id_ed25519", "");
    let mut gate = crate::gate::Gate::answering(&["127.0.0.1"], 1, 22);
    gate.profile.identities = vec![key.clone()];
    run_with(&mut home.postern(&["import", "home", "-"]), &gate.profile.to_line()).expect(0);
    let mut client = start(&mut home.postern(&["doctor", "home", "vpn"]));
    gate.serve(&mut client, |gate, arrived| {
        assert!(gate.is_signed_by(arrived, std::slice::from_ref(&key)));
        Some(gate.sealed(arrived, gate.granted(arrived)))
    });
    let found = client.finish().expect(0).stdout;
    let said = format!("ok       identity: knocks are signed by {} ", key.fingerprint());
    assert!(found.contains(&said), "{found}");

    fs::remove_file(home.path(".ssh/id_ed25519")).unwrap();
    let found = run(&mut home.postern(&["doctor", "home", "--json"])).expect(1).json();
    let last = found["findings"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["id"], &last["level"]), (&"identity".into(), &"fault".into()), "{found}");
    gate.assert_no_more();
}
