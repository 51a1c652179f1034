//! `postern doctor`: each fault that loopback can have is found, and named by its id.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::time::Duration;

use postern_proto::{ANSWER_LEN, Outcome, Refusal, Request, Window};
use serde_json::Value;

use crate::gate::{Arrived, ClosedPort, Gate};
use crate::home::{Home, Outcome as Ended, run, start};

/// The findings of a run, as "level id".
fn findings(json: &Value) -> Vec<String> {
    let findings = json["findings"].as_array().unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    findings.iter().map(|one| format!("{} {}", text(one, "level"), text(one, "id"))).collect()
}

fn message<'a>(json: &'a Value, id: &str) -> &'a str {
    let findings = json["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {json}"))["message"].as_str().unwrap()
}

struct Setup {
    gate: Gate,
    home: Home,
    _listener: TcpListener,
}

impl Setup {
    fn new(addresses: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate::answering(addresses, 1, listener.local_addr().unwrap().port());
        let home = Home::with("home", &gate.profile);
        Self { gate, home, _listener: listener }
    }

    /// Runs to the end beside a gate that answers like this.
    fn run(&self, args: &[&str], answer: impl Fn(&Gate, &Arrived) -> Option<[u8; ANSWER_LEN]>) -> Ended {
        let mut client = start(&mut self.home.postern(&[&["doctor", "home"], args].concat()));
        self.gate.serve(&mut client, answer);
        client.finish()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the gate's other answers")]
fn grant(gate: &Gate, arrived: &Arrived) -> Option<[u8; ANSWER_LEN]> {
    Some(gate.sealed(arrived, gate.granted(arrived)))
}

#[test]
fn where_all_is_well_every_step_says_so() {
    let setup = Setup::new(&["127.0.0.1"]);
    let json = setup.run(&["ssh", "--exact", "--json"], grant).expect(0).json();
    assert_eq!(
        findings(&json),
        [
            "ok configuration",
            "ok configuration-folder",
            "ok route",
            "ok answer",
            "ok clock",
            "ok nat",
            "ok nat-ports",
            "ok opened",
            "ok connection"
        ]
    );
    assert_eq!((&json["healthy"], &json["gate"]), (&true.into(), &"home".into()));
    let text = setup.run(&["ssh"], grant).expect(0);
    assert!(text.stdout.ends_with("all is well with home\n"), "{}", text.stdout);
    assert_eq!(text.stdout.lines().count(), 9);
    assert_eq!(text.stderr, "");
    // A service without TCP cannot be tried, and is no fault.
    let json = setup.run(&["--json"], grant).expect(0).json();
    assert!(findings(&json).contains(&"note udp-service".to_owned()), "{json}");
}

/// What is open may be somebody else's window, or that of a session.
#[test]
fn it_opens_for_a_moment_where_it_may_and_closes_nothing() {
    let setup = Setup::new(&["127.0.0.1"]);
    for longest in [10, 9] {
        let asked = Mutex::new(Vec::new());
        let limited = |gate: &Gate, arrived: &Arrived| {
            let outcome = match arrived.knock.request() {
                Request::Open { window, .. } => {
                    let window = window.map(Window::as_secs);
                    asked.lock().unwrap().push(window);
                    let is_too_long = window.is_some_and(|window| window > longest);
                    if is_too_long { Outcome::Refused(Refusal::WindowTooLong) } else { gate.opened() }
                }
                Request::Close { .. } => panic!("it closes"),
                Request::Probe => Outcome::Heard,
            };
            Some(gate.sealed(arrived, outcome))
        };
        let json = setup.run(&["ssh", "--json"], limited).expect(0).json();
        assert_eq!(findings(&json)[findings(&json).len() - 2..], ["ok opened", "ok connection"]);
        let expected = if longest == 10 { &[Some(10)][..] } else { &[Some(10), None] };
        let mut asked = asked.into_inner().unwrap();
        // A busy machine is slower than the answer is waited for before the next knock.
        asked.dedup();
        assert_eq!(asked, expected);
    }
}

/// A gate with nobody behind its door yet.
fn shut() -> (Gate, Home, ClosedPort) {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    (gate, home, closed)
}

/// Runs to the end beside a gate that answers nothing, and tells what arrives.
fn run_unanswered(gate: &Gate, home: &Home, args: &[&str], tell: impl Fn(&Arrived)) -> Ended {
    let mut client = start(&mut home.postern(&[&["doctor", "home"], args].concat()));
    gate.serve_all(&mut client, |_, arrived| {
        tell(arrived);
        None
    });
    client.finish()
}

#[test]
fn what_is_not_answered_is_probed_by_past_dates_first_and_knocked_for_last() {
    let (gate, home, _closed) = shut();
    let order = Mutex::new(Vec::new());
    let json = run_unanswered(&gate, &home, &["ssh", "--timeout", "0.3", "--json"], |arrived| {
        let kind = match arrived.knock.request() {
            Request::Probe if arrived.knock.at() > gate.now() => "ahead",
            Request::Probe => "past",
            Request::Open { .. } => "open",
            Request::Close { .. } => "close",
        };
        order.lock().unwrap().push(kind);
    });
    assert_eq!(findings(&json.expect(1).json()).last().unwrap(), "fault wrong-key-or-gate-down");
    let mut order = order.into_inner().unwrap();
    assert_eq!(order.iter().filter(|kind| **kind == "ahead").count(), 9);
    assert!(order.iter().filter(|kind| **kind == "past").count() >= 11);
    order.dedup();
    assert_eq!(order, ["past", "ahead", "open"]);
}

#[test]
fn answers_that_were_turned_off_are_told_from_a_gate_that_is_down() {
    let (gate, home, closed) = shut();
    let (closed, listener) = (Mutex::new(Some(closed)), Mutex::new(None));
    let args = ["ssh", "--timeout", "2", "--json"];
    let json = run_unanswered(&gate, &home, &args, |arrived| {
        if matches!(arrived.knock.request(), Request::Open { .. })
            && let Some(closed) = closed.lock().unwrap().take()
        {
            *listener.lock().unwrap() = Some(closed.open());
        }
    });
    let json = json.expect(1).json();
    assert_eq!(findings(&json).last().unwrap(), "fault answers-off");
    assert!(message(&json, "answers-off").starts_with("the gate does not answer, and opens: "), "{json}");
    // Now it is open before: nothing can be said.
    let json = run_unanswered(&gate, &home, &["ssh", "--timeout", "0.3", "--json"], |arrived| {
        assert!(matches!(arrived.knock.request(), Request::Probe), "{:?}", arrived.knock);
    });
    assert_eq!(findings(&json.expect(1).json()).last().unwrap(), "fault open-before");
    drop(listener);
}

#[test]
fn packets_that_were_lost_are_no_clock_that_is_off() {
    let setup = Setup::new(&["127.0.0.1"]);
    let mut client = start(&mut setup.home.postern(&["doctor", "home", "ssh", "--json"]));
    // Its tolerance is a wide one, and it gets none of the first probes.
    setup.gate.serve_all(&mut client, |gate, arrived| {
        let is_first = matches!(arrived.knock.request(), Request::Probe)
            && gate.now().since(arrived.knock.at()) < Duration::from_secs(50);
        if is_first { None } else { grant(gate, arrived) }
    });
    let json = client.finish().expect(1).json();
    let found = findings(&json);
    assert_eq!(found[found.len() - 3..], ["warning packets-lost", "ok opened", "ok connection"], "{json}");
}

#[test]
fn a_gate_that_is_silent_and_one_that_is_down_are_told_apart() {
    let (gate, home, _closed) = shut();
    let silent =
        |args: &[&str]| run_unanswered(&gate, &home, &[&["--timeout", "0.3"], args].concat(), |_| ());
    let json = silent(&["--json"]).expect(1).json();
    assert_eq!(findings(&json).last().unwrap(), "fault wrong-key-or-gate-down");
    let quiet = silent(&["--quiet"]).expect(1);
    assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""), "the exit code tells");
    let text = silent(&[]).expect(1).stdout;
    assert!(text.contains("posternd status") && text.ends_with("home: 1 fault, 0 warnings\n"), "{text}");

