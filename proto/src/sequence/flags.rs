//! Which TCP packets may be a step: a condition on the flags, written the way knockd writes it: `syn,!ack`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bit of FIN in the flags of a TCP header (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
/// Bit of SYN.
pub const SYN: u8 = 0x02;
/// Bit of RST.
pub const RST: u8 = 0x04;
/// Bit of PSH.
pub const PSH: u8 = 0x08;
/// Bit of ACK.
pub const ACK: u8 = 0x10;
/// Bit of URG.
pub const URG: u8 = 0x20;

const NAMES: [(&str, u8); 6] =
    [("fin", FIN), ("syn", SYN), ("rst", RST), ("psh", PSH), ("ack", ACK), ("urg", URG)];
const ANY: &str = "any";

/// A condition on the flags of a TCP packet: some are set, some are clear, and the others do not matter.
///
/// In text it is a list of `fin`, `syn`, `rst`, `psh`, `ack` and `urg`, in any case, with `!` before those that must
/// be clear (knockd(1), `TCPFlags`); or `any`. UDP has no flags, and no condition applies to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    set: u8,
    clear: u8,
}

/// Why a list of flags was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagsError {
    /// One of them is no flag.
    #[error("{0:?} is no TCP flag: fin, syn, rst, psh, ack or urg, with \"!\" before it if it must be clear")]
    Unknown(String),
    /// No packet has a flag both set and clear.
    #[error("the TCP flag {0} cannot be both set and clear")]
    Contradiction(&'static str),
}

impl TcpFlags {
    /// Every TCP packet. It is what knockd 0.8 does with a door that has no `TCPFlags`: an ACK or RST to a port of the
    /// sequence is a step too, or a wrong one.
    pub const ANY: Self = Self { set: 0, clear: 0 };
    /// The first packet of a connection, and no crafted mixture: SYN set; FIN, RST and ACK clear. PSH, URG and the two
    /// flags of ECN do not matter, for what a client's kernel does with those is not the client's choice.
    pub const NEW: Self = Self { set: SYN, clear: FIN | RST | ACK };

    /// The flags that must be set.
    #[must_use]
    pub const fn set(self) -> u8 {
        self.set
    }

    /// The flags that must be clear.
    #[must_use]
    pub const fn clear(self) -> u8 {
        self.clear
    }

    /// Whether a packet with these flags (the byte of the header) meets the condition.
    #[must_use]
    pub const fn matches(self, bits: u8) -> bool {
        bits & self.set == self.set && bits & self.clear == 0
    }
}

/// Ours unless configured: [`TcpFlags::NEW`].
impl Default for TcpFlags {
    fn default() -> Self {
        Self::NEW
    }
}

impl FromStr for TcpFlags {
    type Err = FlagsError;

    fn from_str(text: &str) -> Result<Self, FlagsError> {
        let mut flags = Self::ANY;
        if text.trim().eq_ignore_ascii_case(ANY) {
            return Ok(flags);
        }
        for word in text.split(',').map(str::trim) {
            let (name, side, other) = match word.strip_prefix('!') {
                Some(name) => (name, &mut flags.clear, flags.set),
                None => (word, &mut flags.set, flags.clear),
            };
            let known = NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
            let &(name, bit) = known.ok_or_else(|| FlagsError::Unknown(word.to_owned()))?;
            if other & bit != 0 {
                return Err(FlagsError::Contradiction(name));
            }
            *side |= bit;
        }
        Ok(flags)
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY {
            return f.write_str(ANY);
        }
        let words = [("", self.set), ("!", self.clear)].into_iter().flat_map(|(sign, bits)| {
            NAMES.iter().filter(move |(_, bit)| bits & bit != 0).map(move |n| (sign, n.0))
        });
        for (index, (sign, name)) in words.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{sign}{name}")?;
        }
        Ok(())
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TcpFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_read_and_print() {
        for (text, printed) in [
            ("syn", "syn"),
            ("SYN, !Ack", "syn,!ack"),
            ("!urg,psh,syn,syn", "syn,psh,!urg"),
            ("fin,syn,rst,psh,ack,urg", "fin,syn,rst,psh,ack,urg"),
            ("Any", "any"),
        ] {
            let flags: TcpFlags = text.parse().unwrap();
            assert_eq!(flags.to_string(), printed);
            assert_eq!(printed.parse(), Ok(flags));
        }
        assert_eq!(TcpFlags::default().to_string(), "syn,!fin,!rst,!ack");
        for (text, word) in [("", ""), ("syn,", ""), ("syn ack", "syn ack"), ("!", "!"), ("syn,any", "any")] {
            assert_eq!(text.parse::<TcpFlags>(), Err(FlagsError::Unknown(word.to_owned())), "{text:?}");
        }
        for text in ["syn,!syn", "!syn,ack,SYN"] {
            assert_eq!(text.parse::<TcpFlags>(), Err(FlagsError::Contradiction("syn")));
        }
    }

    #[test]
    fn flags_match_what_is_set_and_clear() {
        const ECN: u8 = 0xc0;
        let cases = [
            ("any", 0, true),
            ("any", 0xff, true),
            ("syn", SYN, true),
            ("syn", SYN | ACK, true),
            ("syn", ACK, false),
            ("syn,!ack", SYN | ACK, false),
            ("syn,!ack", SYN | FIN, true),
            ("!syn", 0, true),
            ("!syn", SYN, false),
            ("syn,ack", SYN, false),
            ("syn,ack", SYN | ACK | URG, true),
        ];
        for (text, bits, want) in cases {
            assert_eq!(text.parse::<TcpFlags>().unwrap().matches(bits), want, "{text} {bits:#04x}");
        }
        for (bits, want) in [(SYN, true), (SYN | ECN, true), (SYN | PSH, true), (0, false), (ACK, false)] {
            assert_eq!(TcpFlags::NEW.matches(bits), want, "{bits:#04x}");
        }
        assert!([FIN, RST, ACK].iter().all(|bit| !TcpFlags::NEW.matches(SYN | bit)));
    }
}
