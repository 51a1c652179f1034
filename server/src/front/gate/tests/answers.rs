//! Who is answered, and with what: the client of a recorded knock, once, and nobody else.

use postern_proto::answer::{self, Answer};

use super::super::*;
use super::*;

/// What the client is told of its knock, if anything.
fn answered(world: &mut World, knock: &[u8; KNOCK_LEN]) -> Option<Answer> {
    let verdict = world.gate.handle(world.now(), here(), Datagram::from(knock));
    let Verdict::Decided(decided) = verdict else { return None };
    let reply = decided.release(&Receipt::for_tests()).reply?;
    assert_eq!((reply.way, reply.client), (here(), ClientId::from_bytes([1; 8])));
    let sealed = reply.seal(Nonce::from_random([5; 24]));
    let nonce = Datagram::from(knock).nonce();
    Some(answer::open(&gate_id(), &keys(1).answer, nonce, &sealed).expect("it is for this knock"))
}

#[test]
fn each_recorded_knock_is_answered_once() {
    let mut world = World::new("max-window = \"20s\"");
    let services = Services::new(vec!["ssh".parse().unwrap()]).unwrap();
    let until = world.wall.after(Duration::from_secs(20));
    for (payload, expected) in [
        (world.payload(), answer::Outcome::Opened { until }),
        (Payload { request: Request::Close { services }, ..world.payload() }, answer::Outcome::Closed),
        (Payload { request: Request::Probe, ..world.payload() }, answer::Outcome::Heard),
        (
            open_payload(world.wall, Source::Observed, "ssh", Some(21)),
            answer::Outcome::Refused(Refusal::WindowTooLong),
        ),
        (
            open_payload(world.wall, Source::Observed, "gopher", None),
            answer::Outcome::Refused(Refusal::UnknownService),
        ),
        (
            open_payload(world.wall, stated("203.0.113.9"), "ssh", None),
            answer::Outcome::Refused(Refusal::SourceNotOwn),
        ),
    ] {
        // Nothing here was made before the close.
        world.pass(Duration::from_micros(1));
        let knock = world.seal(&Payload { at: world.wall, ..payload });
        let answer = answered(&mut world, &knock).unwrap_or_else(|| panic!("no answer, but {expected:?}"));
        let outcome = match answer.outcome {
            // It counts from the knock.
            answer::Outcome::Opened { .. } => answer::Outcome::Opened { until },
            other => other,
        };
        assert_eq!((answer.at, answer.seen, outcome), (world.wall, here().from, expected));
        assert_eq!(answered(&mut world, &knock), None, "a copy");
    }
}

#[test]
fn nobody_else_is_answered() {
    let mut world = World::new("max-leases = 1");
    let late = world.wall.before(Duration::from_secs(62));
    let early = world.wall.after(Duration::from_secs(62));
    let mut bent = world.fresh();
    bent[KNOCK_LEN - 1] ^= 1;
    let stranger = [3; KNOCK_LEN];
    let loopback = world.seal(&open_payload(world.wall, stated("127.0.0.1"), "ssh", None));
    let [late, early] = [late, early].map(|at| open_payload(at, Source::Observed, "ssh", None));
    let [late, early] = [world.seal(&late), world.seal(&early)];
    for knock in [bent, stranger, loopback, late, early] {
        assert_eq!(answered(&mut world, &knock), None);
    }
    let first = world.fresh();
    assert!(answered(&mut world, &first).is_some());
    let from_port = NonZeroU16::new(9);
    let services = Services::new(vec!["ssh".parse().unwrap()]).unwrap();
    let more = Payload { request: Request::Open { services, window: None, from_port }, ..world.payload() };
    let more = world.seal(&more);
    assert_eq!(answered(&mut world, &more), None, "its leases are used up, and nothing is recorded");
}

#[test]
fn what_could_not_be_recorded_is_not_answered() {
    let mut world = World::new("");
    let knock = world.fresh();
    let Verdict::Decided(decided) = world.gate.handle(world.now(), here(), Datagram::from(&knock)) else {
        panic!("refused")
    };
    // A decision that failed gives its refusal, and nothing to send.
    assert_eq!(decided.fail().reason, Refusal::Unrecorded);
    assert_eq!(answered(&mut world, &knock), None);
}

#[test]
fn a_gate_can_be_without_answers() {
    let mut world = World::new("");
    world.gate.answers = false;
    let knock = world.fresh();
    assert_eq!(answered(&mut world, &knock), None);
}
