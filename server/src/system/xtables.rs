//! Questions to iptables-legacy's tables, which are asked by getsockopt.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// What can be asked of iptables-legacy's tables: the option's number, the same for both address families
/// (`IPT_BASE_CTL` in `linux/netfilter_ipv4/ip_tables.h`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum XtablesQuery {
    /// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`: how large a table is.
    Info = 64,
    /// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`: all of its rules.
    Entries = 65,
}

/// Which of the two sets of tables is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum XtablesLevel {
    /// `ip_tables`, through an IPv4 socket.
    Ipv4 = libc::SOL_IP as isize,
    /// `ip6_tables`, through an IPv6 socket.
    Ipv6 = libc::SOL_IPV6 as isize,
}

/// Asks about a table of iptables-legacy. `request` begins with the table's name, as the kernel wants it, and holds the
/// answer afterwards.
///
/// # Errors
/// What getsockopt says: without `CAP_NET_ADMIN`, without such a table, or when `request` does not have the length of
/// the answer.
pub(crate) fn ask_xtables(
    socket: impl AsFd,
    level: XtablesLevel,
    query: XtablesQuery,
    request: &mut [u8],
) -> io::Result<()> {
    let given = libc::socklen_t::try_from(request.len()).map_err(io::Error::other)?;
    let mut length = given;
    // SAFETY: the kernel reads and writes `length` bytes at `request` and no more, which is what the slice holds and
    // nobody else has while this runs; both options answer with plain integers and bytes, and follow no pointer that
    // stands in the request. The descriptor is borrowed for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level as libc::c_int,
            query as libc::c_int,
            request.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 if length == given => Ok(()),
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        _ => Err(io::Error::last_os_error()),
    }
}
