//! Security keys, by OpenSSH's dummy authenticator: each knock takes a touch, so that there are few.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use postern_proto::{IdentityKey, Outcome, Refusal};

use super::{KNOCK, is_signed, signed};
use crate::gate::Gate;
use crate::home::{Home, run, run_with, start};
use crate::ssh::{Agent, SK_PROVIDER, sk_keygen};

/// A home with an agent's security key.
fn with_key(home: &Home) -> (IdentityKey, Agent<'_>) {
    let key = sk_keygen(home, "sk", &[]);
    let agent = Agent::start(home, "/bin/false");
    agent.add(&["-S", SK_PROVIDER, "sk"]).expect(0);
    (key, agent)
}

#[test]
fn a_security_key_signs_through_the_agent() {
    let home = Home::new();
    let (key, agent) = with_key(&home);
    let mut gate = Gate::listen(&["127.0.0.1"], 1, 22);
    gate.profile.identities = vec![key.clone()];
    run_with(&mut home.postern(&["import", "home", "-"]), &gate.profile.to_line()).expect(0);
    for file in [&[][..], &["-i", "sk"], &["-i", "sk.pub"]] {
        let knocked = run(&mut agent.postern(&[&KNOCK[..], file].concat())).expect(0);
        assert!(is_signed(&gate, &gate.knock(), &key));
        let said = format!("touch your security key: {}", key.fingerprint());
        assert!(knocked.stderr.contains(&said), "{}", knocked.stderr);
    }
    let quiet = run(&mut agent.postern(&[&KNOCK[..], &["--quiet"]].concat())).expect(0);
    assert_eq!(quiet.stderr, "");
    assert!(is_signed(&gate, &gate.knock(), &key));

    for many in [&["--repeat", "2"][..], &["--repeat", "2", "--hex"]] {
        let refused = run(&mut agent.postern(&[&KNOCK[..], many].concat())).expect(2).stderr;
        assert!(refused.contains("each knock takes a touch of the security key: leave --repeat out"));
    }
    // The file alone is of no use.
    drop(agent);
    let refused = run(&mut home.postern(&[&KNOCK[..], &["-i", "sk"]].concat())).expect(3).stderr;
    assert!(
        refused
            .contains("sk belongs to a security key, which is used through an ssh-agent alone (ssh-add sk)"),
        "{refused}"
    );
    gate.assert_no_more();
}

#[test]
fn a_signature_without_a_touch_is_not_sent() {
    let home = Home::new();
    let key = sk_keygen(&home, "sk", &["-O", "no-touch-required"]);
    let (gate, home) = signed(home, &[&key]);
    let agent = Agent::start(&home, "/bin/false");
    agent.add(&["-S", SK_PROVIDER, "sk"]).expect(0);
    let refused = run(&mut agent.postern(&KNOCK)).expect(3).stderr;
    let advice = "), and no gate takes that: make another key, without -O no-touch-required";
    assert!(refused.contains(&format!("{}{advice}", key.fingerprint())), "{refused}");
    gate.assert_no_more();
}

/// One destination after the other: the next only where nothing came back.
#[test]
fn one_touch_is_one_knock() {
    let home = Home::new();
    let (key, agent) = with_key(&home);
    let mut gate = Gate::answering(&["127.0.0.1", "127.0.0.2"], 1, 22);
    gate.profile.identities = vec![key.clone()];
    run_with(&mut home.postern(&["import", "home", "-"]), &gate.profile.to_line()).expect(0);
    let client = start(&mut agent.postern(&KNOCK));
    let begin = Instant::now();
    let first = gate.knock_at(0);
    assert!(is_signed(&gate, &first, &key));
    gate.answer(&first, gate.opened());
    client.finish().expect(0);
    gate.assert_no_more();
    assert!(begin.elapsed() < Duration::from_secs(3), "it did not wait for the next turn");

    let client = start(&mut agent.postern(&[&KNOCK[..], &["--timeout", "20"]].concat()));
    gate.knock_at(0);
    let begin = Instant::now();
    let second = gate.knock_at(1);
    assert!(begin.elapsed() > Duration::from_secs(2), "the next has its turn when the first was silent");
    gate.answer(&second, gate.opened());
    client.finish().expect(0);

    // A diagnosis asks for a touch for each answer that it needs.
    let mut client = start(&mut agent.postern(&["doctor", "home", "vpn"]));
    let knocks = std::cell::Cell::new(0);
    gate.serve(&mut client, |gate, arrived| {
        knocks.set(knocks.get() + 1);
        Some(gate.sealed(arrived, gate.granted(arrived)))
    });
    let found = client.finish().expect(0).stdout;
    assert!(found.contains("note     few-probes: each knock takes a touch"), "{found}");
    assert_eq!(knocks.get(), 2, "{found}");

    // And never for more than there are places, where none answers.
    let client = start(&mut agent.postern(&["doctor", "home", "vpn", "--timeout", "1"]));
    let silent = client.finish().expect(1).stdout;
    assert!(silent.contains("wrong-key-or-gate-down"), "{silent}");
    gate.knock_at(0);
    gate.knock_at(1);
    gate.assert_no_more();
}

#[test]
fn a_proxy_takes_one_touch_and_none_at_its_end() {
    let home = Home::new();
    let (key, agent) = with_key(&home);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut gate = Gate::answering(&["127.0.0.1"], 1, port);
    gate.profile.identities = vec![key.clone()];
    run_with(&mut home.postern(&["import", "home", "-"]), &gate.profile.to_line()).expect(0);
    let client = start(&mut agent.postern(&["proxy", "home", &port.to_string(), "--close-on-exit"]));
    let arrived = gate.knock();
    assert!(is_signed(&gate, &arrived, &key));
    gate.answer(&arrived, gate.opened());
    drop(listener.accept().unwrap());
    let said = client.finish().expect(0).stderr;
    assert!(said.contains("not closed at the end, for that takes another touch"), "{said}");
    gate.assert_no_more();

    let client = start(&mut agent.postern(&["proxy", "home", &port.to_string()]));
    gate.answer(&gate.knock(), Outcome::Refused(Refusal::BadSignature));
    let said = client.finish().stderr;
    // The open door was found, or the refusal came first.
    assert!(said.contains("touch your security key"), "{said}");
}
