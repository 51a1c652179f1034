//! Sealing a knock and opening it again (SPEC 3.3): XChaCha20-Poly1305, whose 24-byte nonces can be random for ever.
//!
//! The associated data binds the version, the gate and the veiled hint, so that no byte of the datagram can be
//! changed, and no knock carried to another gate, without the tag noticing.

use std::net::IpAddr;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::datagram::{
    CIPHERTEXT_AT, Datagram, HINT_LEN, KNOCK_LEN, NONCE_AT, PAYLOAD_LEN, TAG_AT, UsedNonce,
};
use crate::identity::{IdentityKey, to_sign};
use crate::keys::{ClientId, ClientKeys, GATE_ID_LEN, GateId, GateKeys, Hint, Nonce, SECRET_LEN, SealKey};
use crate::payload::{Payload, Proof, Request, Source};
use crate::refusal::Refusal;
use crate::time::{Epoch, WallTime};

/// The beginning of the associated data (SPEC 3.3).
const CONTEXT: &[u8; 16] = b"postern v1 knock";

/// Makes a knock: 256 bytes for one UDP datagram.
#[must_use]
pub fn seal(gate: &GateKeys, client: &ClientKeys, payload: &Payload, nonce: Nonce) -> [u8; KNOCK_LEN] {
    seal_bytes(gate, client, payload.at.epoch(), &payload.encode(), nonce)
}

/// Seals any bytes under any epoch's hint: how to make the knocks that no client makes, for the tests of a gate.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "a nonce is used up by one knock")]
pub fn seal_bytes(
    gate: &GateKeys,
    client: &ClientKeys,
    epoch: Epoch,
    padded: &[u8; PAYLOAD_LEN],
    nonce: Nonce,
) -> [u8; KNOCK_LEN] {
    let veiled = client.hint.hint(epoch).xor(gate.veil(nonce.bytes())).bytes();
    let mut knock = [0; KNOCK_LEN];
    knock[..NONCE_AT].copy_from_slice(&veiled);
    knock[NONCE_AT..CIPHERTEXT_AT].copy_from_slice(nonce.bytes());
    knock[CIPHERTEXT_AT..TAG_AT].copy_from_slice(padded);
    let tag = cipher(client.seal.expose())
        .encrypt_inout_detached(
            &XNonce::from(*nonce.bytes()),
            &associated_data(gate, veiled),
            (&mut knock[CIPHERTEXT_AT..TAG_AT]).into(),
        )
        .expect("208 bytes are within XChaCha20's limit");
    knock[TAG_AT..].copy_from_slice(&tag);
    knock
}

/// Opens a knock whose hint named this client in this epoch.
///
/// # Errors
/// [`Refusal::Forged`] when the seal is not that client's for this gate; [`Refusal::Malformed`] when the payload does
/// not decode, or was made in another epoch than its hint.
pub fn open(
    gate: &GateKeys,
    client: &SealKey,
    epoch: Epoch,
    datagram: Datagram<'_>,
) -> Result<Authentic, Refusal> {
    let mut padded = Zeroizing::new(*datagram.ciphertext());
    cipher(client.expose())
        .decrypt_inout_detached(
            &XNonce::from(*datagram.nonce()),
            &associated_data(gate, datagram.veiled_hint()),
            padded.as_mut_slice().into(),
            &Tag::from(*datagram.tag()),
        )
        .map_err(|_| Refusal::Forged)?;
    let payload = Payload::decode(&padded).ok_or(Refusal::Malformed)?;
    if payload.at.epoch() != epoch {
        return Err(Refusal::Malformed);
    }
    Ok(Authentic { payload, nonce: *datagram.nonce() })
}

/// A knock that a client of this gate made. It may be old, and it may have been seen before.
///
/// Only [`open`] makes one.
#[must_use]
#[derive(Debug)]
pub struct Authentic {
    payload: Payload,
    nonce: UsedNonce,
}

impl Authentic {
    /// When the client made it.
    #[must_use]
    pub const fn at(&self) -> WallTime {
        self.payload.at
    }

    /// What was sealed in it.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Its nonce, the key of its replay record.
    #[must_use]
    pub const fn nonce(&self) -> &UsedNonce {
        &self.nonce
    }

    /// The address it asks to let in, given the one that it came from.
    #[must_use]
    pub const fn source(&self, observed: IpAddr) -> IpAddr {
        match self.payload.source {
            Source::Observed => observed,
            Source::Stated(address) => address,
        }
    }

    /// Whether it states the address to let in.
    #[must_use]
    pub const fn states_source(&self) -> bool {
        matches!(self.payload.source, Source::Stated(_))
    }

    /// What it asks for.
    #[must_use]
    pub const fn request(&self) -> &Request {
        &self.payload.request
    }

    /// Whether it carries a signature; of whom, nobody has checked.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        !matches!(self.payload.proof, Proof::None)
    }

    /// Whether one of these keys signed it, for this gate and client. `hint` is the one that it came under.
    ///
    /// The dearest of all checks: about 50 us for each key.
    #[must_use]
    pub fn is_signed_by(&self, keys: &[IdentityKey], gate: &GateId, client: ClientId, hint: Hint) -> bool {
        let signed = to_sign(gate, client, hint, &self.nonce, &self.payload);
        keys.iter().any(|key| key.verifies(&signed, &self.payload.proof))
    }
}

pub(crate) fn cipher(key: &[u8; SECRET_LEN]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(*key))
}

/// `"postern v1 knock" || gate id || veiled hint` (SPEC 3.3).
fn associated_data(gate: &GateKeys, veiled: [u8; HINT_LEN]) -> [u8; CONTEXT.len() + GATE_ID_LEN + HINT_LEN] {
    let mut data = [0; CONTEXT.len() + GATE_ID_LEN + HINT_LEN];
    let (context, rest) = data.split_at_mut(CONTEXT.len());
    let (id, hint) = rest.split_at_mut(GATE_ID_LEN);
    context.copy_from_slice(CONTEXT);
    id.copy_from_slice(gate.id().expose());
    hint.copy_from_slice(&veiled);
    data
}
