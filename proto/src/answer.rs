//! The answer to a knock (SPEC 9): what became of it, sealed for the client that made it, and bound to that one knock.
//!
//! A gate answers a knock only once it is recorded, so no stranger and no copy of a knock ever draws one. On the wire it
//! is like a knock: 256 bytes, all of which look random.

use std::net::SocketAddr;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Tag, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::datagram::{KNOCK_LEN, NONCE_LEN, TAG_LEN, UsedNonce};
use crate::keys::{AnswerKey, GATE_ID_LEN, GateId, Nonce};
use crate::knock::cipher;
use crate::refusal::Refusal;
use crate::time::WallTime;

/// Size of an answer, the whole UDP payload, in bytes: that of a knock, so that nobody is answered with more than he sent.
pub const ANSWER_LEN: usize = KNOCK_LEN;
/// Size of the padded answer in bytes (SPEC 9).
pub const PADDED_LEN: usize = ANSWER_LEN - NONCE_LEN - TAG_LEN;

const TAG_AT: usize = NONCE_LEN + PADDED_LEN;
const CONTEXT: &[u8; 17] = b"postern v1 answer";

/// What a gate says of a knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When the gate decided, by its own clock.
    pub at: WallTime,
    /// Where the gate saw the knock come from: another address than the client's own was translated on the way.
    pub seen: SocketAddr,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Outcome {
    /// All its services are open.
    Opened {
        /// Until then, by the gate's clock: when the first of them closes.
        until: WallTime,
    },
    /// Its services are closed.
    Closed,
    /// It asked for nothing ([`Request::Probe`](crate::Request::Probe)).
    Heard,
    /// It was refused by the client's policy.
    Refused(Refusal),
}

/// Why a datagram is not the answer to a knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It has another length than an answer.
    #[error("not of an answer's size")]
    Length,
    /// It is not sealed for this knock of this client by this gate.
    #[error("not sealed by this gate for this knock")]
    Forged,
    /// It is, but says nothing that this version understands.
    #[error("sealed by the gate, but not understood: it may be of a newer version")]
    Malformed,
}

/// Seals an answer for whoever made the knock with this nonce (SPEC 9).
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "a nonce is used up by one answer")]
pub fn seal(
    gate: &GateId,
    key: &AnswerKey,
    knock: &UsedNonce,
    answer: &Answer,
    nonce: Nonce,
) -> [u8; ANSWER_LEN] {
    let mut bytes = [0; ANSWER_LEN];
    bytes[..NONCE_LEN].copy_from_slice(nonce.bytes());
    let padded = &mut bytes[NONCE_LEN..TAG_AT];
    postcard::to_slice(answer, padded).expect("the bounds of its fields let every answer fit");
    let tag = cipher(key.expose())
        .encrypt_inout_detached(&XNonce::from(*nonce.bytes()), &associated_data(gate, knock), padded.into())
        .expect("216 bytes are within XChaCha20's limit");
    bytes[TAG_AT..].copy_from_slice(&tag);
    bytes
}

/// Opens what came back for the knock with this nonce (SPEC 9).
///
/// # Errors
/// [`NoAnswer`] for anything but an answer of this gate to that knock.
pub fn open(gate: &GateId, key: &AnswerKey, knock: &UsedNonce, datagram: &[u8]) -> Result<Answer, NoAnswer> {
    let bytes: &[u8; ANSWER_LEN] = datagram.try_into().map_err(|_| NoAnswer::Length)?;
    let nonce: UsedNonce = *bytes.first_chunk().expect("the offsets lie within the answer");
    let tag: [u8; TAG_LEN] = *bytes.last_chunk().expect("the offsets lie within the answer");
    let mut padded = Zeroizing::new([0; PADDED_LEN]);
    padded.copy_from_slice(&bytes[NONCE_LEN..TAG_AT]);
    cipher(key.expose())
        .decrypt_inout_detached(
            &XNonce::from(nonce),
            &associated_data(gate, knock),
            padded.as_mut_slice().into(),
            &Tag::from(tag),
        )
        .map_err(|_| NoAnswer::Forged)?;
    decode(&padded).ok_or(NoAnswer::Malformed)
}

/// The one answer that has this encoding, if there is one.
fn decode(padded: &[u8; PADDED_LEN]) -> Option<Answer> {
    let (answer, _) = postcard::take_from_bytes::<Answer>(padded).ok()?;
    let mut again = [0; PADDED_LEN];
    postcard::to_slice(&answer, &mut again).ok()?;
    (again == *padded).then_some(answer)
}

