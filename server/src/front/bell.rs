//! Tells a thread something that waits in poll(2): a channel, and beside it a descriptor that can be read once there is
//! something to hear.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// Both sides of a new bell.
///
/// # Errors
/// When the system has no descriptor left.
pub(super) fn bell<T>() -> io::Result<(Ringer<T>, Bell<T>)> {
    let rung = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (say, said) = mpsc::channel();
    Ok((Ringer { say: Some(say), rung: Arc::clone(&rung) }, Bell { said, rung }))
}

/// Who tells. Dropped, it tells that nothing more comes.
pub(super) struct Ringer<T> {
    say: Option<Sender<T>>,
    rung: Arc<OwnedFd>,
}

/// Who is told: its descriptor can be read once there is something to hear.
pub(super) struct Bell<T> {
    said: Receiver<T>,
    rung: Arc<OwnedFd>,
}

impl<T> Ringer<T> {
    pub(super) fn tell(&self, something: T) {
        // Where nobody is told any more, nobody does anything either: whoever waits for it sees that.
        let _ = self.say.as_ref().map(|say| say.send(something));
        self.ring();
    }

    fn ring(&self) {
        // It fails only where it was rung 2^64 times already.
        let _ = write(&self.rung, &1_u64.to_ne_bytes());
    }
}

impl<T> Drop for Ringer<T> {
    fn drop(&mut self) {
        // First, so that whoever is woken sees the end.
        self.say = None;
        self.ring();
    }
}

impl<T> Bell<T> {
    /// What was told since, and whether anything more may come.
    pub(super) fn heard(&self) -> (Vec<T>, bool) {
        // Before the channel is looked into: what comes behind rings anew. It fails where nobody rang.
        let _ = read(&self.rung, &mut [0; 8]);
        let mut heard = Vec::new();
        loop {
            match self.said.try_recv() {
                Ok(something) => heard.push(something),
                Err(TryRecvError::Empty) => return (heard, true),
                Err(TryRecvError::Disconnected) => return (heard, false),
            }
        }
    }
}

impl<T> AsFd for Bell<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rung.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_ringing(bell: &Bell<u8>) -> bool {
        let mut descriptors = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn it_rings_until_all_is_heard() {
        let (ringer, bell) = bell().unwrap();
        assert!(!is_ringing(&bell));
        assert_eq!(bell.heard(), (vec![], true));
        ringer.tell(1);
        ringer.tell(2);
        assert!(is_ringing(&bell));
        assert_eq!(bell.heard(), (vec![1, 2], true));
        assert!(!is_ringing(&bell));
    }

    #[test]
    fn it_rings_when_nothing_more_comes() {
        let (ringer, bell) = bell().unwrap();
        ringer.tell(1);
        drop(ringer);
        assert!(is_ringing(&bell));
        assert_eq!(bell.heard(), (vec![1], false));
    }

    #[test]
    fn it_wakes_whoever_waits() {
        let (ringer, bell) = bell().unwrap();
        let teller = thread::spawn(move || ringer.tell(1));
        poll(&mut [PollFd::new(&bell, PollFlags::IN)], None).unwrap();
        teller.join().unwrap();
        assert_eq!(bell.heard().0, [1]);
    }

    #[test]
    fn whoever_tells_nobody_goes_on() {
        let (ringer, bell) = bell().unwrap();
        drop(bell);
        ringer.tell(1);
    }
}
