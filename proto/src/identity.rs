//! Identity keys (SPEC 4.3): a client proves by a signature that it has a key which the gate never had. Whoever steals the
//! gate's key file, or a client's secret, cannot knock for a client that must sign.
//!
//! The keys are those that people have for SSH, Ed25519 alone or in a security key, and the framing is SSH's own (SSHSIG): no
//! signature made for a knock is good for anything else, and none made elsewhere is good for a knock.

use std::fmt;
use std::str::FromStr;

use ring::digest;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use ssh_key::{HashAlg, PublicKey, SshSig};

use crate::datagram::UsedNonce;
use crate::keys::{CLIENT_ID_LEN, ClientId, GATE_ID_LEN, GateId, Hint};
use crate::payload::{Payload, Proof, Signature};

/// The namespace of the signatures (SPEC 4.3).
pub const NAMESPACE: &str = "postern-knock-v1";
/// Most identity keys that one client may have.
pub const MAX_IDENTITIES: usize = 16;
/// Most bytes of a security key's application (`ssh:`).
const MAX_APPLICATION: usize = 64;
/// Most bytes of a key's comment.
const MAX_COMMENT: usize = 256;
/// The points of small order in their canonical encodings, without the sign: with these for a key, anybody signs. (Two more
/// encodings of the first two are not canonical.)
const SMALL_ORDER: [[u8; 32]; 5] = [
    encoded(b"0000000000000000000000000000000000000000000000000000000000000000"),
    encoded(b"0100000000000000000000000000000000000000000000000000000000000000"),
    encoded(b"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    encoded(b"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    encoded(b"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
];
/// The bit of a security key's flags that says that somebody touched it.
pub const USER_PRESENT: u8 = 0x01;

/// The public half of a key that signs knocks. In text it is the line that `ssh-keygen` prints.
///
/// Two are equal when the keys are, whatever their comments say.
#[derive(Clone, Debug)]
pub struct IdentityKey {
    key: Key,
    /// Whose it is, in the words of whoever made it.
    comment: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Key {
    Ed25519([u8; 32]),
    /// In a security key, and bound to an application there.
    SkEd25519 {
        key: [u8; 32],
        application: String,
    },
}

/// Why the text of an identity key was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is the private half, which is nobody else's business.
    #[error("this is a private key: give the line of the .pub file beside it")]
    Private,
    /// It is not what `ssh-keygen` prints.
    #[error("a public key is one line such as \"ssh-ed25519 AAAA... comment\", as in a .pub file")]
    NotAKey,
    /// It is a key of another kind.
    #[error(
        "only ssh-ed25519 and sk-ssh-ed25519@openssh.com keys can sign knocks: make one with ssh-keygen -t ed25519"
    )]
    OtherKind,
    /// Whoever likes signs with it.
    #[error("this is no key that ssh-keygen makes: anybody can sign with it")]
    Weak,
    /// What stands beside the key is too long, or does not print.
    #[error("the key's comment or application is too long or does not print")]
    Unprintable,
}

impl IdentityKey {
    /// Whether each signature takes somebody's touch.
    #[must_use]
    pub const fn needs_touch(&self) -> bool {
        matches!(self.key, Key::SkEd25519 { .. })
    }

    /// The key in the form of the `ssh-key` crate, such as agents and files are asked for.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let data = match &self.key {
            Key::Ed25519(key) => KeyData::Ed25519(Ed25519PublicKey(*key)),
            Key::SkEd25519 { key, application } => {
                KeyData::SkEd25519(SkEd25519::new(Ed25519PublicKey(*key), application.clone()))
            }
        };
        PublicKey::new(data, self.comment.clone())
    }

    /// `SHA256:...`, as `ssh-keygen -l` and `ssh-add -l` print it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.public().fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether this key made the proof for these bytes, which are those of [`to_sign`].
    ///
    /// That of a security key holds only with the flag that somebody touched it, and for the application of the key.
    #[must_use]
    pub fn verifies(&self, signed: &[u8], proof: &Proof) -> bool {
        match (&self.key, proof) {
            (Key::Ed25519(key), Proof::Ed25519(signature)) => is_signed(key, signed, signature),
            (Key::SkEd25519 { key, application }, Proof::SkEd25519 { flags, counter, signature }) => {
                let sha256 = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
                let mut by_device = sha256(application.as_bytes()).as_ref().to_vec();
                by_device.push(*flags);
                by_device.extend_from_slice(&counter.to_be_bytes());
                by_device.extend_from_slice(sha256(signed).as_ref());
                flags & USER_PRESENT != 0 && is_signed(key, &by_device, signature)
            }
            _ => false,
        }
    }
}

/// Whether a key is of small order, or is not written as it has to be (RFC 8032, 5.1.3).
fn is_weak(key: &[u8; 32]) -> bool {
    let mut unsigned = *key;
    unsigned[31] &= 0x7f;
    let [first, middle @ .., last] = &unsigned;
    let is_canonical = *first < 0xed || *last < 0x7f || middle.iter().any(|&byte| byte < 0xff);
    !is_canonical || SMALL_ORDER.contains(&unsigned)
}

/// Whether a character moves the cursor, or turns around what is shown.
#[must_use]
pub fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Bytes from their hexadecimal digits, where these are a constant.
const fn encoded(digits: &[u8; 64]) -> [u8; 32] {
    const fn value(digit: u8) -> u8 {
        if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 }
    }
    let (mut bytes, mut at) = ([0; 32], 0);
    while at < 32 {
        bytes[at] = value(digits[2 * at]) << 4 | value(digits[2 * at + 1]);
        at += 1;
    }
    bytes
}

