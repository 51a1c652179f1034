//! `postern knock`: what goes out, and what is said about it.

use std::collections::HashSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::gate::{ClosedPort, Gate};
use crate::home::{Home, postern, run, run_with};

#[test]
fn a_knock_asks_for_what_was_said() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    for (args, services, limits, stated) in [
        (&["knock", "home"][..], &["ssh", "vpn"][..], (None, None), None),
        (&["knock", "home", "ssh"], &["ssh"], (None, None), None),
        (&["knock", "home", "vpn", "ssh"], &["vpn", "ssh"], (None, None), None),
        (&["knock", "home", "ssh", "--window", "10m"], &["ssh"], (Some(600), None), None),
        (&["knock", "home", "ssh", "--from-port", "4711"], &["ssh"], (None, Some(4711)), None),
        (&["knock", "--source", "192.0.2.9", "home", "-4"], &["ssh", "vpn"], (None, None), Some("192.0.2.9")),
        (&["knock", "--source", "observed", "home"], &["ssh", "vpn"], (None, None), None),
    ] {
        let outcome = run(&mut home.postern(args)).expect(0);
        let arrived = gate.knock();
        assert_eq!(arrived.services(), services, "{args:?}");
        assert_eq!(arrived.limits(), limits, "{args:?}");
        assert_eq!(arrived.stated(), stated.map(|address| address.parse().unwrap()), "{args:?}");
        assert_eq!(arrived.from.ip().to_string(), "127.0.0.1");
        assert_eq!(outcome.stderr, "");
        gate.assert_no_more();
    }
}

#[test]
fn both_families_and_every_port_are_knocked_at_with_fresh_knocks() {
    let gate = Gate::listen(&["127.0.0.1", "::1", "127.0.0.2"], 2, 22);
    let home = Home::with("home", &gate.profile);
    run(&mut home.postern(&["knock", "home"])).expect(0);
    let knocks: HashSet<_> = (0..6).map(|socket| gate.knock_at(socket).bytes).collect();
    assert_eq!(knocks.len(), 6);
    gate.assert_no_more();

    for (family, sockets) in [("-4", &[0, 2, 3, 5][..]), ("-6", &[1, 4])] {
        run(&mut home.postern(&["knock", "home", family])).expect(0);
        for &socket in sockets {
            gate.knock_at(socket);
        }
        gate.assert_no_more();
    }
    // An address that is stated is let in at the addresses of its own family.
    run(&mut home.postern(&["knock", "home", "--source", "2001:db8::9"])).expect(0);
    assert_eq!(gate.knock_at(1).stated(), Some("2001:db8::9".parse().unwrap()));
    gate.knock_at(4);
    gate.assert_no_more();
}

#[test]
fn a_name_is_knocked_at_where_it_resolves_to() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let mut profile = gate.profile.clone();
    profile.addresses = vec!["localhost".parse().unwrap()];
    let home = Home::with("home", &profile);
    run(&mut home.postern(&["knock", "home", "-4"])).expect(0);
    gate.knock();
}

#[test]
fn repeated_knocks_are_never_copies() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let begin = Instant::now();
    let outcome = run(&mut home.postern(&["knock", "home", "--repeat", "3", "--json"])).expect(0);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(outcome.json()["knocks"][0]["sent"], 3);
    let arrived = [gate.knock(), gate.knock(), gate.knock()];
    gate.assert_no_more();
    for part in [0..8, 8..32, 32..240, 240..256] {
        let different: HashSet<_> = arrived.iter().map(|arrived| &arrived.bytes[part.clone()]).collect();
        assert_eq!(different.len(), 3, "bytes {part:?}");
    }
    assert!(arrived[0].knock.at() < arrived[1].knock.at());
}

#[test]
fn a_job_without_a_home_knocks() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let line = gate.profile.to_line();
    let home = Home::new();
    let file = home.path("profile");
    std::fs::write(&file, &*line).unwrap();
    let file = file.to_str().unwrap();

    run(postern(&["knock", "-"]).env("POSTERN_PROFILE", &*line)).expect(0);
    gate.knock();
    run(&mut postern(&["knock", "-", "--profile-file", file])).expect(0);
    gate.knock();
    run_with(&mut postern(&["knock", "-", "ssh", "--profile-file", "-"]), &format!("{}\n", *line)).expect(0);
    gate.knock();
    gate.assert_no_more();
}

#[test]
fn waiting_ends_when_the_door_opens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gate = Gate::listen(&["127.0.0.1"], 1, port);
    let home = Home::with("home", &gate.profile);
    let outcome = run(&mut home.postern(&["--json", "knock", "home", "ssh", "--wait", "20"])).expect(0);
    let mut json = outcome.json();
    let after = json["open"][0]["after_ms"].take();
    assert!(after.as_u64().unwrap() < 20_000, "{after}");
    let knock_port = gate.profile.ports[0];
    assert_eq!(
        json,
        json!({
            "version": 1, "gate": "home", "services": ["ssh"], "window_seconds": null,
            "knocks": [{"address": "127.0.0.1", "port": knock_port, "sent": 1, "source": "observed"}],
            "answer": null,
            "failed": [],
            "open": [{"service": "ssh", "address": "127.0.0.1", "port": port, "after_ms": null}],
        })
    );
    let text = run(&mut home.postern(&["knock", "home", "ssh", "--wait", "20"])).expect(0).stdout;
    assert!(text.contains(&format!("open: ssh at 127.0.0.1 port {port}, ")), "{text}");
}

#[test]
fn waiting_in_vain_has_its_own_exit_code() {
    let closed = ClosedPort::new();
    let gate = Gate::listen(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    let begin = Instant::now();
    let outcome = run(&mut home.postern(&["knock", "home", "ssh", "--wait", "0.3", "--json"])).expect(5);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let error = &outcome.json()["error"];
    assert_eq!(error["code"], 5);
    assert!(error["message"].as_str().unwrap().starts_with("waited 0.3 s in vain: not open: ssh at port"));
    gate.knock();
}

#[test]
fn what_cannot_be_reached_is_said() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let mut profile = gate.profile.clone();
    // The kernel lets nobody send there without asking for it first.
    profile.addresses.push("255.255.255.255".parse().unwrap());
    let home = Home::with("home", &profile);
    let outcome = run(&mut home.postern(&["knock", "home"])).expect(0);
    gate.knock();
    let port = gate.profile.ports[0];
    let says = format!("postern: not knocked at 255.255.255.255:{port}: Permission denied");
    assert!(outcome.stderr.starts_with(&says), "{}", outcome.stderr);
    assert_eq!(outcome.stdout.lines().count(), 1, "{}", outcome.stdout);
    let json = run(&mut home.postern(&["knock", "home", "--json"])).expect(0).json();
    assert_eq!(json["failed"][0]["host"], format!("255.255.255.255:{port}"), "{json}");
}
