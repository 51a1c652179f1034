//! `postern proxy --exact`: one source port, stated, knocked from, and connected from.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::gate::{Arrived, ClosedPort, Gate};
use crate::home::{Home, Running, start};

struct Setup {
    gate: Gate,
    home: Home,
    listener: TcpListener,
}

impl Setup {
    fn new(address: &str, answers: bool) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let mut gate = Gate::listen(&[address], 1, listener.local_addr().unwrap().port());
        gate.profile.answers = answers;
        let home = Home::with("home", &gate.profile);
        Self { gate, home, listener }
    }

    fn start(&self, args: &[&str]) -> Running {
        proxy(&self.home, self.listener.local_addr().unwrap().port(), args)
    }
}

fn proxy(home: &Home, port: u16, args: &[&str]) -> Running {
    start(&mut home.postern(&[&["proxy", "home", &port.to_string()][..], args].concat()))
}

/// The port that a knock states.
fn stated(arrived: &Arrived) -> u16 {
    arrived.limits().1.expect("the knock states a source port")
}

#[test]
fn the_knock_states_the_port_that_the_connection_comes_from() {
    for address in ["127.0.0.1", "::1"] {
        for answers in [true, false] {
            let setup = Setup::new(address, answers);
            let client = setup.start(&["--exact"]);
            let arrived = setup.gate.knock();
            if answers {
                setup.gate.answer(&arrived, setup.gate.opened());
            }
            let (stream, from) = setup.listener.accept().unwrap();
            assert_eq!((stated(&arrived), arrived.from.port()), (from.port(), from.port()));
            drop(stream);
            client.finish().expect(0);
            setup.gate.assert_no_more();
        }
    }
}

#[test]
fn a_translation_that_keeps_the_port_is_no_hindrance() {
    let setup = Setup::new("127.0.0.1", true);
    let client = setup.start(&["--exact"]);
    let arrived = setup.gate.knock();
    let seen = SocketAddr::new("203.0.113.7".parse().unwrap(), arrived.from.port());
    setup.gate.send(&arrived, &setup.gate.sealed_as_seen(&arrived, setup.gate.opened(), seen));
    assert_eq!(setup.listener.accept().unwrap().1.port(), stated(&arrived));
    client.finish().expect(0);
}

#[test]
fn one_that_changes_the_port_is_said() {
    let setup = Setup::new("127.0.0.1", true);
    for how in ["--exact", "--exact=only", "--exact=prefer"] {
        let client = setup.start(&[how, "--timeout", "60"]);
        let arrived = setup.gate.knock();
        let mut seen = arrived.from;
        seen.set_port(if seen.port() == 4711 { 4712 } else { 4711 });
        setup.gate.send(&arrived, &setup.gate.sealed_as_seen(&arrived, setup.gate.opened(), seen));
        if how == "--exact=prefer" {
            let again = setup.gate.knock();
            assert_eq!(again.limits().1, None);
            setup.gate.answer(&again, setup.gate.opened());
            drop(setup.listener.accept().unwrap());
            assert_eq!(client.finish().expect(0).stderr, "");
        } else {
            let outcome = client.finish().expect(1);
            let says = format!("the gate saw {} for {}", seen.port(), arrived.from.port());
            assert!(outcome.stderr.contains(&says), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1);
        }
        setup.gate.assert_no_more();
    }
}

#[test]
fn what_is_preferred_gives_way_after_a_third_of_the_time() {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    let begin = Instant::now();
    let client = proxy(&home, closed.number(), &["--exact=prefer", "--timeout", "3"]);
    let arrived = gate.knock();
    stated(&arrived);
    gate.answer(&arrived, gate.opened());
    // Nothing comes through from that port; knocks for it may come once more.
    let any = std::iter::repeat_with(|| gate.knock()).find(|arrived| arrived.limits().1.is_none()).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    let listener = closed.open();
    gate.answer(&any, gate.opened());
    drop(listener.accept().unwrap());
    client.finish().expect(0);
}

#[test]
fn a_port_that_answers_anyway_is_not_knocked_for() {
    let setup = Setup::new("127.0.0.1", true);
    let client = setup.start(&["--exact", "--lazy"]);
    drop(setup.listener.accept().unwrap());
    client.finish().expect(0);
    setup.gate.assert_no_more();
}
