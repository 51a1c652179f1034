//! What can go wrong, each with its exit code. No message repeats a secret.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_proto::payload::ServicesError;
use postern_proto::profile::{PREFIX, ProfileError};
use postern_proto::{GateName, SequenceName, ServiceName, TextError};

use crate::identity::{FileError, SigningError};
use crate::refused::Refused;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments contradict one another, or what they ask for cannot be.
    #[error("{0}")]
    Usage(String),
    /// The services do not fit a knock.
    #[error(transparent)]
    Services(#[from] ServicesError),

    /// Nothing says where the configuration is.
    #[error(
        "no configuration: set HOME or POSTERN_CONFIG, give --config FILE, or knock at the gate \"-\" with a profile in \
         POSTERN_PROFILE"
    )]
    NoConfigPath,
    /// There is no configuration yet.
    #[error("{}: no such file; `postern import NAME` makes it from the profile that the gate's administrator gave you", .0.display())]
    NoConfig(PathBuf),
    /// A file cannot be read.
    #[error("{file}: cannot read: {source}{}", Help(.source))]
    Unreadable {
        /// The file, or what stands for one.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A configuration that others can read: its secrets may be known already.
    #[error("{0}: others can read or write it (mode {1:04o}), and it holds secrets: chmod 600 {0}", .path.display(), .mode)]
    ReadableByOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A mistake in the configuration.
    #[error("{}: {source}", .path.display())]
    Mistake {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: TextError,
    },
    /// The gate `-` without a profile.
    #[error(
        "the gate \"-\" takes its profile from --profile-file FILE, from POSTERN_PROFILE or from the systemd credential \
         postern-profile: give one of them"
    )]
    NoProfile,
    /// A profile that does not read.
    #[error("{origin}: {source}")]
    Profile {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        source: ProfileError,
    },
    /// A profile that age encrypted, and that is not whole.
    #[error(
        "{origin}: what age encrypted is damaged or cut: have the file sent again, or its text (age --armor)"
    )]
    DamagedAge {
        /// Where it came from.
        origin: String,
    },
    /// The key to it cannot be used.
    #[error(
        "{origin}: not decrypted: {source}; this takes the private key itself, for an ssh-agent decrypts nothing"
    )]
    Undecrypted {
        /// Where it came from.
        origin: String,
        /// Why not.
        source: FileError,
    },
    /// It is for another key.
    #[error(
        "{origin}: encrypted to another key than that in {}: name the right one's file with --identity FILE; an \
         ssh-agent decrypts nothing",
        .key.display()
    )]
    OtherRecipient {
        /// Where it came from.
        origin: String,
        /// The file of the key that was tried.
        key: PathBuf,
    },
    /// A whole profile with which nobody can knock.
    #[error("{origin}: {message}")]
    Incomplete {
        /// Where it came from.
        origin: String,
        /// What it lacks, and what to do.
        message: String,
    },
    /// No gate of that name.
    #[error("no gate {name} in {}; {}", .path.display(), gates(.known))]
    UnknownGate {
        /// The name.
        name: GateName,
        /// The configuration.
        path: PathBuf,
        /// The gates that it has.
        known: Vec<String>,
    },
    /// A gate that only has sequences cannot be knocked at.
    #[error("gate {gate} has no profile to knock with, only sequences: postern sequence {gate} {}", .known.join(" or "))]
    NoKnock {
        /// The gate.
        gate: GateName,
        /// Its sequences.
        known: Vec<String>,
    },
    /// The gate has no sequence of that name.
    #[error("gate {gate} has no sequence {sequence}; {}", listed("it has", .known))]
    UnknownSequence {
        /// The gate.
        gate: GateName,
        /// The name.
        sequence: SequenceName,
        /// The sequences of the gate.
        known: Vec<String>,
    },
    /// No gate for the host that a connection is wanted to.
    #[error("no gate in {} is called {host} or lists it in its addresses; name one with --gate", .path.display())]
    NoGateFor {
        /// The host.
        host: String,
        /// The configuration.
        path: PathBuf,
    },
    /// More than one gate for it.
    #[error("{host} is an address of several gates ({}); name one with --gate", .gates.join(", "))]
    Ambiguous {
        /// The host.
        host: String,
        /// The gates.
        gates: Vec<String>,
    },
    /// The profile has no service of that name.
    #[error("gate {gate} has no service {service}; {}", listed("it has", .known))]
    UnknownService {
        /// The gate.
        gate: String,
        /// The service.
        service: ServiceName,
        /// The services of the profile.
        known: Vec<String>,
    },
    /// Nothing of the gate's opens that port.
    #[error("gate {gate} has no service at port {port}/tcp; {}", listed("it has", .known))]
    UnknownPort {
        /// The gate.
        gate: String,
        /// The port.
        port: u16,
        /// The services of the profile, and the sequences, with their ports.
        known: Vec<String>,
    },
    /// Nothing tells where the gate has ssh.
    #[error("gate {gate} has no service or sequence called ssh, and none at port 22; {}", ports(.known))]
    NoSshPort {
        /// The gate.
        gate: GateName,
        /// All its TCP ports.
        known: Vec<String>,
    },
    /// The marks around a block in ssh's configuration do not pair.
    #[error("{}: line {line}: {message}", .path.display())]
    Marks {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong, and what to do.
        message: String,
    },

    /// No address to knock at.
    #[error("cannot resolve {}; check the address, this host's name server, and -4, -6 and --source", .0.join(", "))]
    Unresolved(Vec<String>),
    /// No knock, or no whole sequence, left this host.
    #[error("cannot send to {}; check the address, this host's network and its own firewall", .0.join(", "))]
    Unsent(Vec<String>),

    /// Nothing let a connection in while there was time.
    #[error(
        "waited {} in vain: {what}; {advice}",
        Seconds(*.waited)
    )]
    InVain {
        /// How long.
        waited: Duration,
        /// For what.
        what: String,
        /// What may be wrong.
        advice: Advice,
    },

    /// The gate answered that it does not.
    #[error(transparent)]
    Refused(Box<Refused>),

    /// The gate wants a signature, and there is none.
    #[error(transparent)]
    Signing(Box<SigningError>),

    /// `--exact` where it cannot work.
    #[error(
        "address translation on the way changes the source port (the gate saw {seen} for {from}), so that --exact cannot \
         work here; leave it out, or say --exact=prefer"
    )]
    PortTranslated {
        /// Where the knock left from.
        from: u16,
        /// Where the gate saw it come from.
        seen: u16,
    },

    /// An import over a gate that is there.
    #[error("{} has a gate {name} already; give another name, or --force to replace it", .path.display())]
    Exists {
        /// The gate.
        name: GateName,
        /// The configuration.
        path: PathBuf,
    },
    /// The configuration cannot be written.
    #[error("{}: cannot write: {source}{}", .path.display(), Help(.source))]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    /// The operating system denied something that always works.
    #[error("{what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The system's random source failed: without it no knock is made.
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl Error {
    /// The exit code; `postern --help` lists them.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Services(_) => 2,
            Self::NoConfigPath
            | Self::NoConfig(_)
            | Self::Unreadable { .. }
            | Self::ReadableByOthers { .. }
            | Self::Mistake { .. }
            | Self::NoProfile
            | Self::Profile { .. }
            | Self::DamagedAge { .. }
            | Self::Undecrypted { .. }
            | Self::OtherRecipient { .. }
            | Self::Incomplete { .. }
            | Self::UnknownGate { .. }
            | Self::NoKnock { .. }
            | Self::UnknownSequence { .. }
            | Self::NoGateFor { .. }
            | Self::Ambiguous { .. }
            | Self::UnknownService { .. }
            | Self::NoSshPort { .. }
            | Self::Marks { .. }
            | Self::UnknownPort { .. } => 3,
            Self::Unresolved(_) | Self::Unsent(_) => 4,
            Self::InVain { .. } => 5,
            Self::Refused(_) => 6,
            Self::Signing(error) => error.exit_code(),
            Self::Exists { .. }
            | Self::Unwritable { .. }
            | Self::Broken(_)
            | Self::System { .. }
            | Self::PortTranslated { .. }
            | Self::NoRandom => 1,
        }
    }

    pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Unreadable { file: path.display().to_string(), source }
    }

    pub(crate) fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Unwritable { path: path.to_owned(), source }
    }
}

