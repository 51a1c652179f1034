//! `--dry-run` and `--hex`: what would be sent, and nothing is.

use std::collections::HashSet;
use std::net::UdpSocket;

use postern_proto::{KNOCK_LEN, Request};
use serde_json::json;

use crate::gate::Gate;
use crate::home::{Home, run};

fn bytes(digits: &str) -> [u8; KNOCK_LEN] {
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Vec<_> =
        pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    bytes.try_into().expect("a knock is 256 bytes")
}

#[test]
fn a_dry_run_says_what_would_be_sent_and_sends_nothing() {
    let gate = Gate::answering(&["127.0.0.1", "127.0.0.2"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let port = gate.profile.ports[0];
    for (args, begin, end) in [
        (&["knock", "home", "ssh"][..], "would send 1 knock to", "open ssh to the address it comes from"),
        (
            &["knock", "home", "--repeat", "3"],
            "would send 3 knocks to",
            "open ssh, vpn to the address it comes from",
        ),
        (
            &["knock", "home", "ssh", "--source", "192.0.2.9"],
            "would send 1 knock to",
            "open ssh to 192.0.2.9",
        ),
        (&["close", "home", "vpn"], "would send 1 knock to", "close vpn for the address it comes from"),
    ] {
        let outcome = run(&mut home.postern(&[args, &["--dry-run"]].concat())).expect(0);
        let line = |address| format!("{begin} {address} port {port}: {end}\n");
        assert_eq!(outcome.stdout, line("127.0.0.1") + &line("127.0.0.2"));
        assert_eq!(outcome.stderr, "");
        let json = run(&mut home.postern(&[args, &["--dry-run", "--json"]].concat())).expect(0).json();
        assert_eq!((&json["dry_run"], &json["knocks"][1]["sent"]), (&json!(true), &json!(0)), "{json}");
        assert_eq!((&json["answer"], &json["knocks"][0]["datagram"]), (&json!(null), &json!(null)));
    }
    gate.assert_no_more();
}

#[test]
fn hexadecimal_digits_are_whole_knocks_that_anybody_can_send() {
    let gate = Gate::answering(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let outcome =
        run(&mut home.postern(&["knock", "home", "ssh", "--window", "10m", "--hex", "--repeat", "2"]));
    let outcome = outcome.expect(0);
    let knocks: Vec<_> = outcome.stdout.lines().map(bytes).collect();
    assert_eq!(knocks.iter().collect::<HashSet<_>>().len(), 2);
    let says = format!("for 127.0.0.1 port {}: good once, for a minute", gate.profile.ports[0]);
    let mut told = outcome.stderr.lines();
    assert!(told.next().unwrap().starts_with("postern: 2 datagrams, one a line: send each by itself"));
    assert!(told.all(|line| line.contains(&says)), "{}", outcome.stderr);
    gate.assert_no_more();
    for knock in &knocks {
        let request = gate.open(knock);
        let Request::Open { services, window, .. } = request.request() else { panic!("not an open") };
        assert_eq!((services.iter().count(), window.unwrap().as_secs()), (1, 600));
    }
    // Of one by itself nothing of the kind is said.
    let one = run(&mut home.postern(&["close", "home", "--hex"])).expect(0);
    assert!(one.stderr.lines().count() == 1 && one.stderr.contains(&says), "{}", one.stderr);
    // Sent by another program, it is a knock like any other.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(&knocks[0], ("127.0.0.1", gate.profile.ports[0].get())).unwrap();
    assert_eq!(gate.knock().bytes, knocks[0]);

    let json = run(&mut home.postern(&["close", "home", "--hex", "--json"])).expect(0).json();
    let close = gate.open(&bytes(json["knocks"][0]["datagram"].as_str().unwrap()));
    assert!(matches!(close.request(), Request::Close { .. }));
    gate.assert_no_more();
}

#[test]
fn what_could_not_be_sent_is_said_here_too() {
    let mut gate = Gate::listen(&["127.0.0.1"], 1, 22);
    gate.profile.addresses.push("255.255.255.255".parse().unwrap());
    let home = Home::with("home", &gate.profile);
    let outcome = run(&mut home.postern(&["knock", "home", "--dry-run"])).expect(0);
    assert!(outcome.stderr.starts_with("postern: not knocked at 255.255.255.255:"), "{}", outcome.stderr);
    gate.profile.addresses.remove(0);
    let home = Home::with("home", &gate.profile);
    run(&mut home.postern(&["knock", "home", "--hex"])).expect(4);
}
