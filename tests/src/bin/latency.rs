//! From the knock on the wire to the door open in the kernel: 200 addresses, one knock each, and a SYN every quarter of a
//! millisecond until one gets through.
//!
//! ```text
//! cargo run --release -p postern-tests --bin latency -- nft
//! ```
//! What is measured ends when the first SYN that gets through is sent, so it is up to a quarter of a millisecond too
//! long, and never too short.

#![forbid(unsafe_code)]

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings, Variant};
use postern_tests::knocks::Client;
use postern_tests::netns::{Family, Host, Network, ip_of};
use postern_tests::probe::{Echo, first_through, udp};

const KNOCKS: u16 = 200;
const FIRST: u16 = 1000;
const EVERY: Duration = Duration::from_micros(250);
/// Longer than any knock takes that takes at all.
const LIMIT: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let variant = match std::env::args().nth(1).as_deref() {
        Some("nft") => Variant::Nft,
        Some("legacy") => Variant::Legacy,
        _ => bail!("usage: latency nft|legacy"),
    };
    let mut network = Network::new()?;
    let (server, farm) = (network.host([1])?, network.host(FIRST..FIRST + KNOCKS)?);
    let mut gate =
        Gate::new(server, Settings { variant, window_secs: 60, log: "info", ..Settings::default() })?;
    let client = gate.client("latency")?;
    gate.write_clients(&[&client])?;
    let _echo = Echo::start(gate.host(), SSH)?;
    gate.start(&[])?;

    let mut times = Vec::new();
    for number in FIRST..FIRST + KNOCKS {
        times.push(measure(&farm, &gate, &client, ip_of(number, Family::V4))?);
    }
    times.sort();
    let millis = |per_cent: usize| times[(times.len() - 1) * per_cent / 100].as_secs_f64() * 1e3;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("knock to open door, {KNOCKS} knocks, iptables-{}, Linux {}", variant.name(), kernel.trim());
    println!(
        "p50 {:.2} ms   p90 {:.2} ms   p99 {:.2} ms   max {:.2} ms",
        millis(50),
        millis(90),
        millis(99),
        millis(100)
    );
    Ok(())
}

/// One knock from an address that has not knocked before.
fn measure(farm: &Host, gate: &Gate, client: &Client, from: IpAddr) -> Result<Duration> {
    let knock = client.seal(&client.asks_for("ssh")?);
    let socket = udp(farm, from)?;
    let (knock_port, door) = (gate.at(Family::V4, KNOCK_PORTS[0]), gate.at(Family::V4, SSH));
    farm.enter(|| {
        let knocked = Instant::now();
        socket.send_to(&knock, knock_port)?;
        first_through(from, door, knocked, EVERY, LIMIT)
    })??
    .with_context(|| format!("the knock from {from} has not opened within {LIMIT:?}"))
}
