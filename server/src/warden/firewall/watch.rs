//! Notices that somebody may have changed the firewall, and says when it is time to look at it. What it notices may as well
//! be our own doing: it costs a look, and nothing more.
//!
//! ```text
//! nftables: each transaction is told of (netlink) ──┐
//!                                                   ├──▶ Pace ──▶ time to look
//! legacy: fingerprint of the table, once a second ──┘
//! ```
//! Nothing is started while nothing changes, and there is at most one look a second, whatever changes.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::iptables::LegacyTable;
use super::{Family, Variant, nftables};
use crate::alarm::Alarm;
use crate::clock::{BootTime, Now};
use crate::readiness::readiness;

/// `NFNLGRP_NFTABLES`, the multicast group of everything that changes in nftables (`linux/netfilter/nfnetlink.h`).
const NFTABLES_GROUP: u32 = 7;
/// What is read of one message of nftables, at the most.
const MESSAGE: usize = 64 * 1024;
/// How often the tables of iptables-legacy are looked at.
const POLL: Duration = Duration::from_secs(1);
/// Somebody who has changed nothing for so long has finished.
const SETTLED: Duration = Duration::from_millis(200);
/// Nobody is waited for longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
/// From the end of one look to the next.
const BETWEEN: Duration = Duration::from_secs(1);

/// Waiting for changes of the firewall.
pub(crate) struct Watch {
    source: Source,
    pace: Pace,
}

enum Source {
    /// The kernel tells.
    Nft(AsyncFd<Socket>),
    /// The kernel tells whose doing it is, and in which table: only what others do in ours is looked at.
    Nftables { told: AsyncFd<Socket>, own_port: u32 },
    /// It has to be asked.
    Legacy { tables: Vec<Polled>, alarm: Alarm, next: BootTime },
}

/// A table, and what it is compared with.
struct Polled {
    table: LegacyTable,
    /// When somebody began to look.
    looking: Option<u64>,
    /// At the last look, if it found nothing wrong. Not when it was asked last: damage that is healed and done again just
    /// the same would go unnoticed.
    intact: Option<u64>,
}

/// When to look: soon, but not in the middle of what somebody does in several steps, and not all the time.
#[derive(Debug, Default)]
struct Pace {
    /// The first and the last sign of change that nobody has looked at yet.
    noticed: Option<(Instant, Instant)>,
    /// When the last look was over.
    looked: Option<Instant>,
}

impl Watch {
    /// Begins to watch; what happens from now on is not missed.
    ///
    /// # Errors
    /// When the kernel does not let us: then nobody would notice that the guard is gone.
    pub(super) fn new(variant: Variant, families: &[Family]) -> io::Result<Self> {
        let source = if variant == Variant::Legacy {
            let tables = families.iter().map(|&family| Polled::new(family)).collect::<io::Result<_>>()?;
            Source::Legacy { tables, alarm: Alarm::new()?, next: Now::read().boot }
        } else {
            Source::Nft(told()?)
        };
        Ok(Self { source, pace: Pace::default() })
    }

    /// Begins to watch the table of nftables that is written over the socket of this port.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub(super) fn of_table(own_port: u32) -> io::Result<Self> {
        Ok(Self { source: Source::Nftables { told: told()?, own_port }, pace: Pace::default() })
    }

    /// Waits until it is time to look. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// When the kernel does not tell of changes any more.
    pub(crate) async fn due(&mut self) -> io::Result<()> {
        loop {
            let due = self.pace.due();
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return Ok(()),
                changed = self.source.changed() => changed?,
            }
            self.pace.noticed(Instant::now());
        }
    }

    /// Somebody looks now: what was noticed up to here is dealt with.
    pub(crate) fn looking(&mut self) {
        self.pace.noticed = None;
        self.source.each_table(|polled| polled.looking = polled.table.fingerprint().ok());
    }

    /// The look is over, and has found everything as it has to be, or not.
    pub(crate) fn looked(&mut self, intact: bool) {
        self.pace.looked = Some(Instant::now());
        self.source.each_table(|polled| polled.intact = polled.looking.filter(|_| intact));
    }

    /// Has somebody look soon, though nothing may change.
    pub(crate) fn look_again(&mut self) {
        self.pace.noticed(Instant::now());
    }
}

/// A socket that is told of every change in nftables.
fn told() -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(NFTABLES_GROUP)?;
    socket.set_non_blocking(true)?;
    readiness(socket, Interest::READABLE)
}

