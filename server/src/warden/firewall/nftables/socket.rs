//! The one netlink socket over which `nf_tables` is written and read. A transaction happens at once or not at all, and
//! every refusal in it is told; the kernel carries it out while it is sent, so that nobody waits for an answer.

use std::io;
use std::time::Duration;

use libc::c_int;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Netlink, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::netlink::{Attributes, Content, INET, Kind, Message, Read, Received, messages};

/// What is received at once, at the most: the kernel fills no larger one.
const RECEIVE: usize = 64 * 1024;
/// Room for the answers to a transaction in which everything is refused; there is one a message.
const ANSWERS: usize = 4 * 1024 * 1024;
/// Longest wait for one part of a listing. The kernel makes it while it is asked for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often something is listed anew that changes in the course of it.
const LISTINGS: usize = 20;

/// The socket.
pub(super) struct Socket {
    netlink: Netlink,
    port: u32,
    sequence: u32,
    /// The largest transaction that it has room for.
    room: usize,
    buffer: Vec<u8>,
}

/// What the kernel refuses of a transaction; nothing of it has happened then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The message, by its place in the transaction; `None` where it is none of them alone.
    pub(super) message: Option<usize>,
    pub(super) error: Errno,
}

impl Socket {
    /// # Errors
    /// When the kernel has no netfilter, or there is no socket left.
    pub(super) fn open() -> io::Result<Self> {
        let mut netlink = Netlink::new(NETLINK_NETFILTER)?;
        let port = netlink.bind_auto()?.port_number();
        netlink.connect(&SocketAddr::new(0, 0))?;
        // An answer need not hold what it is an answer to.
        netlink.set_cap_ack(true)?;
        sockopt::set_socket_timeout(&netlink, sockopt::Timeout::Recv, Some(PATIENCE))?;
        sockopt::set_socket_recv_buffer_size_force(&netlink, ANSWERS)?;
        Ok(Self { netlink, port, sequence: 0, room: 0, buffer: Vec::new() })
    }

    /// By which others' changes can be told from its own.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Carries out all of these or none.
    ///
    /// # Errors
    /// Everything that the kernel refuses, in order.
    pub(super) fn transact(&mut self, batch: Vec<Message>) -> Result<(), Vec<Refused>> {
        let failed = |error: io::Error| {
            vec![Refused { message: None, error: Errno::from_io_error(&error).unwrap_or(Errno::IO) }]
        };
        let mut bytes = Vec::new();
        let first = self.number(batch.len() + 2);
        let last = batch.len();
        let mut sequence = first;
        let mut write = |message: &Message| {
            message.write(sequence, &mut bytes);
            sequence = sequence.wrapping_add(1);
        };
        write(&Message::bracket(Kind::BATCH_BEGIN));
        for (index, message) in batch.into_iter().enumerate() {
            // That the last one is answered tells that the answers are complete.
            write(&if index + 1 == last { message.with_ack() } else { message });
        }
        write(&Message::bracket(Kind::BATCH_END));
        self.make_room(bytes.len()).map_err(failed)?;
        self.netlink.send(&bytes, 0).map_err(failed)?;
        self.answers(first, last).map_err(failed)?
    }

