//! posternd.toml and the key file, read whole before anything starts. The configuration builds the rooms' settings;
//! no room knows it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use postern_proto::ServiceName;
use postern_proto::keyfile::{ClientEntry, KeyFile};
use postern_proto::text::{TextError, from_toml};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::front::gate::Authorized;
use crate::knockd::KnockdConf;
use crate::sandbox::Identity;
use crate::warden::guard::Guard;
use crate::warden::process::Reach;

pub(crate) mod authorized;
pub(crate) mod one_time;
mod rooms;
mod safe;
mod sections;
mod sequences;

pub(crate) use safe::{Exposure, read_safe};
use sections::{
    AdminConfig, Doors, FirewallConfig, GateConfig, Landlock, ProcessConfig, RawConfig, ServiceConfig,
};
use sequences::{SequenceConfig, Sequences};

/// Where the configuration is looked for unless told otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/postern/posternd.toml";

/// A gate that nobody can knock at: its doors are those of a knockd.conf. The id is nobody's.
const NO_GATE: &str = "[gate]\nid = \"AAAAAAAAAAAAAAAAAAAAAA\"\nports = []\n";

/// The files of one gate.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// posternd.toml.
    pub(crate) config: PathBuf,
    /// A knockd.conf whose doors the gate has as well.
    pub(crate) knockd: Option<PathBuf>,
    /// There is no posternd.toml, and none is meant. Decided once: one that is missing later is a mistake, and must not
    /// take the guard down.
    is_knockd_alone: bool,
}

impl Files {
    /// What a command line names.
    pub(crate) fn new(config: Option<&Path>, knockd: Option<&Path>) -> Self {
        let default = Path::new(DEFAULT_PATH);
        let is_knockd_alone = config.is_none() && knockd.is_some() && !default.exists();
        let (config, knockd) = (config.unwrap_or(default).to_owned(), knockd.map(Path::to_owned));
        Self { config, knockd, is_knockd_alone }
    }

    /// posternd.toml alone.
    fn without_knockd(config: &Path) -> Self {
        Self { config: config.to_owned(), knockd: None, is_knockd_alone: false }
    }

    /// Those that were read.
    pub(crate) fn there(&self) -> impl Iterator<Item = &PathBuf> {
        Some(&self.config).filter(|_| !self.is_knockd_alone).into_iter().chain(&self.knockd)
    }
}

/// A file that does not read; its text says which, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {cause}", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Unfit { path: PathBuf, problem: String },
    #[error("{}: {cause}", path.display())]
    Text { path: PathBuf, cause: TextError },
}

/// A configuration that was read whole and makes sense, with the clients of its key file.
pub(crate) struct Config {
    pub(crate) gate: GateConfig,
    pub(crate) services: BTreeMap<ServiceName, ServiceConfig>,
    pub(crate) sequences: Sequences,
    firewall: FirewallConfig,
    process: ProcessConfig,
    pub(crate) admin: AdminConfig,
    /// The key file, as an absolute or relative path that can be opened.
    pub(crate) keys: PathBuf,
    key_text: Zeroizing<String>,
    pub(crate) clients: Vec<ClientEntry>,
    /// The keys in the files that clients' entries point to.
    pub(crate) authorized: Authorized,
    /// What an administrator should know, and no mistake.
    pub(crate) remarks: Vec<String>,
    path: PathBuf,
}

