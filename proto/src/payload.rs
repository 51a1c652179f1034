//! What a knock asks for (SPEC 4): postcard, then zero padding. Decoding is strict: a gate accepts exactly
//! what a client writes, so that no two implementations can disagree on a knock.

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::datagram::PAYLOAD_LEN;
use crate::names::ServiceName;
use crate::time::{WallTime, Window};

/// Most bytes that the names of one knock may take, a length byte for each counted (SPEC 4.2): with it the proof
/// always fits.
pub const SERVICES_LEN: usize = 90;

/// The sealed content of a knock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// When the client made it.
    pub at: WallTime,
    /// Whom to let in.
    pub source: Source,
    /// What to do.
    pub request: Request,
    /// What proves the client's identity beyond its secret.
    pub proof: Proof,
}

/// Whom to let in (SPEC 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The address that the knock came from. Whoever holds the knock back and sends it first is let in instead.
    Observed,
    /// This address.
    Stated(IpAddr),
}

/// What a knock asks the gate to do (SPEC 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Open services.
    Open {
        /// Which.
        services: Services,
        /// For how long; the service's own window when absent.
        window: Option<Window>,
        /// Only to connections from this source port.
        from_port: Option<NonZeroU16>,
    },
    /// Close services again, and make earlier knocks for them stale.
    Close {
        /// Which.
        services: Services,
    },
    /// Nothing but to be answered (SPEC 9).
    Probe,
}

impl Request {
    /// The services it names.
    #[must_use]
    pub fn services(&self) -> &[ServiceName] {
        match self {
            Self::Open { services, .. } | Self::Close { services } => &services.0,
            Self::Probe => &[],
        }
    }
}

/// Proof of identity (SPEC 4.3): at most 71 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// The client's secret is all there is.
    None,
    /// A signature by an Ed25519 key.
    Ed25519(Signature),
    /// A signature by an Ed25519 key in a security key.
    SkEd25519 {
        /// What the device says: bit 0, that somebody touched it.
        flags: u8,
        /// How often the device has signed.
        counter: u32,
        /// By the device.
        signature: Signature,
    },
}

/// 64 bytes of a signature, in the two halves that Ed25519 gives them (R and S).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([[u8; 32]; 2]);

impl Signature {
    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        let halves = bytes.as_chunks::<32>().0;
        Self([halves[0], halves[1]])
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 64] {
        *self.0.as_flattened().first_chunk().expect("two halves of 32 bytes")
    }
}

/// One or more different services, at most [`SERVICES_LEN`] bytes of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Services(Vec<ServiceName>);

/// Why a list of services does not fit a knock.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServicesError {
    /// The list is empty.
    #[error("name at least one service")]
    Empty,
    /// A service stands twice.
    #[error("service {0} is named twice")]
    Twice(ServiceName),
    /// The names take too many bytes.
    #[error(
        "the services' names are too long together for one knock ({SERVICES_LEN} bytes); knock for fewer at a time"
    )]
    TooLong,
}

impl Services {
    /// A list of services.
    ///
    /// # Errors
    /// [`ServicesError`] when it is empty, too long, or names one twice.
    pub fn new(names: Vec<ServiceName>) -> Result<Self, ServicesError> {
        if names.is_empty() {
            return Err(ServicesError::Empty);
        }
        if names.iter().map(|name| 1 + name.as_str().len()).sum::<usize>() > SERVICES_LEN {
            return Err(ServicesError::TooLong);
        }
        match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            Some((_, name)) => Err(ServicesError::Twice(name.clone())),
            None => Ok(Self(names)),
        }
    }

    /// The services in the order in which the knock names them.
    pub fn iter(&self) -> std::slice::Iter<'_, ServiceName> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Services {
    type Item = &'a ServiceName;
    type IntoIter = std::slice::Iter<'a, ServiceName>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).and_then(|names| Self::new(names).map_err(de::Error::custom))
    }
}

impl Payload {
    /// The padded payload: postcard, then zeros to [`PAYLOAD_LEN`] (SPEC 4).
    #[must_use]
    pub fn encode(&self) -> [u8; PAYLOAD_LEN] {
        let mut padded = [0; PAYLOAD_LEN];
        postcard::to_slice(self, &mut padded).expect("the bounds of its fields let every payload fit");
        padded
    }

