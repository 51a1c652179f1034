//! What holds for every payload, profile, key file and datagram.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as it does")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use postern_proto::datagram::{CIPHERTEXT_AT, NONCE_LEN, PAYLOAD_LEN};
use postern_proto::sequence::{PortRange, Steps, TcpFlags};
use postern_proto::{
    ClientEntry, ClientId, ClientKeys, ClientSecret, Datagram, Epoch, GateId, GateKeys, HintKey, HintTable,
    Hinted, IdentityKey, KNOCK_LEN, KeyFile, Nonce, Payload, Port, Profile, Proof, Protocol, Refusal,
    Request, Services, Signature, Source, Tolerance, WallTime, Window, open, seal,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

fn payload() -> impl Strategy<Value = Payload> {
    let source = prop_oneof![Just(Source::Observed), any::<IpAddr>().prop_map(Source::Stated)];
    // At most 90 bytes of names: 1 to 6 of at most 14 characters.
    let services = btree_set("[A-Za-z0-9][A-Za-z0-9._-]{0,13}", 1..=6)
        .prop_map(|names| Services::new(names.iter().map(|name| name.parse().unwrap()).collect()).unwrap());
    let window = proptest::option::of((1..=u32::MAX).prop_map(|secs| Window::from_secs(secs).unwrap()));
    let request =
        (services, window, any::<u16>(), 0..3_u8).prop_map(|(services, window, port, kind)| match kind {
            0 => Request::Close { services },
            1 => Request::Probe,
            _ => Request::Open { services, window, from_port: NonZeroU16::new(port) },
        });
    let signature = || (any::<[u8; 32]>(), any::<[u8; 32]>());
    let signature = move || {
        signature().prop_map(|(r, s)| Signature::from_bytes(*[r, s].as_flattened().first_chunk().unwrap()))
    };
    let by_device = (any::<u8>(), any::<u32>(), signature());
    let proof = prop_oneof![
        Just(Proof::None),
        signature().prop_map(Proof::Ed25519),
        by_device.prop_map(|(flags, counter, signature)| Proof::SkEd25519 { flags, counter, signature }),
    ];
    (any::<u64>(), source, request, proof).prop_map(|(at, source, request, proof)| Payload {
        at: WallTime::from_micros(at),
        source,
        request,
        proof,
    })
}

/// The public half of a key: any bytes, for it is not used.
fn identity() -> impl Strategy<Value = IdentityKey> {
    (any::<[u8; 32]>(), "(ssh:[a-z]{0,20})?").prop_map(|(key, application)| {
        let mut bytes = vec![u8::from(!application.is_empty())];
        bytes.extend_from_slice(&key);
        if !application.is_empty() {
            bytes.push(u8::try_from(application.len()).unwrap());
            bytes.extend_from_slice(application.as_bytes());
        }
        postcard::from_bytes(&bytes).unwrap()
    })
}

fn port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX, any::<bool>()).prop_map(|(number, tcp)| Port {
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        number: NonZeroU16::new(number).unwrap(),
    })
}

prop_compose! {
    /// As the TOML of a client's configuration has it, and as an object.
    fn profile()(
        gate: [u8; 16],
        client: [u8; 8],
        secret: [u8; 32],
        names in vec("[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,3}", 0..4),
        addresses in vec(any::<IpAddr>(), 0..4),
        ports in vec(1..=u16::MAX, 0..9),
        services in btree_map("[A-Za-z0-9][A-Za-z0-9._-]{0,31}", vec(port(), 0..4), 0..5),
        answers: bool,
        identities in vec(identity(), 0..3),
    ) -> Hidden<Profile> {
        let hosts = names.iter().cloned().chain(addresses.iter().map(IpAddr::to_string));
        Hidden(Profile {
            gate: GateId::from_bytes(gate),
            client: ClientId::from_bytes(client),
            secret: ClientSecret::from_bytes(secret),
            addresses: hosts.map(|host| host.parse().unwrap()).collect(),
            ports: ports.into_iter().map(|port| NonZeroU16::new(port).unwrap()).collect(),
            services: services
                .into_iter()
                .map(|(name, ports)| (name.parse().unwrap(), ports))
                .collect::<BTreeMap<_, _>>(),
            answers,
            identities,
        })
    }
}