/// `"postern v1 answer" || gate id || the knock's nonce`
fn associated_data(gate: &GateId, knock: &UsedNonce) -> [u8; CONTEXT.len() + GATE_ID_LEN + NONCE_LEN] {
    let mut data = [0; CONTEXT.len() + GATE_ID_LEN + NONCE_LEN];
    let (context, rest) = data.split_at_mut(CONTEXT.len());
    let (id, nonce) = rest.split_at_mut(GATE_ID_LEN);
    context.copy_from_slice(CONTEXT);
    id.copy_from_slice(gate.expose());
    nonce.copy_from_slice(knock);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{ClientKeys, ClientSecret};

    const KNOCK: UsedNonce = [7; NONCE_LEN];

    fn gate(number: u8) -> GateId {
        GateId::from_bytes([number; 16])
    }

    fn key(gate: &GateId, secret: u8) -> AnswerKey {
        ClientKeys::derive(gate, &ClientSecret::from_bytes([secret; 32])).answer
    }

    fn answers() -> Vec<Answer> {
        let at = WallTime::from_micros(u64::MAX);
        let seen = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let refusals = Refusal::ALL.iter().copied().map(Outcome::Refused);
        let outcomes = [Outcome::Opened { until: at }, Outcome::Closed, Outcome::Heard];
        outcomes.into_iter().chain(refusals).map(|outcome| Answer { at, seen, outcome }).collect()
    }

    #[test]
    fn every_answer_is_read_by_whom_it_is_for() {
        let (gate, other) = (gate(1), gate(2));
        let key_of = |secret| key(&gate, secret);
        for answer in answers() {
            let sealed = seal(&gate, &key_of(3), &KNOCK, &answer, Nonce::from_random([9; NONCE_LEN]));
            assert_eq!(open(&gate, &key_of(3), &KNOCK, &sealed), Ok(answer));
            for (gate, key, knock) in [
                (&gate, key_of(4), KNOCK),
                (&other, key_of(3), KNOCK),
                (&other, key(&other, 3), KNOCK),
                (&gate, key_of(3), [8; NONCE_LEN]),
            ] {
                assert_eq!(open(gate, &key, &knock, &sealed), Err(NoAnswer::Forged));
            }
        }
    }

    #[test]
    fn no_bit_of_it_can_be_changed_and_no_byte_be_missing() {
        let (gate, key) = (gate(1), key(&gate(1), 3));
        let sealed = seal(&gate, &key, &KNOCK, &answers()[0], Nonce::from_random([9; NONCE_LEN]));
        for bit in 0..ANSWER_LEN * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&gate, &key, &KNOCK, &changed), Err(NoAnswer::Forged), "bit {bit}");
        }
        for len in (0..ANSWER_LEN).chain([ANSWER_LEN + 1]) {
            let cut: Vec<u8> = sealed.iter().copied().chain([0]).take(len).collect();
            assert_eq!(open(&gate, &key, &KNOCK, &cut), Err(NoAnswer::Length), "{len} bytes");
        }
    }

    #[test]
    fn decoding_is_strict() {
        let good: &[u8] = &[
            0x01, // at: 1 us
            0x00, 192, 0, 2, 7, 0xf9, 0xe5, 0x03, // seen: 192.0.2.7, port 62201
            0x00, 0x02, // opened, until 2 us
        ];
        let with = |edits: &[(usize, u8)]| {
            let mut padded = [0; PADDED_LEN];
            padded[..good.len()].copy_from_slice(good);
            for &(at, byte) in edits {
                padded[at] = byte;
            }
            decode(&padded)
        };
        let (at, until) = (WallTime::from_micros(1), WallTime::from_micros(2));
        let seen = "192.0.2.7:62201".parse().unwrap();
        assert_eq!(with(&[]), Some(Answer { at, seen, outcome: Outcome::Opened { until } }));
        for (what, edits) in [
            ("a byte behind the value", &[(11, 1)][..]),
            ("a byte at the very end", &[(PADDED_LEN - 1, 1)][..]),
            ("an unknown outcome", &[(9, 4)][..]),
            ("an unknown refusal", &[(9, 3), (10, 0x7f)][..]),
            ("an unknown kind of address", &[(1, 2)][..]),
        ] {
            assert_eq!(with(edits), None, "{what}");
        }
    }
}
