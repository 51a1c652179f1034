//! What the gate's host forwards for others is none of the guard's business.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use postern_tests::gate::{KNOCK_PORTS, SSH, Settings};
use postern_tests::netns::Family;
use postern_tests::probe::{Echo, Seen, probe, udp, wait_to_see};
use postern_tests::process::{Process, succeed};
use postern_tests::wait::{LONG, wait_for};

use super::SETTINGS;
use crate::world::World;

/// The network behind the gate: the gate's address there, and that of the host behind it.
const INSIDE: [(Family, &str, &str); 2] =
    [(Family::V4, "192.0.2.1", "192.0.2.2"), (Family::V6, "2001:db8::1", "2001:db8::2")];

/// Run on the gate's host, the host behind it, and a host before it.
const GATE: &str = "
ip link add inside type veth peer name eth1 netns $behind
ip link set inside up
ip addr add 192.0.2.1/24 dev inside
ip addr add 2001:db8::1/64 dev inside nodad
ip addr add fe80::1/64 dev inside nodad
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
";
const BEHIND: &str = "
ip link del eth0
ip link set eth1 up
ip addr add 192.0.2.2/24 dev eth1
ip addr add 2001:db8::2/64 dev eth1 nodad
ip addr add fe80::2/64 dev eth1 nodad
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8::1
";
const BEFORE: &str = "
ip route add 192.0.2.0/24 via 10.0.0.1
ip -6 route add 2001:db8::/64 via fd00::1
";

#[test]
fn what_is_forwarded_passes_and_what_is_for_the_gate_does_not() -> Result<()> {
    let mut world = World::new(Settings { window_secs: 60, ..SETTINGS })?;
    world.listen(&[SSH])?;
    let behind = world.network.host([9])?;
    let resident = Process::spawn(behind.command("cat"))?;
    wait_for("the host behind", LONG, || Ok(behind.pids()?.contains(&resident.pid()).then_some(())))?;
    let pid = resident.pid().as_raw_nonzero().to_string();
    for (host, script) in [
        (world.gate.host(), GATE.replace("$behind", &pid).as_str()),
        (&behind, BEHIND),
        (&world.stranger, BEFORE),
        (&world.home, BEFORE),
    ] {
        let mut sh = host.command("sh");
        sh.args(["-ec", script]);
        succeed(sh, b"", LONG)?;
    }
    let _service = Echo::start(&behind, SSH)?;
    let _home = Echo::start(&world.home, SSH)?;
    for (_, _, inside) in INSIDE {
        wait_to_see(&world.stranger, SocketAddr::new(inside.parse()?, SSH), Seen::Open)?;
    }
    world.gate.start(&[])?;
    for (family, gate, inside) in INSIDE {
        let (gate, inside): (IpAddr, IpAddr) = (gate.parse()?, inside.parse()?);
        for host in [&world.stranger, &world.home] {
            let seen = probe(host, SocketAddr::new(inside, SSH))?;
            ensure!(seen == Seen::Open, "{family:?}: through the gate, its guarded port shows {seen:?}");
        }
        let seen = probe(&behind, SocketAddr::new(world.home.ip(family), SSH))?;
        ensure!(seen == Seen::Open, "{family:?}: the way out shows {seen:?}");
        let to = behind.enter(|| UdpSocket::bind((inside, KNOCK_PORTS[0])))??;
        let from = udp(&world.stranger, world.stranger.ip(family))?;
        from.send_to(b"not for the gate", to.local_addr()?)?;
        to.set_read_timeout(Some(LONG))?;
        let mut received = [0; 64];
        let (length, _) = to.recv_from(&mut received)?;
        ensure!(&received[..length] == b"not for the gate", "{family:?}: through the gate, a knock port");

        for (host, address) in
            [(&world.stranger, gate), (&behind, gate), (&behind, world.gate.host().ip(family))]
        {
            let seen = probe(host, SocketAddr::new(address, SSH))?;
            ensure!(seen == Seen::Nothing, "{address} of the gate itself shows {seen:?}");
        }
        world.opens(family)?;
        let seen = probe(&behind, SocketAddr::new(gate, SSH))?;
        ensure!(seen == Seen::Nothing, "{family:?}: open to another");
    }
    Ok(())
}
