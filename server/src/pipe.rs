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
pub(crate) struct OrderReceiver(OwnedReadHalf);

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
        Self(stream.into_split().0)
    }

    /// The next order, or `None` when the front has closed the pipe.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a frame that is too long or does not decode: the front is not what it was.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Order>> {
        let mut len = [0; 2];
        match self.0.read_exact(&mut len).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let len = usize::from(u16::from_be_bytes(len));
        if len > MAX_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an order longer than the pipe allows"));
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).await?;
        match postcard::take_from_bytes(&body) {
            Ok((order, [])) => Ok(Some(order)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an order that does not decode")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn orders_arrive_whole_and_in_order_and_junk_is_an_error() {
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

        sender.0.write_all(&[0, 1, 9]).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        sender.0.write_all(&[0xff, 0xff]).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(sender);
        assert_eq!(receiver.receive().await.unwrap(), None);
    }
}
