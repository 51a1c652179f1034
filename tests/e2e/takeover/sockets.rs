//! Attempts at sockets: new ones, and those that a process holds.

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, F_DUPFD, F_DUPFD_CLOEXEC, SOCK_DGRAM, SOCK_RAW,
    SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use postern_tests::debugger::{Argument, Value};

use super::attempts::Attempts;
use super::scene::{ABSTRACT_NAME, Subject};

/// Makes x32, the other ABI of 64-bit x86, of a call's number.
const X32: libc::c_long = 0x4000_0000;

/// Sockets of every kind, for a process that makes none.
pub(super) fn any(attempts: &mut Attempts) {
    for (what, family, kind, protocol) in [
        ("TCP", AF_INET, SOCK_STREAM, 0),
        ("TCP over IPv6", AF_INET6, SOCK_STREAM, 0),
        ("raw IP", AF_INET, SOCK_RAW, libc::IPPROTO_RAW),
        ("raw ICMP", AF_INET, SOCK_RAW, libc::IPPROTO_ICMP),
        ("packet", AF_PACKET, SOCK_RAW, 0),
        ("the firewall's netlink", AF_NETLINK, SOCK_RAW, libc::NETLINK_NETFILTER),
        ("the network's netlink", AF_NETLINK, SOCK_RAW, libc::NETLINK_ROUTE),
        ("local stream", AF_UNIX, SOCK_STREAM, 0),
        ("local datagram", AF_UNIX, SOCK_DGRAM, 0),
    ] {
        attempts.refused(format!("socket: {what}"), libc::SYS_socket, &[&family, &kind, &protocol]);
    }
    let udp = attempts.refused("socket: UDP", libc::SYS_socket, &[&AF_INET, &SOCK_DGRAM, &0]);
    let (own, other) = (inet(attempts, [0; 4], 0), inet(attempts, [10, 0, 0, 2], 9));
    attempts.refused("bind", libc::SYS_bind, &[&udp, &own, &16]);
    attempts.refused("connect", libc::SYS_connect, &[&udp, &other, &16]);
    let tcp = attempts.calls.call(libc::SYS_socket, &[&AF_INET, &SOCK_STREAM, &0]);
    attempts.refused("listen", libc::SYS_listen, &[&tcp, &1]);
    attempts.refused_unread("accept", libc::SYS_accept4, &[&-1, &0, &0, &0]);
    x32(attempts, libc::SYS_socket, &[&AF_INET, &SOCK_STREAM, &0]);

    // The event loop makes such a pair for itself. Any other could send to any socket of its kind, by its path.
    let pair = attempts.calls.words(&[0]);
    attempts.allowed("a local pair: stream", libc::SYS_socketpair, &[&AF_UNIX, &SOCK_STREAM, &0, &pair]);
    let end = Value::At(pair);
    let message = descriptor_message(attempts);
    attempts.refused("hand a descriptor on", libc::SYS_sendmsg, &[&end, &message, &0]);
    for (what, kind) in [("datagram", SOCK_DGRAM), ("seqpacket", SOCK_SEQPACKET)] {
        let pair = attempts.calls.words(&[0]);
        let what = format!("a local pair: {what}");
        attempts.refused(what, libc::SYS_socketpair, &[&AF_UNIX, &kind, &0, &pair]);
    }
}

/// The sockets that the front holds. Through the capture's a frame could go to anywhere, loopback behind the guard not
/// the least, and no capability is asked for: that was when it was opened.
pub(super) fn held_by_the_front(attempts: &mut Attempts, subject: &Subject) {
    let capture = match subject.capture {
        Some(descriptor) => descriptor.value(),
        None => attempts.calls.call(libc::SYS_socket, &[&AF_PACKET, &SOCK_DGRAM, &0]).value(),
    };
    let lo = attempts.calls.bytes(&link_address(1));
    let frame = attempts.calls.bytes(&[0; 64]);
    attempts.refused("send a frame", libc::SYS_sendto, &[&capture, &frame, &64, &0, &lo, &20]);
    let iov = attempts.calls.words(&[frame, 64]);
    let message = attempts.calls.words(&[lo, 20, iov, 1, 0, 0, 0]);
    attempts.refused("send a frame by sendmsg", libc::SYS_sendmsg, &[&capture, &message, &0]);
    attempts.refused("bind the capture", libc::SYS_bind, &[&capture, &lo, &20]);
    // Bound to an interface, it sends what is written to it.
    attempts.refused("write a frame", libc::SYS_write, &[&capture, &frame, &64]);
    attempts.refused("write a frame by writev", libc::SYS_writev, &[&capture, &iov, &1]);
    attempts.refused_unread("write a frame by pwrite", libc::SYS_pwrite64, &[&capture, &frame, &64, &0]);
    attempts.refused("copy the capture by dup", libc::SYS_dup, &[&capture]);
    attempts.refused("copy the capture by dup3", libc::SYS_dup3, &[&capture, &900, &0]);
    for (what, command) in [("F_DUPFD", F_DUPFD), ("F_DUPFD_CLOEXEC", F_DUPFD_CLOEXEC)] {
        let what = format!("copy the capture by {what}");
        attempts.refused(what, libc::SYS_fcntl, &[&capture, &command, &0]);
    }
    let filter = libc::SO_DETACH_FILTER;
    attempts.refused_unread(
        "see every packet",
        libc::SYS_setsockopt,
        &[&capture, &SOL_SOCKET, &filter, &frame, &4],
    );
    let name = attempts.calls.bytes(&[&b"lo"[..], &[0; 38]].concat());
    attempts.refused("ask for an interface", libc::SYS_ioctl, &[&capture, &libc::SIOCGIFINDEX, &name]);

    attempts.refused("free the number of the capture", libc::SYS_close, &[&capture]);
    // The link to the warden outlives the front: shut, it would stay so for the next one.
    let orders = if let Some(descriptor) = subject.orders {
        descriptor.value()
    } else {
        let pair = attempts.calls.words(&[0]);
        attempts.calls.call(libc::SYS_socketpair, &[&AF_UNIX, &SOCK_SEQPACKET, &0, &pair]);
        Value::At(pair)
    };
    attempts.refused("shut the link to the warden", libc::SYS_shutdown, &[&orders, &libc::SHUT_WR]);
}