    /// Reads the answers to a transaction of so many messages; the first one's number is that of its beginning.
    fn answers(&mut self, first: u32, messages_sent: usize) -> io::Result<Result<(), Vec<Refused>>> {
        let (mut refused, mut complete) = (Vec::new(), false);
        while self.receive(libc::MSG_DONTWAIT)? {
            for received in messages(&self.buffer) {
                let Content::Answer(answer) = received.content() else { continue };
                let place = usize::try_from(received.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if place > messages_sent + 1 {
                    continue;
                }
                if answer == 0 {
                    complete |= place == messages_sent;
                } else {
                    let message = place.checked_sub(1).filter(|&place| place < messages_sent);
                    refused.push(Refused { message, error: Errno::from_raw_os_error(answer.wrapping_neg()) });
                }
            }
        }
        if refused.is_empty() && !complete {
            return Err(io::Error::from(Errno::NOMSG));
        }
        Ok(if refused.is_empty() { Ok(()) } else { Err(refused) })
    }

    /// Asks for everything of a kind in our table, or in all; hands it over, and starts over with `begin` where it changes
    /// meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses, or it changes all the time.
    pub(super) fn list<T>(
        &mut self,
        kind: Kind,
        what: &Attributes,
        begin: impl Fn() -> T,
        mut each: impl FnMut(&mut T, Read<'_>),
    ) -> io::Result<T> {
        for _ in 0..LISTINGS {
            let sequence = self.ask(kind, libc::NLM_F_DUMP, INET, what)?;
            let (mut listed, mut interrupted, mut done) = (begin(), false, None);
            while done.is_none() {
                self.receive(0)?;
                for received in messages(&self.buffer).filter(|received| received.sequence == sequence) {
                    interrupted |= received.is_interrupted();
                    match received.content() {
                        Content::Object { attributes, family: INET, .. } => each(&mut listed, attributes),
                        Content::Done => done = Some(Ok(())),
                        Content::Answer(error) => {
                            done = Some(Err(io::Error::from_raw_os_error(error.wrapping_neg())));
                        }
                        Content::Object { .. } | Content::Other => {}
                    }
                }
            }
            match done {
                // The listing of a set says so in words.
                Some(Err(error)) if Errno::from_io_error(&error) == Some(Errno::INTR) => {}
                Some(Err(error)) => return Err(error),
                _ if interrupted => {}
                _ => return Ok(listed),
            }
        }
        Err(io::Error::from(Errno::AGAIN))
    }

    /// Whether the kernel has a thing of this kind and these names.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn has(&mut self, kind: Kind, family: u8, what: &Attributes) -> io::Result<bool> {
        let sequence = self.ask(kind, 0, family, what)?;
        loop {
            self.receive(0)?;
            let mut answers = messages(&self.buffer).filter(|received| received.sequence == sequence);
            if let Some(answer) = answers.next() {
                return match answer.content() {
                    Content::Object { .. } => Ok(true),
                    Content::Answer(error) if error.wrapping_neg() == Errno::NOENT.raw_os_error() => {
                        Ok(false)
                    }
                    Content::Answer(error) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    Content::Done | Content::Other => Err(io::Error::from(Errno::NOMSG)),
                };
            }
        }
    }

    fn ask(&mut self, kind: Kind, flags: c_int, family: u8, what: &Attributes) -> io::Result<u32> {
        let sequence = self.number(1);
        let mut bytes = Vec::new();
        Message::new(kind, flags, family, what.clone()).write(sequence, &mut bytes);
        self.netlink.send(&bytes, 0)?;
        Ok(sequence)
    }

    /// The first of so many numbers that no message had lately.
    fn number(&mut self, messages: usize) -> u32 {
        let first = self.sequence;
        let count = u32::try_from(messages).expect("a transaction is far smaller");
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Receives one datagram; `false` where there is none and nobody waits for one.
    fn receive(&mut self, flags: c_int) -> io::Result<bool> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE);
        match self.netlink.recv(&mut self.buffer, flags) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && flags != 0 => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::from(io::ErrorKind::TimedOut))
            }
            Err(error) => Err(error),
        }
    }

    /// A transaction is sent as one datagram, which has to fit into the socket's room.
    fn make_room(&mut self, length: usize) -> io::Result<()> {
        if length > self.room {
            let room = length.next_power_of_two().max(RECEIVE);
            sockopt::set_socket_send_buffer_size_force(&self.netlink, room)?;
            self.room = room;
        }
        Ok(())
    }
}

/// Whether what is told of here was done over another socket than the one of this port, in the table of this name.
pub(super) fn is_of_others(received: &Received<'_>, port: u32, table: &str) -> bool {
    /// In every object but a generation, the first attribute is the table's name.
    const TABLE: u16 = 1;
    let Content::Object { kind, family, attributes } = received.content() else { return false };
    received.port != port
        && kind != Kind::NEW_GENERATION
        && family == INET
        && attributes.text(TABLE) == Some(table)
}
