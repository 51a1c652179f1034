//! The test vectors of `vectors/`, read both ways: objects to exactly those bytes, bytes to exactly that object or
//! that refusal. Their format is described at the top of each file.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use postern_proto::answer;
use postern_proto::datagram::{HINT_LEN, NONCE_LEN, PAYLOAD_LEN, UsedNonce};
use postern_proto::knock::seal_bytes;
use postern_proto::profile::ProfileError;
use postern_proto::sequence::{PortRange, Rolling};
use postern_proto::{
    Answer, AnswerKey, Authentic, ClientEntry, ClientKeys, ClientSecret, Datagram, Epoch, GateId, GateKeys,
    HintKey, HintTable, Hinted, KNOCK_LEN, NoAnswer, Nonce, Outcome, Payload, Profile, Proof, Refusal,
    Request, SequenceKey, ServiceName, Services, Source, Tolerance, WallTime, Window, open, seal,
};
use serde::{Deserialize, Deserializer};

/// Bytes in hexadecimal with any white space.
struct Hex(Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits: Vec<u32> = String::deserialize(deserializer)?
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_digit(16).ok_or_else(|| serde::de::Error::custom("not hexadecimal")))
            .collect::<Result<_, _>>()?;
        assert_eq!(digits.len() % 2, 0, "half a byte");
        Ok(Self(digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()))
    }
}

impl Hex {
    fn array<const N: usize>(&self) -> [u8; N] {
        self.0.as_slice().try_into().unwrap()
    }

    fn gate(&self) -> GateId {
        GateId::from_bytes(self.array())
    }

    fn secret(&self) -> ClientSecret {
        ClientSecret::from_bytes(self.array())
    }

    fn nonce(&self) -> Nonce {
        Nonce::from_random(self.array::<NONCE_LEN>())
    }

