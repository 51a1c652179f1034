//! Messages of `nf_tables` as bytes: what goes to the kernel is written, and what comes from it is read, attribute by
//! attribute (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`). Headers are in the machine's byte order; numbers in
//! attributes of `nf_tables` are big-endian.

use libc::c_int;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct nfgenmsg`, behind the header in every message of netfilter.
const FAMILY_LEN: usize = 4;
/// `struct nlattr`.
const ATTRIBUTE_LEN: usize = 4;
const ALIGNMENT: usize = 4;

/// `NLA_F_NESTED`: the attribute holds others.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are not flags.
const TYPE_MASK: u16 = 0x3fff;

/// `NFPROTO_INET`: both IPv4 and IPv6.
pub(super) const INET: u8 = 1;

/// What a message of `nf_tables` is about, and what it does (`enum nf_tables_msg_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u16);

impl Kind {
    pub(super) const NEW_TABLE: Self = Self::of(libc::NFT_MSG_NEWTABLE);
    pub(super) const GET_TABLE: Self = Self::of(libc::NFT_MSG_GETTABLE);
    pub(super) const DELETE_TABLE: Self = Self::of(libc::NFT_MSG_DELTABLE);
    pub(super) const NEW_CHAIN: Self = Self::of(libc::NFT_MSG_NEWCHAIN);
    pub(super) const GET_CHAIN: Self = Self::of(libc::NFT_MSG_GETCHAIN);
    pub(super) const NEW_RULE: Self = Self::of(libc::NFT_MSG_NEWRULE);
    pub(super) const GET_RULE: Self = Self::of(libc::NFT_MSG_GETRULE);
    pub(super) const NEW_SET: Self = Self::of(libc::NFT_MSG_NEWSET);
    pub(super) const GET_SET: Self = Self::of(libc::NFT_MSG_GETSET);
    pub(super) const NEW_ELEMENTS: Self = Self::of(libc::NFT_MSG_NEWSETELEM);
    pub(super) const GET_ELEMENTS: Self = Self::of(libc::NFT_MSG_GETSETELEM);
    pub(super) const DELETE_ELEMENTS: Self = Self::of(libc::NFT_MSG_DELSETELEM);
    pub(super) const NEW_GENERATION: Self = Self::of(libc::NFT_MSG_NEWGEN);
    /// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`: what is between them happens at once or not at all.
    pub(super) const BATCH_BEGIN: Self = Self(0x10);
    pub(super) const BATCH_END: Self = Self(0x11);

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both are small")]
    const fn of(message: c_int) -> Self {
        Self((libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message as u16)
    }
}

/// A message under way to the kernel. Its number is set when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: Kind,
    flags: u16,
    family: u8,
    attributes: Attributes,
}

impl Message {
    pub(super) fn new(kind: Kind, flags: c_int, family: u8, attributes: Attributes) -> Self {
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).expect("a message has 16 flags");
        Self { kind, flags, family, attributes }
    }

    pub(super) fn with_ack(mut self) -> Self {
        self.flags |= u16::try_from(libc::NLM_F_ACK).expect("a message has 16 flags");
        self
    }

    /// The beginning or the end of a transaction.
    pub(super) fn bracket(kind: Kind) -> Self {
        Self::new(kind, 0, 0, Attributes::default())
    }

    /// Writes it behind others.
    pub(super) fn write(&self, sequence: u32, to: &mut Vec<u8>) {
        let Self { kind: Kind(kind), flags, family, attributes: Attributes(attributes) } = self;
        let length = u32::try_from(HEADER_LEN + FAMILY_LEN + attributes.len());
        to.extend(length.expect("a message is shorter than 4 GB").to_ne_bytes());
        to.extend(kind.to_ne_bytes());
        to.extend(flags.to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        to.extend(0_u32.to_ne_bytes());
        // The last two: the subsystem, where the kind does not tell it.
        let subsystem = if *kind < 0x100 { libc::NFNL_SUBSYS_NFTABLES } else { 0 };
        let subsystem = u16::try_from(subsystem).expect("it is a small number");
        to.extend([*family, 0]);
        to.extend(subsystem.to_be_bytes());
        to.extend(attributes);
    }
}

/// Attributes, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_LEN + value.len()).expect("an attribute is shorter than 64 kB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Text, with the zero that the kernel wants at its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    kind: u16,
    flags: u16,
    pub(super) sequence: u32,
    /// The port of the socket on whose behalf it happened.
    pub(super) port: u32,
    body: &'a [u8],
}

/// What a message from the kernel is.
pub(super) enum Content<'a> {
    /// The answer to a request: 0, or the number of an error.
    Answer(i32),
    /// The end of a listing.
    Done,
    /// Something of `nf_tables`.
    Object {
        kind: Kind,
        family: u8,
        attributes: Read<'a>,
    },
    Other,
}

