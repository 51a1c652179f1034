//! The socket filter: the same packets as the classic one ([`filter`](super::super::filter)), but of knocks only those
//! whose hint is in the set.
//!
//! ```text
//! packet ─▶ IP ─▶ UDP, our port, 256 bytes ─▶ the clock in the window? ─▶ unveil ─▶ hint in the set? ─▶ counted, dropped
//!            ╲                                    ╲ no                            ╲ yes
//!             ╲─▶ a step, a stray ─────────────────▶ admitted ◀────────────────────╱
//! ```
//! - Where an IP header begins depends on the socket: behind Ethernet's header, or at once on sockets that are shown no link
//!   layer (`any`) and links that have none.
//! - A tag that the kernel has taken out of a frame is in the packet's metadata, and counts; libpcap puts it back in later.
//! - A load past the end of a packet ends the program with a drop, so no offset here can be made to lie.
//! - Nothing is refused by the set while the kernel's clock is outside the window for which it is complete.

use Condition::{Different, Equal, Greater, GreaterOrEqual, Less, Shares};
use Operation::{Add, And, Move, Or, ShiftLeft, ShiftRight, Subtract, Xor};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Size::{Byte, Double, Half, Word};
use postern_proto::{GateKeys, KNOCK_LEN, Protocol};

use super::super::filter::{Sought, Touch};
use super::super::frame::{Link, MAX_TAGS};
use super::assembler::{Assembler, Condition, Helper, Label, Operation, Register, Size};
use super::maps::{FROM, Maps, UNTIL};
use crate::system::bpf::Instruction;

// The fields of `struct __sk_buff` (`linux/bpf.h`).
const LENGTH: i16 = 0;
const PACKET_TYPE: i16 = 4;
const PROTOCOL: i16 = 16;
const TAG_PRESENT: i16 = 20;

// Types of packets (`linux/if_packet.h`).
const OTHER_HOST: i32 = 3;
const OUTGOING: i32 = 4;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TAGS: [i32; 3] = [0x8100, 0x88a8, 0x9100];
const ETHERNET_PROTOCOL_AT: i32 = 12;

const TCP: i32 = 6;
const UDP: i32 = 17;
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const DESTINATION: i32 = 60;

const UDP_HEADER_LEN: i32 = 8;
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is 264")]
const UDP_LEN: i32 = UDP_HEADER_LEN + KNOCK_LEN as i32;

// The stack: the hint and the nonce of a knock, as they stand in it; then the key of a lookup.
const HINT_AT: i16 = -32;
const NONCE_AT: i16 = -24;
const KEY_AT: i16 = -40;
const HEAD_LEN: i32 = 32;

/// Bytes kept of what is admitted.
const WHOLE: i32 = super::super::capture::SNAPLEN;

/// The filter for what is sought on such a link.
pub(super) fn program(link: Link, sought: &Sought, keys: &GateKeys, maps: &Maps) -> Vec<Instruction> {
    let mut code = Assembler::default();
    let (knock, refuse, admit) = (code.label(), code.label(), code.label());
    let writer = Writer { link, sought, keys, maps, knock, refuse, admit };
    let (ipv4, ipv6) = (code.label(), code.label());
    let (udp, tcp) = (code.label(), code.label());
    writer.link_layer(&mut code, ipv4, ipv6);
    writer.ipv4(&mut code, ipv4, udp, tcp);
    writer.ipv6(&mut code, ipv6, udp, tcp);
    writer.udp(&mut code, udp);
    writer.tcp(&mut code, tcp);
    writer.knock(&mut code);
    code.place(admit);
    code.compute(Move, R0, WHOLE);
    code.exit();
    code.place(refuse);
    code.compute(Move, R0, 0);
    code.exit();
    code.finish()
}

/// R6 is the packet, R7 where in it the program is, R8 and R9 what it remembers of the headers before.
struct Writer<'a> {
    link: Link,
    sought: &'a Sought,
    keys: &'a GateKeys,
    maps: &'a Maps,
    knock: Label,
    refuse: Label,
    admit: Label,
}

