//! The front's ends of its links, in a test's hand: what a front that was taken over could send to the warden and to
//! the supervisor, by whatever code runs in it. The shape of messages is that of `posternd`'s own `order` and `link`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postern_proto::ClientId;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::Serialize;

use crate::held::{Descriptor, Kind, descriptors};
use crate::wait::LONG;

/// The version of messages.
pub const VERSION: u8 = 3;

/// What a front asks of a warden.
#[derive(Clone, Debug, Serialize)]
pub enum Order {
    /// To let a client's source in.
    Open {
        /// Whose knock it was.
        client: ClientId,
        /// The services by name, each with the length of its window in seconds.
        services: Vec<(String, u32)>,
        /// Whom to let in.
        source: IpAddr,
        /// From this source port only.
        from_port: Option<NonZeroU16>,
        /// When the knock came, since boot.
        decided: Duration,
        /// To be sent once they are let in.
        answer: Option<Answer>,
    },
    /// To end a client's leases for its source.
    Close {
        /// Whose knock it was.
        client: ClientId,
        /// The services by name.
        services: Vec<String>,
        /// Whose leases end.
        source: IpAddr,
        /// To be sent once they have ended.
        answer: Option<Answer>,
    },
    /// To answer a knock of which nothing follows.
    Answer {
        /// Whose knock it was.
        client: ClientId,
        /// To be sent.
        answer: Answer,
    },
}

/// What a front has a warden send to a client.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Where the knock came from.
    pub from: SocketAddr,
    /// Where it went.
    pub to: SocketAddr,
    /// What is sent; the warden takes 256 bytes.
    pub bytes: Vec<u8>,
}

impl Order {
    /// The packet that it goes in, alone.
    ///
    /// # Panics
    /// Never: memory does not fail.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let message = postcard::to_allocvec(&[self][..]).expect("an order encodes");
        [&[VERSION, 0][..], &message].concat()
    }
}

/// In which a link that is full is looked at again.
const MOMENT: Duration = Duration::from_micros(10);

/// A duplicate of one end of a link.
pub struct Link(OwnedFd);

impl Link {
    /// The front's end of its link to the warden.
    ///
    /// # Errors
    /// When the front has none.
    pub fn to_warden(front: Pid, supervisor: Pid) -> Result<Self> {
        let held = descriptors(front)?;
        Self::duplicate(front, orders(&held, &descriptors(supervisor)?))
    }

    /// The front's end of its line to the supervisor.
    ///
    /// # Errors
    /// When the front has none.
    pub fn to_supervisor(front: Pid, supervisor: Pid) -> Result<Self> {
        let held = descriptors(front)?;
        let orders = orders(&held, &descriptors(supervisor)?).map(|orders| orders.inode);
        let is_line = |end: &&Descriptor| end.kind == Kind::Unix("seqpacket") && Some(end.inode) != orders;
        Self::duplicate(front, held.iter().find(is_line))
    }

    fn duplicate(pid: Pid, end: Option<&Descriptor>) -> Result<Self> {
        let number = end.context("it has such a link")?.number;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?))
    }

    /// Sends an order.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn order(&self, order: &Order) -> Result<()> {
        self.packet(&order.packet())
    }

    /// Sends a packet; waits while the link is full.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn packet(&self, packet: &[u8]) -> Result<()> {
        Self::retry(|| send(&self.0, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop))
    }

    /// Sends a packet, and descriptors with it.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn packet_with(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        Self::retry(|| {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for eight");
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            sendmsg(&self.0, &[io::IoSlice::new(packet)], &mut control, flags).map(drop)
        })
    }

    fn retry(mut attempt: impl FnMut() -> rustix::io::Result<()>) -> Result<()> {
        let deadline = Instant::now() + LONG;
        loop {
            match attempt() {
                // Whoever waits to be woken floods nobody.
                // A yield instead keeps, on Linux 6.18, whoever it yields to from the processor for seconds.
                Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(MOMENT),
                Err(Errno::AGAIN) => bail!("nothing is taken from the link for {LONG:?}"),
                result => return Ok(result?),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Of the descriptors of front or warden, its end of the link between the two: the supervisor keeps both ends as well.
#[must_use]
pub fn orders<'a>(held: &'a [Descriptor], by_supervisor: &[Descriptor]) -> Option<&'a Descriptor> {
    let is_kept = |end: &Descriptor| by_supervisor.iter().any(|other| other.inode == end.inode);
    held.iter().find(|end| end.kind == Kind::Unix("seqpacket") && is_kept(end))
}
