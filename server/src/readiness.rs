//! Descriptors that the event loop waits for.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the event loop wait for a descriptor, which its owner keeps until it is dropped.
///
/// # Errors
/// When the event loop knows the descriptor already, or the kernel has no room for one more.
#[expect(
    deprecated,
    reason = "its successor is unsafe; all that comes here keeps its descriptor until it is dropped"
)]
pub(crate) fn readiness<D: AsRawFd>(descriptor: D, interest: Interest) -> io::Result<AsyncFd<D>> {
    AsyncFd::with_interest(descriptor, interest)
}