impl Writer<'_> {
    /// To the IP header: R7.
    fn link_layer(&self, code: &mut Assembler, ipv4: Label, ipv6: Label) {
        let by_protocol = code.label();
        code.compute(Move, R6, R1);
        // libpcap would throw away what this host sent.
        code.load(Word, R0, R6, PACKET_TYPE);
        code.jump_if_word(R0, Equal, OUTGOING, self.refuse);
        match self.link {
            Link::Ethernet => {
                // R8: tags so far.
                code.load(Word, R8, R6, TAG_PRESENT);
                code.compute(Move, R7, ETHERNET_PROTOCOL_AT);
                for _ in 0..MAX_TAGS {
                    let tagged = code.label();
                    code.load_packet(Half, R7, 0);
                    for tag in TAGS {
                        code.jump_if_word(R0, Equal, tag, tagged);
                    }
                    code.jump(by_protocol);
                    code.place(tagged);
                    code.compute(Add, R8, 1);
                    code.jump_if_word(R8, Greater, number(MAX_TAGS), self.refuse);
                    code.compute(Add, R7, 4);
                }
                code.load_packet(Half, R7, 0);
                code.place(by_protocol);
                code.compute(Add, R7, 2);
                code.jump_if_word(R0, Equal, i32::from(IPV4), ipv4);
                code.jump_if_word(R0, Equal, i32::from(IPV6), ipv6);
            }
            Link::Cooked | Link::Cooked2 => {
                code.jump_if_word(R0, Equal, OTHER_HOST, self.refuse);
                code.compute(Move, R7, 0);
                // As it stands in memory.
                code.load(Word, R0, R6, PROTOCOL);
                code.jump_if_word(R0, Equal, i32::from(IPV4.to_be()), ipv4);
                code.jump_if_word(R0, Equal, i32::from(IPV6.to_be()), ipv6);
            }
            Link::Raw | Link::Loopback => {
                code.compute(Move, R7, if self.link == Link::Raw { 0 } else { 4 });
                code.load_packet(Byte, R7, 0);
                code.compute(ShiftRight, R0, 4);
                code.jump_if_word(R0, Equal, 4, ipv4);
                code.jump_if_word(R0, Equal, 6, ipv6);
            }
        }
        code.jump(self.refuse);
    }

    /// To the transport header: R7; R9 is what IP says its length is, R8 that there is no extension before it.
    fn ipv4(&self, code: &mut Assembler, ipv4: Label, udp: Label, tcp: Label) {
        code.place(ipv4);
        // The version, and five words at least.
        code.load_packet(Byte, R7, 0);
        code.jump_if_word(R0, Less, 0x45, self.refuse);
        code.jump_if_word(R0, GreaterOrEqual, 0x50, self.refuse);
        code.compute(And, R0, 15);
        code.compute(ShiftLeft, R0, 2);
        code.compute(Move, R8, R0);
        // No fragment: neither "more fragments" nor an offset.
        code.load_packet(Half, R7, 6);
        code.jump_if_word(R0, Shares, 0x3fff, self.refuse);
        code.load_packet(Half, R7, 2);
        code.compute(Move, R9, R0);
        code.compute(Subtract, R9, R8);
        code.load_packet(Byte, R7, 9);
        code.compute(Add, R7, R8);
        code.compute(Move, R8, 1);
        code.jump_if_word(R0, Equal, UDP, udp);
        code.jump_if_word(R0, Equal, TCP, tcp);
        code.jump(self.refuse);
    }

    /// The same, behind up to two extension headers: each says what comes next (byte 0), and how many units of eight bytes
    /// it has beyond the first (byte 1).
    fn ipv6(&self, code: &mut Assembler, ipv6: Label, udp: Label, tcp: Label) {
        code.place(ipv6);
        code.load_packet(Byte, R7, 0);
        code.compute(ShiftRight, R0, 4);
        code.jump_if_word(R0, Different, 6, self.refuse);
        code.load_packet(Half, R7, 4);
        code.compute(Move, R9, R0);
        code.load_packet(Byte, R7, 6);
        code.compute(Add, R7, 40);
        code.compute(Move, R8, 1);
        code.jump_if_word(R0, Equal, UDP, udp);
        code.jump_if_word(R0, Equal, TCP, tcp);
        // Hop-by-hop is allowed in the first place only (RFC 8200, section 4.1).
        for allowed in [&[HOP_BY_HOP, ROUTING, DESTINATION][..], &[ROUTING, DESTINATION]] {
            let extension = code.label();
            for &header in allowed {
                code.jump_if_word(R0, Equal, header, extension);
            }
            code.jump(self.refuse);
            code.place(extension);
            code.load_packet(Byte, R7, 1);
            code.compute(Add, R0, 1);
            code.compute(ShiftLeft, R0, 3);
            code.compute(Move, R8, R0);
            code.load_packet(Byte, R7, 0);
            code.compute(Add, R7, R8);
            code.compute(Subtract, R9, R8);
            code.compute(Move, R8, 0);
            code.jump_if_word(R0, Equal, UDP, udp);
        }
        code.jump(self.refuse);
    }

    /// One of our ports and the length of a knock, by both headers; or else a step.
    fn udp(&self, code: &mut Assembler, udp: Label) {
        let no_knock = code.label();
        code.place(udp);
        // The port and the length.
        code.load_packet(Word, R7, 2);
        code.jump_if_word(R9, Different, UDP_LEN, no_knock);
        for port in &self.sought.knocks {
            let both = (i32::from(port.get()) << 16) | UDP_LEN;
            code.jump_if_word(R0, Equal, both, self.knock);
        }
        code.place(no_knock);
        // No step is looked for behind extension headers.
        code.jump_if_word(R8, Equal, 0, self.refuse);
        if self.sought.strays {
            code.jump(self.admit);
            return;
        }
        code.compute(ShiftRight, R0, 16);
        code.compute(Move, R8, R0);
        self.touches(code, Protocol::Udp);
        code.jump(self.refuse);
    }

    /// The beginning of a connection, or a step.
    fn tcp(&self, code: &mut Assembler, tcp: Label) {
        code.place(tcp);
        code.load_packet(Half, R7, 2);
        code.compute(Move, R8, R0);
        code.load_packet(Byte, R7, 13);
        code.compute(Move, R9, R0);
        if self.sought.strays {
            self.flags(code, (0x02, 0x10), self.admit);
        }
        self.touches(code, Protocol::Tcp);
        code.jump(self.refuse);
    }

    /// Admits steps: R8 is the port, R9 are the flags.
    fn touches(&self, code: &mut Assembler, protocol: Protocol) {
        for Touch { protocol: _, ports: (first, last), flags } in self.sought.touches(protocol) {
            let another = code.label();
            code.jump_if_word(R8, Less, i32::from(first.get()), another);
            code.jump_if_word(R8, Greater, i32::from(last.get()), another);
            match protocol {
                Protocol::Udp => code.jump(self.admit),
                Protocol::Tcp => self.flags(code, flags, self.admit),
            }
            code.place(another);
        }
    }

    /// Jumps if these flags of R9 are set, and those are clear.
    #[expect(clippy::unused_self, reason = "a step like the others")]
    fn flags(&self, code: &mut Assembler, (set, clear): (u8, u8), to: Label) {
        code.compute(Move, R0, R9);
        code.compute(And, R0, i32::from(set | clear));
        code.jump_if_word(R0, Equal, i32::from(set), to);
    }

    /// A knock, by its shape. It is ours if its hint is in the set.
    fn knock(&self, code: &mut Assembler) {
        code.place(self.knock);
        // It is here to its end.
        code.compute(Move, R0, R7);
        code.compute(Add, R0, UDP_LEN);
        code.load(Word, R1, R6, LENGTH);
        code.jump_if_word(R1, Less, R0, self.refuse);
        self.while_complete(code);
        // Hint and nonce, which a network card may have left in another page than the headers.
        code.compute(Move, R1, R6);
        code.compute(Move, R2, R7);
        code.compute(Add, R2, UDP_HEADER_LEN);
        code.compute(Move, R3, R10);
        code.compute(Add, R3, i32::from(HINT_AT));
        code.compute(Move, R4, HEAD_LEN);
        code.call(Helper::LoadBytes);
        code.jump_if(R0, Different, 0, self.refuse);
        unveil(code, self.keys);
        // In the set?
        code.map(R1, &self.maps.hints);
        code.compute(Move, R2, R10);
        code.compute(Add, R2, i32::from(HINT_AT));
        code.call(Helper::MapLookup);
        code.jump_if(R0, Different, 0, self.admit);
        // One more that the gate need not see.
        look_up(code, &self.maps.refused, 0);
        code.jump_if(R0, Equal, 0, self.refuse);
        code.compute(Move, R1, 1);
        code.add_atomically(R0, R1);
        code.jump(self.refuse);
    }

    /// Admits it while the set is not complete for what the clock shows. The window is looked at before the set is: what is
    /// taken out of the set meanwhile was valid no more.
    fn while_complete(&self, code: &mut Assembler) {
        code.call(Helper::Tai);
        code.compute(Move, R8, R0);
        for (bound, outside) in [(FROM, Less), (UNTIL, GreaterOrEqual)] {
            look_up(code, &self.maps.window, bound);
            code.jump_if(R0, Equal, 0, self.admit);
            code.load(Double, R1, R0, 0);
            code.jump_if(R8, outside, R1, self.admit);
        }
    }
}

