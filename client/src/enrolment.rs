//! The forms in which a gate's administrator hands a profile over: the line itself, the line as a decoder of QR codes prints it,
//! and the line encrypted with age to the SSH key of whoever it is for.

use std::path::Path;

use age::armor::ArmoredReader;
use age::ssh::Identity;
use age::{DecryptError, Decryptor};
use postern_proto::Profile;
use ssh_key::LineEnding;
use zeroize::Zeroizing;

use crate::config::{Origin, read_bytes};
use crate::error::Error;
use crate::identity::private_key;

/// How files of age begin, armored or not.
const AGE: [&[u8]; 2] = [b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----"];
/// What zbarimg and zbarcam print before what they have read.
const QR: &[u8] = b"QR-Code:";

/// The profile there, in whichever form; `None` when the environment has none.
///
/// # Errors
/// [`Error`] with exit code 3.
pub(crate) fn profile(origin: &Origin<'_>, identity: Option<&Path>) -> Result<Option<Profile>, Error> {
    let Some(bytes) = origin.bytes()? else { return Ok(None) };
    if AGE.iter().any(|begin| bytes.starts_with(begin)) {
        return origin.line(&decrypted(&bytes, origin, identity)?).map(Some);
    }
    let text = bytes.trim_ascii();
    origin.line(text.strip_prefix(QR).unwrap_or(text)).map(Some)
}

/// The text in a file of age. It is wiped in the end; age's own copies of the key are not.
fn decrypted(
    bytes: &[u8],
    origin: &Origin<'_>,
    identity: Option<&Path>,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let origin = || origin.name();
    let damaged = || Error::DamagedAge { origin: origin() };
    let decryptor = Decryptor::new(ArmoredReader::new(bytes)).map_err(|_| damaged())?;
    let (path, key) =
        private_key(identity).map_err(|source| Error::Undecrypted { origin: origin(), source })?;
    let other = || Error::OtherRecipient { origin: origin(), key: path.clone() };
    let key = key.to_openssh(LineEnding::LF).map_err(|_| other())?;
    let key = Identity::from_buffer(key.as_bytes(), None).map_err(|_| other())?;
    let text =
        decryptor.decrypt(std::iter::once(&key as &dyn age::Identity)).map_err(|error| match error {
            DecryptError::NoMatchingKeys => other(),
            _ => damaged(),
        })?;
    read_bytes(text).map_err(|_| damaged())
}
