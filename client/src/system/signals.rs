//! Signals that wait for a moment in which they do no harm.

#[cfg(target_os = "linux")]
pub(crate) use held::HeldSignals;
#[cfg(not(target_os = "linux"))]
pub(crate) use without::HeldSignals;

#[cfg(target_os = "linux")]
mod held {
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    use nix::sys::signalfd::SignalFd;

    /// Signals that end a process, or stop it, and that come from outside.
    const ENDING: [Signal; 5] =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP];

    /// Signals that are held back until this is dropped; then they have their effect. To be held by the thread that all
    /// signals go to: one to the process would find its way to another.
    pub(crate) struct HeldSignals {
        before: SigSet,
        came: SignalFd,
    }

    impl HeldSignals {
        /// Holds back those that would end this process; nothing where the system does not tell that one came.
        pub(crate) fn hold() -> Option<Self> {
            let ending = ENDING.into_iter().collect();
            let came = SignalFd::new(&ending).ok()?;
            let before = ending.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()?;
            Some(Self { before, came })
        }
    }

    impl AsFd for HeldSignals {
        /// What can be read once one has come. It is not to be read: then it would have no effect.
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.came.as_fd()
        }
    }

    impl Drop for HeldSignals {
        fn drop(&mut self) {
            // The mask was this thread's own a moment ago.
            let _ = self.before.thread_set_mask();
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod without {
    use std::os::fd::{AsFd, BorrowedFd};

    /// None is ever held.
    pub(crate) enum HeldSignals {}

    impl HeldSignals {
        /// Nothing: there is no way to wait for a signal and for a terminal at once.
        pub(crate) const fn hold() -> Option<Self> {
            None
        }
    }

    impl AsFd for HeldSignals {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match *self {}
        }
    }
}