    drop(gate);
    let json = run(&mut home.postern(&["doctor", "home", "--timeout", "0.3", "--json"])).expect(1).json();
    assert_eq!(findings(&json).last().unwrap(), "fault gate-down");
}

#[test]
fn a_clock_that_is_off_is_measured_even_where_no_knock_is_fresh() {
    for (ahead, level, says) in [
        (30, "warning", "30 s behind the gate's"),
        (300, "fault", "5 min behind the gate's"),
        (-840, "fault", "14 min ahead of the gate's"),
    ] {
        let mut setup = Setup::new(&["127.0.0.1"]);
        setup.gate.ahead = ahead;
        let json = setup.run(&["ssh", "--timeout", "3", "--json"], grant).expect(1).json();
        assert!(findings(&json).contains(&format!("{level} clock-off")), "{json}");
        // A busy machine answers a little later than in the middle between sending and receiving.
        let near = match says.split_once(' ').unwrap() {
            ("30", rest) => [format!("29 {rest}"), format!("31 {rest}")],
            ("5", rest) => [
                format!("4 {}", rest.replace("min", "min 59 s")),
                format!("5 {}", rest.replace("min", "min 1 s")),
            ],
            (_, rest) => [
                format!("13 {}", rest.replace("min", "min 59 s")),
                format!("14 {}", rest.replace("min", "min 1 s")),
            ],
        };
        let message = message(&json, "clock-off");
        assert!(message.contains(says) || near.iter().any(|near| message.contains(near)), "{message}");
        // Where no knock was fresh by this host's clock, the rest is dated by the gate's.
        assert_eq!(findings(&json)[findings(&json).len() - 2..], ["ok opened", "ok connection"]);
    }
}