/// Whether a message shows that there was too much to tell.
fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}

impl Source {
    /// Waits for a sign of change.
    async fn changed(&mut self) -> io::Result<()> {
        match self {
            Self::Nftables { told, own_port } => loop {
                let mut message = Vec::with_capacity(MESSAGE);
                match told.async_io(Interest::READABLE, |socket| socket.recv(&mut message, 0)).await {
                    // What is cut off may be anything.
                    Ok(length) if length >= MESSAGE => return Ok(()),
                    Ok(_) if !nftables::tells_of_others(&message, *own_port) => {}
                    Ok(_) => return Ok(()),
                    Err(error) if is_overrun(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            },
            // What the message says does not matter, and there is no room for it.
            Self::Nft(socket) => {
                let message =
                    socket.async_io(Interest::READABLE, |socket| socket.recv(&mut &mut [0; 16][..], 0));
                match message.await {
                    // More has changed than the kernel had room to tell.
                    Err(error) if is_overrun(&error) => Ok(()),
                    message => message.map(drop),
                }
            }
            Self::Legacy { tables, alarm, next } => loop {
                alarm.at(*next).await?;
                *next = Now::read().boot.after(POLL);
                if tables.iter_mut().any(Polled::has_changed) {
                    return Ok(());
                }
            },
        }
    }

    fn each_table(&mut self, then: impl FnMut(&mut Polled)) {
        if let Self::Legacy { tables, .. } = self {
            tables.iter_mut().for_each(then);
        }
    }
}

impl Polled {
    /// # Errors
    /// When the table cannot be asked at all.
    fn new(family: Family) -> io::Result<Self> {
        let mut table = LegacyTable::new(family)?;
        match table.fingerprint() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Self { table, looking: None, intact: None }),
        }
    }

    /// Whether the table may not be intact any more. One that does not tell may not: it, or its module, may be gone.
    fn has_changed(&mut self) -> bool {
        match self.table.fingerprint() {
            Ok(fingerprint) => self.intact != Some(fingerprint),
            Err(error) => {
                debug!(%error, "the firewall's table does not tell whether it has changed");
                true
            }
        }
    }
}

impl Pace {
    fn noticed(&mut self, now: Instant) {
        let first = self.noticed.map_or(now, |(first, _)| first);
        self.noticed = Some((first, now));
    }

    fn due(&self) -> Option<Instant> {
        let (first, last) = self.noticed?;
        let due = (last + SETTLED).min(first + PATIENCE);
        Some(self.looked.map_or(due, |looked| due.max(looked + BETWEEN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_look_waits_for_the_end_of_a_change_but_not_for_long() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None, "nothing changes, nobody looks");
        for at in [0, 150, 300] {
            pace.noticed(begin + ms(at));
            assert_eq!(pace.due(), Some(begin + ms(at + 200)));
        }
        pace.noticed(begin + ms(490));
        assert_eq!(pace.due(), Some(begin + ms(500)), "whoever goes on is not waited for");
    }

    #[test]
    fn there_is_a_second_between_two_looks() {
        let begin = Instant::now();
        let mut pace = Pace { noticed: None, looked: Some(begin) };
        pace.noticed(begin + ms(10));
        assert_eq!(pace.due(), Some(begin + ms(1000)));
        pace.noticed(begin + ms(990));
        assert_eq!(pace.due(), Some(begin + ms(1000)));
        let mut pace = Pace { noticed: None, looked: Some(begin) };
        pace.noticed(begin + ms(2000));
        assert_eq!(pace.due(), Some(begin + ms(2200)));
    }

    /// However somebody goes on, and whenever he does the damage, the look behind it is not far.
    #[test]
    fn damage_in_a_steady_stream_is_looked_at_in_time() {
        let begin = Instant::now();
        let mut pace = Pace { noticed: None, looked: Some(begin) };
        let mut looks = vec![0];
        for now in (0..10_000).step_by(10) {
            if pace.due().is_some_and(|due| due <= begin + ms(now)) {
                pace = Pace { noticed: None, looked: Some(begin + ms(now)) };
                looks.push(now);
            }
            pace.noticed(begin + ms(now));
        }
        let gaps = looks.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(looks.len() > 8 && gaps.clone().all(|gap| (1000..=1100).contains(&gap)), "{looks:?}");
    }
}
