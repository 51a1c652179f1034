//! The gate under a simulated clock: what opens, and what is refused by which name.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::datagram::PAYLOAD_LEN;
use postern_proto::keyfile::{ClientEntry, KeyFile};
use postern_proto::knock::seal_bytes;
use postern_proto::payload::{Payload, Proof, Source};
use postern_proto::{ClientKeys, ClientSecret, GateId, KNOCK_LEN, Nonce, Services, seal};

use super::super::store::Receipt;
use super::*;
use crate::clock::BootTime;

mod answers;
mod clocks;
mod identity;
mod vectors;

const HERE: &str = "198.51.100.7";

/// The way of a knock from such an address.
fn way(from: IpAddr) -> Way {
    let to = "198.51.100.1:62201".parse().unwrap();
    Way { from: SocketAddr::new(from, 40_000), to }
}

fn here() -> Way {
    way(HERE.parse().unwrap())
}

fn gate_id() -> GateId {
    GateId::from_bytes([9; 16])
}

/// A client of the key file, by the number that its id and secret are made of.
fn entry(number: u8, limits: &str) -> ClientEntry {
    let id = ClientId::from_bytes([number; 8]);
    let secret = ClientSecret::from_bytes([number; 32]);
    let text = format!(
        "[[client]]\nname = \"client{number}\"\nid = \"{id}\"\nsecret = \"{}\"\nservices = [\"ssh\"]\n{limits}\n",
        *secret.to_text()
    );
    KeyFile::parse(&text).unwrap().into_clients().remove(0)
}

fn services() -> ServiceTable {
    let limits = ServiceLimits { window: Window::DEFAULT, max_window: Window::DEFAULT_MAX };
    HashMap::from([("ssh".parse().unwrap(), limits), ("web".parse().unwrap(), limits)])
}

/// A gate, and clocks that tests set.
struct World {
    gate: Gate,
    wall: WallTime,
    boot: Duration,
    nonces: u64,
}

impl World {
    fn new(limits: &str) -> Self {
        let wall = "2026-11-22T12:00:15Z".parse().unwrap();
        let clients = Client::all(&gate_id(), &[entry(1, limits)], &Authorized::new());
        let memory = Memory::new(WallTime::from_micros(0));
        let gate = Gate::new(
            GateKeys::derive(&gate_id()),
            Tolerance::default(),
            services(),
            clients,
            memory,
            wall,
            true,
        );
        Self { gate, wall, boot: Duration::from_hours(1), nonces: 0 }
    }

    fn now(&self) -> Now {
        Now { wall: self.wall, boot: BootTime::from_boot(self.boot) }
    }

    fn nonce(&mut self) -> Nonce {
        self.nonces += 1;
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.nonces.to_be_bytes());
        Nonce::from_random(bytes)
    }

    fn payload(&self) -> Payload {
        open_payload(self.wall, Source::Observed, "ssh", None)
    }

    fn seal(&mut self, payload: &Payload) -> [u8; KNOCK_LEN] {
        let nonce = self.nonce();
        seal(&GateKeys::derive(&gate_id()), &keys(1), payload, nonce)
    }

    /// A knock made now.
    fn fresh(&mut self) -> [u8; KNOCK_LEN] {
        self.seal(&self.payload())
    }

    /// What the gate makes of a knock whose record is written without fail.
    fn knock(&mut self, bytes: &[u8]) -> Result<Outcome, Refusal> {
        told(self.gate.handle(self.now(), here(), Datagram::new(bytes).unwrap()))
    }

    fn pass(&mut self, time: Duration) {
        self.wall = self.wall.after(time);
        self.boot += time;
    }
}

fn told(verdict: Verdict) -> Result<Outcome, Refusal> {
    match verdict {
        Verdict::Refused(refused) => Err(refused.reason),
        Verdict::Decided(decided) => match decided.release(&Receipt::for_tests()).outcome {
            Outcome::Refused(refused) => Err(refused.reason),
            outcome => Ok(outcome),
        },
    }
}

fn keys(number: u8) -> ClientKeys {
    ClientKeys::derive(&gate_id(), &ClientSecret::from_bytes([number; 32]))
}

fn open_payload(at: WallTime, source: Source, service: &str, window: Option<u32>) -> Payload {
    Payload {
        at,
        source,
        request: Request::Open {
            services: Services::new(vec![service.parse().unwrap()]).unwrap(),
            window: window.map(|secs| Window::from_secs(secs).unwrap()),
            from_port: None,
        },
        proof: Proof::None,
    }
}

fn stated(address: &str) -> Source {
    Source::Stated(address.parse().unwrap())
}