    fn padded(&self) -> [u8; PAYLOAD_LEN] {
        let mut padded = [0; PAYLOAD_LEN];
        padded[..self.0.len()].copy_from_slice(&self.0);
        padded
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    at: u64,
    source: String,
    request: String,
    services: Vec<ServiceName>,
    window: Option<u32>,
    from_port: Option<NonZeroU16>,
    proof: Option<Hex>,
}

impl Fields {
    fn payload(&self) -> Payload {
        let services = || Services::new(self.services.clone()).unwrap();
        Payload {
            at: WallTime::from_micros(self.at),
            source: match self.source.as_str() {
                "observed" => Source::Observed,
                address => Source::Stated(address.parse().unwrap()),
            },
            request: match self.request.as_str() {
                "open" => {
                    let window = self.window.map(|secs| Window::from_secs(secs).unwrap());
                    Request::Open { services: services(), window, from_port: self.from_port }
                }
                "close" => Request::Close { services: services() },
                "probe" => Request::Probe,
                other => panic!("no such request: {other}"),
            },
            proof: self.proof.as_ref().map_or(Proof::None, |bytes| postcard::from_bytes(&bytes.0).unwrap()),
        }
    }
}

/// A client that may knock at any time.
struct Always(ClientKeys);

impl Hinted for Always {
    fn hint_key(&self, _: Epoch) -> Option<&HintKey> {
        Some(&self.0.hint)
    }
}

/// What a gate with one client makes of a datagram before it looks at time, memory and policy.
fn read(gate: &GateKeys, client: &Always, now: WallTime, bytes: &[u8]) -> Result<Authentic, Refusal> {
    let datagram = Datagram::new(bytes).unwrap();
    let table = HintTable::new(Tolerance::default(), now, std::slice::from_ref(client));
    let (_, epoch) = table.look_up(datagram.unveil(gate)).next().ok_or(Refusal::Unknown)?;
    open(gate, &client.0.seal, epoch, datagram)
}

fn assert_opens(what: &str, opened: Result<Authentic, Refusal>, payload: &Payload, nonce: &Hex) {
    let opened = opened.unwrap_or_else(|refusal| panic!("{what}: refused as {refusal}"));
    assert_eq!(opened.at(), payload.at, "{what}");
    assert_eq!(opened.request(), &payload.request, "{what}");
    let observed = IpAddr::from([203, 0, 113, 250]);
    let (source, states) = match payload.source {
        Source::Observed => (observed, false),
        Source::Stated(address) => (address, true),
    };
    assert_eq!((opened.source(observed), opened.states_source()), (source, states), "{what}");
    assert_eq!(opened.nonce().as_slice(), nonce.0, "{what}");
}

#[test]
fn payloads() {
    #[derive(Deserialize)]
    struct File {
        valid: Vec<Valid>,
        invalid: Vec<Invalid>,
    }
    #[derive(Deserialize)]
    struct Valid {
        what: String,
        bytes: Hex,
        #[serde(flatten)]
        fields: Fields,
    }
    #[derive(Deserialize)]
    struct Invalid {
        what: String,
        bytes: Hex,
    }
    let file: File = toml::from_str(include_str!("../vectors/payload.toml")).unwrap();
    for Valid { what, bytes, fields } in &file.valid {
        assert_eq!(fields.payload().encode(), bytes.padded(), "{what}");
        assert_eq!(Payload::decode(&bytes.padded()), Some(fields.payload()), "{what}");
    }
    for Invalid { what, bytes } in &file.invalid {
        assert_eq!(Payload::decode(&bytes.padded()), None, "{what}");
    }
    assert!(file.valid.len() >= 15 && file.invalid.len() >= 30);
}

#[test]
fn knocks_that_open() {
    #[derive(Deserialize)]
    struct File {
        knock: Vec<Vector>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Vector {
        what: String,
        gate_id: Hex,
        secret: Hex,
        nonce: Hex,
        knock: Hex,
        #[serde(flatten)]
        fields: Fields,
    }
    let file: File = toml::from_str(include_str!("../vectors/opens.toml")).unwrap();
    for Vector { what, gate_id, secret, nonce, knock, fields } in &file.knock {
        let gate = GateKeys::derive(&gate_id.gate());
        let client = Always(ClientKeys::derive(&gate_id.gate(), &secret.secret()));
        let payload = fields.payload();
        assert_eq!(seal(&gate, &client.0, &payload, nonce.nonce()).as_slice(), knock.0, "{what}");
        assert_opens(what, read(&gate, &client, payload.at, &knock.0), &payload, nonce);
    }
    assert!(file.knock.len() >= 15);
}

#[test]
fn knocks_that_are_refused() {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct File {
        gate_id: Hex,
        secret: Hex,
        now: u64,
        refused: Vec<Vector>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Vector {
        what: String,
        refusal: String,
        epoch: u64,
        nonce: Hex,
        sealed_for: Option<Hex>,
        made_by: Option<Hex>,
        seal_secret: Option<Hex>,
        #[serde(default)]
        re_veiled: bool,
        flip: Option<(usize, u8)>,
        payload: Hex,
        knock: Hex,
    }
    let file: File = toml::from_str(include_str!("../vectors/refused.toml")).unwrap();
    let gate = GateKeys::derive(&file.gate_id.gate());
    let client = Always(ClientKeys::derive(&file.gate_id.gate(), &file.secret.secret()));

    // The steps that the file's header describes.
    let make = |vector: &Vector| -> [u8; KNOCK_LEN] {
        let (epoch, padded) = (Epoch::new(vector.epoch), vector.payload.padded());
        let sealed_for = vector.sealed_for.as_ref().unwrap_or(&file.gate_id).gate();
        let made_by = vector.made_by.as_ref().unwrap_or(&file.secret);
        let seal_secret = vector.seal_secret.as_ref().unwrap_or(made_by);
        let keys = ClientKeys {
            hint: ClientKeys::derive(&sealed_for, &made_by.secret()).hint,
            ..ClientKeys::derive(&sealed_for, &seal_secret.secret())
        };
        let mut knock =
            seal_bytes(&GateKeys::derive(&sealed_for), &keys, epoch, &padded, vector.nonce.nonce());
        if vector.re_veiled {
            let own = seal_bytes(&gate, &client.0, epoch, &padded, vector.nonce.nonce());
            knock[..HINT_LEN].copy_from_slice(&own[..HINT_LEN]);
        }
        if let Some((byte, bit)) = vector.flip {
            knock[byte] ^= 1 << bit;
        }
        knock
    };
    for vector in &file.refused {
        let what = &vector.what;
        assert_eq!(make(vector).as_slice(), vector.knock.0, "{what}");
        let refusal = read(&gate, &client, WallTime::from_micros(file.now), &vector.knock.0).err();
        assert_eq!(refusal.map(Refusal::name), Some(vector.refusal.as_str()), "{what}");
    }
    for refusal in [Refusal::Unknown, Refusal::Forged, Refusal::Malformed] {
        assert!(file.refused.iter().filter(|vector| vector.refusal == refusal.name()).count() >= 5);
    }
}

/// Here only that these knocks are what they say, and that every refusal a knock alone can bring about has one.
#[test]
fn knocks_for_a_gate() {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct File {
        gate_id: GateId,
        client: Vec<ClientEntry>,
        knock: Vec<Vector>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Vector {
        name: String,
        expect: String,
        client: String,
        secret: Option<String>,
        nonce: Hex,
        knock: Hex,
        #[serde(flatten)]
        fields: Fields,
    }
    let file: File = toml::from_str(include_str!("../vectors/gate.toml")).unwrap();
    let gate = GateKeys::derive(&file.gate_id);
    for Vector { name, expect, client, secret, nonce, knock, fields } in &file.knock {
        let entry = file.client.iter().find(|entry| entry.name.as_str() == client).unwrap();
        let secret = match secret.as_deref() {
            None => &entry.secret,
            Some("previous") => entry.previous_secret.as_ref().unwrap(),
            Some(other) => panic!("no such secret: {other}"),
        };
        let client = Always(ClientKeys::derive(&file.gate_id, secret));
        let payload = fields.payload();
        assert_eq!(seal(&gate, &client.0, &payload, nonce.nonce()).as_slice(), knock.0, "{name}");
        assert_opens(name, read(&gate, &client, payload.at, &knock.0), &payload, nonce);
        let known = ["granted", "closed"].contains(&expect.as_str());
        assert!(known || Refusal::ALL.iter().any(|refusal| refusal.name() == expect), "{name}: {expect}");
    }
    let elsewhere = [Refusal::Forged, Refusal::Malformed, Refusal::Unrecorded];
    for refusal in Refusal::ALL.iter().filter(|refusal| !elsewhere.contains(refusal)) {
        assert!(file.knock.iter().any(|vector| vector.expect == refusal.name()), "no vector for {refusal}");
    }
}

#[test]
fn profile_lines() {
    #[derive(Deserialize)]
    struct File {
        profile: Vec<Vector>,
        refused: Vec<Refused>,
    }
    #[derive(Deserialize)]
    struct Vector {
        what: String,
        line: String,
        fields: Profile,
    }
    #[derive(Deserialize)]
    struct Refused {
        what: String,
        error: String,
        line: String,
    }
    let file: File = toml::from_str(include_str!("../vectors/profile.toml")).unwrap();
    for Vector { what, line, fields } in &file.profile {
        assert_eq!(*fields.to_line(), *line, "{what}");
        assert!(Profile::from_line(line).as_ref() == Ok(fields), "{what}");
    }
    for Refused { what, error, line } in &file.refused {
        let name = match Profile::from_line(line).err() {
            Some(ProfileError::NotAProfile) => "not-a-profile",
            Some(ProfileError::Cut) => "cut",
            Some(ProfileError::Mistyped) => "mistyped",
            Some(ProfileError::Unsupported) => "unsupported",
            None => "none",
        };
        assert_eq!(name, error, "{what}");
    }
    assert!(file.profile.len() >= 2 && file.refused.len() >= 10);
}

#[test]
fn answers() {
    #[derive(Deserialize)]
    struct File {
        answer: Vec<Vector>,
        refused: Vec<Refused>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Vector {
        #[serde(flatten)]
        sealed: Sealed,
        nonce: Hex,
        at: u64,
        seen: SocketAddr,
        outcome: String,
        until: Option<u64>,
        refusal: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refused {
        #[serde(flatten)]
        sealed: Sealed,
        reason: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Sealed {
        what: String,
        gate_id: Hex,
        secret: Hex,
        knock_nonce: Hex,
        answer: Hex,
    }
    impl Sealed {
        fn inputs(&self) -> (GateId, AnswerKey, UsedNonce) {
            let (gate, secret) = (self.gate_id.gate(), self.secret.secret());
            let key = ClientKeys::derive(&gate, &secret).answer;
            (gate, key, self.knock_nonce.0.as_slice().try_into().unwrap())
        }
    }

    let file: File = toml::from_str(include_str!("../vectors/answer.toml")).unwrap();
    for Vector { sealed, nonce, at, seen, outcome, until, refusal } in &file.answer {
        let outcome = match outcome.as_str() {
            "opened" => Outcome::Opened { until: WallTime::from_micros(until.unwrap()) },
            "closed" => Outcome::Closed,
            "heard" => Outcome::Heard,
            "refused" => Outcome::Refused(refusal.unwrap()),
            other => panic!("no such outcome: {other}"),
        };
        let expected = Answer { at: WallTime::from_micros(*at), seen: *seen, outcome };
        let (gate, key, knock) = sealed.inputs();
        let made = answer::seal(&gate, &key, &knock, &expected, nonce.nonce());
        assert_eq!(made.as_slice(), sealed.answer.0, "{}", sealed.what);
        assert_eq!(answer::open(&gate, &key, &knock, &sealed.answer.0), Ok(expected), "{}", sealed.what);
    }
    for Refused { sealed, reason } in &file.refused {
        let (gate, key, knock) = sealed.inputs();
        let expected = match reason.as_str() {
            "length" => NoAnswer::Length,
            "forged" => NoAnswer::Forged,
            "malformed" => NoAnswer::Malformed,
            other => panic!("no such reason: {other}"),
        };
        assert_eq!(answer::open(&gate, &key, &knock, &sealed.answer.0), Err(expected), "{}", sealed.what);
    }
    assert!(file.answer.len() >= 12 && file.refused.len() >= 12);
}

#[test]
fn rolling_sequences() {
    #[derive(Deserialize)]
    struct File {
        sequence: Vec<Vector>,
    }
    #[derive(Deserialize)]
    struct Vector {
        what: String,
        key: Hex,
        range: PortRange,
        length: usize,
        epoch: u64,
        source: Option<IpAddr>,
        ports: Vec<u16>,
        id: Hex,
        nonce: Hex,
    }
    let file: File = toml::from_str(include_str!("../vectors/sequence.toml")).unwrap();
    for Vector { what, key, range, length, epoch, source, ports, id, nonce } in &file.sequence {
        let key = SequenceKey::from_bytes(key.array());
        let rolling = Rolling::new(&key, *range, *length, source.is_some()).unwrap();
        let (epoch, source) = (Epoch::new(*epoch), source.unwrap_or(IpAddr::from([203, 0, 113, 250])));
        let steps = rolling.steps(epoch, source);
        assert!(steps.as_slice().iter().all(|step| step.protocol == range.protocol()), "{what}");
        let numbers: Vec<_> = steps.as_slice().iter().map(|step| step.number.get()).collect();
        assert_eq!(&numbers, ports, "{what}");
        let used = rolling.used(epoch, source);
        assert_eq!(
            (used.epoch, used.id.expose().as_slice(), used.nonce.as_slice()),
            (epoch, &*id.0, &*nonce.0),
            "{what}"
        );
    }
    assert!(file.sequence.len() >= 11);
}
