//! Knocks, and the first SYN behind each that is answered.
//!
//! A probe is a SYN of its own, from a port of its own: no connect is tried again, since a dropped SYN comes again only
//! after a second. What is measured ends when the first SYN that gets through is *sent*: it is too long by up to the pause
//! between two probes (half of it in the mean, since the first probe comes at a random time within it), and never too short.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::gate::SSH;
use postern_tests::netns::Host;
use postern_tests::probe::PATIENCE;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recv, socket_with, sockopt};
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use crate::wire::{APART, Knock, Packet, Wire, syn, syn_ack};

/// Between two probes.
pub(crate) const EVERY: Duration = Duration::from_micros(250);
/// The first probe's port; each further one has the next.
const FIRST_PORT: u16 = 1024;
/// The nice value of who measures and of who floods: that comes from outside and is not slowed down by this machine's work.
pub(crate) const PRIORITY: i32 = -10;
/// The longest sleep, so that answers are seen in time.
const NAP: Duration = Duration::from_millis(4);
const BUFFER: usize = 8 << 20;

/// How the probes behind a knock follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// One every [`EVERY`].
    Even,
    /// At first like that, and then at 2 % of the time since the knock: many that wait would be a flood of their own.
    Slowing,
}

impl Pace {
    fn pause(self, waited: Duration) -> Duration {
        match self {
            Self::Even => EVERY,
            Self::Slowing => EVERY.max(waited / 50),
        }
    }
}

/// A knock that has not opened yet.
struct Pending<'a> {
    index: usize,
    /// Those that are still to be sent.
    steps: &'a [Packet],
    /// When the last of them was sent.
    knocked: Instant,
    /// When the next step or probe is.
    next: Instant,
    /// When each probe was sent.
    sent: Vec<Instant>,
}

pub(crate) struct Prober {
    wire: Wire,
    answers: OwnedFd,
}