impl Config {
    /// Reads the configuration and the key file that it names.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in either file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_all(&Files::without_knockd(path))
    }

    /// [`Config::read`], with the doors of a knockd.conf as well.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in any of the files.
    pub(crate) fn read_all(files: &Files) -> Result<Self, ConfigError> {
        let mut config = Self::read_without_keys(files)?;
        if config.gate.ports.is_empty() && !config.keys.exists() {
            return Ok(config);
        }
        (config.key_text, config.clients) = read_keys(&config.keys, config.services.keys())?;
        if let Some(client) = config.clients.iter().find(|client| config.sequences.contains_key(&client.name))
        {
            let problem =
                format!("client {0}: posternd.toml has [sequences.{0}]; rename one of them", client.name);
            return Err(ConfigError::Unfit { path: config.keys, problem });
        }
        (config.authorized, config.remarks) = authorized::read(&config.clients);
        Ok(config)
    }

    /// Reads the configuration alone: without clients, whatever their file is like.
    fn read_without_keys(files: &Files) -> Result<Self, ConfigError> {
        let Files { config: path, knockd, is_knockd_alone } = files;
        let error = |cause| ConfigError::Text { path: path.to_owned(), cause };
        let text = if *is_knockd_alone {
            Zeroizing::new(NO_GATE.to_owned())
        } else {
            read_safe(path, Exposure::NotWritable)?
        };
        let mut raw: RawConfig = from_toml(&text).map_err(error)?;
        if let Some(file) = knockd {
            let error = |cause| ConfigError::Text { path: file.to_owned(), cause };
            let conf = read_knockd(file)?;
            let doors: Doors = from_toml(&conf.to_toml()).map_err(error)?;
            raw.add(doors).map_err(|problem| ConfigError::Unfit { path: file.to_owned(), problem })?;
            if let Some(interface) = conf.interface.filter(|_| *is_knockd_alone) {
                raw.gate.interfaces = vec![interface];
            }
        }
        // Relative to this file, not to wherever the gate is started: it must not remember in two places.
        let folder = path.parent().unwrap_or(Path::new(""));
        for sequence in raw.sequences.values_mut() {
            sequence.get_mut().read_file(folder)?;
        }
        raw.check(&text).map_err(error)?;
        let RawConfig { mut gate, services, sequences, firewall, process, mut admin } = raw;
        let sequences: Sequences =
            sequences.into_iter().map(|(name, sequence)| (name, sequence.into_inner())).collect();
        if sequences.values().any(SequenceConfig::is_secret) {
            // Whoever could read the key of a rolling sequence could go through it.
            read_safe(path, Exposure::NotReadable)?;
        }
        let keys = folder.join(&gate.keys);
        gate.state = folder.join(&gate.state);
        admin.socket = folder.join(&admin.socket);
        let services = services.into_iter().map(|(name, service)| (name, service.into_inner())).collect();
        Ok(Self {
            gate,
            services,
            sequences,
            firewall,
            process,
            admin,
            keys,
            key_text: Zeroizing::default(),
            clients: vec![],
            authorized: Authorized::new(),
            remarks: vec![],
            path: path.to_owned(),
        })
    }

    /// What the guard takes that stands without a gate.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in the configuration; the key file is not looked at.
    pub(crate) fn guard_alone(path: &Path) -> Result<(Reach, Guard), ConfigError> {
        let config = Self::read_without_keys(&Files::without_knockd(path))?;
        Ok((config.reach(), config.guard(None)))
    }

    /// Where the gate of this configuration answers its administrators. A gate that runs can be asked, and told to end
    /// leases, whatever mistakes have got into its files since: they are not looked at.
    pub(crate) fn admin_socket(path: &Path) -> PathBuf {
        #[derive(Default, Deserialize)]
        struct OnlyAdmin {
            #[serde(default)]
            admin: AdminConfig,
        }
        let text = read_safe(path, Exposure::NotWritable).unwrap_or_default();
        let only: OnlyAdmin = from_toml(&text).unwrap_or_default();
        path.parent().unwrap_or(Path::new("")).join(only.admin.socket)
    }

    /// The group that may ask the gate, beside root.
    ///
    /// # Errors
    /// [`ConfigError::Unfit`] when there is no such group.
    pub(crate) fn admin_group(&self) -> Result<Option<u32>, ConfigError> {
        let Some(name) = &self.admin.group else { return Ok(None) };
        let unfit = |problem| ConfigError::Unfit { path: self.path.clone(), problem };
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
            Ok(None) => Err(unfit(format!("there is no group {name} on this host: name another in [admin]"))),
            Err(error) => Err(unfit(format!("cannot look up the group {name} of [admin]: {error}"))),
        }
    }

    /// Who the processes are that meet the world.
    ///
    /// # Errors
    /// [`ConfigError::Unfit`] when there is no such user, or it is root.
    pub(crate) fn identity(&self) -> Result<Identity, ConfigError> {
        let name = &self.process.user;
        let unfit = |problem| ConfigError::Unfit { path: self.path.clone(), problem };
        let user = nix::unistd::User::from_name(name)
            .map_err(|error| unfit(format!("cannot look up the user {name} of [process]: {error}")))?;
        let user = user.ok_or_else(|| {
            unfit(format!(
                "there is no user {name} on this host: make it (useradd --system --shell /usr/sbin/nologin {name}), \
                 or name another in [process]: user = \"...\""
            ))
        })?;
        if user.uid.is_root() {
            return Err(unfit(format!("user {name} is root: name an unprivileged one in [process]")));
        }
        let landlock_optional = self.process.landlock == Landlock::IfAvailable;
        Ok(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), landlock_optional })
    }
}

/// Reads a knockd.conf. Others may not change it: its commands are run by root.
///
/// # Errors
/// [`ConfigError`] for the first mistake in it.
pub(crate) fn read_knockd(path: &Path) -> Result<KnockdConf, ConfigError> {
    let text = read_safe(path, Exposure::NotWritable)?;
    text.parse().map_err(|cause| ConfigError::Text { path: path.to_owned(), cause })
}

/// Reads the key file, text and clients: nobody else may read it, and its clients' services must exist.
fn read_keys<'a>(
    path: &Path,
    services: impl IntoIterator<Item = &'a ServiceName>,
) -> Result<(Zeroizing<String>, Vec<ClientEntry>), ConfigError> {
    let text = read_safe(path, Exposure::NotReadable)?;
    let error = |cause| ConfigError::Text { path: path.to_owned(), cause };
    let clients = KeyFile::parse(&text).map_err(error)?.into_clients();
    let known: Vec<_> = services.into_iter().collect();
    for client in &clients {
        if let Some(unknown) = client.services.iter().find(|service| !known.contains(service)) {
            let name = format!("name = \"{}\"", client.name);
            let start = text.find(&name).unwrap_or(0);
            let message = format!("client {}: posternd.toml has no [services.{unknown}]", client.name);
            return Err(error(TextError::at(&text, &(start..start), message)));
        }
    }
    Ok((text, clients))
}
