//! What a client knows of a gate, and the one line in which the gate's administrator hands it over.
//!
//! `postern1:` and base64url without padding of: length of the body (4 bytes), the first 4 bytes of the body's
//! SHA-256, the body (postcard). The length tells a line that was cut from one that was mistyped. The line holds the
//! client's secret.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::identity::IdentityKey;
use crate::keys::{ClientId, ClientSecret, GateId};
use crate::names::ServiceName;
use crate::port::Port;

/// The beginning of every profile line.
pub const PREFIX: &str = "postern1:";

const CHECK_LEN: usize = 4;
const HEADER_LEN: usize = 4 + CHECK_LEN;

/// Everything a client needs to knock at one gate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The gate's id.
    #[serde(rename = "gate-id")]
    pub gate: GateId,
    /// The client's id at that gate.
    #[serde(rename = "client-id")]
    pub client: ClientId,
    /// The client's secret.
    pub secret: ClientSecret,
    /// Names or addresses of the gate's host.
    pub addresses: Vec<Host>,
    /// UDP ports that the gate listens for knocks on.
    pub ports: Vec<NonZeroU16>,
    /// The services that the client may open, with their ports.
    pub services: BTreeMap<ServiceName, Vec<Port>>,
    /// Whether the gate answers knocks (SPEC 9).
    pub answers: bool,
    /// The keys of which one must sign each knock (SPEC 4.3); none where the client need not sign.
    pub identities: Vec<IdentityKey>,
}

/// Why a profile line was refused. It never repeats the line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It does not begin as a profile does.
    #[error("a profile begins with \"{PREFIX}\"")]
    NotAProfile,
    /// The end is missing.
    #[error("the profile is cut: its end is missing; copy the whole line")]
    Cut,
    /// A character was lost, added or changed.
    #[error("the profile is mistyped: a character was changed, lost or added; copy the line again")]
    Mistyped,
    /// It is whole, but not of a kind that this version reads.
    #[error("the profile was made by another version of Postern; update this client")]
    Unsupported,
}

impl Profile {
    /// The profile as one line. It holds the secret.
    #[must_use]
    pub fn to_line(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(
            postcard::to_allocvec(self).expect("every field of a profile has a postcard form"),
        );
        let len = u32::try_from(body.len()).expect("a profile is shorter than 4 GB");
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER_LEN + body.len()));
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&check(&body));
        bytes.extend_from_slice(&body);
        Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes))))
    }

    /// Reads a profile line; white space around it is ignored.
    ///
    /// # Errors
    /// [`ProfileError`], which tells a cut line from a mistyped one.
    pub fn from_line(line: &str) -> Result<Self, ProfileError> {
        let text = line.trim();
        let text = match text.strip_prefix(PREFIX) {
            Some(text) => text,
            None if !text.is_empty() && PREFIX.starts_with(text) => return Err(ProfileError::Cut),
            None => return Err(ProfileError::NotAProfile),
        };
        // A cut can leave one character over, which no base64 has: look at what is whole.
        let whole = text.len() - usize::from(text.len() % 4 == 1);
        let bytes = text.get(..whole).and_then(|text| LENIENT.decode(text).ok()).map(Zeroizing::new);
        let bytes = bytes.ok_or(ProfileError::Mistyped)?;
        let Some((&header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(ProfileError::Cut);
        };
        let [a, b, c, d, expected @ ..] = header;
        let (have, len) = (body.len() as u64, u64::from(u32::from_be_bytes([a, b, c, d])));
        if have < len {
            return Err(ProfileError::Cut);
        }
        if have > len || whole != text.len() || check(body) != expected {
            return Err(ProfileError::Mistyped);
        }
        if URL_SAFE_NO_PAD.encode(&*bytes) != text {
            return Err(ProfileError::Mistyped);
        }
        match postcard::take_from_bytes(body) {
            Ok((profile, [])) => Ok(profile),
            _ => Err(ProfileError::Unsupported),
        }
    }
}

/// Base64url that forgives bits behind the last byte, as a cut leaves them.
const LENIENT: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    base64::engine::GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

fn check(body: &[u8]) -> [u8; CHECK_LEN] {
    *digest::digest(&digest::SHA256, body).as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
}

/// A host: an IP address or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

/// Why a host was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host is an IP address without brackets, or a DNS name of letters, digits, '-' and '.'")]
pub struct HostError;

impl Host {
    /// The host's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let is_name = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label);
        if is_name || text.parse::<IpAddr>().is_ok() { Ok(Self(text.to_owned())) } else { Err(HostError) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Profile {
        Profile {
            gate: GateId::from_bytes([1; 16]),
            client: ClientId::from_bytes([2; 8]),
            secret: ClientSecret::from_bytes([3; 32]),
            addresses: vec!["bastion.example.org".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ports: vec![NonZeroU16::new(62201).unwrap()],
            services: BTreeMap::from([("ssh".parse().unwrap(), vec!["22/tcp".parse().unwrap()])]),
            answers: true,
            identities: vec![],
        }
    }

    #[test]
    fn a_line_reads_back() {
        let line = sample().to_line();
        assert!(Profile::from_line(&format!(" {}\n", *line)) == Ok(sample()));
    }

    #[test]
    fn every_cut_and_every_changed_character_is_told_apart() {
        let line = sample().to_line();
        for end in 1..line.len() {
            assert_eq!(Profile::from_line(&line[..end]).err(), Some(ProfileError::Cut), "cut at {end}");
        }
        // The bytes of the length can say "longer" when mistyped; everything behind them is exact.
        for at in PREFIX.len()..line.len() {
            for replacement in ["A", "-", "7"] {
                let mut mistyped = line.to_string();
                mistyped.replace_range(at..=at, replacement);
                if mistyped != *line {
                    let error = Profile::from_line(&mistyped).err();
                    let cut = at < PREFIX.len() + 6 && error == Some(ProfileError::Cut);
                    assert!(cut || error == Some(ProfileError::Mistyped), "{at}: {error:?}");
                }
            }
        }
        for (text, error) in [
            ("", ProfileError::NotAProfile),
            ("hello", ProfileError::NotAProfile),
            ("postern2:AAAA", ProfileError::NotAProfile),
            (&format!("{}AAAA", *line), ProfileError::Mistyped),
            (&line.replace(':', ": "), ProfileError::Mistyped),
        ] {
            assert_eq!(Profile::from_line(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        for text in ["192.0.2.1", "2001:db8::1", "bastion", "bastion.example.org", "a.b.", "1.2.3.4.5"] {
            assert!(text.parse::<Host>().is_ok(), "{text}");
        }
        for text in ["", ".", "-o", "a b", "[::1]", "a..b", "host:22", "a/b", "ünïcode"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }
}
