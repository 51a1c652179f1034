//! The knock on the wire: 256 bytes, all of which look random (SPEC 3).

use crate::keys::{GateKeys, Hint};

/// Size of a knock, the whole UDP payload, in bytes (SPEC 3).
pub const KNOCK_LEN: usize = 256;
/// Size of the hint in bytes (SPEC 3.1).
pub const HINT_LEN: usize = 8;
/// Size of the nonce in bytes (SPEC 3.3).
pub const NONCE_LEN: usize = 24;
/// Size of the padded payload in bytes (SPEC 4).
pub const PAYLOAD_LEN: usize = 208;
/// Size of the tag in bytes (SPEC 3.3).
pub const TAG_LEN: usize = 16;

/// Offset of the nonce (SPEC 3); the veiled hint stands before it, at 0.
pub const NONCE_AT: usize = HINT_LEN;
/// Offset of the ciphertext (SPEC 3).
pub const CIPHERTEXT_AT: usize = NONCE_AT + NONCE_LEN;
/// Offset of the tag (SPEC 3).
pub const TAG_AT: usize = CIPHERTEXT_AT + PAYLOAD_LEN;

const _: () = assert!(TAG_AT + TAG_LEN == KNOCK_LEN);

/// The nonce of a datagram that came in: what replay is keyed on (SPEC 5.2).
pub type UsedNonce = [u8; NONCE_LEN];

/// 256 bytes from the wire about which nothing is known yet.
#[derive(Clone, Copy)]
pub struct Datagram<'a>(&'a [u8; KNOCK_LEN]);

impl<'a> From<&'a [u8; KNOCK_LEN]> for Datagram<'a> {
    fn from(bytes: &'a [u8; KNOCK_LEN]) -> Self {
        Self(bytes)
    }
}

impl<'a> Datagram<'a> {
    /// Any 256 bytes; `None` for another length.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The nonce.
    #[must_use]
    pub fn nonce(self) -> &'a UsedNonce {
        self.0[NONCE_AT..].first_chunk().expect("the offsets lie within the datagram")
    }

    /// The hint, with the gate's veil taken off (SPEC 3.2). Random for whoever does not know the gate id.
    #[must_use]
    pub fn unveil(self, gate: &GateKeys) -> Hint {
        Hint::from_bytes(self.veiled_hint()).xor(gate.veil(self.nonce()))
    }

    pub(crate) fn veiled_hint(self) -> [u8; HINT_LEN] {
        *self.0.first_chunk().expect("the offsets lie within the datagram")
    }

    pub(crate) fn ciphertext(self) -> &'a [u8; PAYLOAD_LEN] {
        self.0[CIPHERTEXT_AT..].first_chunk().expect("the offsets lie within the datagram")
    }

    pub(crate) fn tag(self) -> &'a [u8; TAG_LEN] {
        self.0[TAG_AT..].first_chunk().expect("the offsets lie within the datagram")
    }
}
