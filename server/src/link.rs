//! The links between the processes: messages over pairs of `SOCK_SEQPACKET` sockets, which keep each packet whole and
//! apart from the next, so that a process that dies in the middle of its work leaves no half message behind.
//!
//! ```text
//! packet   version (1 byte) · more (1 byte: another packet of this message follows) · up to 32 KiB of the message
//! message  one postcard value, at most `Message::MAX` bytes
//! ```
//! Who receives trusts nothing: a packet of another version, a message that is longer than it may be or does not decode
//! to its last byte is an error, and the next message is read as if it had not been.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;
use zeroize::{Zeroize, Zeroizing};

use crate::readiness::readiness;

#[cfg(test)]
mod tests;

/// Changes with every change of a message.
const VERSION: u8 = 3;
const HEADER_LEN: usize = 2;
const PACKET_LEN: usize = HEADER_LEN + PACKET_ROOM;
/// Bytes of a message that one packet carries.
pub(crate) const PACKET_ROOM: usize = 32 * 1024;
/// Descriptors that one message may carry.
const DESCRIPTORS: usize = 5;

/// What can be sent over a link.
pub(crate) trait Message: Serialize + DeserializeOwned {
    /// Length of its encoding in bytes, at the most.
    const MAX: usize;
    /// Whether descriptors may come with it. Where not, the kernel keeps them from who receives.
    const HAS_DESCRIPTORS: bool = false;
}

/// Both ends of a new link.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends messages. The event loop watches its end only while the link is full: otherwise each message that is read at the
/// other end would wake this one.
pub(crate) struct Sender<M> {
    socket: OwnedFd,
    message: PhantomData<fn(M)>,
}