/// R0 is where a number of an array is.
fn look_up(code: &mut Assembler, map: &impl std::os::fd::AsRawFd, index: u32) {
    code.store(Word, R10, KEY_AT, index.cast_signed());
    code.map(R1, map);
    code.compute(Move, R2, R10);
    code.compute(Add, R2, i32::from(KEY_AT));
    code.call(Helper::MapLookup);
}

/// The four words that SipHash mixes.
const STATE: [Register; 4] = [R0, R1, R2, R3];
/// Where its rotations put what they shift.
const SHIFTED: Register = R4;
const MESSAGE: Register = R5;

/// Takes the veil off the hint on the stack: XOR with SipHash-2-4 of the nonce (SPEC 3.2).
fn unveil(code: &mut Assembler, keys: &GateKeys) {
    let (low, high) = keys.veil_key().split_at(8);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
    let (k0, k1) = (word(low), word(high));
    for (register, (key, constant)) in STATE.into_iter().zip([
        (k0, 0x736f_6d65_7073_6575),
        (k1, 0x646f_7261_6e64_6f6d),
        (k0, 0x6c79_6765_6e65_7261),
        (k1, 0x7465_6462_7974_6573),
    ]) {
        code.constant(register, key ^ constant);
    }
    // The nonce: three words, little-endian.
    for at in [0, 8, 16] {
        code.load(Double, MESSAGE, R10, NONCE_AT + at);
        code.little_endian(MESSAGE);
        compress(code);
    }
    // The last word: no byte is left, and its highest is the length.
    code.constant(MESSAGE, 24 << 56);
    compress(code);
    // The end: four rounds.
    code.compute(Xor, STATE[2], 0xff);
    (0..4).for_each(|_| round(code));
    STATE[1..].iter().for_each(|&word| code.compute(Xor, STATE[0], word));
    // The hint, under its veil and then without.
    code.little_endian(STATE[0]);
    code.load(Double, MESSAGE, R10, HINT_AT);
    code.compute(Xor, STATE[0], MESSAGE);
    code.store(Double, R10, HINT_AT, STATE[0]);
}

/// A word goes in: two rounds.
fn compress(code: &mut Assembler) {
    code.compute(Xor, STATE[3], MESSAGE);
    (0..2).for_each(|_| round(code));
    code.compute(Xor, STATE[0], MESSAGE);
}

/// SipHash's round.
fn round(code: &mut Assembler) {
    let [v0, v1, v2, v3] = STATE;
    mix(code, v0, v1, 13);
    rotate(code, v0, 32);
    mix(code, v2, v3, 16);
    mix(code, v0, v3, 21);
    mix(code, v2, v1, 17);
    rotate(code, v2, 32);
}

/// `one += other; other = rotated(other, by) ^ one`
fn mix(code: &mut Assembler, one: Register, other: Register, by: i32) {
    code.compute(Add, one, other);
    rotate(code, other, by);
    code.compute(Xor, other, one);
}

fn rotate(code: &mut Assembler, register: Register, by: i32) {
    code.compute(Move, SHIFTED, register);
    code.compute(ShiftRight, SHIFTED, 64 - by);
    code.compute(ShiftLeft, register, by);
    code.compute(Or, register, SHIFTED);
}

fn number(count: usize) -> i32 {
    i32::try_from(count).expect("a small number")
}
