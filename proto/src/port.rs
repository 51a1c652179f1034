//! A port of a service with its protocol, written the way firewalls write it: `22/tcp`.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`, as iptables and `/etc/services` write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A transport port, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: NonZeroU16,
}

/// Why a port was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a port is a number from 1 to 65535 and a protocol, such as \"22/tcp\" or \"51820/udp\"")]
pub struct PortError;

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let (number, protocol) = text.split_once('/').ok_or(PortError)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(PortError),
        };
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PortError);
        }
        Ok(Self { protocol, number: number.parse().map_err(|_| PortError)? })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_and_print() {
        for text in ["22/tcp", "1/udp", "65535/tcp"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
        }
        for text in ["", "22", "tcp/22", "0/tcp", "65536/tcp", "22/sctp", "+22/tcp", "22/TCP", " 22/tcp"] {
            assert_eq!(text.parse::<Port>(), Err(PortError), "{text}");
        }
    }
}