/// The messages that came at once, up to the first one that is cut off.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(word(0)).ok()?;
        let body = bytes.get(HEADER_LEN..length)?;
        let received = Received { kind: half(4), flags: half(6), sequence: word(8), port: word(12), body };
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(received)
    })
}

impl<'a> Received<'a> {
    pub(super) fn content(&self) -> Content<'a> {
        let answer = || Some(i32::from_ne_bytes(*self.body.first_chunk()?));
        match c_int::from(self.kind) {
            libc::NLMSG_ERROR => answer().map_or(Content::Other, Content::Answer),
            libc::NLMSG_DONE => Content::Done,
            _ => self.body.split_at_checked(FAMILY_LEN).map_or(Content::Other, |(head, attributes)| {
                Content::Object { kind: Kind(self.kind), family: head[0], attributes: Read(attributes) }
            }),
        }
    }

    /// Whether what is listed has changed in the course of it.
    pub(super) fn is_interrupted(&self) -> bool {
        c_int::from(self.flags) & libc::NLM_F_DUMP_INTR != 0
    }
}

/// Attributes from the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    /// All of them, up to the first one that is cut off.
    pub(super) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut bytes = self.0;
        std::iter::from_fn(move || {
            let [l0, l1, k0, k1] = *bytes.first_chunk::<ATTRIBUTE_LEN>()?;
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = bytes.get(ATTRIBUTE_LEN..length)?;
            bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
        })
    }

    /// The value of the first one of a type.
    pub(super) fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|&(other, _)| other == kind).map(|(_, value)| value)
    }

    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(kind)?.split(|&byte| byte == 0).next()?).ok()
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }

    pub(super) fn nest(self, kind: u16) -> Read<'a> {
        Read(self.bytes(kind).unwrap_or_default())
    }

    /// Those within each attribute of a list.
    pub(super) fn list(self) -> impl Iterator<Item = Read<'a>> {
        self.all().map(|(_, value)| Read(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nft --debug=mnl` prints what it sends for the same.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_message_is_written_as_nft_writes_it() {
        let key = Attributes::default().bytes(1, &[6, 0, 0, 0, 0, 22, 0, 0]);
        let element = Attributes::default().nest(1, &key);
        let attributes = Attributes::default()
            .text(1, "postern")
            .text(2, "kept")
            .be32(4, 2)
            .nest(3, &Attributes::default().nest(1, &element));
        let mut bytes = Vec::new();
        Message::new(Kind::NEW_ELEMENTS, 0, INET, attributes).write(8, &mut bytes);
        #[rustfmt::skip]
        let expected = [
            76, 0, 0, 0, 0x0c, 0x0a, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
            12, 0, 1, 0, b'p', b'o', b's', b't', b'e', b'r', b'n', 0,
            9, 0, 2, 0, b'k', b'e', b'p', b't', 0, 0, 0, 0,
            8, 0, 4, 0, 0, 0, 0, 2,
            24, 0, 3, 0x80, 20, 0, 1, 0x80, 16, 0, 1, 0x80, 12, 0, 1, 0, 6, 0, 0, 0, 0, 22, 0, 0,
        ];
        assert_eq!(bytes, expected);
        let mut bytes = Vec::new();
        Message::bracket(Kind::BATCH_BEGIN).write(1, &mut bytes);
        assert_eq!(bytes, [20, 0, 0, 0, 16, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let inner = Attributes::default().be32(7, 1).text(9, "within");
        let attributes =
            Attributes::default().be64(1, u64::MAX).bytes(2, b"odd").nest(3, &inner).text(4, "text");
        let mut bytes = Vec::new();
        for sequence in [5, 6] {
            Message::new(Kind::NEW_SET, 0, INET, attributes.clone()).write(sequence, &mut bytes);
        }
        assert_eq!(messages(&bytes).map(|message| message.sequence).collect::<Vec<_>>(), [5, 6]);
        let first = messages(&bytes).next().unwrap();
        let Content::Object { kind: Kind::NEW_SET, family: INET, attributes } = first.content() else {
            panic!("another kind");
        };
        assert_eq!((attributes.be64(1), attributes.bytes(2)), (Some(u64::MAX), Some(&b"odd"[..])));
        assert_eq!((attributes.text(4), attributes.be32(1)), (Some("text"), None), "the length counts");
        let inner = attributes.nest(3);
        assert_eq!((inner.be32(7), inner.text(9)), (Some(1), Some("within")));
        assert_eq!(attributes.nest(5).all().count(), 0);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let mut bytes = Vec::new();
        let attributes = Attributes::default().text(1, "the first").text(2, "seconds");
        Message::new(Kind::NEW_SET, 0, INET, attributes).write(1, &mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        let attributes = &bytes[HEADER_LEN + FAMILY_LEN..];
        for length in 0..attributes.len() {
            assert!(Read(&attributes[..length]).all().count() < 2, "{length}");
        }
    }
}
