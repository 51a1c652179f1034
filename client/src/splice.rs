//! Carries stdin and stdout over a connection.
//!
//! Two threads with blocking reads, one for each direction: with the connection made there is nothing left to choose
//! between. Each direction ends by itself: the end of stdin is passed on, and what the far end still sends is carried;
//! the end of what the far end sends closes stdout, and what stdin still gives is carried. ssh, at the end of our
//! stdout, closes our stdin.
//!
//! Not `io::copy`: on Linux it moves bytes by splice(2), which holds the lock of a pipe for as long as it waits for the
//! socket, so that ssh could not read from the pipe what is in it already.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use crate::report::say;

/// As much as a pipe holds.
const BUFFER_LEN: usize = 64 << 10;

/// Carries until both directions have ended, or nobody reads stdout any more. Then, and when the connection breaks, the
/// thread that waits for stdin is left behind, and ends with the process.
///
/// # Errors
/// The connection broke: reset, or timed out.
pub(crate) fn splice(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut stdin, mut stdout) = (unbuffered(io::stdin())?, unbuffered(io::stdout())?);
    let mut to_far_end = stream.try_clone()?;
    let upload = thread::Builder::new().name("upload".to_owned()).spawn(move || {
        match carry(&mut stdin, &mut to_far_end) {
            // The connection broke, which the other direction meets and reports.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(error) => say(&format!("cannot read stdin to its end: {error}")),
            Ok(()) => {}
        }
        // Fails only where there is no connection any more.
        let _ = to_far_end.shutdown(Shutdown::Write);
    })?;
    match carry(&mut &*stream, &mut stdout) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
        carried => carried?,
    }
    drop(stdout);
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    upload.join().map_err(|_| io::Error::other("the thread that carries stdin failed"))
}

fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(&buffer[..len])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The stream behind a standard handle, without its buffer: half a line must not wait for the other half.
fn unbuffered(handle: impl AsFd) -> io::Result<File> {
    handle.as_fd().try_clone_to_owned().map(File::from)
}
