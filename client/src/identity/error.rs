//! Why a knock cannot be signed, each with what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use postern_proto::IdentityError;

use crate::error::Error;

/// Why a knock cannot be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// Neither the agent nor a file has the key.
    #[error("no key here signs for {wanted}: {agent}; {file}; \"ssh-add FILE\" gives the agent a key")]
    NoKey {
        /// The keys that the gate knows.
        wanted: String,
        /// Why it is not the agent's.
        agent: AgentError,
        /// Why it is in no file.
        file: FileError,
    },
    /// The file that was named is that of another key.
    #[error(
        "{}: this is {is}, and the profile names {wanted}: name the file of that key; or, where the gate knows this one by now, give it \
         to `identities` in the configuration",
        .path.display()
    )]
    NotAmong {
        /// The file.
        path: PathBuf,
        /// The fingerprint of its key.
        is: String,
        /// The keys that the gate knows.
        wanted: String,
    },
    /// It is neither half of a key.
    #[error(
        "{}: neither a private key as ssh-keygen writes it (ssh-keygen -p rewrites an old one) nor a public one",
        .0.display()
    )]
    NotAKey(PathBuf),
    /// It is a key that cannot sign knocks.
    #[error("{}: {source}", .path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The agent has the key, and does not sign.
    #[error(
        "the ssh-agent refused to sign with {0}: somebody declined, nobody confirmed or touched in time, or it was locked \
         meanwhile (ssh-add -X unlocks it); knock again"
    )]
    Refused(String),
    /// The agent failed when it was asked to sign.
    #[error("no signature from the ssh-agent: {0}")]
    Agent(AgentError),
    /// A security key that signs for whoever asks.
    #[error(
        "the security key signs without a touch ({0}), and no gate takes that: make another key, without -O \
         no-touch-required"
    )]
    Untouched(String),
    /// The signature is not good.
    #[error("what the ssh-agent signed is no signature by {0}; ssh-add -D and ssh-add again, or restart it")]
    WrongSignature(String),
}

/// Why the agent does not have the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// None is known.
    #[error("there is no ssh-agent (SSH_AUTH_SOCK is not set)")]
    None,
    /// None is there.
    #[error("no ssh-agent answers at {}, where SSH_AUTH_SOCK says ({source}): it has ended", .socket.display())]
    Dead {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It shows no keys.
    #[error("the ssh-agent shows no key: it has none (ssh-add -l), or is locked (ssh-add -X unlocks it)")]
    Empty,
    /// It has so many others.
    #[error("the ssh-agent has {0}, and not this one")]
    Others(String),
    /// It does not answer.
    #[error("the ssh-agent has not answered for {} s; see whether it waits for somebody, or end it", .0.as_secs_f32())]
    Silent(Duration),
    /// It answers with something else.
    #[error("the ssh-agent answers what no agent does ({0})")]
    Malformed(String),
}

/// Why no file has the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nothing says where the usual file is.
    #[error("HOME is not set: name the key's file with --identity FILE")]
    NoHome,
    /// The usual file is not there.
    #[error("{} does not exist: name the key's file with --identity FILE", .0.display())]
    Missing(PathBuf),
    /// The usual file is that of another key.
    #[error("{} is another key ({is}): name the right one with --identity FILE", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// The fingerprint of its key.
        is: String,
    },
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Box<Error>),
    /// It has the public half alone.
    #[error("{} is the public half alone", .0.display())]
    Public(PathBuf),
    /// The private half is in a security key.
    #[error("{path} belongs to a security key, which is used through an ssh-agent alone (ssh-add {path})", path = .0.display())]
    SecurityKey(PathBuf),
    /// Nobody is there to give the passphrase.
    #[error("{} has a passphrase, and no terminal is there to ask for it", .0.display())]
    NoTerminal(PathBuf),
    /// The passphrase was not even asked for.
    #[error("{} was not unlocked: another question on this terminal was not answered for two minutes", .0.display())]
    NotAsked(PathBuf),
    /// No passphrase was right.
    #[error("{} was not unlocked: no right passphrase was given", .0.display())]
    Locked(PathBuf),
}

impl SigningError {
    /// The exit code: 3 where a key is missing or unfit, 1 where the agent fails.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Agent(_) | Self::WrongSignature(_) => 1,
            _ => 3,
        }
    }
}
