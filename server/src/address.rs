//! Which addresses can be let in at all, and the way of a packet: front and warden mean the same by both.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where a datagram came from and where it went; its answer goes back the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Who sent it, by its own word.
    pub from: SocketAddr,
    /// An address and a port of this host.
    pub to: SocketAddr,
}

/// Whether an address belongs to one of these networks, which are all when there are none.
#[must_use]
pub(crate) fn is_within(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.is_empty() || networks.iter().any(|network| network.contains(&address))
}

/// Whether an address can be let in at all (SPEC 5, step 7): a unicast address that a packet can come from, in the one
/// form that the firewall will see it in. A link-local IPv6 address means nothing without its interface.
#[must_use]
pub(crate) fn is_usable_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            let reserved = v4.octets()[0] >= 240;
            !(this_network || reserved || v4.is_loopback() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            let compatible = matches!(v6.segments(), [0, 0, 0, 0, 0, 0, _, _]);
            let link_local = v6.is_unicast_link_local();
            let mapped = v6.to_ipv4_mapped().is_some();
            !(v6 == Ipv6Addr::UNSPECIFIED
                || compatible
                || mapped
                || link_local
                || v6.is_loopback()
                || v6.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_that_can_be_let_in() {
        for address in ["192.0.2.1", "10.0.0.1", "169.254.1.1", "2001:db8::1", "fd00::1"] {
            assert!(is_usable_source(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
            "::192.0.2.1",
        ] {
            assert!(!is_usable_source(address.parse().unwrap()), "{address}");
        }
    }
}
