//! Asks for a passphrase on the terminal of this process, whatever its stdin and stdout are.
//!
//! The terminal is as it was in the end, whatever ends the question: Ctrl-C is an error, and signals wait until it is; behind ssh,
//! which ends its proxy when it gives up, nobody else sets it right. (The crate rpassword ends the process there, with the terminal
//! as it has set it.) Two processes ask on one terminal one after the other: the one would show what is typed for the other.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};
use zeroize::Zeroizing;

use crate::report::say;
use crate::system::{HeldSignals, terminal};

/// Ctrl-C
const INTERRUPT: u8 = 0x03;
/// How long somebody may take to type, and how long another one's question is waited for.
const LIMIT: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(50);
/// The longest line that kernels take from a terminal.
const MAX_LINE: usize = 4096;

/// The terminal.
pub(crate) struct Terminal(File);

impl Terminal {
    /// Opens it.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open("/dev/tty").map(Self)
    }

    /// What is typed up to the end of the line, and is not shown.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`] at Ctrl-C, and where a signal is to end this process; [`ErrorKind::UnexpectedEof`] at Ctrl-D;
    /// [`ErrorKind::TimedOut`] when nobody types; [`ErrorKind::WouldBlock`] when somebody is asked another question for so long;
    /// and what the terminal says.
    pub(crate) fn ask(&self, prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        self.come_to_the_foreground();
        let _turn = turn()?;
        let held = HeldSignals::hold();
        let hidden = Hidden::begin(&self.0)?;
        (&self.0).write_all(prompt.as_bytes())?;
        let line = self.wait(held.as_ref()).and_then(|()| self.line());
        drop(hidden);
        (&self.0).write_all(b"\n")?;
        line
    }

    /// Stops in the background, as whoever uses the terminal there is made to, until the shell's `fg`; but without the turn.
    fn come_to_the_foreground(&self) {
        if tcgetpgrp(&self.0).is_ok_and(|group| group != getpgrp()) {
            // Where this does not stop us, the terminal says what it thinks of it.
            let _ = kill_process(getpid(), Signal::TTOU);
        }
    }

    /// Until a line is there.
    fn wait(&self, held: Option<&HeldSignals>) -> io::Result<()> {
        let limit = Timespec::try_from(LIMIT).map_err(io::Error::other)?;
        let mut waited = vec![PollFd::new(&self.0, PollFlags::IN)];
        waited.extend(held.map(|held| PollFd::new(held, PollFlags::IN)));
        if retry_on_intr(|| poll(&mut waited, Some(&limit)))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        let is_ended = waited.get(1).is_some_and(|held| !held.revents().is_empty());
        if is_ended { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn line(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut line = Zeroizing::new(vec![0; MAX_LINE]);
        let length = (&self.0).read(&mut line)?;
        line.truncate(length);
        match line.pop() {
            Some(b'\n') => Ok(line),
            Some(INTERRUPT) => Err(ErrorKind::Interrupted.into()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The turn to ask on this process's terminal, until the file is closed; nothing where the terminal has no name to meet by.
fn turn() -> io::Result<Option<File>> {
    let Some(file) = terminal().and_then(|path| File::open(path).ok()) else { return Ok(None) };
    let mut begun = None;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) if begun.is_none() => {
                say("waiting until another question on this terminal is answered");
                begun = Some(Instant::now());
            }
            Err(Errno::WOULDBLOCK) if begun.is_some_and(|begun| begun.elapsed() < LIMIT) => sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn begin(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes -= LocalModes::ECHO | LocalModes::ISIG;
        hidden.local_modes |= LocalModes::ICANON;
        hidden.input_modes |= InputModes::ICRNL;
        // Not a signal any more, but the end of a line.
        hidden.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Where this fails, the terminal is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
