//! Key material and what is derived from it (SPEC 2 and 3).
//!
//! Secrets are wiped when dropped, print nothing, and are exposed by name only where bytes are needed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hkdf, hmac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use siphasher::sip::SipHasher24;
use zeroize::Zeroizing;

use crate::datagram::{HINT_LEN, NONCE_LEN};
use crate::time::Epoch;

/// Size of a gate id in bytes (SPEC 2).
pub const GATE_ID_LEN: usize = 16;
/// Size of a client id in bytes (SPEC 2).
pub const CLIENT_ID_LEN: usize = 8;
/// Size of a client secret, and of each key derived from it, in bytes (SPEC 2).
pub const SECRET_LEN: usize = 32;

const VEIL_KEY_LEN: usize = 16;
pub(crate) const SALT: &[u8] = b"postern v1";
const INFO_VEIL: &[u8] = b"postern v1 veil";
const INFO_HINT: &[u8] = b"postern v1 hint";
const INFO_SEAL: &[u8] = b"postern v1 seal";
const INFO_ANSWER: &[u8] = b"postern v1 answer";

/// Why a key in text form was refused. It never repeats the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} is {len} bytes in base64url without padding ({chars} characters)")]
pub struct KeyError {
    kind: &'static str,
    len: usize,
    chars: usize,
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $len:ident, $bytes:ty) => {
        $(#[$doc])*
        ///
        /// In text it is base64url without padding, in postcard its bytes.
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name($bytes);

        impl $name {
            /// From its bytes; draw them from a secure random source.
            #[must_use]
            pub fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes.into())
            }

            /// Its bytes, for derivation, comparison and storage.
            #[must_use]
            pub fn expose(&self) -> &[u8; $len] {
                &self.0
            }

            /// Its text, for a key file or a profile.
            #[must_use]
            pub fn to_text(&self) -> Zeroizing<String> {
                Zeroizing::new(URL_SAFE_NO_PAD.encode(self.expose()))
            }

            /// From its text.
            ///
            /// # Errors
            /// [`KeyError`] for anything but the one text form of so many bytes.
            pub fn from_text(text: &str) -> Result<Self, KeyError> {
                let error = KeyError { kind: $kind, len: $len, chars: ($len * 8_usize).div_ceil(6) };
                let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| error)?);
                let error = KeyError { kind: $kind, len: $len, chars: ($len * 8_usize).div_ceil(6) };
                bytes.as_slice().try_into().map(Self::from_bytes).map_err(|_| error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    self.to_text().serialize(serializer)
                } else {
                    self.expose().serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = Zeroizing::new(String::deserialize(deserializer)?);
                    Self::from_text(&text).map_err(de::Error::custom)
                } else {
                    <[u8; $len]>::deserialize(deserializer).map(Self::from_bytes)
                }
            }
        }
    };
}

key!(
    /// Names a gate, binds a knock to it and is the root of its veil (SPEC 2). Known to the gate and its clients,
    /// not published: whoever has it can link the knocks of one epoch.
    GateId, "gate id", GATE_ID_LEN, Zeroizing<[u8; GATE_ID_LEN]>
);
key!(
    /// Names a client of a gate for ever: unlike its name it never changes (SPEC 2). Not a secret.
    #[derive(Copy, PartialOrd, Ord, Hash)]
    ClientId, "client id", CLIENT_ID_LEN, [u8; CLIENT_ID_LEN]
);
key!(
    /// The root of one client's keys, shared with the gate (SPEC 2).
    ClientSecret, "client secret", SECRET_LEN, Zeroizing<[u8; SECRET_LEN]>
);
key!(
    /// The root of a rolling sequence, shared by the gate and the clients of that sequence (SPEC 8).
    SequenceKey, "sequence key", SECRET_LEN, Zeroizing<[u8; SECRET_LEN]>
);

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_text())
    }
}

/// 24 fresh random bytes for one knock (SPEC 3.3). Neither `Copy` nor `Clone`: sealing takes it by value, so that
/// no two knocks share one.
pub struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// From bytes that a secure random source has just drawn for this one knock.
    #[must_use]
    pub const fn from_random(bytes: [u8; NONCE_LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be looked at: what an identity key signs has them.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; NONCE_LEN] {
        &self.0
    }
}

/// What a gate derives from its id: the id itself, bound into every seal, and the veil's key.
#[derive(Clone)]
pub struct GateKeys {
    id: GateId,
    veil: Zeroizing<[u8; VEIL_KEY_LEN]>,
}

impl GateKeys {
    /// `Expand(Extract("postern v1", gate id), "postern v1 veil", 16)` (SPEC 3.2).
    #[must_use]
    pub fn derive(id: &GateId) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(id.expose());
        Self { id: id.clone(), veil: expand(&prk, INFO_VEIL) }
    }

    /// The gate id.
    #[must_use]
    pub const fn id(&self) -> &GateId {
        &self.id
    }

    /// The key of the veil, for a packet filter that unveils by itself.
    #[must_use]
    pub fn veil_key(&self) -> &[u8; VEIL_KEY_LEN] {
        &self.veil
    }

    /// The veil over a hint: `SipHash-2-4(veil key, nonce)` as 8 bytes, little-endian (SPEC 3.2).
    pub(crate) fn veil(&self, nonce: &[u8; NONCE_LEN]) -> [u8; HINT_LEN] {
        SipHasher24::new_with_key(&self.veil).hash(nonce).to_le_bytes()
    }
}