impl Prober {
    pub(crate) fn of(world: &Host) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::TCP));
        let answers = world.enter(open)??;
        sockopt::set_socket_recv_buffer_size_force(&answers, BUFFER)?;
        Ok(Self { wire: Wire::of(world)?, answers })
    }

    /// Sends one knock; gives how long it took to open, if it did within the limit.
    pub(crate) fn one(&self, knock: Knock, pace: Pace, limit: Duration) -> Result<Option<Duration>> {
        Ok(self.all(&[knock], Duration::ZERO, pace, limit)?[0])
    }

    /// Sends knocks at even distances; gives how long each took to open, if it did within the limit.
    pub(crate) fn all(
        &self,
        knocks: &[Knock],
        distance: Duration,
        pace: Pace,
        limit: Duration,
    ) -> Result<Vec<Option<Duration>>> {
        be_on_time()?;
        self.drain(|_, _| ())?;
        let mut opened = vec![None; knocks.len()];
        let mut pending: HashMap<Ipv4Addr, Pending> = HashMap::new();
        let (begun, mut next) = (Instant::now(), 0);
        while next < knocks.len() || !pending.is_empty() {
            if let Some(knock) = knocks.get(next)
                && begun.elapsed() >= distance * u32::try_from(next)?
            {
                let now = Instant::now();
                let (index, steps) = (next, knock.packets.as_slice());
                pending.insert(knock.from, Pending { index, steps, knocked: now, next: now, sent: vec![] });
                next += 1;
            }
            for (&from, waits) in &mut pending {
                self.advance(from, waits, pace)?;
            }
            self.drain(|port, to| {
                let answered = usize::from(to.port().wrapping_sub(FIRST_PORT));
                let time = |waits: &Pending| Some(*waits.sent.get(answered)? - waits.knocked);
                if port == SSH
                    && let Some(time) = pending.get(to.ip()).and_then(time)
                    && let Some(found) = pending.remove(to.ip())
                {
                    opened[found.index] = Some(time);
                }
            })?;
            pending.retain(|_, waits| waits.knocked.elapsed() < limit);
            let due =
                (next < knocks.len()).then(|| begun + distance * u32::try_from(next).unwrap_or(u32::MAX));
            let wake = pending.values().map(|waits| waits.next).chain(due).min();
            if let Some(wake) = wake {
                thread::sleep(wake.saturating_duration_since(Instant::now()).min(NAP));
            }
        }
        Ok(opened)
    }

    /// Sends each knock at its time, and one probe when `after` is over behind it. Gives whether all of those are answered;
    /// the first that is not ends it.
    pub(crate) fn once(&self, knocks: &[Knock], distance: Duration, after: Duration) -> Result<bool> {
        be_on_time()?;
        self.drain(|_, _| ())?;
        let (begun, mut answered, mut open) = (Instant::now(), 0, HashSet::new());
        let (mut sent, mut probed): (Vec<Instant>, Vec<Instant>) = (vec![], vec![]);
        loop {
            while let Some(knock) = knocks.get(sent.len())
                && begun.elapsed() >= distance * u32::try_from(sent.len())?
            {
                knock.packets.iter().try_for_each(|packet| self.wire.send(packet))?;
                sent.push(Instant::now());
            }
            while sent.get(probed.len()).is_some_and(|when| when.elapsed() >= after) {
                let from = SocketAddrV4::new(knocks[probed.len()].from, FIRST_PORT);
                self.wire.send(&syn(from, SSH, fastrand::u32(..)))?;
                probed.push(Instant::now());
            }
            self.drain(|_, to| open.extend([*to.ip()]))?;
            while knocks.get(answered).is_some_and(|knock| open.contains(&knock.from)) {
                answered += 1;
            }
            if answered == knocks.len() {
                return Ok(true);
            }
            if probed.get(answered).is_some_and(|when| when.elapsed() > PATIENCE) {
                return Ok(false);
            }
            thread::sleep(EVERY);
        }
    }

    /// The answers that have come in: from which port, to whom.
    fn drain(&self, mut each: impl FnMut(u16, SocketAddrV4)) -> Result<()> {
        let mut buffer = [0_u8; 128];
        loop {
            match recv(&self.answers, &mut buffer, RecvFlags::empty()) {
                Ok((len, _)) => {
                    if let Some((port, to)) = syn_ack(&buffer[..len]) {
                        each(port, to);
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends the step or the probe that is due.
    fn advance(&self, from: Ipv4Addr, waits: &mut Pending, pace: Pace) -> Result<()> {
        let now = Instant::now();
        if now < waits.next {
            return Ok(());
        }
        if let Some((step, later)) = waits.steps.split_first() {
            self.wire.send(step)?;
            (waits.steps, waits.knocked) = (later, now);
            waits.next = now + if later.is_empty() { EVERY.mul_f64(fastrand::f64()) } else { APART };
            return Ok(());
        }
        // Whoever has used all its ports has waited for long enough to be given up soon.
        let number = u16::try_from(waits.sent.len()).ok();
        if let Some(port) = number.and_then(|number| FIRST_PORT.checked_add(number)) {
            waits.sent.push(now);
            self.wire.send(&syn(SocketAddrV4::new(from, port), SSH, fastrand::u32(..)))?;
        }
        // From when it was due on: late is late once, and the next one is on time.
        waits.next = now.max(waits.next + pace.pause(now - waits.knocked));
        Ok(())
    }
}

/// Has this thread go before others, and wake when it said that it would. What it starts would do so too: see
/// [`be_ordinary`].
pub(crate) fn be_on_time() -> Result<()> {
    punctual(PRIORITY, "1000")
}

/// Has this thread, and what it starts from now on, be as any other.
pub(crate) fn be_ordinary() -> Result<()> {
    // The kernel's own value.
    punctual(0, "50000")
}

fn punctual(nice: i32, slack_ns: &str) -> Result<()> {
    setpriority_process(None, nice)?;
    Ok(fs::write(format!("/proc/{}/timerslack_ns", gettid().as_raw_nonzero()), slack_ns)?)
}
