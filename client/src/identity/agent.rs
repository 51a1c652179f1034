//! The ssh-agent at `SSH_AUTH_SOCK`. It is asked anew each time, on a connection of its own, and never waited for without
//! end: what hangs there must not hang the login of whoever waits behind it.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postern_proto::{IdentityKey, Proof, Signature};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use ssh_agent_client_rs::{Client, Error as ClientError};
use ssh_key::Algorithm;

use super::Named;
use super::error::{AgentError, SigningError};
use crate::report::say;

/// How long an agent may take to say which keys it has: nobody needs to be asked for that.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to sign: somebody may have to find and touch a key, or to confirm. A gate takes no knock that is older
/// than a minute, and the date is signed too.
const SIGN_LIMIT: Duration = Duration::from_secs(50);

/// `SSH_AGENTC_REQUEST_IDENTITIES`, as a whole message (draft-ietf-sshm-ssh-agent, 3.2).
const LIST: [u8; 5] = [0, 0, 0, 1, 11];
/// `SSH_AGENT_IDENTITIES_ANSWER`
const LISTED: u8 = 12;
/// The longest message of an agent, as OpenSSH has it.
const MAX_MESSAGE: usize = 256 * 1024;

/// An agent.
pub(super) struct Agent {
    socket: PathBuf,
    list_limit: Duration,
    sign_limit: Duration,
}

impl Agent {
    /// The one that the environment names.
    pub(super) fn of_environment() -> Result<Self, AgentError> {
        let socket = env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
        Ok(Self::at(Path::new(&socket.ok_or(AgentError::None)?), LIST_LIMIT, SIGN_LIMIT))
    }

    fn at(socket: &Path, list_limit: Duration, sign_limit: Duration) -> Self {
        Self { socket: socket.to_owned(), list_limit, sign_limit }
    }

    /// The first of these keys that it has.
    ///
    /// The keys are compared as bytes, and not read: an agent may have some of kinds that nobody here knows.
    pub(super) fn holds<'a>(&self, wanted: &'a [IdentityKey]) -> Result<&'a IdentityKey, AgentError> {
        let failed = |error| self.failed(error, self.list_limit);
        let mut stream = self.connect(self.list_limit)?;
        let answer = ask_for_list(&mut stream).map_err(failed)?;
        let keys = keys(&answer).ok_or_else(|| AgentError::Malformed("to a question for its keys".into()))?;
        let has = |key: &IdentityKey| {
            let bytes = key.public().to_bytes().expect("a key that was read has bytes");
            keys.contains(&&*bytes)
        };
        match (wanted.iter().find(|key| has(key)), keys.len()) {
            (Some(key), _) => Ok(key),
            (None, 0) => Err(AgentError::Empty),
            (None, 1) => Err(AgentError::Others("another key".to_owned())),
            (None, count) => Err(AgentError::Others(format!("{count} other keys"))),
        }
    }

    /// Has it sign. Whether the signature is good is for the caller to see.
    pub(super) fn sign(&self, key: &IdentityKey, bytes: &[u8]) -> Result<Proof, SigningError> {
        if key.needs_touch() {
            say(&format!("touch your security key: {}", Named(key)));
        }
        let stream = self.connect(self.sign_limit).map_err(SigningError::Agent)?;
        let signed = Client::with_read_write(Box::new(stream)).sign(key.public(), bytes);
        let signature = signed.map_err(|error| match error {
            ClientError::RemoteFailure => SigningError::Refused(Named(key).to_string()),
            ClientError::AgentCommunicationError(error) => {
                SigningError::Agent(self.failed(error, self.sign_limit))
            }
            error => SigningError::Agent(AgentError::Malformed(error.to_string())),
        })?;
        proof(&signature).ok_or_else(|| {
            SigningError::Agent(AgentError::Malformed("a signature of another kind".to_owned()))
        })
    }

    fn connect(&self, limit: Duration) -> Result<Patient, AgentError> {
        let until = Instant::now() + limit;
        let stream = connected(&self.socket, limit).map_err(|error| self.failed(timed_out(error), limit))?;
        Ok(Patient { stream, until })
    }

    fn failed(&self, error: io::Error, limit: Duration) -> AgentError {
        match error.kind() {
            io::ErrorKind::TimedOut => AgentError::Silent(limit),
            io::ErrorKind::InvalidData => AgentError::Malformed(error.to_string()),
            _ => AgentError::Dead { socket: self.socket.clone(), source: error },
        }
    }
}