#[test]
fn address_translation_is_seen() {
    let setup = Setup::new(&["127.0.0.1"]);
    let translate = |port: u16| {
        move |gate: &Gate, arrived: &Arrived| {
            let port = if port == 0 { arrived.from.port() } else { port };
            let seen = SocketAddr::new("203.0.113.7".parse().unwrap(), port);
            Some(gate.sealed_as_seen(arrived, gate.granted(arrived), seen))
        }
    };
    let json = setup.run(&["ssh", "--exact", "--json"], translate(0)).expect(0).json();
    assert!(message(&json, "nat").contains("203.0.113.7 for 127.0.0.1"), "{json}");
    assert!(findings(&json).contains(&"ok nat-ports".to_owned()), "{json}");
    let json = setup.run(&["ssh", "--exact", "--json"], translate(9)).expect(1).json();
    assert!(findings(&json).contains(&"warning nat-ports".to_owned()), "{json}");
    let json = setup.run(&["ssh", "--json"], translate(9)).expect(0).json();
    assert!(findings(&json).contains(&"note nat-ports".to_owned()), "{json}");
}

#[test]
fn a_dead_address_is_named_beside_the_one_that_answers() {
    let setup = Setup::new(&["127.0.0.1", "127.0.0.2"]);
    let one = |gate: &Gate, arrived: &Arrived| grant(gate, arrived).filter(|_| arrived.at == 0);
    let json = setup.run(&["ssh", "--timeout", "2", "--json"], one).expect(1).json();
    assert_eq!(message(&json, "dead-address"), "127.0.0.2 does not answer, 127.0.0.1 does");
    assert!(findings(&json).contains(&"ok connection".to_owned()), "{json}");
}

