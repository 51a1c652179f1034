//! Rules as the kernel takes them, expression by expression, each with the words in which `nft` prints it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::Attributes;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_*`.
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`; `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NF_DROP`, `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`; `RTN_LOCAL`.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`
const ESTABLISHED: u32 = 2;
/// FIN, SYN, RST and ACK among the flags of TCP, and SYN alone.
const BEGINNING_FLAGS: u8 = 0x17;
const SYN: u8 = 0x02;
const TCP: u8 = 6;
/// `NFT_REJECT_ICMPX_PORT_UNREACH`
const PORT_UNREACHABLE: u8 = 1;

/// A rule, as far as it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    words: Vec<String>,
    expressions: Attributes,
}

/// What a rule looks up in a set, in the order of the set's key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
}

/// Where in a packet something stands (`enum nft_payload_bases`).
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

impl Rule {
    pub(super) fn expressions(&self) -> &Attributes {
        &self.expressions
    }

    /// What `nft` prints.
    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }

    /// The packet came over loopback.
    pub(super) fn over_loopback(self) -> Self {
        let name = [b"lo".as_slice(), &[0; 14]].concat();
        self.meta(libc::NFT_META_IIFNAME, 0).compare(libc::NFT_CMP_EQ, &name).word("iifname \"lo\"")
    }

    /// The packet is of this family: that of the address.
    pub(super) fn of_family(self, is_ipv4: bool) -> Self {
        self.family(is_ipv4).word(if is_ipv4 { "meta nfproto ipv4" } else { "meta nfproto ipv6" })
    }

    /// The packet is for this host.
    pub(super) fn for_this_host(self) -> Self {
        let fib =
            Attributes::default().be32(1, register(0)).be32(2, FIB_ADDRESS_TYPE).be32(3, FIB_DESTINATION);
        self.add("fib", &fib).compare(libc::NFT_CMP_EQ, &LOCAL.to_ne_bytes()).word("fib daddr type local")
    }

    /// The packet comes from this network.
    pub(super) fn out_of(self, network: &IpNet) -> Self {
        let (address, mask) = (octets(network.network()), octets(network.netmask()));
        let is_ipv4 = network.addr().is_ipv4();
        let (rule, length) = (self.family(is_ipv4), u32::try_from(mask.len()).expect("4 or 16"));
        let rule = rule.payload(Header::Network, if is_ipv4 { 12 } else { 8 }, length, 0);
        let whole = network.prefix_len() == network.max_prefix_len();
        let rule = if whole { rule } else { rule.mask(&mask) };
        let protocol = if is_ipv4 { "ip" } else { "ip6" };
        let source = if whole { network.addr().to_string() } else { network.trunc().to_string() };
        rule.compare(libc::NFT_CMP_EQ, &address).word(&format!("{protocol} saddr {source}"))
    }

    /// The packet belongs to a connection that connection tracking has seen going both ways.
    pub(super) fn established(self) -> Self {
        let state = Attributes::default().be32(1, register(0)).be32(2, number(libc::NFT_CT_STATE));
        self.add("ct", &state)
            .mask(&ESTABLISHED.to_ne_bytes())
            .compare(libc::NFT_CMP_NEQ, &[0; 4])
            .word("ct state established")
    }

    /// The packet is of TCP, and does not begin a connection.
    pub(super) fn begins_nothing(self) -> Self {
        self.meta(libc::NFT_META_L4PROTO, 0)
            .compare(libc::NFT_CMP_EQ, &[TCP])
            .payload(Header::Transport, 13, 1, 0)
            .mask(&[BEGINNING_FLAGS])
            .compare(libc::NFT_CMP_NEQ, &[SYN])
            .word("tcp flags != syn / fin,syn,rst,ack")
    }

    /// What the packet says in these fields is in a set. Addresses are those of a family: a packet of the other is not.
    pub(super) fn found_in(self, set: &str, fields: &[Field], is_ipv4: bool) -> Self {
        let names_address = fields.iter().any(|field| matches!(field, Field::Source | Field::Destination));
        let mut rule = if names_address { self.family(is_ipv4) } else { self };
        let (mut words, mut at) = (Vec::new(), 0);
        let is_tcp = !fields.iter().any(|field| matches!(field, Field::Protocol));
        let (ip, transport) = (if is_ipv4 { "ip" } else { "ip6" }, if is_tcp { "tcp" } else { "th" });
        let address = if is_ipv4 { 4 } else { 16 };
        for field in fields {
            let (after, length, word) = match field {
                Field::Source => {
                    let from = if is_ipv4 { 12 } else { 8 };
                    (rule.payload(Header::Network, from, address, at), address, format!("{ip} saddr"))
                }
                Field::Destination => {
                    let from = if is_ipv4 { 16 } else { 24 };
                    (rule.payload(Header::Network, from, address, at), address, format!("{ip} daddr"))
                }
                Field::Protocol => (rule.meta(libc::NFT_META_L4PROTO, at), 4, "meta l4proto".to_owned()),
                Field::SourcePort => {
                    (rule.payload(Header::Transport, 0, 2, at), 4, format!("{transport} sport"))
                }
                Field::DestinationPort => {
                    (rule.payload(Header::Transport, 2, 2, at), 4, format!("{transport} dport"))
                }
            };
            (rule, at) = (after, at + length / 4);
            words.push(word);
        }
        let lookup = Attributes::default().text(1, set).be32(2, register(0));
        rule.add("lookup", &lookup).word(&format!("{} @{set}", words.join(" . ")))
    }

    pub(super) fn accept(self) -> Self {
        self.verdict(ACCEPT, None).word("accept")
    }

    pub(super) fn drop(self) -> Self {
        self.verdict(DROP, None).word("drop")
    }

    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(number(libc::NFT_GOTO), Some(chain)).word(&format!("goto {chain}"))
    }

    /// A TCP packet is answered as by a closed port.
    pub(super) fn reset_tcp(self) -> Self {
        let reset = Attributes::default().be32(1, number(libc::NFT_REJECT_TCP_RST)).bytes(2, &[0]);
        self.meta(libc::NFT_META_L4PROTO, 0)
            .compare(libc::NFT_CMP_EQ, &[TCP])
            .add("reject", &reset)
            .word("meta l4proto tcp reject with tcp reset")
    }

    /// A packet is answered with ICMP's port unreachable.
    pub(super) fn port_unreachable(self) -> Self {
        let unreachable = Attributes::default()
            .be32(1, number(libc::NFT_REJECT_ICMPX_UNREACH))
            .bytes(2, &[PORT_UNREACHABLE]);
        self.add("reject", &unreachable).word("reject")
    }

    fn family(self, is_ipv4: bool) -> Self {
        let family = if is_ipv4 { libc::AF_INET } else { libc::AF_INET6 };
        let family = u8::try_from(family).expect("it is a small number");
        self.meta(libc::NFT_META_NFPROTO, 0).compare(libc::NFT_CMP_EQ, &[family])
    }

    fn meta(self, key: i32, at: u32) -> Self {
        self.add("meta", &Attributes::default().be32(2, number(key)).be32(1, register(at)))
    }

    fn payload(self, header: Header, offset: u32, length: u32, at: u32) -> Self {
        let payload = Attributes::default().be32(1, register(at)).be32(2, header as u32);
        self.add("payload", &payload.be32(3, offset).be32(4, length))
    }

    fn mask(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("a mask is short");
        let value = |value: &[u8]| Attributes::default().bytes(VALUE, value);
        let bitwise = Attributes::default()
            .be32(1, register(0))
            .be32(2, register(0))
            .be32(3, length)
            .nest(4, &value(mask))
            .nest(5, &value(&vec![0; mask.len()]));
        self.add("bitwise", &bitwise)
    }

    fn compare(self, operator: i32, with: &[u8]) -> Self {
        let value = Attributes::default().bytes(VALUE, with);
        let compare = Attributes::default().be32(1, register(0)).be32(2, number(operator)).nest(3, &value);
        self.add("cmp", &compare)
    }

    fn verdict(self, code: u32, chain: Option<&str>) -> Self {
        let verdict = Attributes::default().be32(VERDICT_CODE, code);
        let verdict = chain.map_or(verdict.clone(), |chain| verdict.text(VERDICT_CHAIN, chain));
        let data = Attributes::default().nest(VERDICT, &verdict);
        self.add("immediate", &Attributes::default().be32(1, 0).nest(2, &data))
    }

    fn add(mut self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
        self.expressions = self.expressions.nest(LIST_ELEMENT, &expression);
        self
    }

    fn word(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }
}

/// One of the registers of 32 bits; a key that is looked up lies in as many as it needs.
fn register(at: u32) -> u32 {
    number(libc::NFT_REG32_00) + at
}

const fn number(constant: i32) -> u32 {
    constant.cast_unsigned()
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