/// The keys of one client at one gate (SPEC 2): `PRK = Extract(salt = gate id, ikm = client secret)`, each key
/// `Expand(PRK, info, 32)`.
#[derive(Clone)]
pub struct ClientKeys {
    /// Makes the hint of each epoch.
    pub hint: HintKey,
    /// Seals the payload.
    pub seal: SealKey,
    /// Seals the gate's answers.
    pub answer: AnswerKey,
}

impl ClientKeys {
    /// Derives all of them.
    #[must_use]
    pub fn derive(gate: &GateId, secret: &ClientSecret) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, gate.expose()).extract(secret.expose());
        Self {
            hint: HintKey(expand(&prk, INFO_HINT)),
            seal: SealKey(expand(&prk, INFO_SEAL)),
            answer: AnswerKey(expand(&prk, INFO_ANSWER)),
        }
    }
}

/// A client's key for hints.
#[derive(Clone)]
pub struct HintKey(Zeroizing<[u8; SECRET_LEN]>);

impl HintKey {
    /// `HMAC-SHA256(hint key, u64 epoch)[0..8]` (SPEC 3.1). It lets the gate look a client up instead of trying keys.
    #[must_use]
    pub fn hint(&self, epoch: Epoch) -> Hint {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice());
        let tag = hmac::sign(&key, &epoch.number().to_be_bytes());
        Hint(*tag.as_ref().first_chunk().expect("HMAC-SHA256 gives 32 bytes"))
    }
}

/// A client's key for the seal, XChaCha20-Poly1305.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; SECRET_LEN]>);

impl SealKey {
    pub(crate) fn expose(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }
}

/// The key of the answers to a client's knocks, XChaCha20-Poly1305 (SPEC 9).
#[derive(Clone)]
pub struct AnswerKey(Zeroizing<[u8; SECRET_LEN]>);

impl AnswerKey {
    pub(crate) fn expose(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }
}

/// What a client's knocks of one epoch have in common once unveiled (SPEC 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hint([u8; HINT_LEN]);

impl Hint {
    /// XOR with a veil: veils a hint, or unveils it again.
    pub(crate) fn xor(self, veil: [u8; HINT_LEN]) -> Self {
        Self((u64::from_ne_bytes(self.0) ^ u64::from_ne_bytes(veil)).to_ne_bytes())
    }

    pub(crate) const fn from_bytes(bytes: [u8; HINT_LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes: the key of whatever looks it up.
    #[must_use]
    pub const fn bytes(self) -> [u8; HINT_LEN] {
        self.0
    }
}

/// `Expand(prk, info, N)` (RFC 5869).
pub(crate) fn expand<const N: usize>(prk: &hkdf::Prk, info: &[u8]) -> Zeroizing<[u8; N]> {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = Zeroizing::new([0; N]);
    prk.expand(&[info], Len(N))
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .expect("HKDF-SHA256 expands to up to 8160 bytes");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_exact() {
        let secret = ClientSecret::from_bytes([7; 32]);
        let text = secret.to_text();
        assert_eq!(text.len(), 43);
        assert!(ClientSecret::from_text(&text) == Ok(secret));
        for bad in ["", "AAAA", &text[1..], &format!("{}=", *text), &text.replace('w', "+")] {
            assert!(ClientSecret::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_depend_on_gate_and_secret() {
        let (a, b) = (GateId::from_bytes([1; 16]), GateId::from_bytes([2; 16]));
        let secret = ClientSecret::from_bytes([3; 32]);
        let epoch = Epoch::new(5);
        let hint = ClientKeys::derive(&a, &secret).hint.hint(epoch);
        assert_eq!(hint, ClientKeys::derive(&a, &secret).hint.hint(epoch));
        assert_ne!(hint, ClientKeys::derive(&b, &secret).hint.hint(epoch));
        assert_ne!(hint, ClientKeys::derive(&a, &secret).hint.hint(epoch.next()));
        assert_ne!(GateKeys::derive(&a).veil(&[0; 24]), GateKeys::derive(&b).veil(&[0; 24]));
    }

    #[test]
    fn derivation_agrees_with_the_vectors() {
        #[derive(Deserialize)]
        struct File {
            keys: Vec<std::collections::HashMap<String, toml::Value>>,
        }
        let file: File = toml::from_str(include_str!("../vectors/keys.toml")).unwrap();
        for vector in &file.keys {
            let bytes = |field: &str| -> Vec<u8> {
                let digits = vector[field].as_str().unwrap().as_bytes().chunks(2);
                digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
            };
            let id = GateId::from_bytes(bytes("gate-id").try_into().unwrap());
            let secret = ClientSecret::from_bytes(bytes("secret").try_into().unwrap());
            let (gate, client) = (GateKeys::derive(&id), ClientKeys::derive(&id, &secret));
            let epoch = Epoch::new(vector["epoch"].as_integer().unwrap().try_into().unwrap());
            assert_eq!(client.hint.0.as_slice(), bytes("hint-key"));
            assert_eq!(client.seal.0.as_slice(), bytes("seal-key"));
            assert_eq!(client.answer.0.as_slice(), bytes("answer-key"));
            assert_eq!(gate.veil.as_slice(), bytes("veil-key"));
            assert_eq!(client.hint.hint(epoch).bytes().as_slice(), bytes("hint"));
            assert_eq!(gate.veil(&bytes("nonce").try_into().unwrap()).as_slice(), bytes("veil"));
        }
        assert_eq!(file.keys.len(), 2);
    }
}
