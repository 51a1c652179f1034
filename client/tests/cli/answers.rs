//! What a gate's answer makes of a knock: taken, refused, forged, lost.

use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use postern_proto::{ANSWER_LEN, Outcome, Refusal};
use serde_json::json;

use crate::gate::{ClosedPort, Gate};
use crate::home::{Home, run, start};

fn gate_and_home() -> (Gate, Home) {
    let gate = Gate::answering(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    (gate, home)
}

#[test]
fn an_answer_says_until_when_and_for_whom_it_is_open() {
    let (gate, home) = gate_and_home();
    let client = start(home.postern(&["knock", "home", "ssh"]).env("TZ", "UTC"));
    let arrived = gate.knock();
    gate.answer(&arrived, gate.opened());
    let outcome = client.finish().expect(0);
    let line = outcome.stdout.strip_prefix("open until ").unwrap();
    let (time, whom) = line.split_once(" for ").unwrap();
    // Behind the date, where that is tomorrow.
    let time: Vec<u32> =
        time.rsplit(' ').next().unwrap().split(':').map(|part| part.parse().unwrap()).collect();
    let [hours, minutes, seconds] = time[..] else { panic!("no time of day: {time:?}") };
    let left = (86_400 + hours * 3600 + minutes * 60 + seconds
        - u32::try_from(gate.now().as_secs() % 86_400).unwrap())
        % 86_400;
    assert!((20..=30).contains(&left), "{time:?} is {left} s from now");
    assert_eq!(whom, "127.0.0.1: ssh\n");
    assert_eq!(outcome.stderr, "");
    gate.assert_no_more();

    let client = start(&mut home.postern(&["knock", "home", "ssh", "--json"]));
    let arrived = gate.knock();
    gate.answer(&arrived, gate.opened());
    let mut answer = client.finish().expect(0).json()["answer"].take();
    let offset = answer["clock_offset_ms"].take().as_i64().unwrap();
    assert!(offset.abs() < 5000, "{offset}");
    assert!(answer["round_trip_ms"].take().as_u64().unwrap() < 20_000);
    assert!(answer["until"].take().as_str().unwrap().ends_with('Z'));
    assert_eq!(
        answer,
        json!({
            "outcome": "opened", "until": null, "refusal": null, "source": "127.0.0.1", "seen": arrived.from,
            "sent_from": arrived.from, "clock_offset_ms": null, "round_trip_ms": null,
            "answered_by": format!("127.0.0.1:{}", gate.profile.ports[0]),
        })
    );
}

#[test]
fn times_are_told_by_the_clients_clock_and_a_clock_that_is_off_is_told_of() {
    let (mut gate, home) = gate_and_home();
    for (ahead, says) in [(40, "40 s behind the gate's"), (-25, "25 s ahead of the gate's"), (5, "")] {
        gate.ahead = ahead;
        let client = start(&mut home.postern(&["knock", "home", "ssh"]));
        gate.answer(&gate.knock(), gate.opened());
        let outcome = client.finish().expect(0);
        // A busy machine answers a little later than in the middle between sending and receiving.
        let near = |by: i64| says.replace(&ahead.abs().to_string(), &(ahead.abs() + by).to_string());
        let says_so = (-1..=1).any(|by| outcome.stderr.contains(&near(by)));
        assert!(says_so, "{}", outcome.stderr);
        assert_eq!(says.is_empty(), outcome.stderr.is_empty());

        let client = start(&mut home.postern(&["knock", "home", "ssh", "--json"]));
        gate.answer(&gate.knock(), gate.opened());
        let outcome = client.finish().expect(0);
        let answer = &outcome.json()["answer"];
        let offset = answer["clock_offset_ms"].as_i64().unwrap();
        assert!((offset - ahead * 1000).abs() < 5000, "{offset}");
        let until: postern_proto::WallTime = answer["until"].as_str().unwrap().parse().unwrap();
        let now = postern_proto::WallTime::from(std::time::SystemTime::now());
        assert!((20..=30).contains(&until.since(now).as_secs()), "{until}");
        assert_eq!(outcome.stderr, "", "programs are told in the object");
    }
}

#[test]
fn a_knock_that_is_not_answered_is_followed_by_new_ones() {
    let (gate, home) = gate_and_home();
    let client = start(&mut home.postern(&["knock", "home", "--timeout", "30", "--json"]));
    let lost: Vec<_> = (0..3).map(|_| gate.knock()).collect();
    // Any of them may be answered, late as it is.
    gate.answer(&lost[1], gate.opened());
    let json = client.finish().expect(0).json();
    assert_eq!(json["answer"]["sent_from"], json!(lost[1].from));
    assert!(json["knocks"][0]["sent"].as_u64().unwrap() >= 3);
    for part in [0..8, 8..32, 32..240, 240..256] {
        let different: HashSet<_> = lost.iter().map(|arrived| &arrived.bytes[part.clone()]).collect();
        assert_eq!(different.len(), 3, "bytes {part:?}");
    }
    let ports: HashSet<_> = lost.iter().map(|arrived| arrived.from).collect();
    assert_eq!(ports.len(), 3, "each leaves from its own socket");
}

#[test]
fn no_answer_in_time_has_the_exit_code_of_waiting_in_vain() {
    let (gate, home) = gate_and_home();
    let begin = Instant::now();
    let outcome = run(&mut home.postern(&["knock", "home", "--timeout", "0.7"])).expect(5);
    assert!(begin.elapsed() >= Duration::from_millis(700));
    let port = gate.profile.ports[0];
    let says = format!("postern: waited 0.7 s in vain: no answer from 127.0.0.1 port {port};");
    assert!(outcome.stderr.starts_with(&says), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    assert_ne!(gate.knock().bytes, gate.knock().bytes);
    gate.assert_no_more();

    // Nobody listens there any more: the kernel says so, and the knocks go on all the same.
    drop(gate);
    let outcome = run(&mut home.postern(&["knock", "home", "--timeout", "0.5", "--json"])).expect(5).json();
    let message = outcome["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("127.0.0.1 port {port} (Connection refused)")), "{message}");
    assert_eq!(outcome["answer"], json!(null));
}

#[test]
fn only_the_answer_to_that_very_knock_counts() {
    let (gate, home) = gate_and_home();
    let mut stranger = Gate::answering(&["127.0.0.1"], 1, 22);
    stranger.profile.gate = postern_proto::GateId::from_bytes([0x12; 16]);
    let stranger = stranger.with_keys_of_profile();

    // An answer that was recorded.
    let client = start(&mut home.postern(&["knock", "home"]));
    let earlier = gate.knock();
    let recorded = gate.sealed(&earlier, gate.opened());
    gate.send(&earlier, &recorded);
    client.finish().expect(0);

    let client = start(&mut home.postern(&["knock", "home", "--timeout", "3", "--json"]));
    let arrived = gate.knock();
    let good = gate.sealed(&arrived, gate.opened());
    let mut forged = good;
    forged[100] ^= 1;
    for bad in [
        &recorded[..],
        &forged,
        &stranger.sealed(&arrived, gate.opened()),
        &good[..ANSWER_LEN - 1],
        &[&good[..], &[0]].concat(),
        &arrived.bytes,
        &[],
        &[0; 1400],
        // Of the gate, and for this knock, but an answer to something else.
        &gate.sealed(&arrived, Outcome::Closed),
        &gate.sealed(&arrived, Outcome::Heard),
    ] {
        gate.send(&arrived, bad);
    }
    // The right one, but from elsewhere.
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&good, arrived.from).unwrap();
    let outcome = client.finish().expect(5).json();
    let message = outcome["error"]["message"].as_str().unwrap();
    assert!(message.contains("an answer that this version does not understand"), "{message}");
}

#[test]
fn junk_before_the_answer_changes_nothing() {
    let (gate, home) = gate_and_home();
    let client = start(&mut home.postern(&["knock", "home", "--timeout", "30"]));
    let arrived = gate.knock();
    let good = gate.sealed(&arrived, gate.opened());
    for number in 0..20_000_u32 {
        let mut junk = good;
        junk[..4].copy_from_slice(&number.to_be_bytes());
        gate.send(&arrived, &junk);
        if number % 100 == 0 {
            // A socket holds so many and no more; what comes then is lost, as on any network.
            thread::yield_now();
        }
    }
    // Until one gets through.
    let mut client = client;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client.has_ended() && Instant::now() < deadline {
        gate.send(&arrived, &good);
        thread::sleep(Duration::from_millis(5));
    }
    client.finish().expect(0);
}

#[test]
fn a_flood_does_not_outlast_the_deadline() {
    let (gate, home) = gate_and_home();
    let mut client = start(&mut home.postern(&["knock", "home", "--timeout", "0.5"]));
    let arrived = gate.knock();
    let begin = Instant::now();
    while !client.has_ended() && begin.elapsed() < Duration::from_secs(20) {
        gate.send(&arrived, &[7; ANSWER_LEN]);
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
    client.finish().expect(5);
}

#[test]
fn each_refusal_is_said_with_what_to_do() {
    let (gate, home) = gate_and_home();
    for &refusal in Refusal::ALL {
        let client = start(&mut home.postern(&["knock", "home", "ssh"]));
        gate.answer(&gate.knock(), Outcome::Refused(refusal));
        let outcome = client.finish().expect(6);
        let says = format!("postern: gate home refused: {} ({refusal})", refusal.meaning());
        assert!(outcome.stderr.starts_with(&says), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("; "), "it says what to do: {}", outcome.stderr);
        assert_eq!((outcome.stderr.lines().count(), &*outcome.stdout), (1, ""));
        gate.assert_no_more();
    }
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--json"]));
    gate.answer(&gate.knock(), Outcome::Refused(Refusal::ServiceNotAllowed));
    let json = client.finish().expect(6).json();
    assert_eq!((&json["error"]["code"], &json["answer"]["outcome"]), (&json!(6), &json!("refused")));
    assert_eq!(json["answer"]["refusal"], "service-not-allowed");
}

#[test]
fn the_first_good_answer_decides() {
    let gate = Gate::answering(&["127.0.0.1", "127.0.0.2"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--json"]));
    let (first, second) = (gate.knock_at(0), gate.knock_at(1));
    // It is another source that the other address sees. What takes time is done before: the client waits a little only.
    let refused = gate.sealed(&first, Outcome::Refused(Refusal::SourceNotAllowed));
    let opened = gate.sealed(&second, gate.opened());
    gate.send(&first, &refused);
    gate.send(&second, &opened);
    let json = client.finish().expect(0).json();
    assert_eq!(json["answer"]["answered_by"], format!("127.0.0.2:{}", gate.profile.ports[0]));

    // Where no other address says better, it is refused; and what does not depend on the source, at once.
    for refusal in [Refusal::SourceNotAllowed, Refusal::Expired] {
        let client = start(&mut home.postern(&["knock", "home", "ssh", "--timeout", "30"]));
        gate.answer(&gate.knock_at(0), Outcome::Refused(refusal));
        client.finish().expect(6);
        gate.knock_at(1);
        gate.assert_no_more();
    }
}

#[test]
fn waiting_goes_with_answers() {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    // Refused: nobody waits for a door that will not open.
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--wait", "30"]));
    gate.answer(&gate.knock(), Outcome::Refused(Refusal::Busy));
    client.finish().expect(6);
    // Opened, and nobody listens.
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--wait", "3"]));
    gate.answer(&gate.knock(), gate.opened());
    let outcome = client.finish().expect(5);
    assert!(outcome.stderr.contains("the gate says that it is open"), "{}", outcome.stderr);
    // Both.
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--wait", "30", "--json"]));
    gate.answer(&gate.knock(), gate.opened());
    let listener = closed.open();
    let json = client.finish().expect(0).json();
    assert_eq!((&json["answer"]["outcome"], &json["open"][0]["service"]), (&json!("opened"), &json!("ssh")));
    // The answer is lost: the door says enough.
    let client = start(&mut home.postern(&["knock", "home", "ssh", "--wait", "30", "--json"]));
    gate.knock();
    let json = client.finish().expect(0).json();
    assert_eq!((&json["answer"], &json["open"][0]["service"]), (&json!(null), &json!("ssh")));
    // Also where the wait for it ends soon after the door was gone through.
    let args = ["knock", "home", "ssh", "--wait", "30", "--timeout", "0.1", "--json"];
    let json = run(&mut home.postern(&args)).expect(0).json();
    assert_eq!((&json["answer"], &json["open"][0]["service"]), (&json!(null), &json!("ssh")));
    drop(listener);
}

#[test]
fn a_gate_that_does_not_answer_is_not_waited_for() {
    let gate = Gate::listen(&["127.0.0.1"], 1, 22);
    let home = Home::with("home", &gate.profile);
    let begin = Instant::now();
    let json = run(&mut home.postern(&["knock", "home", "--timeout", "30", "--json"])).expect(0).json();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(json["answer"], json!(null));
    gate.knock();
    gate.assert_no_more();
}

/// A proxy with an answering gate.
fn proxy(gate: &Gate, home: &Home, port: u16, args: &[&str]) -> crate::home::Running {
    let port = port.to_string();
    assert!(gate.profile.answers);
    start(&mut home.postern(&[&["proxy", "home", &port][..], args].concat()))
}

#[test]
fn a_proxy_connects_when_it_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gate = Gate::answering(&["127.0.0.1"], 1, port);
    let home = Home::with("home", &gate.profile);
    let client = proxy(&gate, &home, port, &[]);
    gate.answer(&gate.knock(), gate.opened());
    drop(listener.accept().unwrap());
    let outcome = client.finish().expect(0);
    assert_eq!(outcome.stderr, "");
    // sshd holds it against an address when connections end before they have logged in.
    listener.set_nonblocking(true).unwrap();
    let again = listener.accept().expect_err("one connection is enough");
    assert_eq!(again.kind(), std::io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    gate.assert_no_more();

    // The port needs no knock: it is tried first, where that was said.
    let client = proxy(&gate, &home, port, &["--lazy"]);
    drop(listener.accept().unwrap());
    client.finish().expect(0);
    gate.assert_no_more();
}

#[test]
fn a_proxy_that_is_refused_ends_at_once() {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    for args in [&["--timeout", "60"][..], &["--timeout", "60", "--lazy"]] {
        let client = proxy(&gate, &home, closed.number(), args);
        gate.answer(&gate.knock(), Outcome::Refused(Refusal::ServiceNotAllowed));
        let outcome = client.finish().expect(6);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("service-not-allowed"), "{}", outcome.stderr);
        gate.assert_no_more();
    }
}

#[test]
fn a_proxy_knocks_again_when_nothing_answers_and_when_what_was_opened_is_shut() {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    let client = proxy(&gate, &home, closed.number(), &["--timeout", "60"]);
    let (lost, late) = (gate.knock(), gate.knock());
    assert_ne!(lost.bytes, late.bytes);
    let begin = Instant::now();
    gate.answer(&late, gate.opened());
    // Somebody else's close came between.
    let again = gate.knock();
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    let listener = closed.open();
    gate.answer(&again, gate.opened());
    drop(listener.accept().unwrap());
    client.finish().expect(0);
}

#[test]
fn a_proxy_in_vain_says_which_kind() {
    for (answers, timeout, says) in [
        (
            false,
            "0.3",
            "`postern doctor` finds out why; where the gate has answers turned off, set answers = false",
        ),
        (true, "3", "is anything listening there?"),
    ] {
        let closed = ClosedPort::new();
        let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
        let home = Home::with("home", &gate.profile);
        let client = proxy(&gate, &home, closed.number(), &["--timeout", timeout]);
        let arrived = gate.knock();
        if answers {
            gate.answer(&arrived, gate.opened());
        }
        let outcome = client.finish().expect(5);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
}