/// Receives messages, once an event loop runs.
pub(crate) struct Receiver<M> {
    socket: AsyncFd<OwnedFd>,
    assembly: Assembly,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Sender<M> {
    pub(crate) fn new(end: OwnedFd) -> Self {
        Self { socket: end, message: PhantomData }
    }

    /// Sends one message; waits while the link is full. Dropped while it waits, it leaves a message of several packets
    /// unfinished, and the link with it unusable; a message of one packet is sent or not.
    ///
    /// # Errors
    /// When nobody is at the other end, or the message is longer than it may be.
    pub(crate) async fn send(&self, message: &M) -> io::Result<()> {
        self.send_with(message, &[]).await
    }

    /// [`Sender::send`], with descriptors that the other end gets duplicates of.
    pub(crate) async fn send_with(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        for packet in packets(message)? {
            // They go with the last packet: a message is handed over when that has come.
            let carried = if is_last(&packet) { descriptors } else { &[] };
            if !self.offer(&packet, carried)? {
                self.send_when_there_is_room(&packet, carried).await?;
            }
        }
        Ok(())
    }

    /// Sends a message of one packet if there is room for it now; whether there was.
    ///
    /// # Errors
    /// As those of [`Sender::send`].
    pub(crate) fn send_now(&self, message: &M) -> io::Result<bool> {
        for packet in packets(message)? {
            if !self.offer(&packet, &[])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends a packet if there is room for it; whether there was.
    fn offer(&self, packet: &[u8], carried: &[BorrowedFd<'_>]) -> io::Result<bool> {
        match send_packet(self.socket.as_fd(), packet, carried) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn send_when_there_is_room(&self, packet: &[u8], carried: &[BorrowedFd<'_>]) -> io::Result<()> {
        // A duplicate: several may wait at once, and the event loop knows each descriptor once.
        let socket = readiness(self.socket.try_clone()?, Interest::WRITABLE)?;
        loop {
            let mut ready = socket.writable().await?;
            if let Ok(sent) = ready.try_io(|socket| send_packet(socket.as_fd(), packet, carried)) {
                return sent;
            }
        }
    }
}

impl<M> AsFd for Sender<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<M: Message> Receiver<M> {
    pub(crate) fn new(end: OwnedFd) -> io::Result<Self> {
        let socket = readiness(end, Interest::READABLE)?;
        Ok(Self { socket, assembly: Assembly::default(), message: PhantomData })
    }

    /// The next message, or `None` when nobody is at the other end any more. Nothing is lost when it is dropped while it
    /// waits.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for something that is no such message; the next call goes on behind it.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<M>> {
        Ok(self.receive_with().await?.map(|(message, _)| message))
    }

    /// [`Receiver::receive`], with the descriptors that have come with the message.
    pub(crate) async fn receive_with(&mut self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        loop {
            // Who sends without end does not keep other tasks from their turn.
            consume_budget().await;
            let mut ready = self.socket.readable().await?;
            let assembly = &mut self.assembly;
            match ready.try_io(|socket| assembly.receive_packet::<M>(socket.as_fd(), RecvFlags::DONTWAIT)) {
                Ok(Ok(Progress::More)) | Err(_) => {}
                Ok(Ok(Progress::Whole)) => return assembly.take().map(Some),
                Ok(Ok(Progress::Closed)) => return Ok(None),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// The next message if it is there already.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for something that is no such message.
    pub(crate) fn receive_now(&mut self) -> io::Result<Option<M>> {
        loop {
            let socket = self.socket.get_ref().as_fd();
            match self.assembly.receive_packet::<M>(socket, RecvFlags::DONTWAIT) {
                Ok(Progress::More) => {}
                Ok(Progress::Whole) => return self.assembly.take().map(|(message, _)| Some(message)),
                Ok(Progress::Closed) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits for one message without an event loop: the first one that a process is told, and the descriptors with it.
///
/// # Errors
/// When there is nobody at the other end, or what comes is no such message.
pub(crate) fn receive_first<M: Message>(end: BorrowedFd<'_>) -> io::Result<(M, Vec<OwnedFd>)> {
    let mut assembly = Assembly::default();
    loop {
        match assembly.receive_packet::<M>(end, RecvFlags::empty())? {
            Progress::More => {}
            Progress::Whole => return assembly.take(),
            Progress::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn packets<M: Message>(message: &M) -> io::Result<impl Iterator<Item = Zeroizing<Vec<u8>>>> {
    let body = Zeroizing::new(postcard::to_allocvec(message).map_err(io::Error::other)?);
    if body.len() > M::MAX {
        return Err(io::Error::other("a message longer than its link allows"));
    }
    let count = body.len().div_ceil(PACKET_LEN - HEADER_LEN).max(1);
    Ok((0..count).map(move |index| {
        let start = index * (PACKET_LEN - HEADER_LEN);
        let end = body.len().min(start + PACKET_LEN - HEADER_LEN);
        let mut packet = Zeroizing::new(Vec::with_capacity(HEADER_LEN + end - start));
        packet.extend_from_slice(&[VERSION, u8::from(index + 1 < count)]);
        packet.extend_from_slice(&body[start..end]);
        packet
    }))
}

fn is_last(packet: &[u8]) -> bool {
    packet[1] == 0
}

fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if descriptors.is_empty() {
        // By a call that can carry none: the front may make no other.
        send(socket, packet, flags)?;
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message carries"));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags)?;
    Ok(())
}

/// A message that is coming in.
#[derive(Default)]
struct Assembly {
    /// Room for a packet. To keep it costs less than to clear as much anew for each: only what came in is wiped.
    packet: Vec<u8>,
    body: Zeroizing<Vec<u8>>,
    descriptors: Vec<OwnedFd>,
}

enum Progress {
    More,
    Whole,
    Closed,
}

impl Assembly {
    fn receive_packet<M: Message>(
        &mut self,
        socket: BorrowedFd<'_>,
        flags: RecvFlags,
    ) -> io::Result<Progress> {
        self.packet.resize(PACKET_LEN, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(if M::HAS_DESCRIPTORS { &mut space } else { &mut [] });
        let iov = &mut [IoSliceMut::new(&mut self.packet)];
        let mut receive = || recvmsg(socket, iov, &mut control, flags | RecvFlags::CMSG_CLOEXEC);
        let received = match receive() {
            // The other end was closed, and not all was read there. What came from there before can still be read.
            Err(Errno::CONNRESET) => receive()?,
            received => received?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        // An empty packet looks like the end of the link, which nobody is to feign.
        if received.bytes == 0 && self.descriptors.is_empty() && is_closed(socket)? {
            return Ok(Progress::Closed);
        }
        let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let added = if cut { Err(invalid("a packet that was cut")) } else { self.add::<M>(received.bytes) };
        self.packet[..received.bytes].zeroize();
        if added.is_err() {
            (self.body, self.descriptors) = Default::default();
        }
        added
    }

    /// Adds a packet of such a length to the message.
    fn add<M: Message>(&mut self, len: usize) -> io::Result<Progress> {
        let Some((&[VERSION, more @ 0..=1], part)) = self.packet[..len].split_first_chunk() else {
            return Err(invalid("a packet that is none of this link's"));
        };
        // They come with the last packet: who sends others piles them up here.
        if self.descriptors.len() > DESCRIPTORS || (!self.descriptors.is_empty() && more != 0) {
            return Err(invalid("descriptors that no message has"));
        }
        if self.body.len() + part.len() > M::MAX {
            return Err(invalid("a message that is too long"));
        }
        self.body.extend_from_slice(part);
        Ok(if more == 1 { Progress::More } else { Progress::Whole })
    }

    /// Decodes what has come.
    fn take<M: Message>(&mut self) -> io::Result<(M, Vec<OwnedFd>)> {
        let (body, descriptors) = (std::mem::take(&mut self.body), std::mem::take(&mut self.descriptors));
        match postcard::take_from_bytes(&body) {
            Ok((message, [])) => Ok((message, descriptors)),
            _ => Err(invalid("a message that does not decode")),
        }
    }
}

/// Whether nobody is at the other end any more.
fn is_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut ends = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    poll(&mut ends, Some(&Timespec::default()))?;
    Ok(ends[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
