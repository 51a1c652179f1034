//! A flood of datagrams at a gate, the knocks that come in amid it, and what all that costs the gate.

use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::gate::{Gate, KNOCK_PORTS, SSH, Settings, Usage};
use crate::knocks::{Client, Knock};
use crate::netns::{Family, Host, Network, ip_of};
use crate::probe::{Echo, first_through, udp};
use crate::wait::{LONG, wait_for};

mod datagrams;
mod report;

pub use datagrams::Kind;
pub use report::Report;

use datagrams::{Datagrams, send};

/// Each of these addresses knocks once amid the flood.
const NUMBERS: Range<u16> = 1000..1020;
/// Between two SYNs of an address that has knocked.
const EVERY: Duration = Duration::from_millis(10);
/// In which a knock opens, or never.
const LIMIT: Duration = Duration::from_secs(3);

/// A flood to come.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// What is in it.
    pub kind: Kind,
    /// How many datagrams are offered a second.
    pub per_second: u32,
    /// How long it goes on before anything is measured.
    pub warm_up: Duration,
    /// How long it goes on from then on.
    pub length: Duration,
}

impl Flood {
    /// Floods a gate that is made for it, and has 20 addresses knock meanwhile, with one datagram each.
    ///
    /// # Errors
    /// When a knock before it or behind it does not open, or something fails that is no matter of the flood.
    pub fn run(self) -> Result<Report> {
        let arena = Arena::new()?;
        let Arena { gate, farm, flooder, .. } = &arena;
        ensure!(arena.opens(farm, farm.ip(Family::V4))?.is_some(), "no knock opens before the flood");
        let mut datagrams = Datagrams::new(self.kind, arena.used_knock()?, arena.seal()?);
        let socket = udp(flooder, flooder.ip(Family::V4))?;
        socket.connect(gate.at(Family::V4, KNOCK_PORTS[0]))?;

        let (counted, delivered, lines) = (gate.reload()?, gate.host().packets_in()?, gate.lines_logged()?);
        let (begun, over) = (Instant::now(), AtomicBool::new(false));
        let (sent, measured) = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&socket, &mut datagrams, self.per_second, &over));
            let measured = arena.knock_amid(self, begun);
            over.store(true, Ordering::Relaxed);
            (sender.join().expect("sending does not panic"), measured)
        });
        let (sent, lasted) = (sent?, begun.elapsed());
        let (delivered, lines) = (gate.host().packets_in()? - delivered, gate.lines_logged()? - lines);
        ensure!(arena.opens(flooder, flooder.ip(Family::V4))?.is_some(), "no knock opens behind the flood");
        let counted = gate.reload()?.since(&counted);
        Ok(Report { flood: self, sent, lasted, delivered, counted, lines, measured: measured? })
    }
}

/// A gate, who floods it, and who knocks at it.
struct Arena {
    gate: Gate,
    flooder: Host,
    farm: Host,
    client: Client,
    _echo: Echo,
    _network: Network,
}

/// What is measured behind the warm-up, while the flood goes on.
#[derive(Clone, Debug)]
struct Measured {
    /// How long each of the knocks that opened took.
    opened: Vec<Duration>,
    /// At the begin and at the end.
    usage: [Usage; 2],
    lasted: Duration,
    /// Packets that the gate's link has handed to its kernel.
    delivered: u64,
}

impl Arena {
    fn new() -> Result<Self> {
        let mut network = Network::new()?;
        let (host, flooder) = (network.host([1])?, network.host([2])?);
        let farm = network.host([3].into_iter().chain(NUMBERS))?;
        // It logs as much as it does by itself; a window outlasts the flood.
        let mut gate = Gate::new(host, Settings { window_secs: 300, log: "info", ..Settings::default() })?;
        let client = gate.client("worker")?;
        gate.write_clients(&[&client])?;
        let echo = Echo::start(gate.host(), SSH)?;
        gate.start(&[])?;
        Ok(Self { gate, flooder, farm, client, _echo: echo, _network: network })
    }

    fn seal(&self) -> Result<Knock> {
        Ok(self.client.seal(&self.client.asks_for("ssh")?))
    }

    /// A knock that the gate has accepted.
    fn used_knock(&self) -> Result<Knock> {
        let knock = self.seal()?;
        let before = self.gate.reload()?.accepted;
        udp(&self.farm, self.farm.ip(Family::V4))?
            .send_to(&knock, self.gate.at(Family::V4, KNOCK_PORTS[0]))?;
        wait_for(
            "a knock to be copied",
            LONG,
            || Ok((self.gate.reload()?.accepted > before).then_some(knock)),
        )
    }

    /// Knocks once from an address; gives how long it took to open, if it did.
    fn opens(&self, host: &Host, from: IpAddr) -> Result<Option<Duration>> {
        let (knock, socket): (_, UdpSocket) = (self.seal()?, udp(host, from)?);
        let (to, door) = (self.gate.at(Family::V4, KNOCK_PORTS[0]), self.gate.at(Family::V4, SSH));
        host.enter(|| {
            let knocked = Instant::now();
            socket.send_to(&knock, to)?;
            first_through(from, door, knocked, EVERY, LIMIT)
        })?
    }

    /// The 20 knocks, spread over the time behind the warm-up.
    fn knock_amid(&self, flood: Flood, begun: Instant) -> Result<Measured> {
        let until = |time: Duration| thread::sleep(time.saturating_sub(begun.elapsed()));
        until(flood.warm_up);
        let (warm, delivered) = (begun.elapsed(), self.gate.host().packets_in()?);
        let before = self.gate.usage()?;
        let mut opened = Vec::new();
        for (number, knock) in NUMBERS.zip(0..) {
            until(flood.warm_up + flood.length * knock / u32::from(NUMBERS.end - NUMBERS.start));
            opened.extend(self.opens(&self.farm, ip_of(number, Family::V4))?);
        }
        until(flood.warm_up + flood.length);
        let usage = [before, self.gate.usage()?];
        let delivered = self.gate.host().packets_in()? - delivered;
        Ok(Measured { opened, usage, lasted: begun.elapsed().saturating_sub(warm), delivered })
    }
}
