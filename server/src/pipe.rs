//! The pipe between front and warden: all that one ever tells the other. One direction, bounded frames: two bytes of
//! length, then one postcard [`Order`].

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::{ClientId, ServiceName, Window};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Leases that may live at a time, of all clients together: the front orders no more, and the warden grants no more.
pub(crate) const LIVE_LEASES: usize = 16_384;
/// Longest order in bytes: an open of as many services as fit a knock is far below it.
const MAX_LEN: usize = 1024;

/// What the front asks of the warden, once the knock behind it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Let a client's source in.
    Open {
        /// Whose knock it was.
        client: ClientId,
        /// The services, each with the length of its window.
        services: Vec<(ServiceName, Window)>,
        /// Whom to let in.
        source: IpAddr,
        /// From this source port only.
        from_port: Option<NonZeroU16>,
    },
    /// End a client's leases for its source.
    Close {
        /// Whose knock it was.
        client: ClientId,
        /// The services to close.
        services: Vec<ServiceName>,
        /// Whose leases end.
        source: IpAddr,
    },
}

/// The front's end.
pub(crate) struct OrderSender(OwnedWriteHalf);

/// The warden's end.
pub(crate) struct OrderReceiver {
    stream: OwnedReadHalf,
    /// What has arrived of the frames to come.
    buffer: Vec<u8>,
}

impl OrderSender {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream.into_split().1)
    }

    /// Sends one order; waits while the pipe is full.
    ///
    /// # Errors
    /// When the warden is gone.
    pub(crate) async fn send(&mut self, order: &Order) -> io::Result<()> {
        let body = postcard::to_allocvec(order).map_err(io::Error::other)?;
        let len = u16::try_from(body.len()).ok().filter(|&len| usize::from(len) <= MAX_LEN);
        let len = len.ok_or_else(|| io::Error::other("an order longer than the pipe allows"))?;
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        self.0.write_all(&frame).await
    }
}

impl OrderReceiver {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream: stream.into_split().0, buffer: Vec::with_capacity(2 + MAX_LEN) }
    }

    /// The next order, or `None` when the front has closed the pipe. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a frame that is too long or does not decode: the front is not what it was.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Order>> {
        loop {
            if let Some(order) = self.take()? {
                return Ok(Some(order));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let whole = self.buffer.is_empty();
                return if whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Takes one order from what has arrived.
    fn take(&mut self) -> io::Result<Option<Order>> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let Some((&len, rest)) = self.buffer.split_first_chunk() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(len));
        if len > MAX_LEN {
            return invalid("an order longer than the pipe allows");
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let Ok((order, [])) = postcard::take_from_bytes(body) else {
            return invalid("an order that does not decode");
        };
        self.buffer.drain(..2 + len);
        Ok(Some(order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn orders_arrive_whole_and_in_order() {
        let (front, warden) = UnixStream::pair().unwrap();
        let (mut sender, mut receiver) = (OrderSender::new(front), OrderReceiver::new(warden));
        let name = |i: usize| format!("{}{i}", "x".repeat(28)).parse().unwrap();
        let open = Order::Open {
            client: ClientId::from_bytes([1; 8]),
            services: (0..3).map(|i| (name(i), Window::DEFAULT)).collect(),
            source: "2001:db8::1".parse().unwrap(),
            from_port: NonZeroU16::new(65535),
        };
        let close = Order::Close {
            client: ClientId::from_bytes([2; 8]),
            services: vec![name(0)],
            source: "192.0.2.1".parse().unwrap(),
        };
        sender.send(&open).await.unwrap();
        sender.send(&close).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap(), Some(open));
        assert_eq!(receiver.receive().await.unwrap(), Some(close));

        drop(sender);
        assert_eq!(receiver.receive().await.unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_order_that_comes_in_pieces_survives_a_receiver_that_is_dropped_in_between() {
        let (front, warden) = UnixStream::pair().unwrap();
        let (mut front, mut receiver) = (OrderSender::new(front), OrderReceiver::new(warden));
        let source = "192.0.2.1".parse().unwrap();
        let order = Order::Close { client: ClientId::from_bytes([2; 8]), services: vec![], source };
        let body = postcard::to_allocvec(&order).unwrap();
        let mut frame = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        for piece in frame.chunks(1) {
            let early = tokio::time::timeout(std::time::Duration::ZERO, receiver.receive()).await;
            assert!(early.is_err(), "an order before its last byte");
            front.0.write_all(piece).await.unwrap();
        }
        assert_eq!(receiver.receive().await.unwrap(), Some(order));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn junk_is_an_error() {
        for junk in [&[0, 1, 9][..], &[0xff, 0xff], &[0, 0]] {
            let (front, warden) = UnixStream::pair().unwrap();
            let (mut front, mut receiver) = (OrderSender::new(front), OrderReceiver::new(warden));
            front.0.write_all(junk).await.unwrap();
            assert_eq!(receiver.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let (front, warden) = UnixStream::pair().unwrap();
        let (mut front, mut receiver) = (OrderSender::new(front), OrderReceiver::new(warden));
        front.0.write_all(&[0]).await.unwrap();
        drop(front);
        assert_eq!(receiver.receive().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
