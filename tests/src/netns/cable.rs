//! Two hosts without a switch between them: what is sent at one end is at the other before the call returns.

use anyhow::Result;

use super::{Host, LINK, Namespace, mac, v4};
use crate::process::succeed;
use crate::wait::LONG;

/// What the world has beside its own address.
const WORLD: &str = "10.128.0.0/9";

/// Two hosts at the ends of one cable: a gate, 10.0.0.1, and the world, 10.0.0.2, which has all of 10.128.0.0/9 as well. IPv4
/// alone.
///
/// # Errors
/// When a namespace or the cable cannot be made.
pub fn cable() -> Result<(Host, Host)> {
    let gate = Host { namespace: Namespace::new()?, number: 1 };
    let world = Host { namespace: Namespace::new()?, number: 2 };
    for host in [&gate, &world] {
        host.namespace.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    gate.namespace.ip(&format!(
        "link add {LINK} address {} type veth peer name {LINK} address {} netns {}\n",
        mac(1),
        mac(2),
        world.namespace.name
    ))?;
    for (host, peer) in [(&gate, 2), (&world, 1)] {
        let (own, neighbour) = (v4(host.number), format!("{} lladdr {}", v4(peer), mac(peer)));
        host.namespace.ip(&format!(
            "addr add {own}/24 dev {LINK}\nlink set lo up\nlink set {LINK} up\n\
             neigh replace {neighbour} nud permanent dev {LINK}\n"
        ))?;
    }
    // Many datagrams in one call are cut apart at the world's end, as a network card does it, and not at the gate's.
    let mut ethtool = world.command("ethtool");
    ethtool.args(["--offload", LINK, "tx-udp-segmentation", "off", "tx-checksumming", "on"]);
    succeed(ethtool, b"", LONG)?;
    gate.namespace.ip(&format!("route add {WORLD} via {}\n", v4(2)))?;
    world.namespace.ip(&format!("route add local {WORLD} dev lo\n"))?;
    Ok((gate, world))
}
