//! Datagrams: no bytes from outside open, whatever a client seals opens exactly when it is a payload of its epoch, and
//! not any more with one bit flipped.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postern_proto::datagram::{CIPHERTEXT_AT, NONCE_LEN, PAYLOAD_LEN};
use postern_proto::knock::seal_bytes;
use postern_proto::{
    Authentic, ClientKeys, ClientSecret, Datagram, Epoch, GateId, GateKeys, HintKey, HintTable, Hinted,
    KNOCK_LEN, Nonce, Payload, Refusal, Tolerance, WallTime, open,
};

struct Client(ClientKeys);

impl Hinted for Client {
    fn hint_key(&self, _: Epoch) -> Option<&HintKey> {
        Some(&self.0.hint)
    }
}

struct Gate {
    keys: GateKeys,
    clients: Vec<Client>,
    table: HintTable,
}

/// A gate with four clients, at the epoch 2.
static GATE: LazyLock<Gate> = LazyLock::new(|| {
    let id = GateId::from_bytes([1; 16]);
    let client = |secret| Client(ClientKeys::derive(&id, &ClientSecret::from_bytes([secret; 32])));
    let clients: Vec<Client> = (1..=4).map(client).collect();
    let table = HintTable::new(Tolerance::default(), WallTime::from_secs(75), &clients);
    Gate { keys: GateKeys::derive(&id), clients, table }
});

impl Gate {
    fn read(&self, bytes: &[u8; KNOCK_LEN]) -> Result<Authentic, Refusal> {
        let datagram = Datagram::new(bytes).expect("256 bytes");
        let (client, epoch) =
            self.table.look_up(datagram.unveil(&self.keys)).next().ok_or(Refusal::Unknown)?;
        open(&self.keys, &self.clients[client].0.seal, epoch, datagram)
    }
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(Datagram::new(data).is_some(), data.len() == KNOCK_LEN);
    if let Ok(bytes) = data.try_into() {
        assert_eq!(GATE.read(bytes).err(), Some(Refusal::Unknown));
        let datagram = Datagram::new(data).expect("256 bytes");
        let led_there = open(&GATE.keys, &GATE.clients[0].0.seal, Epoch::new(2), datagram);
        assert_eq!(led_there.err(), Some(Refusal::Forged));
    }

    // Which client, which epoch and which bit, then the nonce, then what is sealed.
    let Some((&[client, epoch, byte, bit], rest)) = data.split_first_chunk() else { return };
    let Some((&nonce, sealed)) = rest.split_first_chunk::<NONCE_LEN>() else { return };
    let mut padded = [0; PAYLOAD_LEN];
    let len = sealed.len().min(PAYLOAD_LEN);
    padded[..len].copy_from_slice(&sealed[..len]);
    let client = &GATE.clients[usize::from(client) % GATE.clients.len()].0;
    let epoch = Epoch::new(u64::from(epoch % 5));
    let mut knock = seal_bytes(&GATE.keys, client, epoch, &padded, Nonce::from_random(nonce));

    let payload = Payload::decode(&padded).filter(|payload| payload.at.epoch() == epoch);
    match (GATE.read(&knock), payload) {
        (Ok(opened), Some(payload)) => {
            assert_eq!((opened.at(), opened.request()), (payload.at, &payload.request));
            assert_eq!(opened.nonce(), &nonce);
        }
        (opened, payload) => {
            assert_eq!(opened.err(), Some(Refusal::Malformed));
            assert_eq!(payload, None);
        }
    }
    knock[usize::from(byte)] ^= 1 << (bit % 8);
    let expected = if usize::from(byte) < CIPHERTEXT_AT { Refusal::Unknown } else { Refusal::Forged };
    assert_eq!(GATE.read(&knock).err(), Some(expected));
});
