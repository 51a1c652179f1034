//! Where a profile comes from, when not from the configuration: for jobs without a home.
//!
//! The one who hands it over decides who else can read it: containers and service managers mount their secrets in many
//! modes. None of these origins is an argument, but of `import`, which warns: every user of a host sees the arguments of
//! all its processes.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use postern_proto::Profile;
use zeroize::Zeroizing;

use super::read_bytes;
use crate::error::Error;

/// The environment variable that holds a profile. Not a clap `env`: clap's help prints the values of those.
const PROFILE_VARIABLE: &str = "POSTERN_PROFILE";

/// Where systemd puts what `LoadCredential=` names; it sets this for the service alone.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// What the credential with the profile is called.
const CREDENTIAL: &str = "postern-profile";

/// Where a profile line comes from, other than the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    Argument(&'a str),
    Stdin,
    File(&'a Path),
    /// [`PROFILE_VARIABLE`], when it is set.
    Environment,
    /// A credential of systemd's.
    Credential(PathBuf),
}

impl<'a> Origin<'a> {
    /// A file, or stdin when it is called `-`.
    pub(crate) fn file(path: &'a Path) -> Self {
        if path == "-" { Self::Stdin } else { Self::File(path) }
    }

    /// Where the gate `-` has its profile from: what was said for this one run goes before what the environment says, and
    /// that before the credential that the service was given.
    pub(crate) fn at_hand(file: Option<&'a Path>) -> Self {
        Self::at_hand_in(file, |name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn at_hand_in(file: Option<&'a Path>, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        if let Some(path) = file {
            return Self::file(path);
        }
        match variable(CREDENTIALS_VARIABLE).map(|folder| Path::new(&folder).join(CREDENTIAL)) {
            Some(path) if variable(PROFILE_VARIABLE).is_none() => Self::Credential(path),
            _ => Self::Environment,
        }
    }

    /// The profile there; `None` when the environment, or the credentials, have none.
    ///
    /// # Errors
    /// [`Error`] with exit code 3, which tells a profile that was cut from one that was mistyped.
    pub(crate) fn profile(&self) -> Result<Option<Profile>, Error> {
        self.bytes()?.map(|bytes| self.line(&bytes)).transpose()
    }

    /// What is there, whatever it is.
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub(crate) fn bytes(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let bytes = match self {
            Self::Argument(line) => Ok(Zeroizing::new(line.as_bytes().to_vec())),
            Self::Stdin => read_bytes(io::stdin()),
            Self::File(path) => File::open(path).and_then(read_bytes),
            Self::Environment => match env::var_os(PROFILE_VARIABLE).filter(|line| !line.is_empty()) {
                Some(line) => Ok(Zeroizing::new(line.into_vec())),
                None => return Ok(None),
            },
            // A service may have credentials, and none of this name.
            Self::Credential(path) => match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened.and_then(read_bytes),
            },
        };
        bytes.map(Some).map_err(|source| Error::Unreadable { file: self.name(), source })
    }

    /// The profile in a line that was read there.
    ///
    /// # Errors
    /// [`Error::Profile`], which tells a profile that was cut from one that was mistyped.
    pub(crate) fn line(&self, line: &[u8]) -> Result<Profile, Error> {
        // Other characters than a profile's only make it a mistyped one.
        let line = String::from_utf8_lossy(line);
        Profile::from_line(&line).map_err(|source| Error::Profile { origin: self.name(), source })
    }

    /// What to call it in an error.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Argument(_) => "the profile in the argument".to_owned(),
            Self::Stdin => "stdin".to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Environment => PROFILE_VARIABLE.to_owned(),
            Self::Credential(path) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_file_variable_and_credential_is_taken() {
        let (line, folder) =
            ((PROFILE_VARIABLE, "postern1:x"), (CREDENTIALS_VARIABLE, "/run/credentials/job"));
        let at_hand = |file: Option<&'static str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| OsString::from(value))
            };
            Origin::at_hand_in(file.map(Path::new), variable)
        };
        let credential = || Origin::Credential("/run/credentials/job/postern-profile".into());
        assert_eq!(at_hand(Some("f"), &[line, folder]), Origin::File(Path::new("f")));
        assert_eq!(at_hand(Some("-"), &[line, folder]), Origin::Stdin);
        assert_eq!(at_hand(None, &[line, folder]), Origin::Environment);
        assert_eq!(at_hand(None, &[folder]), credential());
        assert_eq!(at_hand(None, &[line]), Origin::Environment);
        assert_eq!(at_hand(None, &[]), Origin::Environment);
    }
}
