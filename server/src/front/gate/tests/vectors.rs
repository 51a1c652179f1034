//! The vectors of `proto/vectors/gate.toml`: knocks that an independent implementation made, and what a gate makes of
//! them. Their format is described at the top of the file.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::{ClientEntry, Datagram, GateId, GateKeys, KNOCK_LEN, Tolerance, WallTime, Window};
use serde::Deserialize;

use super::super::*;
use super::{Receipt, services, way};
use crate::clock::BootTime;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Vectors {
    gate_id: GateId,
    tolerance: Window,
    services: BTreeMap<ServiceName, toml::Table>,
    client: Vec<ClientEntry>,
    knock: Vec<Knock>,
}

#[derive(Deserialize)]
struct Knock {
    name: String,
    what: String,
    expect: String,
    now: u64,
    from: IpAddr,
    #[serde(rename = "knock")]
    hexadecimal: String,
    #[serde(default)]
    earlier: Vec<String>,
}

impl Knock {
    fn bytes(&self) -> [u8; KNOCK_LEN] {
        let digits: Vec<u8> = self.hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect::<Vec<_>>().try_into().unwrap()
    }

    /// What a gate whose clock says `now` makes of it, in the words of the file.
    fn come_to(&self, gate: &mut Gate, now: u64) -> &'static str {
        let now = Now { wall: WallTime::from_micros(now), boot: BootTime::from_boot(Duration::ZERO) };
        match gate.handle(now, way(self.from), Datagram::new(&self.bytes()).unwrap()) {
            Verdict::Refused(refused) => refused.reason.name(),
            Verdict::Decided(decided) => match decided.release(&Receipt::for_tests()).outcome {
                Outcome::Refused(refused) => refused.reason.name(),
                Outcome::Open(_) => "granted",
                Outcome::Close(_) => "closed",
                Outcome::Heard => "heard",
            },
        }
    }
}

#[test]
fn every_knock_of_the_vectors_gets_its_verdict() {
    let vectors: Vectors = toml::from_str(include_str!("../../../../../proto/vectors/gate.toml")).unwrap();
    assert!(vectors.services.keys().all(|name| services().contains_key(name)));
    assert_eq!(vectors.services.len(), services().len());
    let by_name: HashMap<&str, &Knock> =
        vectors.knock.iter().map(|knock| (knock.name.as_str(), knock)).collect();
    for knock in &vectors.knock {
        let clients = Client::all(&vectors.gate_id, &vectors.client, &Authorized::new());
        let (keys, memory) = (GateKeys::derive(&vectors.gate_id), Memory::new(WallTime::from_micros(0)));
        let tolerance = Tolerance::new(vectors.tolerance.duration()).unwrap();
        let now = WallTime::from_micros(knock.now);
        let mut gate = Gate::new(keys, tolerance, services(), clients, memory, now, false);
        for earlier in &knock.earlier {
            by_name[earlier.as_str()].come_to(&mut gate, knock.now);
        }
        assert_eq!(knock.come_to(&mut gate, knock.now), knock.expect, "{}: {}", knock.name, knock.what);
    }
    let expected = |word: &str| vectors.knock.iter().any(|knock| knock.expect == word);
    // Forged and malformed knocks are in refused.toml; what cannot be written depends on more than a knock.
    let elsewhere = [Refusal::Forged, Refusal::Malformed, Refusal::Unrecorded];
    for reason in Refusal::ALL.iter().filter(|reason| !elsewhere.contains(reason)) {
        assert!(expected(reason.name()), "no vector is refused as {reason}");
    }
}