prop_compose! {
    fn client_entry()(
        name in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        id: [u8; 8],
        secret: [u8; 32],
        services in vec("[A-Za-z0-9][A-Za-z0-9._-]{0,31}", 1..5),
        max_window in proptest::option::of(1..=u32::MAX),
        sources in vec((any::<IpAddr>(), any::<u8>()), 0..4),
        flags: [bool; 3],
        max_leases: Option<u32>,
        // Up to the end of the year 9999; later dates have no text.
        dates in proptest::option::of((0..126_000_000_000_u64, 1..126_000_000_000_u64)),
        previous in proptest::option::of((any::<[u8; 32]>(), 0..126_000_000_000_u64)),
        identity in proptest::option::of(identity()),
        authorized_keys in proptest::option::of("/[a-z]{1,8}"),
    ) -> Hidden<ClientEntry> {
        let network = |(address, prefix): (IpAddr, u8)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            ipnet::IpNet::new(address, prefix % (longest + 1)).unwrap()
        };
        Hidden(ClientEntry {
            name: name.parse().unwrap(),
            id: ClientId::from_bytes(id),
            secret: ClientSecret::from_bytes(secret),
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
            max_window: max_window.map(|secs| Window::from_secs(secs).unwrap()),
            sources: sources.into_iter().map(network).collect(),
            must_state_source: flags[0],
            may_state_other_source: flags[1],
            max_leases,
            not_before: dates.map(|(from, _)| WallTime::from_secs(from)),
            expires: dates.map(|(from, until)| WallTime::from_secs(from + until)),
            disabled: flags[2],
            previous_secret: previous.map(|(secret, _)| ClientSecret::from_bytes(secret)),
            previous_until: previous.map(|(_, until)| WallTime::from_secs(until)),
            authorized_keys: authorized_keys.filter(|_| identity.is_none()).map(Into::into),
            identity,
        })
    }
}

/// Holds key material, which prints nothing.
#[derive(Clone)]
struct Hidden<T>(T);

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(key material)")
    }
}

/// One gate and one client that may always knock.
struct Pair {
    gate: GateKeys,
    client: ClientKeys,
}

impl Pair {
    fn new(gate: [u8; 16], secret: [u8; 32]) -> Self {
        let gate = GateId::from_bytes(gate);
        let client = ClientKeys::derive(&gate, &ClientSecret::from_bytes(secret));
        Self { gate: GateKeys::derive(&gate), client }
    }

    fn table(&self, now: WallTime) -> HintTable {
        HintTable::new(Tolerance::default(), now, std::slice::from_ref(self))
    }

    fn read(&self, table: &HintTable, bytes: &[u8]) -> Result<(WallTime, Request), Refusal> {
        let datagram = Datagram::new(bytes).unwrap();
        let (_, epoch) = table.look_up(datagram.unveil(&self.gate)).next().ok_or(Refusal::Unknown)?;
        self.open(epoch, bytes)
    }

    /// What a gate makes of it that was led to the right client and epoch.
    fn open(&self, epoch: Epoch, bytes: &[u8]) -> Result<(WallTime, Request), Refusal> {
        open(&self.gate, &self.client.seal, epoch, Datagram::new(bytes).unwrap())
            .map(|knock| (knock.at(), knock.request().clone()))
    }
}

impl Hinted for Pair {
    fn hint_key(&self, _: Epoch) -> Option<&HintKey> {
        Some(&self.client.hint)
    }
}