    /// What a proof signs of it: its bytes up to the proof (SPEC 4.3).
    #[must_use]
    pub fn encode_unproven(&self) -> Vec<u8> {
        let Self { at, source, request, proof: _ } = self;
        postcard::to_allocvec(&(at, source, request)).expect("every field of a payload has a postcard form")
    }

    /// Reads a padded payload; `None` for anything but the one encoding of a value and zeros behind it.
    ///
    /// postcard alone would take an integer in more bytes than it needs, and how many of them would depend on the
    /// machine's word size.
    #[must_use]
    pub fn decode(padded: &[u8; PAYLOAD_LEN]) -> Option<Self> {
        let (payload, _) = postcard::take_from_bytes::<Self>(padded).ok()?;
        (payload.encode() == *padded).then_some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<ServiceName> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_largest_payload_fits_with_the_largest_proof() {
        let (long, rest) = ("x".repeat(32), "y".repeat(23));
        let services = Services::new(names(&[&long, &format!("{}z", &long[1..]), &rest])).unwrap();
        let payload = Payload {
            at: WallTime::from_micros(u64::MAX),
            source: Source::Stated(IpAddr::from([0xff_u8; 16])),
            request: Request::Open {
                services,
                window: Some(Window::from_secs(u32::MAX).unwrap()),
                from_port: NonZeroU16::new(u16::MAX),
            },
            proof: Proof::SkEd25519 {
                flags: 0xff,
                counter: u32::MAX,
                signature: Signature::from_bytes([0xff; 64]),
            },
        };
        let (used, unproven) = (postcard::to_allocvec(&payload).unwrap().len(), payload.encode_unproven());
        assert_eq!((unproven.len(), used), (130, 201));
        assert!(used <= PAYLOAD_LEN && payload.encode().starts_with(&unproven));
        assert_eq!(Payload::decode(&payload.encode()), Some(payload));
    }

    #[test]
    fn lists_of_services_are_bounded() {
        assert_eq!(Services::new(vec![]), Err(ServicesError::Empty));
        assert!(matches!(Services::new(names(&["a", "b", "a"])), Err(ServicesError::Twice(_))));
        let long = "x".repeat(29);
        let three = names(&[&format!("{long}1"), &format!("{long}2"), &format!("{long}3")]);
        assert_eq!(Services::new(three), Err(ServicesError::TooLong));
    }

    /// (what, bytes, does it decode): the wire read by hand.
    #[test]
    fn decoding_is_strict() {
        let good: &[u8] = &[
            0x01, // at: 1 us
            0x00, // source: observed
            0x00, 0x01, 0x03, b's', b's', b'h', // open, one service
            0x00, 0x00, // no window, no source port
            0x00, // no proof
        ];
        let with = |edits: &[(usize, u8)]| {
            let mut padded = [0; PAYLOAD_LEN];
            padded[..good.len()].copy_from_slice(good);
            for &(at, byte) in edits {
                padded[at] = byte;
            }
            Payload::decode(&padded)
        };
        assert_eq!(
            with(&[]).unwrap(),
            Payload {
                at: WallTime::from_micros(1),
                source: Source::Observed,
                request: Request::Open {
                    services: Services::new(names(&["ssh"])).unwrap(),
                    window: None,
                    from_port: None
                },
                proof: Proof::None,
            }
        );
        for (what, edits) in [
            ("a byte behind the value", &[(11, 1)][..]),
            ("a byte at the very end", &[(PAYLOAD_LEN - 1, 1)][..]),
            ("unknown source", &[(1, 2)][..]),
            ("unknown request", &[(2, 3)][..]),
            ("unknown proof", &[(10, 3)][..]),
            ("a varint of a proof in more bytes than it needs", &[(10, 2), (12, 0x80)][..]),
            ("no service", &[(3, 0)][..]),
            ("a name that ends in the padding", &[(4, 9)][..]),
            ("a name with a space", &[(5, b' ')][..]),
            ("a name that is not UTF-8", &[(5, 0xff)][..]),
            ("a length past the end", &[(4, 0x7f)][..]),
            ("a window of zero", &[(8, 1)][..]),
            ("an option that is neither", &[(8, 2)][..]),
            (
                "an integer in more bytes than it needs",
                &[(0, 0x81), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, b's'), (7, 0)][..],
            ),
        ] {
            assert_eq!(with(edits), None, "{what}");
        }
    }
}
