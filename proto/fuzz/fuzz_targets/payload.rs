//! Payloads: what decodes encodes to the same bytes, and within the bounds that leave room for a proof.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proto::datagram::PAYLOAD_LEN;
use postern_proto::payload::SERVICES_LEN;
use postern_proto::{Payload, Request};

/// Room that every payload leaves behind it (SPEC 4.3).
const PROOF_LEN: usize = 72;

fuzz_target!(|data: &[u8]| {
    let mut padded = [0; PAYLOAD_LEN];
    let len = data.len().min(PAYLOAD_LEN);
    padded[..len].copy_from_slice(&data[..len]);
    let Some(payload) = Payload::decode(&padded) else { return };
    assert_eq!(payload.encode(), padded);
    assert!(padded[PAYLOAD_LEN - PROOF_LEN..].iter().all(|&byte| byte == 0));
    let services = payload.request.services();
    let len: usize = services.iter().map(|name| 1 + name.as_str().len()).sum();
    assert!(len <= SERVICES_LEN && (len == 0) == (payload.request == Request::Probe));
});