#[test]
fn knocks_that_come_together_get_what_each_would_get_alone() {
    let (mut alone, mut together) = (World::new(""), World::new(""));
    let mut knocks = Vec::new();
    for number in 0..32_u8 {
        let mut bytes = if number % 3 == 0 { alone.fresh() } else { [number; KNOCK_LEN] };
        if number % 9 == 0 {
            // Its hint is known, and it is not whole.
            bytes[KNOCK_LEN - 1] ^= 1;
        }
        knocks.push((way(IpAddr::from([198, 51, 100, number + 1])), bytes));
    }
    // Once more at the end: a copy.
    knocks.push(knocks[3]);
    let singly: Vec<_> = knocks
        .iter()
        .map(|(way, bytes)| (*way, alone.gate.handle(alone.now(), *way, Datagram::from(bytes))))
        .map(|(way, verdict)| (way, told(verdict)))
        .collect();
    let knocks: Vec<_> = knocks.iter().map(|(way, bytes)| (*way, Datagram::from(bytes))).collect();
    let mut at_once = Vec::new();
    let now = together.now();
    together.gate.handle_all(now, &knocks, |way, verdict| at_once.push((way, told(verdict))));
    assert_eq!(at_once, singly);
    let opened = singly.iter().filter(|(_, verdict)| verdict.is_ok()).count();
    assert_eq!(opened, 7, "{singly:?}");
}

#[test]
fn a_fresh_knock_is_granted_what_it_asks_for() {
    let mut world = World::new("");
    let payload = Payload {
        request: Request::Open {
            services: Services::new(vec!["ssh".parse().unwrap()]).unwrap(),
            window: Some(Window::from_secs(7).unwrap()),
            from_port: NonZeroU16::new(40_000),
        },
        ..world.payload()
    };
    let knock = world.seal(&payload);
    let grant = Grant {
        client: ClientId::from_bytes([1; 8]),
        services: vec![("ssh".parse().unwrap(), Window::from_secs(7).unwrap())],
        source: HERE.parse().unwrap(),
        from_port: NonZeroU16::new(40_000),
        decided: world.now().boot,
    };
    assert_eq!(world.knock(&knock), Ok(Outcome::Open(grant)));
    assert_eq!(world.knock(&knock), Err(Refusal::Replayed));
}

/// (what, limits of the client, change to the payload, refusal). A knock of the same client without the change opens
/// before and after.
#[test]
fn each_rule_of_policy_and_freshness_refuses_by_its_name() {
    type Change = fn(&mut Payload);
    let secs = Duration::from_secs;
    let table: &[(&str, &str, Change, Refusal)] = &[
        ("61 s old", "", |p| p.at = p.at.before(Duration::from_secs(61)), Refusal::Stale),
        ("61 s ahead", "", |p| p.at = p.at.after(Duration::from_secs(61)), Refusal::Early),
        ("loopback", "", |p| p.source = stated("127.0.0.1"), Refusal::UnusableSource),
        ("multicast", "", |p| p.source = stated("ff02::1"), Refusal::UnusableSource),
        ("mapped", "", |p| p.source = stated("::ffff:198.51.100.7"), Refusal::UnusableSource),
        ("another's address", "", |p| p.source = stated("198.51.100.8"), Refusal::SourceNotOwn),
        (
            "outside its networks",
            "sources = [\"198.51.100.0/29\"]\nmay-state-other-source = true",
            |p| p.source = stated("198.51.100.8"),
            Refusal::SourceNotAllowed,
        ),
        (
            "no such service",
            "",
            |p| p.request = open_payload(p.at, p.source, "imap", None).request,
            Refusal::UnknownService,
        ),
        (
            "not its service",
            "",
            |p| p.request = open_payload(p.at, p.source, "web", None).request,
            Refusal::ServiceNotAllowed,
        ),
        (
            "too long",
            "max-window = \"20s\"",
            |p| p.request = open_payload(p.at, p.source, "ssh", Some(21)).request,
            Refusal::WindowTooLong,
        ),
        (
            "longer than the service",
            "",
            |p| p.request = open_payload(p.at, p.source, "ssh", Some(3601)).request,
            Refusal::WindowTooLong,
        ),
    ];
    for (what, limits, change, refusal) in table {
        let mut world = World::new(limits);
        let good = world.fresh();
        assert!(world.knock(&good).is_ok(), "{what}: before");
        let mut payload = world.payload();
        change(&mut payload);
        let bad = world.seal(&payload);
        assert_eq!(world.knock(&bad), Err(*refusal), "{what}");
        world.pass(secs(1));
        let good = world.fresh();
        assert!(world.knock(&good).is_ok(), "{what}: after");
    }
}

#[test]
fn a_client_that_must_state_its_source_may_state_its_own() {
    let mut world = World::new("must-state-source = true");
    let observed = world.fresh();
    assert_eq!(world.knock(&observed), Err(Refusal::SourceNotStated));
    let own = world.seal(&open_payload(world.wall, stated(HERE), "ssh", None));
    assert!(world.knock(&own).is_ok());
}