/// What the warden does not need for the firewall. UDP and netlink are left to it.
pub(super) fn beside_the_firewall(attempts: &mut Attempts) {
    let netfilter = libc::NETLINK_NETFILTER;
    attempts.allowed("the firewall's netlink", libc::SYS_socket, &[&AF_NETLINK, &SOCK_RAW, &netfilter]);
    attempts.refused("socket: TCP", libc::SYS_socket, &[&AF_INET, &SOCK_STREAM, &0]);
    attempts.refused("socket: TCP over IPv6", libc::SYS_socket, &[&AF_INET6, &SOCK_STREAM, &0]);
    for (what, family, kind, protocol) in [
        ("packet", AF_PACKET, SOCK_RAW, 0),
        ("packet, cooked", AF_PACKET, SOCK_DGRAM, 0),
        ("packet, by its old name", AF_INET, 10, 0),
        ("raw UDP", AF_INET, SOCK_RAW, libc::IPPROTO_UDP),
        ("raw ICMP over IPv6", AF_INET6, SOCK_RAW, libc::IPPROTO_ICMPV6),
    ] {
        attempts.refused(format!("see packets: {what}"), libc::SYS_socket, &[&family, &kind, &protocol]);
    }
    attempts.refused_unread("socket: another family", libc::SYS_socket, &[&99, &SOCK_STREAM, &0]);
    x32(attempts, libc::SYS_socket, &[&AF_PACKET, &SOCK_RAW, &0]);
    let local = attempts.calls.call(libc::SYS_socket, &[&AF_UNIX, &SOCK_STREAM, &0]);
    let address = local_address(ABSTRACT_NAME);
    let (len, address) = (address.len(), attempts.calls.bytes(&address));
    attempts.refused("connect to an abstract name", libc::SYS_connect, &[&local, &address, &len]);
}

fn x32(attempts: &mut Attempts, call: libc::c_long, arguments: &[&dyn Argument]) {
    // Kernels without x32 say so, where no filter has said anything before.
    if cfg!(target_arch = "x86_64") {
        attempts.refused_unread("the same by x32", call | X32, arguments);
    }
}

/// `struct sockaddr_in`.
fn inet(attempts: &mut Attempts, address: [u8; 4], port: u16) -> i64 {
    let family = u16::try_from(AF_INET).expect("2").to_ne_bytes();
    let bytes = [&family[..], &port.to_be_bytes(), &address, &[0; 8]].concat();
    attempts.calls.bytes(&bytes)
}

/// `struct sockaddr_un` of an abstract name.
fn local_address(name: &str) -> Vec<u8> {
    let family = u16::try_from(AF_UNIX).expect("1").to_ne_bytes();
    [&family[..], b"\0", name.as_bytes()].concat()
}

/// `struct sockaddr_ll` of an interface.
fn link_address(index: i32) -> Vec<u8> {
    let family = u16::try_from(AF_PACKET).expect("17").to_ne_bytes();
    let ip = u16::try_from(libc::ETH_P_IP).expect("0x800").to_be_bytes();
    [&family[..], &ip, &index.to_ne_bytes(), &[0, 0, 0, 6], &[0; 8]].concat()
}

/// A message of one byte, and the standard input with it.
fn descriptor_message(attempts: &mut Attempts) -> i64 {
    let byte = attempts.calls.bytes(b"x");
    let iov = attempts.calls.words(&[byte, 1]);
    let words = [20_u64.to_ne_bytes(), [0; 8], [0; 8]].concat();
    let mut control = words;
    control[8..12].copy_from_slice(&SOL_SOCKET.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    let control = attempts.calls.bytes(&control);
    attempts.calls.words(&[0, 0, iov, 1, control, 20, 0])
}
