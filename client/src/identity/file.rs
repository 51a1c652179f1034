//! A key's file, either half, as `ssh-keygen` writes it. Of a private one the public half is read without its passphrase; that
//! is asked for on the terminal alone, never taken from an argument or the environment, where others could see it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use postern_proto::{IdentityKey, Proof, Signature};
use ring::signature::Ed25519KeyPair;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{PrivateKey, PublicKey};

use super::error::{FileError, SigningError};
use crate::config::{read_text, require_private};
use crate::error::Error;
use crate::report::say;
use crate::terminal::Terminal;

/// How often a passphrase may be wrong.
const TRIES: usize = 3;

/// What a file has of a key.
pub(super) struct KeyFile {
    path: PathBuf,
    halves: Halves,
}

enum Halves {
    Public(PublicKey),
    /// It may be encrypted.
    Private(Box<PrivateKey>),
}

/// An Ed25519 key, unlocked. What it consists of is wiped in the end; ring's own copy, which lasts for one signature, is not.
pub(super) struct Pair(Ed25519Keypair);

impl KeyFile {
    /// Reads the file; where there is none, the public half beside it, as ssh does.
    ///
    /// # Errors
    /// [`Error`] with exit code 3: it cannot be read, others can read a private one, or it is none.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The error is to name the file that was named.
                let beside = File::open(public_of(path)).map_err(|_| error);
                beside.map_err(Error::unreadable(path))?
            }
            Err(error) => return Err(Error::unreadable(path)(error)),
        };
        let metadata = file.metadata().map_err(Error::unreadable(path))?;
        let text = read_text(file).map_err(Error::unreadable(path))?;
        let not_a_key = |_| SigningError::NotAKey(path.to_owned());
        let halves = if text.starts_with("-----BEGIN") {
            // As ssh does: a file of somebody else's, such as a service's credential, is his to guard.
            if metadata.uid() == rustix::process::geteuid().as_raw() {
                require_private(path, &metadata)?;
            }
            Halves::Private(Box::new(PrivateKey::from_openssh(&*text).map_err(not_a_key)?))
        } else {
            Halves::Public(PublicKey::from_openssh(text.trim()).map_err(not_a_key)?)
        };
        Ok(Self { path: path.to_owned(), halves })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its public half, if it can sign knocks.
    ///
    /// # Errors
    /// [`SigningError::Unfit`] for keys of another kind.
    pub(super) fn key(&self) -> Result<IdentityKey, Error> {
        let public = match &self.halves {
            Halves::Public(public) => public,
            Halves::Private(private) => private.public_key(),
        };
        let unfit = |source| SigningError::Unfit { path: self.path.clone(), source };
        Ok(IdentityKey::try_from(public).map_err(unfit)?)
    }

    /// Its private half. Where it has a passphrase, somebody is asked for it.
    pub(super) fn unlock(self) -> Result<PrivateKey, FileError> {
        let Self { path, halves } = self;
        let key = match halves {
            Halves::Public(_) => return Err(FileError::Public(path)),
            Halves::Private(key) if is_in_security_key(&key) => return Err(FileError::SecurityKey(path)),
            Halves::Private(key) if !key.is_encrypted() => return Ok(*key),
            Halves::Private(key) => key,
        };
        let Ok(terminal) = Terminal::open() else { return Err(FileError::NoTerminal(path)) };
        for _ in 0..TRIES {
            // Whoever does not want to say it is not asked again.
            let prompt = format!("Enter passphrase for key '{}': ", path.display());
            let passphrase = match terminal.ask(&prompt) {
                Ok(passphrase) => passphrase,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(FileError::NotAsked(path)),
                Err(_) => break,
            };
            match key.decrypt(&*passphrase) {
                Ok(key) => return Ok(key),
                Err(_) => say("that is not the passphrase"),
            }
        }
        Err(FileError::Locked(path))
    }
}

fn public_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn is_in_security_key(key: &PrivateKey) -> bool {
    let public = key.public_key().key_data();
    public.is_sk_ed25519() || public.is_sk_ecdsa_p256()
}

impl Pair {
    /// The key that was read from there; `None` for one of another kind, or with halves of two keys.
    pub(super) fn new(key: &PrivateKey) -> Option<Self> {
        let pair = key.key_data().ed25519()?.clone();
        ring_pair(&pair).is_some().then_some(Self(pair))
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> Proof {
        let signature = ring_pair(&self.0).expect("its halves are of one key").sign(bytes);
        let bytes = *signature.as_ref().first_chunk().expect("an Ed25519 signature has 64 bytes");
        Proof::Ed25519(Signature::from_bytes(bytes))
    }
}

fn ring_pair(pair: &Ed25519Keypair) -> Option<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_and_public_key(pair.private.as_ref(), pair.public.as_ref()).ok()
}
