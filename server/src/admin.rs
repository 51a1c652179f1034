//! What an administrator asks of a running gate, over its socket: one JSON request a connection, one line, and one JSON
//! answer. The socket belongs to root, and to a group that the configuration names; the warden answers, and hands the
//! connection of who asks for a reload to the supervisor, which does it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use postern_proto::{ClientName, Port, ServiceName, WallTime};
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::link::Message;

/// Where the socket is unless the configuration says otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/postern/admin.sock";
/// Longest request, in bytes.
pub(crate) const LONGEST_REQUEST: usize = 1024;
/// Longest answer, in bytes: all leases that may live, at about 300 bytes each.
const LONGEST_ANSWER: u64 = 16 << 20;
/// How long the gate may take to answer: a reload can wait for the firewall.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is asked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// How does the gate do?
    Status,
    /// Who is let in?
    List,
    /// End leases: of one id, client or address, or all.
    Revoke(String),
    /// Read the files again.
    Reload,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::List`], and to [`Request::Revoke`]: what was ended.
    Leases(Vec<LeaseRow>),
    /// To [`Request::Reload`]: what the files say is in force.
    Reloaded,
    /// To anything: it was not done, and why.
    Failed(String),
}

/// How a gate does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Status {
    pub(crate) version: String,
    /// Since the gate was started, whatever has become of its processes.
    pub(crate) uptime_secs: u64,
    /// Interfaces that are watched, and those that are not there.
    pub(crate) watched: Vec<String>,
    /// Whether the guard stood as the gate put it up, at the last look.
    pub(crate) is_guarded: bool,
    /// When the guard falls, if this is a trial.
    pub(crate) trial_until: Option<WallTime>,
    pub(crate) leases: usize,
    /// Since the front's last start.
    pub(crate) packets: Counters,
    /// Orders of the front that the warden refused, by reason, since the warden's last start.
    pub(crate) orders_refused: BTreeMap<String, u64>,
}

/// One live lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LeaseRow {
    pub(crate) lease: String,
    pub(crate) client: ClientName,
    pub(crate) service: ServiceName,
    pub(crate) ports: Vec<Port>,
    pub(crate) source: IpAddr,
    pub(crate) from_port: Option<NonZeroU16>,
    pub(crate) until: WallTime,
    pub(crate) left_secs: u64,
}

impl Answer {
    /// As it is sent: one line.
    pub(crate) fn to_line(&self) -> io::Result<Vec<u8>> {
        to_line(self)
    }

    /// Sends a short answer on a connection; who does not take it at once goes without.
    ///
    /// # Errors
    /// When nobody is there any more, or does not read.
    pub(crate) fn send_now(&self, connection: BorrowedFd<'_>) -> io::Result<()> {
        send(connection, &self.to_line()?, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// A connection on which a reload was asked for; its descriptor comes with it.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReloadAsked;

impl Message for ReloadAsked {
    const MAX: usize = 0;
    const HAS_DESCRIPTORS: bool = true;
}

/// Asks the gate at this socket.
///
/// # Errors
/// When none answers there, or what was asked was not done.
pub(crate) fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let stream = connect(socket)?;
    match exchange(&stream, request) {
        Ok(Answer::Failed(why)) => bail!("{why}"),
        Ok(answer) => Ok(answer),
        Err(error) => Err(error).with_context(|| format!("no answer from the gate at {}", socket.display())),
    }
}

/// Asks the gate at this socket to read its files again, if there is one; `false` where there is none.
///
/// # Errors
/// When it does not take them up.
pub(crate) fn reload_if_running(socket: &Path) -> anyhow::Result<bool> {
    match UnixStream::connect(socket) {
        Err(error) if is_nobody(&error) => Ok(false),
        _ => ask(socket, &Request::Reload).map(|_| true),
    }
}

/// The connection to a gate.
///
/// # Errors
/// When none answers there.
pub(crate) fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    UnixStream::connect(socket).map_err(|error| {
        let path = socket.display();
        match error.kind() {
            _ if is_nobody(&error) => anyhow::anyhow!("no gate answers at {path}: is posternd running?"),
            io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!("{path}: only root, and the group that [admin] names, may ask the gate")
            }
            _ => anyhow::anyhow!("{path}: {error}"),
        }
    })
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn exchange(mut stream: &UnixStream, request: &Request) -> anyhow::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&to_line(request)?)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(LONGEST_ANSWER)).read_until(b'\n', &mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

fn to_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}
