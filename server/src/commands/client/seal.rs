//! Profiles that only their client can read: encrypted with age (age-encryption.org/v1) to SSH keys, as text.
//!
//! The key that signs for a client is the natural one. One that never leaves its security key can only sign: age cannot use it.

use std::io::Write;
use std::path::Path;

use age::Encryptor;
use age::armor::{ArmoredWriter, Format};
use age::ssh::{ParseRecipientKeyError, Recipient};
use anyhow::Context;
use postern_proto::IdentityKey;

use super::{LONGEST_FILE, given, read_given};
use crate::cli::Usage;
use crate::cli::client::Sealing;
use crate::config::ConfigError;

/// To whom profiles are encrypted.
pub(super) enum Seal {
    /// To nobody: they are as they are.
    Open,
    /// Each to the keys that sign for its client.
    ToSigners,
    /// All to the same keys.
    To(Vec<Recipient>),
}

impl Seal {
    /// What a command line asks for.
    ///
    /// # Errors
    /// [`ConfigError`] when the file of keys is none.
    pub(super) fn new(sealing: &Sealing) -> Result<Self, ConfigError> {
        match &sealing.encrypt_to {
            Some(path) => Ok(Self::To(read_recipients(path)?)),
            None if sealing.encrypt => Ok(Self::ToSigners),
            None => Ok(Self::Open),
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// A profile as its client gets it, where these keys sign for the client.
    ///
    /// # Errors
    /// When none of its keys can be encrypted to.
    pub(super) fn close(&self, line: &str, signers: &[IdentityKey]) -> anyhow::Result<String> {
        match self {
            Self::Open => Ok(format!("{line}\n")),
            Self::To(recipients) => encrypt(line, recipients),
            Self::ToSigners => encrypt(line, &recipients_of(signers)?),
        }
    }
}

/// A client's own keys, as far as age can use them.
fn recipients_of(signers: &[IdentityKey]) -> Result<Vec<Recipient>, Usage> {
    if signers.is_empty() {
        return Err(Usage(
            "--encrypt needs a key to encrypt to: the client has none that signs; give it one with --ssh-key, or name \
             another with --encrypt-to FILE"
                .to_owned(),
        ));
    }
    let recipients: Vec<Recipient> = signers
        .iter()
        .filter(|key| !key.needs_touch())
        .filter_map(|key| key.to_string().parse().ok())
        .collect();
    if recipients.is_empty() {
        return Err(Usage(
            "--encrypt: the client's key is in a security key, which signs and cannot decrypt; name a .pub file of an \
             ssh-ed25519 or ssh-rsa key of the same person with --encrypt-to FILE"
                .to_owned(),
        ));
    }
    Ok(recipients)
}

/// The keys of a .pub file; no error repeats what stands in it.
fn read_recipients(path: &Path) -> Result<Vec<Recipient>, ConfigError> {
    let text = read_given(path, LONGEST_FILE)?;
    recipients_in(&text).map_err(|problem| ConfigError::Unfit { path: given(path), problem })
}

fn recipients_in(text: &str) -> Result<Vec<Recipient>, String> {
    if text.contains("PRIVATE KEY-----") {
        return Err("this is a private key: give the .pub file beside it".to_owned());
    }
    let mut recipients = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let problem = match line.parse() {
            Ok(recipient) => {
                recipients.push(recipient);
                continue;
            }
            Err(ParseRecipientKeyError::RsaModulusTooSmall) => "RSA keys of less than 2048 bits are too weak",
            Err(ParseRecipientKeyError::RsaModulusTooLarge) => "the RSA key is too long",
            Err(_) => "age encrypts to ssh-ed25519 and ssh-rsa keys alone: give a .pub file of such a key",
        };
        return Err(format!("line {number}: {problem}"));
    }
    if recipients.is_empty() { Err("has no key: give a .pub file".to_owned()) } else { Ok(recipients) }
}

fn encrypt(line: &str, recipients: &[Recipient]) -> anyhow::Result<String> {
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let sealed = || {
        let encryptor = Encryptor::with_recipients(recipients)?;
        let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armor)?;
        writeln!(writer, "{line}")?;
        Ok::<_, age::EncryptError>(writer.finish()?.finish()?)
    };
    let sealed = sealed().context("cannot encrypt the profile")?;
    Ok(String::from_utf8(sealed).expect("age's armor is ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";
    const TOUCHED: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqtiAAAABHNzaDo= a@b";

    #[test]
    fn what_cannot_be_encrypted_to_is_named_with_what_to_do() {
        let close = |keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| key.parse().unwrap()).collect();
            Seal::ToSigners.close("postern1:c2VjcmV0", &keys).map_err(|error| error.to_string())
        };
        for keys in [&[ONE][..], &[TOUCHED, ONE]] {
            let text = close(keys).unwrap();
            assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"), "{text}");
            assert!(!text.contains("c2VjcmV0"), "{text}");
        }
        assert!(close(&[]).unwrap_err().contains("--ssh-key"));
        assert!(close(&[TOUCHED]).unwrap_err().contains("--encrypt-to FILE"));
    }

    #[test]
    fn a_file_of_recipients_has_public_keys_that_age_can_use() {
        assert_eq!(recipients_in(&format!("# of alice\n{ONE}\n\n{ONE}\n")).unwrap().len(), 2);
        for (bad, says) in [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0", "private key"),
            ("", "no key"),
            ("\nc2VjcmV0", "line 2: age encrypts"),
            (TOUCHED, "ssh-ed25519 and ssh-rsa"),
        ] {
            let error = recipients_in(bad).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }
}
