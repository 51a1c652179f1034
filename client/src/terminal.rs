//! Asks for a passphrase on the terminal of this process, whatever its stdin and stdout are.
//!
//! Ctrl-C ends the question as an error, so that the terminal is as it was in any case: behind ssh, which would only see its
//! connection end, nobody else sets it right. (The crate rpassword ends the process there, with the terminal as it has set it.)

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

/// Ctrl-C
const INTERRUPT: u8 = 0x03;
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
    /// [`ErrorKind::Interrupted`] at Ctrl-C, [`ErrorKind::UnexpectedEof`] at Ctrl-D; and what the terminal says.
    pub(crate) fn ask(&self, prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        let hidden = Hidden::begin(&self.0)?;
        (&self.0).write_all(prompt.as_bytes())?;
        let line = self.line();
        drop(hidden);
        (&self.0).write_all(b"\n")?;
        line
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
