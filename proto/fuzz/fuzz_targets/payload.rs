//! Payloads: what decodes encodes to the same bytes, and what a proof signs of it is its beginning.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proto::datagram::PAYLOAD_LEN;
use postern_proto::payload::SERVICES_LEN;
use postern_proto::{Payload, Proof, Request};

fuzz_target!(|data: &[u8]| {
    let mut padded = [0; PAYLOAD_LEN];
    let len = data.len().min(PAYLOAD_LEN);
    padded[..len].copy_from_slice(&data[..len]);
    let Some(payload) = Payload::decode(&padded) else { return };
    assert_eq!(payload.encode(), padded);
    let unproven = payload.encode_unproven();
    assert!(padded.starts_with(&unproven));
    let proof_len = match payload.proof {
        Proof::None => 1,
        Proof::Ed25519(_) => 65,
        Proof::SkEd25519 { .. } => 71,
    };
    assert!(padded.iter().skip(unproven.len() + proof_len).all(|&byte| byte == 0));
    let services = payload.request.services();
    let len: usize = services.iter().map(|name| 1 + name.as_str().len()).sum();
    assert!(len <= SERVICES_LEN && (len == 0) == (payload.request == Request::Probe));
});