proptest! {
    #[test]
    fn a_payload_encodes_and_decodes(payload in payload()) {
        prop_assert_eq!(Payload::decode(&payload.encode()), Some(payload));
    }

    /// Payloads with a few bytes changed: most are refused, and what is not is the one encoding of something.
    #[test]
    fn what_decodes_encodes_to_the_same_bytes(
        payload in payload(),
        edits in vec((0..64_usize, any::<u8>()), 0..4),
    ) {
        let mut padded = payload.encode();
        for (at, byte) in edits {
            padded[at] = byte;
        }
        if let Some(decoded) = Payload::decode(&padded) {
            prop_assert_eq!(decoded.encode(), padded);
        }
    }

    #[test]
    fn decoding_never_panics(bytes in vec(any::<u8>(), PAYLOAD_LEN)) {
        let padded: [u8; PAYLOAD_LEN] = bytes.try_into().unwrap();
        if let Some(decoded) = Payload::decode(&padded) {
            prop_assert_eq!(decoded.encode(), padded);
        }
    }

    #[test]
    fn no_other_gate_and_no_other_client_opens_it(
        gates: [[u8; 16]; 2],
        secrets: [[u8; 32]; 2],
        nonce: [u8; NONCE_LEN],
        payload in payload(),
    ) {
        prop_assume!(gates[0] != gates[1] && secrets[0] != secrets[1]);
        let pair = Pair::new(gates[0], secrets[0]);
        let knock = seal(&pair.gate, &pair.client, &payload, Nonce::from_random(nonce));
        for other in [Pair::new(gates[1], secrets[0]), Pair::new(gates[0], secrets[1])] {
            prop_assert_eq!(other.read(&other.table(payload.at), &knock), Err(Refusal::Unknown));
            prop_assert_eq!(other.open(payload.at.epoch(), &knock), Err(Refusal::Forged));
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in vec(any::<u8>(), KNOCK_LEN), now: u64) {
        let pair = Pair::new([1; 16], [2; 32]);
        let now = WallTime::from_micros(now);
        prop_assert_eq!(pair.read(&pair.table(now), &bytes), Err(Refusal::Unknown));
        prop_assert_eq!(pair.open(now.epoch(), &bytes), Err(Refusal::Forged));
    }

    #[test]
    fn a_profile_prints_and_reads_back(Hidden(profile) in profile()) {
        prop_assert!(Profile::from_line(&profile.to_line()).as_ref() == Ok(&profile));
        let text = toml::to_string(&profile).unwrap();
        prop_assert!(toml::from_str::<Profile>(&text).as_ref() == Ok(&profile));
    }

    #[test]
    fn any_text_is_no_profile(text in "(postern1:)?\\PC{0,200}") {
        prop_assert!(Profile::from_line(&text).is_err());
    }

    #[test]
    fn a_key_file_prints_and_reads_back(entries in vec(client_entry(), 0..6)) {
        let unique = |key: fn(&ClientEntry) -> String| {
            entries.iter().map(|Hidden(entry)| key(entry)).collect::<BTreeSet<_>>().len() == entries.len()
        };
        prop_assume!(unique(|entry| entry.name.to_string()));
        let text = entries.iter().map(|Hidden(entry)| entry.to_toml()).collect::<String>();
        let file = KeyFile::parse(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(file.clients().iter().eq(entries.iter().map(|Hidden(entry)| entry)));
    }

    #[test]
    fn any_window_and_date_prints_and_reads_back(secs in 1..=u32::MAX, date in 0..253_402_300_800_u64) {
        let (window, date) = (Window::from_secs(secs).unwrap(), WallTime::from_secs(date));
        prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
        prop_assert_eq!(date.to_string().parse::<WallTime>().unwrap(), date);
    }
}

proptest! {
    // Each case tries all 2048 bits.
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_knock_opens_and_with_any_bit_flipped_does_not(
        gate: [u8; 16],
        secret: [u8; 32],
        nonce: [u8; NONCE_LEN],
        payload in payload(),
    ) {
        let pair = Pair::new(gate, secret);
        let table = pair.table(payload.at);
        let mut knock = seal(&pair.gate, &pair.client, &payload, Nonce::from_random(nonce));
        prop_assert_eq!(pair.read(&table, &knock), Ok((payload.at, payload.request)));
        for bit in 0..KNOCK_LEN * 8 {
            knock[bit / 8] ^= 1 << (bit % 8);
            // In hint and nonce a flipped bit gives another hint; behind them it breaks the seal.
            let expected = if bit / 8 < CIPHERTEXT_AT { Refusal::Unknown } else { Refusal::Forged };
            prop_assert_eq!(pair.read(&table, &knock), Err(expected), "bit {}", bit);
            prop_assert_eq!(pair.open(payload.at.epoch(), &knock), Err(Refusal::Forged), "bit {}", bit);
            knock[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn any_other_length_is_refused() {
    for len in (0..=1500).filter(|&len| len != KNOCK_LEN) {
        assert!(Datagram::new(&vec![0; len]).is_none(), "{len} bytes");
    }
    assert!(Datagram::new(&[0; KNOCK_LEN]).is_some());
}

/// A client with the epochs in which it may knock.
struct Sometimes {
    keys: ClientKeys,
    epochs: std::ops::Range<u64>,
}

impl Hinted for Sometimes {
    fn hint_key(&self, epoch: Epoch) -> Option<&HintKey> {
        self.epochs.contains(&epoch.number()).then_some(&self.keys.hint)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, or the clock steps: milliseconds, also backwards.
    Clock(i64),
    /// The next epoch is filled further, by so many clients.
    Prepare(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against trying every key in every epoch that is fresh.
    #[test]
    fn hint_tables_agree_with_a_naive_search(
        spans in vec((0..40_u64, 0..60_u64), 0..8),
        tolerance in prop_oneof![1_u64..=100, 1_u64..=600],
        start in 0..2_000_000_u64,
        steps in vec(prop_oneof![
            4 => (0..40_000_i64).prop_map(Step::Clock),
            1 => (-400_000..400_000_i64).prop_map(Step::Clock),
            2 => (0..9_usize).prop_map(Step::Prepare),
        ], 1..40),
    ) {
        let gate = GateId::from_bytes([1; 16]);
        // The first two have one secret: whoever shares a hint must be found too.
        let clients: Vec<Sometimes> = (0_u8..).zip(spans).map(|(i, (from, len))| {
            let keys = ClientKeys::derive(&gate, &ClientSecret::from_bytes([i.max(1); 32]));
            Sometimes { keys, epochs: from..from + len }
        }).collect();
        let tolerance = Tolerance::new(Duration::from_secs(tolerance)).unwrap();
        let mut now = WallTime::from_micros(start * 1000);
        let mut table = HintTable::new(tolerance, now, &clients);
        for step in steps {
            match step {
                Step::Clock(millis) if millis < 0 => now = now.before(Duration::from_millis(millis.unsigned_abs())),
                Step::Clock(millis) => now = now.after(Duration::from_millis(millis.unsigned_abs())),
                Step::Prepare(slice) => {
                    table.prepare(&clients, slice);
                }
            }
            table.turn(now, &clients);
            let around = now.epoch().number();
            for epoch in (around.saturating_sub(22)..=around + 22).map(Epoch::new) {
                let fresh = tolerance.epochs(now).contains(&epoch);
                let hints: Vec<_> = clients.iter().map(|client| client.keys.hint.hint(epoch)).collect();
                for hint in &hints {
                    let mut found: Vec<_> = table.look_up(*hint).collect();
                    found.sort_unstable();
                    let naive: Vec<_> = (0..clients.len())
                        .filter(|&i| fresh && hints[i] == *hint && clients[i].hint_key(epoch).is_some())
                        .map(|i| (i, epoch))
                        .collect();
                    prop_assert_eq!(found, naive);
                }
            }
        }
    }

    /// What a sequence is written with: whatever reads prints, and reads back as the same.
    #[test]
    fn sequences_read_back(text in "[!,a-u: /0-9-]{0,40}", flags: u8, first: u16, last: u16) {
        let known = ["fin", "syn", "rst", "psh", "ack", "urg"];
        let chosen = known.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0).map(|(_, name)| *name);
        let list = chosen.collect::<Vec<_>>().join(",!");
        for text in [text, list, format!("{first}-{last}/udp"), format!("{first},{last}:udp")] {
            if let Ok(flags) = text.parse::<TcpFlags>() {
                prop_assert_eq!(flags.to_string().parse(), Ok(flags));
            }
            if let Ok(range) = text.parse::<PortRange>() {
                prop_assert_eq!(range.to_string().parse(), Ok(range));
            }
            if let Ok(steps) = text.parse::<Steps>() {
                prop_assert_eq!(steps.to_string().parse(), Ok(steps));
            }
        }
    }
}
