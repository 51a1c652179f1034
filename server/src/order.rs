//! What the front asks of the warden, and what it has it know: all that one ever tells the other. It goes one way.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::{ANSWER_LEN, ClientId, ServiceName, Window};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::address::Way;
use crate::clock::BootTime;
use crate::counters::Counters;
use crate::link::{Message, PACKET_ROOM};

/// Leases that may live at a time, of all clients together: the front orders no more, and the warden grants no more.
pub(crate) const LIVE_LEASES: usize = 16_384;

/// What the front asks of the warden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Let a client's source in: the knock behind it is recorded.
    Open {
        /// Whose knock it was.
        client: ClientId,
        /// The services, each with the length of its window.
        services: Vec<(ServiceName, Window)>,
        /// Whom to let in.
        source: IpAddr,
        /// From this source port only.
        from_port: Option<NonZeroU16>,
        /// When the knock came: its windows begin then, however long the warden was away.
        decided: BootTime,
        /// To be sent once all of them are let in.
        answer: Option<SealedAnswer>,
    },
    /// End a client's leases for its source: the knock behind it is recorded.
    Close {
        /// Whose knock it was.
        client: ClientId,
        /// The services to close.
        services: Vec<ServiceName>,
        /// Whose leases end.
        source: IpAddr,
        /// To be sent once they have ended.
        answer: Option<SealedAnswer>,
    },
    /// Answer a knock of which nothing follows.
    Answer {
        /// Whose knock it was.
        client: ClientId,
        /// To be sent.
        answer: SealedAnswer,
    },
    /// Know this, for whoever asks how the gate does.
    Note(Note),
}

/// How the front does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) counters: Counters,
    /// The interfaces that it watches.
    pub(crate) interfaces: Vec<String>,
}

/// An answer for a client. The warden sends it, behind the order that it is about: the front can send nothing to anybody,
/// and the warden cannot read it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedAnswer {
    /// The way of the knock, which it goes back.
    pub(crate) way: Way,
    #[serde(serialize_with = "as_bytes", deserialize_with = "of_answer_len")]
    pub(crate) bytes: [u8; ANSWER_LEN],
}

impl fmt::Debug for SealedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedAnswer").field("way", &self.way).finish_non_exhaustive()
    }
}

fn as_bytes<S: Serializer>(bytes: &[u8; ANSWER_LEN], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

fn of_answer_len<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; ANSWER_LEN], D::Error> {
    let bytes = <&[u8]>::deserialize(deserializer)?;
    bytes.try_into().map_err(|_| de::Error::custom("not of an answer's size"))
}

/// What the front sends at once: the orders behind the knocks of one commit, to be carried out together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orders(pub(crate) Vec<Order>);

impl Order {
    /// Whose it is, and which services it names; nothing where it names none.
    pub(crate) fn asks(&self) -> Option<(ClientId, Vec<&ServiceName>)> {
        match self {
            Self::Open { client, services, .. } => {
                Some((*client, services.iter().map(|(service, _)| service).collect()))
            }
            Self::Close { client, services, .. } => Some((*client, services.iter().collect())),
            Self::Answer { .. } | Self::Note(_) => None,
        }
    }
}

impl Orders {
    /// Orders in one message, at the most.
    pub(crate) const AT_ONCE: usize = 40;
    /// Services in one message, at the most: a knock has a handful, and a sequence may have more.
    const SERVICES: usize = 512;

    /// How many of these orders go into one message; at least one.
    pub(crate) fn together(orders: &[Order]) -> usize {
        let mut services = 0;
        let fits = |order: &&Order| {
            services += order.asks().map_or(0, |(_, services)| services.len());
            services <= Self::SERVICES
        };
        orders.iter().take(Self::AT_ONCE).take_while(fits).count().max(1)
    }
}

const _: () =
    assert!(Orders::MAX <= PACKET_ROOM, "where the link is full, no part of a note may be left in it");

impl Message for Orders {
    /// One packet. An order that comes of a knock is shorter than 500 bytes, an answer with its way than 300, and a note of every
    /// counter and the most interfaces than 4096.
    const MAX: usize = 32 * 1024;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    /// The longest order that a knock can give: its services have names of 90 bytes with their lengths, one byte each.
    fn longest() -> Order {
        let services = (0..45).map(|number| {
            let name = char::from(b'0' + number % 10).to_string();
            (name.parse().expect("a name"), Window::from_secs(u32::MAX).expect("not zero"))
        });
        let address = SocketAddr::new(IpAddr::from([0xff; 16]), u16::MAX);
        let way = Way { from: address, to: address };
        Order::Open {
            client: ClientId::from_bytes([0xff; 8]),
            services: services.collect(),
            source: address.ip(),
            from_port: NonZeroU16::new(u16::MAX),
            decided: BootTime::from_boot(Duration::MAX),
            answer: Some(SealedAnswer { way, bytes: [0xff; ANSWER_LEN] }),
        }
    }

    #[test]
    fn a_message_holds_the_longest_orders() {
        let many: Vec<Order> = std::iter::repeat_with(longest).take(2 * Orders::AT_ONCE).collect();
        let together = Orders::together(&many);
        let len = |orders: &[Order]| postcard::to_allocvec(orders).expect("it encodes").len();
        assert!(together > 1 && len(&many[..together]) <= Orders::MAX, "{} bytes", len(&many[..together]));

        // One service each, with as long a name as there is: then the number of orders is what ends it.
        let one = |order| match order {
            Order::Open { client, source, from_port, decided, answer, .. } => {
                let name = "x".repeat(ServiceName::MAX_LEN).parse().expect("a name");
                let services = vec![(name, Window::from_secs(u32::MAX).expect("not zero"))];
                Order::Open { client, services, source, from_port, decided, answer }
            }
            other => other,
        };
        let many: Vec<Order> = many.into_iter().map(one).collect();
        let together = Orders::together(&many);
        assert!(together == Orders::AT_ONCE && len(&many[..together]) <= Orders::MAX);
    }
}
