//! The configuration: for each gate a profile, classic sequences, or both, in a file that nobody else can read.
//!
//! It holds the client's secrets. No error repeats a value of it, the text that was read is wiped (the TOML reader's own
//! copies are not), and a file that group or others can read is refused rather than used: what they have read cannot be
//! taken back, but somebody must notice. A profile that is handed over otherwise has an [`Origin`].

mod gate;
mod origin;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use postern_proto::text::from_toml;
use postern_proto::{GateName, Profile, TextError};
use serde::Deserialize;
use toml::Spanned;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Error;

use gate::RawEntry;
pub(crate) use gate::{Entry, Sequence};
pub(crate) use origin::Origin;

/// Most bytes read from a file or stdin: far more than a thousand gates need.
const READ_LIMIT: u64 = 1 << 20;

/// The gates, by name. Each can be used: it has an address, and a whole profile to knock with or a sequence to send.
pub(crate) struct Config {
    gates: BTreeMap<GateName, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    gates: BTreeMap<GateName, Spanned<RawEntry>>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error`] with exit code 3: no such file, others can read it, or the place of the first mistake.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let text = read_private(path)?.ok_or_else(|| Error::NoConfig(path.to_owned()))?;
        Self::parse(&text).map_err(|source| Error::Mistake { path: path.to_owned(), source })
    }

    /// Reads the text of a configuration.
    pub(crate) fn parse(text: &str) -> Result<Self, TextError> {
        let raw: RawConfig = from_toml(text)?;
        let gates = raw.gates.into_iter().map(|(name, raw)| {
            let span = raw.span();
            let entry = raw.into_inner().check(text, span, &name)?;
            Ok((name, entry))
        });
        Ok(Self { gates: gates.collect::<Result<_, _>>()? })
    }

    /// The gates in the order of their names.
    pub(crate) const fn gates(&self) -> &BTreeMap<GateName, Entry> {
        &self.gates
    }

    /// One gate; `path` is where the configuration was read, for the error.
    pub(crate) fn into_gate(mut self, name: &GateName, path: &Path) -> Result<Entry, Error> {
        self.gates.remove(name).ok_or_else(|| Error::UnknownGate {
            name: name.clone(),
            path: path.to_owned(),
            known: self.gates.keys().map(ToString::to_string).collect(),
        })
    }
}

/// What a profile lacks to be knocked with, and what to do about it.
pub(crate) fn lacks(profile: &Profile) -> Option<&'static str> {
    if profile.addresses.is_empty() {
        Some("no address to knock at: add one to `addresses`, or import it with --address HOST")
    } else if profile.ports.is_empty() {
        Some("no port to knock at: add the gate's knock port to `ports`")
    } else if profile.services.is_empty() {
        Some("no service to open: add one to `services`, such as ssh = [\"22/tcp\"]")
    } else {
        None
    }
}

/// Where the configuration is: as given (flag or `POSTERN_CONFIG`), else in `XDG_CONFIG_HOME`, else in `HOME`.
pub(crate) fn locate(given: Option<&Path>) -> Result<PathBuf, Error> {
    locate_in(given, |name| env::var_os(name))
}

fn locate_in(given: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    // The XDG base directory specification has relative paths ignored.
    let folder = |name| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let base = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    base.map(|base| base.join("postern/config.toml")).ok_or(Error::NoConfigPath)
}

/// The text of a file that only its owner can read; `None` when there is no such file.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::unreadable(path)(error)),
    };
    // Of the open file: the name may stand for another one a moment later.
    require_private(path, &file.metadata().map_err(Error::unreadable(path))?)?;
    read_text(file).map(Some).map_err(Error::unreadable(path))
}

/// That nobody else can read or write a file.
pub(crate) fn require_private(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        if !metadata.is_file() {
            // Nobody shall be told to take a folder or a device from others.
            return Err(Error::unreadable(path)(io::Error::other("it is no regular file")));
        }
        return Err(Error::ReadableByOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

/// All of a text, if it is not too long.
pub(crate) fn read_text(from: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    from.take(READ_LIMIT + 1).read_to_string(&mut text)?;
    bounded(text)
}

/// All that can be read, if it is not too much.
pub(crate) fn read_bytes(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    from.take(READ_LIMIT + 1).read_to_end(&mut bytes)?;
    bounded(bytes)
}

fn bounded<T: AsRef<[u8]> + Zeroize>(read: Zeroizing<T>) -> io::Result<Zeroizing<T>> {
    if read.as_ref().len() as u64 > READ_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../config.example.toml");

    #[test]
    fn the_example_reads_and_shows_ssh() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.gates().len(), 3);
        assert!(EXAMPLE.contains("#     ProxyCommand postern proxy --gate bastion %h %p\n"));
    }

    #[test]
    fn the_file_is_where_the_first_of_flag_xdg_and_home_says() {
        let locate = |given: Option<&str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables
                    .iter()
                    .find(|(variable, _)| *variable == name)
                    .map(|(_, value)| OsString::from(value))
            };
            locate_in(given.map(Path::new), variable).ok().map(|path| path.display().to_string())
        };
        let (xdg, home) = (("XDG_CONFIG_HOME", "/x"), ("HOME", "/h"));
        let some = |path: &str| Some(path.to_owned());
        assert_eq!(locate(Some("given"), &[xdg, home]), some("given"));
        assert_eq!(locate(None, &[home, xdg]), some("/x/postern/config.toml"));
        assert_eq!(locate(None, &[home]), some("/h/.config/postern/config.toml"));
        assert_eq!(locate(None, &[("XDG_CONFIG_HOME", ""), home]), some("/h/.config/postern/config.toml"));
        assert_eq!(locate(None, &[("XDG_CONFIG_HOME", "relative")]), None);
        assert_eq!(locate(None, &[]), None);
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let good = EXAMPLE;
        let line = |needle: &str| 1 + good.lines().position(|line| line.starts_with(needle)).unwrap();
        for (from, to, at, says) in [
            ("gate-id = \"", "gate-id = \"x", line("gate-id"), "a gate id is 16 bytes"),
            ("client-id = \"", "client-id = \"x", line("client-id"), "a client id is 8 bytes"),
            ("secret = \"", "secret = \"x", line("secret"), "a client secret is 32 bytes"),
            ("secret = \"ABEiM0RV", "secret = 5 # ", line("secret"), "expected a string"),
            ("\nsecret = ", "\nsecrets = ", line("secret"), "unknown field `secrets`"),
            ("ports = [62201]", "ports = []", line("[gates.bastion]"), "gate bastion has no port"),
            ("ports = [62201]", "ports = [0]", line("ports"), "expected a nonzero u16"),
            ("ports = [62201]", "ports = [70000]", line("ports"), "expected a nonzero u16"),
            (
                "addresses = [\"bastion.example.org\"]",
                "addresses = []",
                line("[gates.bastion]"),
                "no address",
            ),
            ("[\"bastion.example.org\"]", "[\"a b\"]", line("addresses"), "a host is an IP address"),
            ("services = { ssh = [\"22/tcp\"] }", "services = {}", line("[gates.bastion]"), "no service"),
            ("\"22/tcp\"", "\"22\"", line("services"), "a port is a number"),
            ("ssh = [\"22/tcp\"]", "\"s sh\" = [\"22/tcp\"]", line("services"), "a service name is"),
            ("[gates.bastion]", "[gates.\"bas tion\"]", line("[gates.bastion]"), "a gate name is"),
            ("[gates.bastion]", "[gate.bastion]", line("[gates.bastion]"), "unknown field `gate`"),
            ("[gates.bastion]", "[gates.bastion", line("[gates.bastion]"), ""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from} is not in the example");
            let error = Config::parse(&bad).err().unwrap_or_else(|| panic!("accepted:\n{bad}"));
            assert!(error.message.contains(says), "{error}\n{bad}");
            assert_eq!(error.line, at, "{error}\n{bad}");
            assert!(!error.message.contains("ABEiM0R"), "an error repeats a secret: {error}");
        }
    }
}