/// An agent that hangs does not even accept, once enough others wait: the kernel then has the next wait, as long as it may.
fn connected(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let stream = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&stream, FdFlags::CLOEXEC)?;
    set_socket_timeout(&stream, Timeout::Send, Some(limit))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
}

/// The agent's answer to the question for its keys.
fn ask_for_list(stream: &mut Patient) -> io::Result<Vec<u8>> {
    stream.write_all(&LIST)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(1..=MAX_MESSAGE).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// The keys of such an answer, each in its own bytes.
fn keys(answer: &[u8]) -> Option<Vec<&[u8]>> {
    let rest = &mut answer.strip_prefix(&[LISTED])?;
    let count = number(rest)?;
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(string(rest)?);
        let _comment = string(rest)?;
    }
    rest.is_empty().then_some(keys)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(u32::from_be_bytes(*first))
}

/// SSH's `string` (RFC 4251, 5): a length, and so many bytes.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (string, others) = rest.split_at_checked(length)?;
    *rest = others;
    Some(string)
}

fn proof(signature: &ssh_key::Signature) -> Option<Proof> {
    let (bytes, behind) = signature.as_bytes().split_first_chunk::<64>()?;
    let bytes = Signature::from_bytes(*bytes);
    match (signature.algorithm(), behind) {
        (Algorithm::Ed25519, []) => Some(Proof::Ed25519(bytes)),
        (Algorithm::SkEd25519, [flags, counter @ ..]) => {
            let counter = u32::from_be_bytes(counter.try_into().ok()?);
            Some(Proof::SkEd25519 { flags: *flags, counter, signature: bytes })
        }
        _ => None,
    }
}

/// A connection on which all that is asked ends in time.
struct Patient {
    stream: UnixStream,
    until: Instant,
}

impl Patient {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// What the kernel says when the time is over.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@laptop";

    const SILENT: &str =
        "the ssh-agent has not answered for 0.05 s; see whether it waits for somebody, or end it";

    #[test]
    fn an_agent_that_never_answers_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let _listener = UnixListener::bind(&socket).unwrap();
        let key: IdentityKey = KEY.parse().unwrap();
        let limit = Duration::from_millis(50);
        let agent = Agent::at(&socket, limit, limit);
        let begin = Instant::now();
        let silent = agent.holds(std::slice::from_ref(&key)).unwrap_err().to_string();
        assert_eq!(silent, SILENT);
        let silent = agent.sign(&key, b"bytes").unwrap_err().to_string();
        assert_eq!(silent, format!("no signature from the ssh-agent: {SILENT}"));
        assert!(begin.elapsed() >= 2 * limit);
    }

    #[test]
    fn an_agent_that_accepts_nobody_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let limit = Duration::from_millis(50);
        let agent = Agent::at(&socket, limit, limit);
        // The first waits in the queue, and the next before it.
        let waiting: Vec<_> = (0..2).map(|_| connected(&socket, limit)).collect();
        assert!(waiting[0].is_ok() && waiting[1].is_err(), "{waiting:?}");
        let silent = agent.holds(&[KEY.parse().unwrap()]).unwrap_err().to_string();
        assert_eq!(silent, SILENT);
    }

    #[test]
    fn a_list_of_keys_is_read_to_its_end_or_not_at_all() {
        let list = |count: u8, rest: &[u8]| [&[LISTED, 0, 0, 0, count][..], rest].concat();
        let two = [0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 1, b'c'];
        assert_eq!(keys(&list(0, &[])), Some(vec![]));
        assert_eq!(keys(&list(2, &two)), Some(vec![&[7, 8][..], &[9]]));
        for bad in [list(1, &two), list(3, &two), list(2, &two[..18]), list(1, &[0xff; 4]), vec![5], vec![]] {
            assert_eq!(keys(&bad), None, "{bad:?}");
        }
    }
}
