//! Clients that must sign, and clients that have two secrets. Which signatures are good is in the vectors.

use postern_proto::{IdentityKey, Signature, to_sign};
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::*;

/// A pair of keys, by the number that its seed is made of.
fn pair(number: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap()
}

fn public(number: u8) -> IdentityKey {
    let mut bytes = vec![0];
    bytes.extend_from_slice(pair(number).public_key().as_ref());
    postcard::from_bytes(&bytes).unwrap()
}

/// A gate whose one client must sign: with the key of this number, or with one of a file that holds these.
fn world(identity: Result<u8, &[u8]>, more: &str) -> World {
    let mut world = World::new("");
    let (line, keys) = match identity {
        Ok(number) => (format!("identity = \"{}\"", public(number)), vec![]),
        Err(numbers) => {
            ("authorized-keys = \"/keys\"".to_owned(), numbers.iter().copied().map(public).collect())
        }
    };
    let entry = entry(1, &format!("{line}\n{more}"));
    let authorized = Authorized::from([(entry.id, keys)]);
    let clients = Client::all(&gate_id(), &[entry], &authorized);
    world.reload(clients);
    world
}

/// The proof for a knock with this nonce, by the key of this number.
fn proof(payload: &Payload, nonce: &Nonce, by: u8) -> Proof {
    let hint = keys(1).hint.hint(payload.at.epoch());
    let signed = to_sign(&gate_id(), ClientId::from_bytes([1; 8]), hint, nonce.bytes(), payload);
    Proof::Ed25519(Signature::from_bytes(pair(by).sign(&signed).as_ref().try_into().unwrap()))
}

impl World {
    fn reload(&mut self, clients: Vec<Client>) {
        let hints = HintTable::new(Tolerance::default(), self.wall, &clients);
        self.gate.reload(services(), clients, hints);
    }

    /// A knock made now and signed with the key of this number, and its proof.
    fn signed(&mut self, by: u8) -> ([u8; KNOCK_LEN], Proof) {
        let (payload, nonce) = (self.payload(), self.nonce());
        let proof = proof(&payload, &nonce, by);
        (seal(&GateKeys::derive(&gate_id()), &keys(1), &Payload { proof, ..payload }, nonce), proof)
    }
}

#[test]
fn who_must_sign_opens_with_the_key_and_not_without() {
    for identity in [Ok(7), Err(&[3, 7][..])] {
        let mut world = world(identity, "");
        let (none, (other, _), (good, _)) = (world.fresh(), world.signed(8), world.signed(7));
        assert_eq!(world.knock(&none), Err(Refusal::Unsigned));
        assert_eq!(world.knock(&other), Err(Refusal::BadSignature));
        assert!(matches!(world.knock(&good), Ok(Outcome::Open(_))));
        // Each of them was recorded.
        for knock in [none, other, good] {
            assert_eq!(world.knock(&knock), Err(Refusal::Replayed));
        }
    }
    // A file without any key keeps everybody out.
    let mut world = world(Err(&[]), "");
    let (knock, _) = world.signed(7);
    assert_eq!(world.knock(&knock), Err(Refusal::BadSignature));
}

/// Whoever stole the gate's key file opens what he recorded, and can seal what he likes.
#[test]
fn a_recorded_proof_is_good_for_nothing_else() {
    let mut world = world(Ok(7), "");
    let (recorded, proof) = world.signed(7);
    assert!(matches!(world.knock(&recorded), Ok(Outcome::Open(_))));
    let same = Payload { proof, ..world.payload() };
    let later = Payload { at: same.at.after(Duration::from_secs(1)), ..same.clone() };
    let longer = Payload { proof, ..open_payload(same.at, Source::Observed, "ssh", Some(60)) };
    let elsewhere = Payload { source: stated(HERE), ..same.clone() };
    for payload in [same, later, longer, elsewhere] {
        let knock = world.seal(&payload);
        assert_eq!(world.knock(&knock), Err(Refusal::BadSignature), "{payload:?}");
    }
}

#[test]
fn a_thief_of_the_secret_cannot_fill_the_room_of_who_can_sign() {
    let mut world = world(Ok(7), "");
    for number in 1..replay::LIVE_NONCES_PER_CLIENT / 2 {
        let mut nonce = [0xff; 24];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        let record = Record { key: (ClientId::from_bytes([1; 8]), nonce), at: world.wall, closes: vec![] };
        world.gate.memory.remember(&record, world.now().boot);
    }
    let (none, one_more) = (world.fresh(), world.fresh());
    assert_eq!(world.knock(&none), Err(Refusal::Unsigned));
    assert_eq!(world.knock(&one_more), Err(Refusal::Busy));
    let ((other, _), (good, _)) = (world.signed(8), world.signed(7));
    assert_eq!(world.knock(&other), Err(Refusal::Busy));
    assert!(matches!(world.knock(&good), Ok(Outcome::Open(_))));
}

/// To check a signature is dear: who has a secret alone has so many looked at, and keeps nobody else from the gate.
#[test]
fn bad_signatures_wear_the_patience_with_their_client_alone() {
    let mut world = world(Ok(7), "");
    let bad = |world: &mut World| {
        let (knock, _) = world.signed(8);
        world.knock(&knock).err()
    };
    for number in 0..260 {
        let expected = if number < 256 { Refusal::BadSignature } else { Refusal::Busy };
        assert_eq!(bad(&mut world), Some(expected), "{number}");
    }
    let (good, _) = world.signed(7);
    assert_eq!(world.knock(&good), Err(Refusal::Busy));
    world.pass(Duration::from_millis(20));
    assert!(matches!(world.knock(&good), Ok(Outcome::Open(_))), "what is busy may come again");
    assert_eq!(bad(&mut world), Some(Refusal::BadSignature));
    assert_eq!(bad(&mut world), Some(Refusal::Busy));
}

#[test]
fn both_secrets_are_good_until_the_previous_one_ends() {
    let mut world = World::new("");
    let until = world.wall.after(Duration::from_secs(100));
    let previous = ClientSecret::from_bytes([2; 32]);
    let line = format!("previous-secret = \"{}\"\nprevious-until = \"{until}\"", *previous.to_text());
    let clients = Client::all(&gate_id(), &[entry(1, &line)], &Authorized::new());
    world.reload(clients);
    let by_previous = |world: &mut World| {
        // By a clock that is ahead, as far as it may be.
        let (payload, nonce) = (world.payload(), world.nonce());
        let at = payload.at.after(Tolerance::default().duration());
        let payload = Payload { at, ..payload };
        seal(&GateKeys::derive(&gate_id()), &keys(2), &payload, nonce)
    };
    while world.wall < until {
        for knock in [world.fresh(), by_previous(&mut world)] {
            let Ok(Outcome::Open(grant)) = world.knock(&knock) else { panic!("refused at {}", world.wall) };
            assert_eq!(grant.client, ClientId::from_bytes([1; 8]));
        }
        world.pass(Duration::from_secs(1));
    }
    // In the middle of an epoch whose hints are all in the table.
    assert_ne!(world.wall.epoch().start(), world.wall);
    for _ in 0..100 {
        let (new, old) = (world.fresh(), by_previous(&mut world));
        assert!(world.knock(&new).is_ok());
        assert_eq!(world.knock(&old), Err(Refusal::Unknown), "at {}", world.wall);
        world.pass(Duration::from_secs(1));
    }
}
