//! Waking at an instant of the boot clock. The event loop's own timers stand still while the machine is suspended, and wake
//! an idle process up to three times for each sleep of some seconds; this wakes it once, and on time behind a suspend.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock::{BootTime, Now};
use crate::readiness::readiness;

/// One timer of the kernel's: from the instant that it was set to, its descriptor can be read.
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// # Errors
    /// When the system has no timer left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Sets it anew: what it was set to before is forgotten.
    ///
    /// # Errors
    /// When the kernel refuses the time.
    pub(crate) fn set(&self, instant: BootTime) -> io::Result<()> {
        // Zero would stop the timer; a moment after boot is as much in the past.
        let since_boot = instant.since(BootTime::from_boot(Duration::ZERO)).max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(since_boot).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A timer that an event loop waits for.
pub(crate) struct Alarm(AsyncFd<Timer>);

impl Alarm {
    /// # Errors
    /// When the system has no timer left.
    pub(crate) fn new() -> io::Result<Self> {
        readiness(Timer::new()?, Interest::READABLE).map(Self)
    }

    /// Waits until then. It may be dropped while it waits.
    ///
    /// # Errors
    /// When the kernel refuses the time.
    pub(crate) async fn at(&mut self, instant: BootTime) -> io::Result<()> {
        self.0.get_ref().set(instant)?;
        loop {
            let mut ready = self.0.readable().await?;
            let expired = |timer: &AsyncFd<Timer>| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?);
            if let Ok(read) = ready.try_io(expired) {
                return read.map(drop);
            }
        }
    }

    /// Waits for so long.
    ///
    /// # Errors
    /// When the kernel refuses the time.
    pub(crate) async fn after(&mut self, pause: Duration) -> io::Result<()> {
        self.at(Now::read().boot.after(pause)).await
    }
}