#[test]
fn a_port_that_is_filtered_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::answering(&["127.0.0.1"], 2, listener.local_addr().unwrap().port());
    let home = Home::with("home", &gate.profile);
    let setup = Setup { gate, home, _listener: listener };
    let one = |gate: &Gate, arrived: &Arrived| grant(gate, arrived).filter(|_| arrived.at == 1);
    let json = setup.run(&["ssh", "--timeout", "2", "--json"], one).expect(1).json();
    let [filtered, open] = setup.gate.profile.ports[..] else { panic!("it has two ports") };
    let says = format!("127.0.0.1 does not answer at port {filtered}, and does at {open}");
    assert_eq!(message(&json, "silent-port"), says);
}

#[test]
fn what_the_gate_refuses_is_named_by_its_reason() {
    let setup = Setup::new(&["127.0.0.1"]);
    let no_vpn = |gate: &Gate, arrived: &Arrived| {
        let is_vpn = arrived.services().contains(&"vpn".to_owned());
        let refused = Outcome::Refused(Refusal::ServiceNotAllowed);
        Some(gate.sealed(arrived, if is_vpn { refused } else { gate.granted(arrived) }))
    };
    let json = setup.run(&["--json"], no_vpn).expect(1).json();
    let found = findings(&json);
    assert!(found.contains(&"fault service-not-allowed".to_owned()), "{json}");
    assert!(found.contains(&"ok connection".to_owned()), "{json}");
    let expired =
        |gate: &Gate, arrived: &Arrived| Some(gate.sealed(arrived, Outcome::Refused(Refusal::Expired)));
    let json = setup.run(&["--json"], expired).expect(1).json();
    assert!(findings(&json).contains(&"fault expired".to_owned()), "{json}");
    assert!(!findings(&json).iter().any(|finding| finding.ends_with("opened")), "{json}");
}

#[test]
fn a_door_that_opens_onto_nothing_is_told_of() {
    let closed = ClosedPort::new();
    let gate = Gate::answering(&["127.0.0.1"], 1, closed.number());
    let home = Home::with("home", &gate.profile);
    let mut client = start(&mut home.postern(&["doctor", "home", "ssh", "--timeout", "2", "--json"]));
    gate.serve(&mut client, grant);
    let json = client.finish().expect(1).json();
    assert!(findings(&json).contains(&"fault not-listening".to_owned()), "{json}");
}

#[test]
fn a_gate_that_does_not_answer_is_judged_by_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::listen(&["127.0.0.1"], 1, listener.local_addr().unwrap().port());
    let home = Home::with("home", &gate.profile);
    let json = run(&mut home.postern(&["doctor", "home", "ssh", "--json"])).expect(0).json();
    let found = findings(&json);
    assert_eq!(found[3..], ["note no-answers", "note sent", "ok connection"], "{json}");
    let arrived = gate.knock();
    assert_eq!((arrived.services(), arrived.limits()), (vec!["ssh".to_owned()], (Some(10), None)));
    gate.assert_no_more();
}

#[test]
fn what_is_wrong_on_this_host_is_found_without_the_gate() {
    let setup = Setup::new(&["127.0.0.1"]);
    let folder = setup.home.config().parent().unwrap().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let json = setup.run(&["ssh", "--json"], grant).expect(1).json();
    assert!(findings(&json).contains(&"warning configuration-folder".to_owned()), "{json}");
    setup.home.chmod(0o644);
    let json = setup.run(&["ssh", "--json"], grant).expect(1).json();
    assert_eq!(findings(&json), ["fault configuration"]);
    setup.home.chmod(0o600);
    let json = setup.run(&["ssh", "-6", "--json"], grant).expect(1).json();
    assert_eq!(findings(&json).last().unwrap(), "fault name-unresolved");

    let mut profile = setup.gate.profile.clone();
    profile.addresses = vec!["255.255.255.255".parse().unwrap()];
    let home = Home::with("home", &profile);
    let json = run(&mut home.postern(&["doctor", "home", "--json"])).expect(1).json();
    assert_eq!(findings(&json).last().unwrap(), "fault no-route");
    setup.gate.assert_no_more();
}