fn is_signed(key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, &signature.bytes()).is_ok()
}

/// What an identity key signs for one knock: SSH's framing (SSHSIG, with SHA-512) around
/// `gate id || client id || hint || nonce || payload up to the proof` (SPEC 4.3). So the signature is good for one gate, one
/// client, one secret in one epoch, one nonce and one payload.
#[must_use]
pub fn to_sign(gate: &GateId, client: ClientId, hint: Hint, nonce: &UsedNonce, payload: &Payload) -> Vec<u8> {
    let body = payload.encode_unproven();
    let mut message =
        Vec::with_capacity(GATE_ID_LEN + CLIENT_ID_LEN + size_of::<Hint>() + nonce.len() + body.len());
    message.extend_from_slice(gate.expose());
    message.extend_from_slice(client.expose());
    message.extend_from_slice(&hint.bytes());
    message.extend_from_slice(nonce);
    message.extend_from_slice(&body);
    SshSig::signed_data(NAMESPACE, HashAlg::Sha512, &message).expect("the namespace is not empty")
}

impl TryFrom<&PublicKey> for IdentityKey {
    type Error = IdentityError;

    fn try_from(public: &PublicKey) -> Result<Self, IdentityError> {
        let key = match public.key_data() {
            KeyData::Ed25519(key) => Key::Ed25519(key.0),
            KeyData::SkEd25519(key) => {
                Key::SkEd25519 { key: key.public_key().0, application: key.application().to_owned() }
            }
            _ => return Err(IdentityError::OtherKind),
        };
        Self { key, comment: public.comment().to_owned() }.checked()
    }
}

impl IdentityKey {
    /// Nobody but its owner signs with it, and others can read its texts on their terminals.
    fn checked(self) -> Result<Self, IdentityError> {
        let (Key::Ed25519(key) | Key::SkEd25519 { key, .. }) = &self.key;
        if is_weak(key) {
            return Err(IdentityError::Weak);
        }
        let prints = |text: &str, most| text.len() <= most && !text.chars().any(is_unprintable);
        let application_prints = match &self.key {
            Key::Ed25519(_) => true,
            Key::SkEd25519 { application, .. } => prints(application, MAX_APPLICATION),
        };
        if application_prints && prints(&self.comment, MAX_COMMENT) {
            Ok(self)
        } else {
            Err(IdentityError::Unprintable)
        }
    }
}

impl FromStr for IdentityKey {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim();
        if text.starts_with("-----BEGIN") {
            return Err(IdentityError::Private);
        }
        match PublicKey::from_openssh(text) {
            Ok(public) => Self::try_from(&public),
            // Kinds that are not even read here.
            Err(_) if text.split(' ').next().is_some_and(is_other_kind) => Err(IdentityError::OtherKind),
            Err(_) => Err(IdentityError::NotAKey),
        }
    }
}

fn is_other_kind(kind: &str) -> bool {
    ["ssh-rsa", "ssh-dss"].contains(&kind) || kind.starts_with("ecdsa-") || kind.starts_with("sk-ecdsa-")
}

impl fmt::Display for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public().to_openssh().map_err(|_| fmt::Error)?)
    }
}

impl PartialEq for IdentityKey {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for IdentityKey {}

impl Serialize for IdentityKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.key.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for IdentityKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            let key = Key::deserialize(deserializer)?;
            Self { key, comment: String::new() }.checked().map_err(de::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@laptop";

    #[test]
    fn the_line_of_ssh_keygen_reads_and_prints() {
        let key: IdentityKey = LINE.parse().unwrap();
        assert_eq!(key.to_string(), LINE);
        assert!(!key.needs_touch());
        let bare: IdentityKey = LINE.trim_end_matches(" alice@laptop").parse().unwrap();
        assert_eq!(bare, key);
        let bytes = postcard::to_allocvec(&key).unwrap();
        assert_eq!(bytes.len(), 33);
        assert_eq!(postcard::from_bytes::<IdentityKey>(&bytes).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_named() {
        use IdentityError::*;
        for (text, error) in [
            ("", NotAKey),
            ("ssh-ed25519", NotAKey),
            ("ssh-ed25519 AAAA", NotAKey),
            (&LINE.replace("AILM", "AILN-"), NotAKey),
            ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 a@b", OtherKind),
            ("ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAI a@b", OtherKind),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", Private),
            (&LINE.replace("alice", "\u{1b}[2J"), Unprintable),
            (&LINE.replace("alice", &"a".repeat(300)), Unprintable),
            (&LINE.replace("alice", "\u{202e}ecila"), Unprintable),
        ] {
            assert_eq!(text.parse::<IdentityKey>().err(), Some(error), "{text}");
        }
    }

    #[test]
    fn a_key_with_which_anybody_signs_is_none() {
        let key = |bytes: [u8; 32]| {
            postcard::from_bytes::<IdentityKey>(&[&[0][..], &bytes].concat()).is_err()
                && PublicKey::from(Ed25519PublicKey(bytes)).to_openssh().unwrap().parse::<IdentityKey>()
                    == Err(IdentityError::Weak)
        };
        let mut weak = SMALL_ORDER.to_vec();
        // p and what is above it: other ways to write 0, 1, ...
        weak.extend([0xed, 0xee, 0xff].map(|first| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (first, 0x7f);
            bytes
        }));
        for mut bytes in weak {
            assert!(key(bytes), "{bytes:x?}");
            bytes[31] |= 0x80;
            assert!(key(bytes), "{bytes:x?}");
        }
        // The largest that is written as it has to be, but for p - 1.
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xeb, 0x7f);
        assert!(!is_weak(&bytes));
    }
}
