//! Whom a knock asks to let in.
//!
//! An address that the knock states is sealed into it: whoever holds the knock back and sends it first gains nothing.
//! An observed one is the address the knock arrives from, which is all there is to say from behind a NAT. So a host
//! states its own address where that is a global one, the same on the whole way.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use postern_proto::Source;

/// How to choose the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceChoice {
    /// State the routed local address when it is a global one, else leave it to be observed.
    Auto,
    /// Leave it to be observed.
    Observed,
    /// State this address.
    Stated(IpAddr),
}

impl SourceChoice {
    /// The source for a knock that leaves this host from the address `local`.
    pub(crate) fn source(self, local: IpAddr) -> Source {
        match self {
            Self::Auto if is_global(local) => Source::Stated(local),
            Self::Auto | Self::Observed => Source::Observed,
            Self::Stated(address) => Source::Stated(address),
        }
    }
}

/// Why a source was not understood.
#[derive(Debug, thiserror::Error)]
#[error("the source is auto, observed, or the unicast IP address to let in")]
pub struct SourceError;

impl FromStr for SourceChoice {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "observed" => Ok(Self::Observed),
            _ => {
                let address = text.parse().map_err(|_| SourceError)?;
                if is_unicast(address) { Ok(Self::Stated(address)) } else { Err(SourceError) }
            }
        }
    }
}

impl fmt::Display for SourceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Observed => f.pad("observed"),
            Self::Stated(address) => address.fmt(f),
        }
    }
}

/// Reads the address from which a gate will see something come.
pub(crate) fn unicast(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().ok().filter(|&address| is_unicast(address)).ok_or("a unicast IP address")
}

/// Whether a gate could let an address in at all (SPEC 5, unusable-source).
fn is_unicast(address: IpAddr) -> bool {
    let unusable = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !unusable
        && match address {
            IpAddr::V4(v4) => !v4.is_broadcast(),
            IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local(),
        }
}

/// Whether an address is the same wherever in the internet it is seen. (The standard library's `is_global` is
/// unstable.)
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|&(block, len)| is_within_v4(v4, block, len)),
        IpAddr::V6(v6) => {
            let (block, len) = GLOBAL_V6;
            is_within_v6(v6, block, len)
                && !SPECIAL_V6.iter().any(|&(block, len)| is_within_v6(v6, block, len))
        }
    }
}

/// What is not global unicast: first address and prefix length, from IANA's special-purpose registry.
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::UNSPECIFIED, 8),           // this network, RFC 791
    (Ipv4Addr::new(10, 0, 0, 0), 8),      // private, RFC 1918
    (Ipv4Addr::new(100, 64, 0, 0), 10),   // shared behind carrier NAT, RFC 6598
    (Ipv4Addr::new(127, 0, 0, 0), 8),     // loopback, RFC 1122
    (Ipv4Addr::new(169, 254, 0, 0), 16),  // link-local, RFC 3927
    (Ipv4Addr::new(172, 16, 0, 0), 12),   // private, RFC 1918
    (Ipv4Addr::new(192, 0, 0, 0), 24),    // protocol assignments, RFC 6890
    (Ipv4Addr::new(192, 0, 2, 0), 24),    // documentation, RFC 5737
    (Ipv4Addr::new(192, 88, 99, 0), 24),  // 6to4 relays, RFC 7526
    (Ipv4Addr::new(192, 168, 0, 0), 16),  // private, RFC 1918
    (Ipv4Addr::new(198, 18, 0, 0), 15),   // benchmarks, RFC 2544
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation, RFC 5737
    (Ipv4Addr::new(203, 0, 113, 0), 24),  // documentation, RFC 5737
    (Ipv4Addr::new(224, 0, 0, 0), 3),     // multicast, reserved, broadcast, RFC 1112
];

/// All that is assigned as global unicast, RFC 4291.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What within it is none.
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // Teredo, benchmarks, ORCHID, RFC 2928
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation, RFC 3849
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4, RFC 3056: a NAT's own address may stand in it
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation, RFC 9637
];

fn is_within_v4(address: Ipv4Addr, block: Ipv4Addr, len: u32) -> bool {
    (address.to_bits() ^ block.to_bits()) >> (Ipv4Addr::BITS - len) == 0
}

fn is_within_v6(address: Ipv6Addr, block: Ipv6Addr, len: u32) -> bool {
    (address.to_bits() ^ block.to_bits()) >> (Ipv6Addr::BITS - len) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: &str = "
        1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0
        172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255
        192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
        2000::1 2001:200::1 2001:db7:ffff::1 2001:db9::1 2003::1 2400::1 2a00:1450::1 3ffe::1 3fff:1000::1";

    const NOT_GLOBAL: &str = "
        0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 127.255.255.255 169.254.0.0
        169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.255 192.0.2.0 192.0.2.255 192.88.99.1 192.168.0.0
        192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0 203.0.113.255 224.0.0.0
        239.255.255.255 240.0.0.0 255.255.255.255
        :: ::1 ::ffff:1.1.1.1 64:ff9b::1.1.1.1 100::1 1fff::1 2001::1 2001:2::1 2001:1ff:ffff::1 2001:db8::1
        2001:db8:ffff::1 2002::1 2002:ffff::1 3fff::1 3fff:fff:ffff::1 4000::1 fc00::1 fdff::1 fe80::1 fec0::1 ff02::1";

    #[test]
    fn only_global_unicast_is_global() {
        for (texts, expected) in [(GLOBAL, true), (NOT_GLOBAL, false)] {
            for text in texts.split_whitespace() {
                assert_eq!(is_global(text.parse().unwrap()), expected, "{text}");
            }
        }
    }

    #[test]
    fn the_choice_decides() {
        let (global, private) = (IpAddr::from([1, 1, 1, 1]), IpAddr::from([10, 0, 0, 1]));
        for (choice, local, source) in [
            ("auto", global, Source::Stated(global)),
            ("auto", private, Source::Observed),
            ("observed", global, Source::Observed),
            ("10.0.0.1", global, Source::Stated(private)),
        ] {
            let choice: SourceChoice = choice.parse().unwrap();
            assert_eq!(choice.source(local), source, "{choice} from {local}");
        }
    }

    #[test]
    fn sources_read_and_print() {
        for text in ["auto", "observed", "192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert_eq!(text.parse::<SourceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "AUTO", "me", "192.0.2.0/24", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
        {
            assert!(text.parse::<SourceChoice>().is_err(), "{text}");
        }
        for text in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.1"] {
            assert!(text.parse::<SourceChoice>().is_err(), "{text}");
        }
    }
}
