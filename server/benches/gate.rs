//! What the gate costs with a million clients: a stranger's packet, a valid knock (without the store), and memory.
//!
//! `cargo bench -p postern-server`. Figures are of one core; compare only what one run printed.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use postern_proto::keyfile::ClientEntry;
use postern_proto::payload::{Payload, Proof, Source};
use postern_proto::{
    ClientId, ClientKeys, ClientSecret, Datagram, GateId, GateKeys, IdentityKey, KNOCK_LEN, Nonce, Request,
    Services, Signature, Tolerance, WallTime, Window, seal, to_sign,
};
use postern_server::front::gate::{Authorized, Client, Gate, Memory, ServiceLimits, Verdict, Way};
use postern_server::{BootTime, Now};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ssh_key::PublicKey;
use ssh_key::public::Ed25519PublicKey;

const CLIENTS: usize = 1_000_000;
const JUNK: usize = 1_000_000;
const VALID: usize = 10_000;

fn gate_id() -> GateId {
    GateId::from_bytes([7; 16])
}

fn secret(number: usize) -> ClientSecret {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ClientSecret::from_bytes(bytes)
}

/// A client, which must sign or not.
fn entry(number: usize, signs: bool) -> ClientEntry {
    let name = format!("client-{number}").parse().expect("a valid name");
    let services = vec!["ssh".parse().expect("a valid name")];
    let entry = ClientEntry::new(name, ClientId::from_bytes(number.to_le_bytes()), secret(number), services);
    ClientEntry { identity: signs.then(identity), ..entry }
}

/// The one key that all sign with.
fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes")
}

fn identity() -> IdentityKey {
    let public = Ed25519PublicKey::try_from(pair().public_key().as_ref()).expect("a key of 32 bytes");
    IdentityKey::try_from(&PublicKey::from(public)).expect("an Ed25519 key")
}

fn now() -> Now {
    Now { wall: SystemTime::now().into(), boot: BootTime::from_boot(Duration::from_secs(1)) }
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells a process its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the status has VmRSS");
    let kilobytes = line.split_whitespace().nth(1).and_then(|text| text.parse::<usize>().ok());
    kilobytes.expect("VmRSS is a number of kB") * 1024
}

fn gate(clients: usize, sign: bool) -> Gate {
    let before = resident();
    let entries: Vec<_> = (0..clients).map(|number| entry(number, sign)).collect();
    let clients = Client::all(&gate_id(), &entries, &Authorized::new());
    let limits = ServiceLimits { window: Window::DEFAULT, max_window: Window::DEFAULT_MAX };
    let services = HashMap::from([("ssh".parse().expect("a valid name"), limits)]);
    let (count, started) = (clients.len(), Instant::now());
    let memory = Memory::new(WallTime::from_micros(0));
    let mut gate = Gate::new(
        GateKeys::derive(&gate_id()),
        Tolerance::default(),
        services,
        clients,
        memory,
        now().wall,
        true,
    );
    while !gate.prepare(now().wall) {}
    println!(
        "{count} clients: {} bytes each, hint table built in {:.1?}",
        (resident() - before) / count,
        started.elapsed()
    );
    gate
}

fn valid_knocks(sign: bool) -> Vec<[u8; KNOCK_LEN]> {
    let (keys, random, pair) = (GateKeys::derive(&gate_id()), SystemRandom::new(), pair());
    let knock = |number: usize| {
        let mut payload = Payload {
            at: now().wall,
            source: Source::Observed,
            request: Request::Open {
                services: Services::new(vec!["ssh".parse().expect("a valid name")])
                    .expect("one service fits"),
                window: None,
                from_port: NonZeroU16::new(40_000),
            },
            proof: Proof::None,
        };
        let mut nonce = [0; 24];
        random.fill(&mut nonce).expect("the system gives random bytes");
        let number = number * (CLIENTS / VALID);
        let (client, nonce) = (ClientKeys::derive(&gate_id(), &secret(number)), Nonce::from_random(nonce));
        if sign {
            let (id, hint) =
                (ClientId::from_bytes(number.to_le_bytes()), client.hint.hint(payload.at.epoch()));
            let signed = pair.sign(&to_sign(&gate_id(), id, hint, nonce.bytes(), &payload));
            let signature = signed.as_ref().try_into().expect("64 bytes");
            payload.proof = Proof::Ed25519(Signature::from_bytes(signature));
        }
        seal(&keys, &client, &payload, nonce)
    };
    (0..VALID).map(knock).collect()
}

fn measure(criterion: &mut Criterion) {
    let at = |host, port| SocketAddr::new(IpAddr::from([198, 51, 100, host]), port);
    let way = Way { from: at(7, 40_000), to: at(1, 62_201) };
    let mut junk = vec![0; JUNK * KNOCK_LEN];
    SystemRandom::new().fill(&mut junk).expect("the system gives random bytes");
    let refuse = |gate: &mut Gate, iterations: u64| {
        // The clock is read outside: reading it costs about as much as the look-up.
        let (now, started) = (now(), Instant::now());
        let (mut left, mut refused) = (iterations, 0);
        while left > 0 {
            for bytes in junk.chunks_exact(KNOCK_LEN).take(usize::try_from(left).unwrap_or(usize::MAX)) {
                let verdict = gate.handle(now, way, Datagram::new(bytes).expect("256 bytes"));
                refused += u64::from(matches!(verdict, Verdict::Refused(_)));
            }
            left = left.saturating_sub(JUNK as u64);
        }
        let elapsed = started.elapsed();
        assert_eq!(black_box(refused), iterations);
        elapsed
    };

    let mut one = gate(1, false);
    criterion.bench_function("junk, 1 client", |bench| bench.iter_custom(|n| refuse(&mut one, n)));
    let mut million = gate(CLIENTS, false);
    criterion
        .bench_function("junk, 1,000,000 clients", |bench| bench.iter_custom(|n| refuse(&mut million, n)));

    drop(one);
    // Each valid knock once: how long from datagram to decision, on average over all of them.
    let decide = |mut gate: Gate, sign: bool| {
        let (knocks, started) = (valid_knocks(sign), Instant::now());
        for bytes in &knocks {
            let datagram = Datagram::new(bytes).expect("256 bytes");
            let Verdict::Decided(decided) = gate.handle(now(), way, datagram) else { panic!("refused") };
            let _ = black_box(decided);
        }
        started.elapsed() / u32::try_from(VALID).expect("fits")
    };
    println!("valid knock, 1,000,000 clients: {:.2?} each over {VALID}", decide(million, false));
    println!(
        "valid signed knock, 1,000,000 clients: {:.2?} each over {VALID}",
        decide(gate(CLIENTS, true), true)
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(5));
    targets = measure
}
criterion_main!(benches);
