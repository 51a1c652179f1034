//! Answers that a front which was taken over has the warden send: from a knock port, to one address each, and no oftener than
//! a client may order.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_proto::{ANSWER_LEN, ClientId};
use postern_tests::capture::{Capture, Direction};
use postern_tests::gate::{KNOCK_PORTS, SSH, Variant};
use postern_tests::netns::Family;
use postern_tests::orders::{Answer, Order};

use super::hostile::{Hostile, counted};

/// Orders of one client that are in time at once, and one more after each so long.
const BURST: u64 = 1024;
const PACE: Duration = Duration::from_millis(5);
const ANSWERS: u64 = 5000;

#[test]
fn answers_go_no_further_than_clients_could_have_them_go() -> Result<()> {
    let hostile = Hostile::usual(Variant::Nftables)?;
    let (alice, gate) = (hostile.world.alice.entry.id, &hostile.world.gate);
    let capture = Capture::start(gate.host(), Direction::Out, "udp or icmp")?;
    let home = SocketAddr::new(hostile.world.home.ip(Family::V4), 5555);
    let knock_port = gate.at(Family::V4, KNOCK_PORTS[0]);
    let send = |client: ClientId, from: SocketAddr, to: SocketAddr, len: usize| {
        let answer = Answer { from, to, bytes: vec![7; len] };
        hostile.link.order(&Order::Answer { client, answer })
    };

    // None of these goes anywhere: from a port or an address that is not the gate's, to all hosts, of another length, for
    // nobody.
    let elsewhere = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 99).into(), KNOCK_PORTS[0]);
    for from in [gate.at(Family::V4, SSH), gate.at(Family::V4, 9), elsewhere] {
        send(alice, home, from, ANSWER_LEN)?;
    }
    for to in [[224, 0, 0, 1], [255, 255, 255, 255], [127, 0, 0, 1], [0, 0, 0, 0]] {
        send(alice, SocketAddr::new(Ipv4Addr::from(to).into(), 5555), knock_port, ANSWER_LEN)?;
    }
    for len in [0, ANSWER_LEN - 1, ANSWER_LEN + 1, 1400] {
        send(alice, home, knock_port, len)?;
    }
    send(ClientId::from_bytes([9; 8]), home, knock_port, ANSWER_LEN)?;
    hostile.world.opens_to(&hostile.world.stranger, Family::V4)?;
    let to_home = |capture: &Capture| {
        Ok::<_, anyhow::Error>(
            capture.packets()?.iter().filter(|packet| packet.destination() == Some(home.port())).count(),
        )
    };
    ensure!(to_home(&capture)? == 0, "{:?}", capture.packets()?);

    let begun = Instant::now();
    for _ in 0..ANSWERS {
        send(alice, home, knock_port, ANSWER_LEN)?;
    }
    hostile.world.opens_to(&hostile.world.stranger, Family::V6)?;
    let most = BURST + u64::try_from(begun.elapsed().as_millis() / PACE.as_millis())?;
    let count = u64::try_from(to_home(&capture)?)?;
    ensure!((1..=most).contains(&count), "{count} answers went out, of {most} at the most");
    capture.finish()?;

    let Hostile { mut world, .. } = hostile;
    let refused = counted(&mut world.gate)?;
    ensure!(refused["malformed"] == 4 && refused["unknown-client"] == 1, "{refused:?}");
    ensure!(refused["too-fast"] >= ANSWERS - most, "{refused:?}");
    Ok(())
}