impl From<SigningError> for Error {
    fn from(error: SigningError) -> Self {
        Self::Signing(Box::new(error))
    }
}

/// What may be wrong when nothing opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// After a knock at a gate that does not answer.
    Knock,
    /// After a knock at a gate that answers, and did not.
    Unanswered,
    /// After the gate said that it is open.
    Opened,
    /// After a sequence.
    Sequence,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Knock => "this gate does not say why, but its log does (is this host's clock right?)",
            Self::Unanswered => {
                "`postern doctor` finds out why; where the gate has answers turned off, set answers = false for it"
            }
            Self::Opened => "the gate says that it is open: is anything listening there?",
            Self::Sequence => {
                "a step may be wrong, or have been lost or overtaken on its way (a longer --delay?)"
            }
        })
    }
}

/// "it has ssh, web", or "it has none".
fn listed(begin: &str, names: &[String]) -> String {
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!("{begin} {names}")
}

/// "there is bastion, office", or how to come by one.
fn gates(known: &[String]) -> String {
    if known.is_empty() {
        return "there is none yet: `postern import NAME` adds one".to_owned();
    }
    listed("there is", known)
}

/// What to do about a file, where the system's own words do not tell.
struct Help<'a>(&'a io::Error);

impl fmt::Display for Help<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0.kind() {
            io::ErrorKind::NotFound => "; check the name",
            io::ErrorKind::PermissionDenied => {
                "; it is another user's, or its mode or folder keeps this one out"
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
                "; nothing was changed: name a place on another disk, or make room"
            }
            _ => "",
        })
    }
}

/// What there is to say of a gate's TCP ports to whoever looks for ssh's.
fn ports(known: &[String]) -> String {
    if known.is_empty() {
        return "it has no TCP port that ssh could take".to_owned();
    }
    format!("it has the TCP ports {}: say which with --port", known.join(", "))
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

/// A message without any profile line: when somebody gives one in the wrong place, an error that names its argument
/// would carry the secret into a log.
pub(crate) fn without_profiles(message: &str) -> String {
    let mut parts = message.split(PREFIX);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let body = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '/' | '=');
        let rest = part.trim_start_matches(body);
        clean.push_str(PREFIX);
        clean.push_str(if rest.len() < part.len() { "…" } else { "" });
        clean.push_str(rest);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_in_messages_are_cut() {
        for text in ["no gate 'bastion'", "a profile begins with \"postern1:\""] {
            assert_eq!(without_profiles(text), text);
        }
        assert_eq!(
            without_profiles("invalid value 'postern1:AB-_9' for '<GATE>', postern1:CC"),
            "invalid value 'postern1:…' for '<GATE>', postern1:…"
        );
    }
}
