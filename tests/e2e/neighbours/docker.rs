//! Docker: what a container publishes is led to it before the guard could see it. The rules are those that Docker 28
//! writes; the container is a host behind a bridge, and its proxy is whatever listens on the published port.

use anyhow::{Result, ensure};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::netns::{Family, Host};
use postern_tests::probe::{Echo, Seen, probe, wait_to_see};
use postern_tests::process::Process;
use postern_tests::wait::{LONG, wait_for};

use super::{holds_and_opens, remarks, remedy, removes_ours_alone, script};
use crate::world::{World, grants};

const BRIDGE: &str = "
ip link add docker0 type bridge
ip link set docker0 up
ip addr add 172.17.0.1/16 dev docker0
ip link add veth0 type veth peer name eth1 netns $container
ip link set veth0 master docker0 up
sysctl -qw net.ipv4.ip_forward=1
";

const CONTAINER: &str = "
ip link del eth0
ip link set eth1 up
ip addr add 172.17.0.2/16 dev eth1
ip route add default via 172.17.0.1
";

/// As `docker run -p 22:22` leaves it.
const RULES: &str = "*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 22 -j DNAT --to-destination 172.17.0.2:22
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 22 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
";

#[test]
fn a_published_port_goes_round_the_guard_until_it_is_kept_here() -> Result<()> {
    let mut world = World::new(Settings::default())?;
    world.listen(&[SSH])?;
    let _container = publishes(&mut world)?;

    let door = world.gate.at(Family::V4, SSH);
    assert_eq!(probe(&world.stranger, door)?, Seen::Open, "the container answers: this is what is warned of");
    let told = remarks(world.gate.posternd(&["check"])?)?;
    let remedy = remedy(&told, &["22/tcp is published by a container"])?;
    assert_eq!(remedy, "iptables-nft -t nat -I PREROUTING -p tcp --dport 22 -j ACCEPT");
    let warnings = told.iter().filter(|remark| remark.starts_with("warning: "));
    assert_eq!(warnings.count(), 1, "Docker's own drops shut nothing of ours: {told:#?}");
    script(world.gate.host(), &remedy)?;
    holds_and_opens(&world, &[Family::V4])?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    ensure!(matches!(&told[..], [note] if note.starts_with("note: Docker is here")), "{told:#?}");

    removes_ours_alone(&mut world)?;
    script(world.gate.host(), &remedy.replace("-I", "-D"))?;
    assert_eq!(probe(&world.stranger, door)?, Seen::Open, "the container is published again");
    // A gate that comes later finds it just so.
    world.gate.start(&[])?;
    script(world.gate.host(), &remedy)?;
    holds_and_opens(&world, &[Family::V4])
}

/// Through nftables the guard comes before what leads the port away.
#[test]
fn a_published_port_is_guarded_through_nftables() -> Result<()> {
    let mut world = World::new(Settings { variant: Variant::Nftables, ..Settings::default() })?;
    world.listen(&[SSH])?;
    let container = publishes(&mut world)?;
    let told = remarks(world.gate.posternd(&["check"])?)?;
    ensure!(!told.iter().any(|remark| remark.starts_with("warning: ")), "{told:#?}");
    holds_and_opens(&world, &[Family::V4])?;

    // It is the container that answers.
    drop(container.service);
    let knock = world.alice.seal(&world.alice.asks_for("ssh")?);
    grants(&world.gate, || world.send(&world.home, Family::V4, &knock))?;
    wait_to_see(&world.home, world.gate.at(Family::V4, SSH), Seen::Refused)?;
    removes_ours_alone(&mut world)
}

/// A container, and what answers in it.
struct Container {
    _host: Host,
    _resident: Process,
    service: Echo,
}

/// Starts the gate, and publishes a container's port beside it.
fn publishes(world: &mut World) -> Result<Container> {
    let host = world.network.host([9])?;
    let resident = Process::spawn(host.command("cat"))?;
    wait_for("the container", LONG, || Ok(host.pids()?.contains(&resident.pid()).then_some(())))?;
    let service = Echo::start(&host, SSH)?;
    script(world.gate.host(), &BRIDGE.replace("$container", &resident.pid().as_raw_nonzero().to_string()))?;
    script(&host, CONTAINER)?;
    // Beside a guard that is there already, as Docker comes to it, and without a flush.
    world.gate.start(&[])?;
    script(world.gate.host(), &format!("iptables-nft-restore --noflush <<'END'\n{RULES}END\n"))?;
    Ok(Container { _host: host, _resident: resident, service })
}