#[test]
fn dates_bound_a_client_to_the_instant() {
    let limits = "not-before = \"2026-11-22T12:00:20Z\"\nexpires = \"2026-11-22T12:00:25Z\"";
    for (after, want) in
        [(0, Err(Refusal::NotYetValid)), (5, Ok(())), (9, Ok(())), (10, Err(Refusal::Expired))]
    {
        let mut world = World::new(limits);
        world.pass(Duration::from_secs(after));
        let knock = world.fresh();
        assert_eq!(world.knock(&knock).map(drop), want, "after {after} s");
    }
    let mut world = World::new(limits);
    world.pass(Duration::from_mins(2));
    let knock = world.fresh();
    assert_eq!(world.knock(&knock), Err(Refusal::Unknown), "long expired: not even in the table");
}

#[test]
fn strangers_forgers_and_malformed_payloads_are_told_apart() {
    let mut world = World::new("");
    let gate = GateKeys::derive(&gate_id());
    let payload = world.payload();
    let nonce = world.nonce();
    let unknown = seal(&gate, &keys(2), &payload, nonce);
    assert_eq!(world.knock(&unknown), Err(Refusal::Unknown));

    let mut forged = world.seal(&payload);
    forged[200] ^= 1;
    assert_eq!(world.knock(&forged), Err(Refusal::Forged));
    forged[200] ^= 1;
    assert!(world.knock(&forged).is_ok(), "a forgery must not mark the nonce of the real knock");

    let nonce = world.nonce();
    let malformed = seal_bytes(&gate, &keys(1), world.wall.epoch(), &[0xff; PAYLOAD_LEN], nonce);
    assert_eq!(world.knock(&malformed), Err(Refusal::Malformed));
    let nonce = world.nonce();
    let other_epoch = payload.at.epoch().next();
    let malformed = seal_bytes(&gate, &keys(1), other_epoch, &payload.encode(), nonce);
    assert_eq!(world.knock(&malformed), Err(Refusal::Malformed), "made in another epoch than its hint");
}

#[test]
fn a_knock_that_policy_refuses_is_recorded_too() {
    let mut world = World::new("");
    let knock = world.seal(&open_payload(world.wall, Source::Observed, "web", None));
    assert_eq!(world.knock(&knock), Err(Refusal::ServiceNotAllowed));
    assert_eq!(world.knock(&knock), Err(Refusal::Replayed));
}

#[test]
fn a_knock_that_could_not_be_recorded_is_not_tried_again() {
    let mut world = World::new("");
    let knock = world.fresh();
    let verdict = world.gate.handle(world.now(), here(), Datagram::new(&knock).unwrap());
    let Verdict::Decided(decided) = verdict else { panic!("refused") };
    assert_eq!(decided.fail().reason, Refusal::Unrecorded);
    assert_eq!(world.knock(&knock), Err(Refusal::Replayed));
}

#[test]
fn a_close_makes_earlier_opens_stale() {
    let mut world = World::new("");
    let delayed = world.fresh();
    world.pass(Duration::from_secs(1));
    let services = Services::new(vec!["ssh".parse().unwrap()]).unwrap();
    let close = world.seal(&Payload { request: Request::Close { services }, ..world.payload() });
    assert!(matches!(world.knock(&close), Ok(Outcome::Close(_))));
    assert_eq!(world.knock(&delayed), Err(Refusal::Stale));
    world.pass(Duration::from_secs(1));
    let later = world.fresh();
    assert!(matches!(world.knock(&later), Ok(Outcome::Open(_))));
}

#[test]
fn leases_are_counted_by_source_and_end() {
    let mut world = World::new("max-leases = 2\nmay-state-other-source = true");
    let knock = |world: &mut World, host: u8| {
        let source = Source::Stated(IpAddr::from([198, 51, 100, host]));
        let knock = world.seal(&open_payload(world.wall, source, "ssh", Some(30)));
        world.knock(&knock).map(drop)
    };
    assert_eq!(
        [knock(&mut world, 1), knock(&mut world, 2), knock(&mut world, 3)],
        [Ok(()), Ok(()), Err(Refusal::Busy)]
    );
    assert_eq!(knock(&mut world, 1), Ok(()), "a renewal takes no place");
    world.pass(Duration::from_secs(31));
    assert_eq!(knock(&mut world, 3), Ok(()), "the others have ended");
}

#[test]
fn a_client_is_not_remembered_without_bound() {
    let mut world = World::new("");
    for number in 0..replay::LIVE_NONCES_PER_CLIENT {
        let mut nonce = [0xff; 24];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        let record = Record { key: (ClientId::from_bytes([1; 8]), nonce), at: world.wall, closes: vec![] };
        world.gate.memory.remember(&record, world.now().boot);
    }
    let knock = world.fresh();
    assert_eq!(world.knock(&knock), Err(Refusal::Busy));
    world.pass(Duration::from_mins(11));
    while let Some(purge) = world.gate.purgeable(world.now()) {
        world.gate.forget(&purge);
    }
    let knock = world.fresh();
    assert!(world.knock(&knock).is_ok());
}
