//! Who starts processes: the kernel tells of every fork (proc connector, `linux/cn_proc.h`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// `NETLINK_CONNECTOR`.
const CONNECTOR: isize = 11;
/// `CN_IDX_PROC` and `CN_VAL_PROC`.
const PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `PROC_EVENT_FORK`.
const FORK: u32 = 1;
/// Of `nlmsghdr`; `cn_msg` follows, and then `proc_event`.
const HEADER: usize = 16;
const MESSAGE: usize = 20;
/// In `proc_event`: what it is, a processor, a time, and behind them the parent's pid and tgid and the child's.
const EVENT: usize = HEADER + MESSAGE;
const PARENT_TGID: usize = EVENT + 16 + 4;
const CHILD_PID: usize = EVENT + 16 + 8;
const CHILD_TGID: usize = EVENT + 16 + 12;

pub(crate) struct Forks {
    socket: Socket,
}

impl Forks {
    /// Listens from now on. It takes root, in the first network namespace of the machine.
    pub(crate) fn listen() -> Result<Self> {
        let mut socket = Socket::new(CONNECTOR).context("no proc connector")?;
        socket.bind(&SocketAddr::new(0, PROC)).context("no proc connector")?;
        socket.set_non_blocking(true)?;
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let length = u32::try_from(HEADER + MESSAGE + 4)?;
        // nlmsghdr: length, type (done) and flags, sequence, sender. cn_msg: whom, sequence, answer to, length and flags.
        let mut message = words(&[length, 3, 0, 0, PROC, PROC, 0, 0, 4]);
        message.extend(words(&[LISTEN]));
        socket.send_to(&message, &SocketAddr::new(0, 0), 0).context("no proc connector")?;
        Ok(Self { socket })
    }

    /// The process id of whoever starts a process, each time, for so long. Threads do not count.
    pub(crate) fn parents(&mut self, length: Duration) -> Result<Vec<i32>> {
        let (begun, mut parents) = (Instant::now(), Vec::new());
        while let Some(left) = length.checked_sub(begun.elapsed()) {
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&Timespec::try_from(left)?))?;
            let mut bytes = Vec::with_capacity(4096);
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => parents.extend(parent(&bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(parents)
    }
}

fn parent(bytes: &[u8]) -> Option<i32> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let is_process = word(CHILD_PID)? == word(CHILD_TGID)?;
    (word(EVENT)? == FORK && is_process).then(|| word(PARENT_TGID)).flatten()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: u32, child_pid: u32, child_tgid: u32) -> Vec<u8> {
        let mut words = vec![0_u32; EVENT / 4];
        words.extend([what, 0, 0, 0, 70, 71, child_pid, child_tgid]);
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_fork_is_told_from_a_thread_and_from_all_else() {
        assert_eq!(parent(&event(FORK, 80, 80)), Some(71));
        assert_eq!(parent(&event(FORK, 81, 80)), None, "a thread");
        assert_eq!(parent(&event(2, 80, 80)), None, "an exec");
        assert_eq!(parent(&event(FORK, 80, 80)[..50]), None, "not all of it");
    }
}
