//! The key that signs knocks (SPEC 4.3), where a gate wants that: it is looked for as ssh looks for its keys.
//!
//! First the ssh-agent is asked, then a file is read: the one that was named, else `~/.ssh/id_ed25519` where that is the key
//! that the gate knows. It is found before anything is sent, and once for each gate: a passphrase is asked for once. What a
//! key has signed is checked here before it leaves, so that a gate's refusal means the key, and nothing else.

mod agent;
mod error;
mod file;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use postern_proto::identity::USER_PRESENT;
use postern_proto::{IdentityKey, Proof};
use ssh_key::PrivateKey;

use crate::error::Error;
use agent::Agent;
pub use error::{AgentError, FileError, SigningError};
use file::{KeyFile, Pair};

/// The file that is taken where none is named, below the home.
const DEFAULT_FILE: &str = ".ssh/id_ed25519";

/// Which keys may sign for a client, and the one that does, once it was looked for.
pub(crate) struct Identity {
    /// Those that the gate knows, as far as the profile says.
    wanted: Vec<IdentityKey>,
    /// The file that was named.
    file: Option<PathBuf>,
    found: Mutex<Option<Arc<Signer>>>,
}

/// A key that can sign.
pub(crate) struct Signer {
    key: IdentityKey,
    half: Half,
}

/// Where the private half is.
enum Half {
    Agent(Agent),
    File(PathBuf, Pair),
}

impl Identity {
    pub(crate) const fn new(wanted: Vec<IdentityKey>) -> Self {
        Self { wanted, file: None, found: Mutex::new(None) }
    }

    /// Signs with the key of this file.
    pub(crate) fn with_file(self, file: PathBuf) -> Self {
        Self { file: Some(file), found: Mutex::new(None), ..self }
    }

    /// The key that signs; `None` where nobody wants that.
    ///
    /// # Errors
    /// [`Error`] where there is none: [`SigningError`], or that its file cannot be read.
    pub(crate) fn signer(&self) -> Result<Option<Arc<Signer>>, Error> {
        if self.wanted.is_empty() && self.file.is_none() {
            return Ok(None);
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_none() {
            let signer = match &self.file {
                Some(path) => find_named(&expanded(path), &self.wanted),
                None => find(&self.wanted),
            };
            *found = Some(Arc::new(signer?));
        }
        Ok(found.clone())
    }
}

impl Signer {
    /// Whether each signature takes somebody's touch.
    pub(crate) const fn needs_touch(&self) -> bool {
        self.key.needs_touch()
    }

    /// Signs, and checks what came of it.
    ///
    /// # Errors
    /// [`SigningError`], where the agent does not sign, or not as a gate wants it.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Proof, SigningError> {
        let proof = match &self.half {
            Half::Agent(agent) => agent.sign(&self.key, bytes)?,
            Half::File(_, pair) => pair.sign(bytes),
        };
        let fingerprint = || self.key.fingerprint();
        match proof {
            Proof::SkEd25519 { flags, .. } if flags & USER_PRESENT == 0 => {
                Err(SigningError::Untouched(fingerprint()))
            }
            proof if self.key.verifies(bytes, &proof) => Ok(proof),
            _ => Err(SigningError::WrongSignature(fingerprint())),
        }
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = Named(&self.key);
        match &self.half {
            Half::Agent(_) => write!(f, "{key} in the ssh-agent"),
            Half::File(path, _) => write!(f, "{key} in {}", path.display()),
        }
    }
}

/// The first of these keys that the agent has, or that is in the usual file.
fn find(wanted: &[IdentityKey]) -> Result<Signer, Error> {
    let agent = match in_agent(wanted) {
        Ok(signer) => return Ok(signer),
        Err(error) => error,
    };
    let file = match in_default_file(wanted) {
        Ok(signer) => return Ok(signer),
        Err(error) => error,
    };
    Err(SigningError::NoKey { wanted: names(wanted), agent, file }.into())
}

/// The key of the file that was named. The agent may have it too, and need no passphrase.
fn find_named(path: &Path, wanted: &[IdentityKey]) -> Result<Signer, Error> {
    let file = KeyFile::read(path)?;
    let key = file.key()?;
    if !wanted.is_empty() && !wanted.contains(&key) {
        let (path, is) = (path.to_owned(), key.fingerprint());
        return Err(SigningError::NotAmong { path, is, wanted: names(wanted) }.into());
    }
    let agent = match in_agent(slice::from_ref(&key)) {
        Ok(signer) => return Ok(signer),
        Err(error) => error,
    };
    let wanted = names(slice::from_ref(&key));
    in_file(file, key).map_err(|file| SigningError::NoKey { wanted, agent, file }.into())
}

fn in_agent(wanted: &[IdentityKey]) -> Result<Signer, AgentError> {
    let agent = Agent::of_environment()?;
    let key = agent.holds(wanted)?.clone();
    Ok(Signer { key, half: Half::Agent(agent) })
}

fn in_file(file: KeyFile, key: IdentityKey) -> Result<Signer, FileError> {
    let path = file.path().to_owned();
    let pair = Pair::new(&file.unlock()?);
    let pair = pair.ok_or_else(|| Box::new(SigningError::NotAKey(path.clone()).into()))?;
    Ok(Signer { key, half: Half::File(path, pair) })
}

fn in_default_file(wanted: &[IdentityKey]) -> Result<Signer, FileError> {
    let path = default_file()?;
    let file = KeyFile::read(&path).map_err(Box::new)?;
    let key = file.key().map_err(Box::new)?;
    if !wanted.contains(&key) {
        return Err(FileError::Other { path, is: key.fingerprint() });
    }
    in_file(file, key)
}

/// The private key of the file that was named, else of the usual one: for what only the private half itself can do.
///
/// # Errors
/// [`FileError`] where it cannot be read or unlocked.
pub(crate) fn private_key(named: Option<&Path>) -> Result<(PathBuf, PrivateKey), FileError> {
    let path = match named {
        Some(path) => expanded(path),
        None => default_file()?,
    };
    let key = KeyFile::read(&path).map_err(Box::new)?.unlock()?;
    Ok((path, key))
}

fn default_file() -> Result<PathBuf, FileError> {
    let path = home().ok_or(FileError::NoHome)?.join(DEFAULT_FILE);
    if path.exists() { Ok(path) } else { Err(FileError::Missing(path)) }
}

/// `~/` stands for the home, as it does in ssh's configuration.
fn expanded(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), home()) {
        (Ok(below), Some(home)) => home.join(below),
        _ => path.to_owned(),
    }
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// A key as people know it: its fingerprint, and whose it is.
pub(crate) struct Named<'a>(pub(crate) &'a IdentityKey);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public = self.0.public();
        f.write_str(&self.0.fingerprint())?;
        if public.comment().is_empty() { Ok(()) } else { write!(f, " ({})", public.comment()) }
    }
}

fn names(keys: &[IdentityKey]) -> String {
    keys.iter().map(|key| Named(key).to_string()).collect::<Vec<_>>().join(" or ")
}
