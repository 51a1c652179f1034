//! Who sends what, and which doors open to whom.

use Difference::{FirstStepAgain, OneStart, OtherDoorsPort, PrefixDoor, Retransmission, Stranger};

/// Why posternd does something else than knockd, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// A wrong step that is the first one begins anew. knockd does not look at it again.
    FirstStepAgain,
    /// A SYN that the network or the kernel sends again is no step, and no wrong one.
    Retransmission,
    /// A door that is the beginning of another keeps nobody from the longer one.
    PrefixDoor,
    /// A port of another door is nothing to an attempt, and begins one there. In knockd it ends the attempt.
    OtherDoorsPort,
    /// What somebody else sends is nothing to an attempt. knockd forgets all of them with one that is over.
    Stranger,
    /// Whoever is let in already is let in for longer. knockd runs the command again, and the stop command twice.
    OneStart,
}

/// Packets, and the doors that open to them: each with its source, `a` or `b`.
pub(super) struct Schedule {
    pub(super) what: &'static str,
    pub(super) packets: &'static str,
    pub(super) knockd: &'static str,
    /// What posternd opens, where it is something else.
    pub(super) ours: Option<(Difference, &'static str)>,
}

const fn same(what: &'static str, packets: &'static str, opens: &'static str) -> Schedule {
    Schedule { what, packets, knockd: opens, ours: None }
}

const fn differs(
    what: &'static str,
    packets: &'static str,
    knockd: &'static str,
    why: Difference,
    ours: &'static str,
) -> Schedule {
    Schedule { what, packets, knockd, ours: Some((why, ours)) }
}

pub(super) const SCHEDULES: &[Schedule] = &[
    // One source, one door.
    same("all steps", "7000 8000 9000", "a:plain"),
    same("with pauses", "7000 100+8000 100+9000", "a:plain"),
    same("but the last", "7000 8000", ""),
    same("but the first", "8000 9000", ""),
    same("the last two swapped", "7000 9000 8000", ""),
    same("the first two swapped", "8000 7000 9000", ""),
    same("backwards", "9000 8000 7000", ""),
    same("one twice", "7000 8000 8000 9000", ""),
    same("a wrong one, and all steps", "8000 7000 8000 9000", "a:plain"),
    same("given up at the second, and all steps", "7000 9000 7000 8000 9000", "a:plain"),
    differs("the first twice", "7000 7000 8000 9000", "", FirstStepAgain, "a:plain"),
    differs("given up, and all steps", "7000 8000 7000 8000 9000", "", FirstStepAgain, "a:plain"),
    differs("the first sent again", "7000 =7000 8000 9000", "", Retransmission, "a:plain"),
    differs("the second sent again", "7000 8000 =8000 9000", "", Retransmission, "a:plain"),
    differs("the first sent again, late", "7000 8000 =7000 9000", "", Retransmission, "a:plain"),
    same("the last sent again", "7000 8000 9000 =9000", "a:plain"),
    same("a port twice", "8900 8900", "a:double"),
    same("a port twice, sent again only", "8900", ""),
    differs("a port twice, the first sent again", "8900 =8900", "a:double", Retransmission, ""),
    same("one step", "9100", "a:single"),
    same("all steps twice", "7000 8000 9000 7000 8000 9000", "a:plain a:plain"),
    differs("all steps twice, and the door open", "9610 9620 9610 9620", "a:kept a:kept", OneStart, "a:kept"),
    // Other ports.
    same("ports of no door between", "7000 80 8000 443 53u 9000", "a:plain"),
    same("a scan that ascends", "6999 7000 7001 7999 8000 8001 8999 9000 9001", "a:plain"),
    same("datagrams to its ports", "7000u 8000u 9000u", ""),
    same("datagrams to its ports between", "7000 7000u 8000 8000u 9000", "a:plain"),
    differs("another door's first between", "7000 8400 8000 9000", "", OtherDoorsPort, "a:plain"),
    differs("another door's last between", "7000 7300 8000 9000", "", OtherDoorsPort, "a:plain"),
    differs("another door between", "7000 8900 8900 8000 9000", "", OtherDoorsPort, "a:double a:plain"),
    differs("two doors in turns", "7000 8100 8000 8200u 9000 8300", "", OtherDoorsPort, "a:mixed a:plain"),
    same("a door behind another", "7000 8000 9000 8100 8200u 8300", "a:mixed a:plain"),
    differs("a door behind half of another", "7000 8000 8100 8200u 8300", "", OtherDoorsPort, "a:mixed"),
    // Doors that have something in common.
    same("the short one", "7100 7200", "a:short"),
    differs("the long one", "7100 7200 7300", "a:short", PrefixDoor, "a:long a:short"),
    same("the left one", "7400 7500 7600", "a:left"),
    same("the right one", "7400 7500 7700", "a:right"),
    same("neither left nor right", "7400 7500 7100", ""),
    same("a port of another, shared", "6000 8000", "a:shared"),
    differs("both that share a port", "7000 6000 8000 9000", "", OtherDoorsPort, "a:plain a:shared"),
    // Protocols.
    same("datagrams", "7800u 7900u", "a:udp"),
    differs("datagrams, the first twice", "7800u 7800u 7900u", "", FirstStepAgain, "a:udp"),
    same("SYNs in the place of datagrams", "7800 7900", ""),
    same("both", "8100 8200u 8300", "a:mixed"),
    same("both, the datagram as SYN", "8100 8200 8300", ""),
    same("both to one port", "8350u 8350", "a:protocols"),
    same("both to one port, swapped", "8350 8350u", ""),
    // Flags.
    same("ACKs in the place of SYNs", "7000/a 8000/a 9000/a", ""),
    same("ACKs between", "7000 7000/a 8000 9000/a 9000", "a:plain"),
    same("SYN and ACK, where SYN is enough", "7000/sa 8000/sa 9000/sa", "a:plain"),
    same("SYN and ACK, where ACK is not wanted", "9800/sa 9900/sa", ""),
    same("SYN, where ACK is not wanted", "9800 9900/a 9900", "a:first"),
    same("SYN, where ACK is wanted", "9600 9700", ""),
    same("SYN and ACK, where both are wanted", "9600/sa 9700 9700/sa", "a:synack"),
    same("FIN", "9400/f 9500/fa", "a:fin"),
    same("FIN, and SYN", "9400/f 9500/fs", ""),
    same("any flags", "9200/r 9300/pau", "a:anyflags"),
    differs("any flags, the first twice", "9200 9200/a 9300", "", FirstStepAgain, "a:anyflags"),
    // Time and place.
    same("in time", "8400 300+8500", "a:quick"),
    same("too late", "8400 2500+8500", ""),
    same("too late, and in time", "8400 2500+8500 8400 8500", "a:quick"),
    same("too late for one, in time for another", "8400 2500+7000 8000 9000", "a:plain"),
    same("to the target", "@8600 @8700", "a:elsewhere"),
    same("not to the target", "8600 8700", ""),
    same("half to the target", "@8600 8700", ""),
    same("to another address of the gate", "@7000 @8000 @9000", "a:plain"),
    same("to both addresses", "7000 @8000 9000", "a:plain"),
    // Two sources.
    same("each its own", "7000 b7000 8000 b8000 9000", "a:plain"),
    same("steps of two", "7000 b8000 9000", ""),
    differs("both", "7000 b7000 8000 b8000 9000 b9000", "a:plain", Stranger, "a:plain b:plain"),
    differs("the other goes wrong", "b7000 7000 b9000 8000 9000", "", Stranger, "a:plain"),
    differs(
        "the other goes through",
        "b7000 7000 b8000 b9000 8000 9000",
        "b:plain",
        Stranger,
        "a:plain b:plain",
    ),
    same("the other is too late, and before", "b8400 2500+7000 b8500 8000 9000", "a:plain"),
    differs("the other is too late meanwhile", "b8400 500+7000 2000+8000 9000", "", Stranger, "a:plain"),
];
