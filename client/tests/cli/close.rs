//! `postern close`, and the proxy that closes at its end what it opened.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use postern_proto::{Outcome, Refusal, Request, WallTime};
use rustix::process::Signal;
use serde_json::json;

use crate::gate::{Arrived, ClosedPort, Gate};
use crate::home::{Home, Running, run, start, start_open};

/// The next knock, which asks to close.
#[track_caller]
fn close(gate: &Gate) -> Arrived {
    let arrived = gate.knock();
    assert!(matches!(arrived.knock.request(), Request::Close { .. }), "{:?}", arrived.knock);
    arrived
}

#[test]
fn a_close_names_services_and_says_what_became_of_it() {
    let gate = Gate::answering(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let client = start(&mut home.postern(&["close", "home"]));
    let arrived = close(&gate);
    assert_eq!(arrived.services(), ["ssh", "vpn"]);
    gate.answer(&arrived, Outcome::Closed);
    assert_eq!(client.finish().expect(0).stdout, "closed for 127.0.0.1: ssh, vpn\n");

    let client = start(&mut home.postern(&["close", "home", "vpn", "--json"]));
    // Lost, and sent again: a new one.
    let (lost, arrived) = (close(&gate), close(&gate));
    assert_ne!(lost.bytes, arrived.bytes);
    // Nobody takes the answer to a knock for that to a close.
    gate.answer(&arrived, gate.opened());
    gate.answer(&arrived, Outcome::Closed);
    let json = client.finish().expect(0).json();
    assert_eq!((&json["services"], &json["answer"]["outcome"]), (&json!(["vpn"]), &json!("closed")));
    assert_eq!((&json["answer"]["until"], &json["failed"]), (&json!(null), &json!([])));

    let client = start(&mut home.postern(&["close", "home"]));
    gate.answer(&close(&gate), Outcome::Refused(Refusal::Expired));
    client.finish().expect(6);
    run(&mut home.postern(&["close", "home", "--timeout", "0.2"])).expect(5);
}

#[test]
fn a_gate_that_does_not_answer_is_told_once() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let outcome = run(&mut home.postern(&["close", "home", "ssh"])).expect(0);
    let port = gate.profile.ports[0];
    let says = format!("sent 1 knock to 127.0.0.1 port {port}: close ssh for the address it comes from\n");
    assert_eq!(outcome.stdout, says);
    close(&gate);
    gate.assert_no_more();
}

/// A proxy that is connected, and closes at its end.
struct Session {
    gate: Gate,
    client: Running,
    far: TcpStream,
    _home: Home,
}

impl Session {
    fn new(answers: bool, configured: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = if answers {
            Gate::answering(&["127.0.0.1"], 1, port)
        } else {
            Gate::listen(&["127.0.0.1"], 1, port)
        };
        let mut home = Home::with("home", &gate.profile);
        let port = port.to_string();
        let mut args = vec!["proxy", "home", &port];
        if configured {
            home = Home::with_text(&format!("{}close-on-exit = true\n", home.text()));
        } else {
            args.push("--close-on-exit");
        }
        let client = start_open(&mut home.postern(&args));
        let arrived = gate.knock();
        if answers {
            gate.answer(&arrived, gate.opened());
        }
        let far = listener.accept().unwrap().0;
        Self { gate, client, far, _home: home }
    }
}

#[test]
fn a_proxy_closes_at_its_end() {
    for configured in [false, true] {
        for answers in [false, true] {
            let Session { gate, mut client, far, _home } = Session::new(answers, configured);
            drop((client.stdin.take(), far));
            let arrived = close(&gate);
            assert_eq!(arrived.services(), ["ssh"]);
            if answers {
                gate.answer(&arrived, Outcome::Closed);
            }
            assert_eq!(client.finish().expect(0).stderr, "");
            gate.assert_no_more();
        }
    }
}

/// The gate compares the dates of a client's knocks: one that was held back opens nothing after the close.
#[test]
fn a_close_is_dated_behind_the_opens_however_far_the_gates_clock_is_off() {
    for ahead in [30, -30] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut gate = Gate::answering(&["127.0.0.1"], 1, port);
        gate.ahead = ahead;
        let home = Home::with("home", &gate.profile);
        let port = port.to_string();
        let mut client = start_open(&mut home.postern(&["proxy", "home", &port, "--close-on-exit"]));
        let open = gate.knock();
        gate.answer(&open, gate.opened());
        drop(listener.accept().unwrap());
        drop(client.stdin.take());
        let mut arrived = gate.knock();
        while matches!(arrived.knock.request(), Request::Open { .. }) {
            arrived = gate.knock();
        }
        let now = WallTime::from(SystemTime::now());
        let (opened, closed) = (open.knock.at(), arrived.knock.at());
        assert!(opened < closed && closed <= now, "opened {opened}, closed {closed}, now {now}");
        gate.answer(&arrived, Outcome::Closed);
        client.finish().expect(0);
    }
}

#[test]
fn a_proxy_that_is_ended_by_a_signal_closes_and_holds_nobody_up() {
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        let Session { gate, client, far, _home } = Session::new(true, false);
        client.signal(signal);
        let arrived = close(&gate);
        // It is not answered yet, and nobody who reads the errors of ssh waits for that.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !client.has_left_stderr() {
            assert!(Instant::now() < deadline, "stderr stays open");
            thread::sleep(Duration::from_millis(2));
        }
        gate.answer(&arrived, Outcome::Closed);
        client.finish().expect(0);
        drop(far);
    }
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gate = Gate::answering(&["127.0.0.1"], 1, port);
    let home = Home::with("home", &gate.profile);
    let mut shell = Command::new("sh");
    shell.env_clear().env("HOME", home.path("")).args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    shell.args([env!("CARGO_BIN_EXE_postern"), "proxy", "home", &port.to_string(), "--close-on-exit"]);
    let mut client = start_open(&mut shell);
    gate.answer(&gate.knock(), gate.opened());
    let mut far = listener.accept().unwrap().0;
    let status = client.status();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1, 1, "{status}");
    client.signal(Signal::HUP);
    // It carries on.
    client.stdin.as_mut().unwrap().write_all(b"still").unwrap();
    let mut carried = [0; 5];
    far.read_exact(&mut carried).unwrap();
    assert_eq!(&carried, b"still");
    client.signal(Signal::TERM);
    gate.answer(&close(&gate), Outcome::Closed);
    client.finish().expect(0);
}

#[test]
fn a_close_that_is_not_answered_is_given_up() {
    let Session { gate, mut client, far, _home } = Session::new(true, false);
    let begin = Instant::now();
    drop((client.stdin.take(), far));
    assert_ne!(close(&gate).bytes, close(&gate).bytes);
    client.finish().expect(0);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_was_refused_or_never_knocked_for_is_not_closed() {
    let closed = ClosedPort::new();
    let port = closed.number().to_string();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    let client = start(&mut home.postern(&["proxy", "home", &port, "--close-on-exit"]));
    gate.answer(&gate.knock(), Outcome::Refused(Refusal::Expired));
    client.finish().expect(6);

    let listener = closed.open();
    let client = start(&mut home.postern(&["proxy", "home", &port, "--close-on-exit", "--lazy"]));
    drop(listener.accept().unwrap());
    client.finish().expect(0);
    gate.assert_no_more();
}
