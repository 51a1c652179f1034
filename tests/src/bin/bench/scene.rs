//! A contender that runs at one end of a cable, and the world at the other.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use postern_tests::gate::SSH;
use postern_tests::netns::{Host, cable};
use postern_tests::probe::Echo;

use crate::contenders::{Contender, Running, Setup};
use crate::flood::{Flood, Junk};
use crate::meter::Meter;
use crate::prober::{Pace, Prober, be_ordinary};
use crate::processors::{Kept, leave_one, take_one};
use crate::wire::Knock;

/// In which a first knock opens, or another one is tried.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 10;
/// The first address from which somebody knocks.
const FIRST: u32 = u32::from_be_bytes([10, 128, 0, 1]);

pub(crate) struct Scene {
    pub(crate) contender: Box<dyn Running>,
    pub(crate) meter: Meter,
    pub(crate) prober: Prober,
    pub(crate) world: Host,
    _echo: Echo,
    addresses: u32,
    _kept: Option<Kept>,
}

impl Scene {
    /// Starts a contender; it has let somebody in when this returns.
    pub(crate) fn start(contender: Contender, setup: Setup) -> Result<Self> {
        let (gate, world) = cable()?;
        let echo = Echo::start(&gate, SSH)?;
        let (meter, prober) = (Meter::new()?, Prober::of(&world)?);
        be_ordinary()?;
        let kept = setup.apart.then_some(Kept);
        if setup.apart {
            leave_one()?;
        }
        let contender = contender.start(gate, setup)?;
        if setup.apart {
            take_one()?;
        }
        for pid in contender.host().pids()? {
            meter.adopt(pid)?;
        }
        let mut scene = Self { contender, meter, prober, world, _echo: echo, addresses: FIRST, _kept: kept };
        for _ in 0..TRIES {
            let knock = scene.knocks(1)?.remove(0);
            if scene.prober.one(knock, Pace::Slowing, PATIENCE)?.is_some() {
                return Ok(scene);
            }
        }
        bail!("it does not open")
    }

    /// An address that nobody has knocked from.
    pub(crate) fn address(&mut self) -> Ipv4Addr {
        self.addresses += 1;
        Ipv4Addr::from_bits(self.addresses)
    }

    /// Fresh knocks, each from an address of its own.
    pub(crate) fn knocks(&mut self, count: usize) -> Result<Vec<Knock>> {
        let from: Vec<_> = (0..count).map(|_| self.address()).collect();
        self.contender.knocks(&from)
    }

    pub(crate) fn flood(&self, junk: Junk, per_second: Option<u32>) -> Result<Flood> {
        Flood::begin(&self.world, junk, per_second)
    }
}
