//! posternd.toml and the key file, read whole before anything starts. The configuration builds the rooms' settings;
//! no room knows it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU16;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use postern_proto::keyfile::{ClientEntry, KeyFile};
use postern_proto::profile::Host;
use postern_proto::text::{TextError, from_toml};
use postern_proto::{GateId, Port, ServiceName, Tolerance, WallTime, Window};
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use zeroize::Zeroizing;

use crate::admin::DEFAULT_SOCKET;
use crate::clock::BootTime;
use crate::front::gate::{ServiceLimits, ServiceTable};
use crate::front::process::{self as front, Enrolled, Watch};
use crate::sandbox::Identity;
use crate::warden::firewall::{Family, Variant};
use crate::warden::guard::{Admit, Guard, GuardedPort, Refuse};
use crate::warden::process::{self as warden, Reach};
use crate::warden::roll::{Member, Roll, Service};

/// Where the configuration is looked for unless told otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/postern/posternd.toml";

/// Knock ports of one gate, at the most.
const MAX_KNOCK_PORTS: usize = 8;

/// Interfaces of one gate, at the most.
const MAX_INTERFACES: usize = 64;

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
    firewall: FirewallConfig,
    process: ProcessConfig,
    pub(crate) admin: AdminConfig,
    /// The key file, as an absolute or relative path that can be opened.
    pub(crate) keys: PathBuf,
    key_text: Zeroizing<String>,
    pub(crate) clients: Vec<ClientEntry>,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    gate: GateConfig,
    services: BTreeMap<ServiceName, Spanned<ServiceConfig>>,
    #[serde(default)]
    firewall: FirewallConfig,
    #[serde(default)]
    process: ProcessConfig,
    #[serde(default)]
    admin: AdminConfig,
}

/// `[gate]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GateConfig {
    pub(crate) id: GateId,
    #[serde(deserialize_with = "knock_ports")]
    pub(crate) ports: Vec<NonZeroU16>,
    #[serde(default = "any_interface", deserialize_with = "some_interface")]
    pub(crate) interfaces: Vec<String>,
    #[serde(default)]
    pub(crate) addresses: Vec<Host>,
    #[serde(default, deserialize_with = "tolerance")]
    pub(crate) tolerance: Tolerance,
    #[serde(default = "default_keys")]
    keys: PathBuf,
    #[serde(default = "default_state")]
    state: PathBuf,
}

/// `[services.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServiceConfig {
    pub(crate) ports: Vec<Port>,
    #[serde(default = "default_window")]
    pub(crate) window: Window,
    #[serde(default = "default_max_window")]
    pub(crate) max_window: Window,
    #[serde(default)]
    established: Established,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Established {
    #[default]
    Keep,
    Cut,
}

/// `[firewall]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FirewallConfig {
    /// There is one; naming it is allowed.
    #[serde(rename = "backend")]
    _backend: Backend,
    variant: Variant,
    #[serde(deserialize_with = "some_family")]
    families: Vec<FamilyName>,
    guard: GuardStyle,
    grants: GrantStyle,
    always_allow: Vec<IpNet>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Iptables,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GuardStyle {
    Drop,
    Reset,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GrantStyle {
    Accept,
    Return,
}

impl Default for FirewallConfig {
    fn default() -> Self {
        Self {
            _backend: Backend::Iptables,
            variant: Variant::Auto,
            families: vec![FamilyName::Ipv4, FamilyName::Ipv6],
            guard: GuardStyle::Drop,
            grants: GrantStyle::Accept,
            always_allow: vec![],
        }
    }
}

/// `[process]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ProcessConfig {
    user: String,
    landlock: Landlock,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Landlock {
    Require,
    IfAvailable,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { user: "postern".to_owned(), landlock: Landlock::Require }
    }
}

/// `[admin]`.
#[derive(PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct AdminConfig {
    /// Where the gate answers its administrators.
    pub(crate) socket: PathBuf,
    /// Who may ask beside root.
    group: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into(), group: None }
    }
}

impl Config {
    /// Reads the configuration and the key file that it names.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in either file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::read_without_keys(path)?;
        (config.key_text, config.clients) = read_keys(&config.keys, config.services.keys())?;
        Ok(config)
    }

    /// Reads the configuration alone: without clients, whatever their file is like.
    fn read_without_keys(path: &Path) -> Result<Self, ConfigError> {
        let text = read_safe(path, Exposure::NotWritable)?;
        let error = |cause| ConfigError::Text { path: path.to_owned(), cause };
        let raw: RawConfig = from_toml(&text).map_err(error)?;
        raw.check(&text).map_err(error)?;
        let RawConfig { mut gate, services, firewall, process, mut admin } = raw;
        // Relative to this file, not to wherever the gate is started: it must not remember in two places.
        let folder = path.parent().unwrap_or(Path::new(""));
        let keys = folder.join(&gate.keys);
        gate.state = folder.join(&gate.state);
        admin.socket = folder.join(&admin.socket);
        let services = services.into_iter().map(|(name, service)| (name, service.into_inner())).collect();
        let (key_text, clients, path) = (Zeroizing::default(), vec![], path.to_owned());
        Ok(Self { gate, services, firewall, process, admin, keys, key_text, clients, path })
    }

    /// What the guard takes that stands without a gate.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in the configuration; the key file is not looked at.
    pub(crate) fn guard_alone(path: &Path) -> Result<(Reach, Guard), ConfigError> {
        let config = Self::read_without_keys(path)?;
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

    /// What a front is told whose store's folder is new, or is not.
    pub(crate) fn front(&self, is_new: bool) -> front::Settings {
        front::Settings { is_new, watch: self.watch(), enrolled: self.enrolled() }
    }

    /// What one front watches and remembers.
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            interfaces: self.gate.interfaces.clone(),
            ports: self.gate.ports.clone(),
            gate: self.gate.id.clone(),
            tolerance: self.gate.tolerance,
            store: self.store(),
        }
    }

    /// Where the front keeps what it must remember.
    pub(crate) fn store(&self) -> PathBuf {
        self.gate.state.join("front")
    }

    /// Who may knock, with keys.
    pub(crate) fn enrolled(&self) -> Enrolled {
        Enrolled { services: self.service_table(), keys: self.key_text.clone() }
    }

    /// The services' windows.
    pub(crate) fn service_table(&self) -> ServiceTable {
        let limits = |service: &ServiceConfig| ServiceLimits {
            window: service.window,
            max_window: service.max_window,
        };
        self.services.iter().map(|(name, service)| (name.clone(), limits(service))).collect()
    }

    /// What the warden of a gate that was started at `since` is told; no secret is in it. A trial has an end.
    pub(crate) fn warden(&self, since: BootTime, trial_end: Option<WallTime>) -> warden::Settings {
        warden::Settings { since, reach: self.reach(), guard: self.guard(trial_end), roll: self.roll() }
    }

    /// How the warden reaches the firewall.
    pub(crate) fn reach(&self) -> Reach {
        let firewall = &self.firewall;
        let family = |name: &FamilyName| match name {
            FamilyName::Ipv4 => Family::V4,
            FamilyName::Ipv6 => Family::V6,
        };
        Reach {
            variant: firewall.variant,
            families: firewall.families.iter().map(family).collect(),
            admit: match firewall.grants {
                GrantStyle::Accept => Admit::Accept,
                GrantStyle::Return => Admit::Return,
            },
        }
    }

    /// What is shut unless granted.
    pub(crate) fn guard(&self, trial_end: Option<WallTime>) -> Guard {
        let firewall = &self.firewall;
        Guard {
            knock_ports: self.gate.ports.clone(),
            ports: self.guarded_ports(),
            always_allow: firewall.always_allow.clone(),
            refuse: match firewall.guard {
                GuardStyle::Drop => Refuse::Drop,
                GuardStyle::Reset => Refuse::Reset,
            },
            until: trial_end,
        }
    }

    fn guarded_ports(&self) -> Vec<GuardedPort> {
        let guarded = |service: &ServiceConfig| {
            let keep_established = service.established == Established::Keep;
            service.ports.clone().into_iter().map(move |port| GuardedPort { port, keep_established })
        };
        self.services.values().flat_map(guarded).collect()
    }

    /// Who may have what, without keys.
    pub(crate) fn roll(&self) -> Roll {
        let member = |entry: &ClientEntry| Member {
            name: entry.name.clone(),
            services: entry.services.clone(),
            max_window: entry.max_window,
            max_leases: entry.max_leases.unwrap_or(ClientEntry::DEFAULT_MAX_LEASES),
            sources: entry.sources.clone(),
            not_before: entry.not_before,
            expires: entry.expires,
        };
        let service =
            |config: &ServiceConfig| Service { ports: config.ports.clone(), max_window: config.max_window };
        let enabled = self.clients.iter().filter(|entry| !entry.disabled);
        Roll {
            members: enabled.map(|entry| (entry.id, member(entry))).collect(),
            services: self.services.iter().map(|(name, config)| (name.clone(), service(config))).collect(),
        }
    }
}

impl RawConfig {
    /// What no single field can tell.
    fn check(&self, text: &str) -> Result<(), TextError> {
        let mut taken = HashMap::new();
        for (name, service) in &self.services {
            let error = |message: String| Err(TextError::at(text, &service.span(), message));
            let config = service.get_ref();
            if config.ports.is_empty() {
                return error(format!("service {name} has no ports: list at least one, such as \"22/tcp\""));
            }
            if config.window > config.max_window {
                return error(format!("service {name}: its window is longer than its max-window"));
            }
            for port in &config.ports {
                if let Some(other) = taken.insert(port, name) {
                    return error(format!("port {port} is listed twice, for {other} and {name}"));
                }
                let knock =
                    port.protocol == postern_proto::Protocol::Udp && self.gate.ports.contains(&port.number);
                if knock {
                    return error(format!(
                        "service {name}: {port} is a knock port of this gate; choose another"
                    ));
                }
            }
        }
        Ok(())
    }
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

/// What others must not be able to do with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// Change it.
    NotWritable,
    /// Change or read it.
    NotReadable,
}

/// Reads a text file, unless its mode lets others do more than they may, or somebody else owns it.
pub(crate) fn read_safe(path: &Path, exposure: Exposure) -> Result<Zeroizing<String>, ConfigError> {
    let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
    let mode_error = |problem| Err(ConfigError::Unfit { path: path.to_owned(), problem });
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return mode_error("is not a file".to_owned());
    }
    let mode = metadata.permissions().mode() & 0o777;
    let me = rustix::process::geteuid().as_raw();
    if ![0, me].contains(&metadata.uid()) {
        return mode_error("belongs to another user: chown root".to_owned());
    }
    let (forbidden, verb) = match exposure {
        Exposure::NotWritable => (0o022, "change"),
        Exposure::NotReadable => (0o077, "read or change"),
    };
    if mode & forbidden != 0 {
        return mode_error(format!("mode {mode:04o} lets others {verb} it: chmod 600"));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map(|_| text).map_err(read)
}

fn knock_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NonZeroU16>, D::Error> {
    let ports = Vec::<NonZeroU16>::deserialize(deserializer)?;
    let twice = ports.iter().enumerate().any(|(i, port)| ports[..i].contains(port));
    if ports.is_empty() || ports.len() > MAX_KNOCK_PORTS || twice {
        return Err(de::Error::custom(format!("list 1 to {MAX_KNOCK_PORTS} different UDP ports for knocks")));
    }
    Ok(ports)
}

fn some_interface<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.is_empty() || names.len() > MAX_INTERFACES {
        return Err(de::Error::custom(format!(
            "list at least one interface and at most {MAX_INTERFACES}, or leave the key out for any"
        )));
    }
    // IFNAMSIZ, with the zero at its end.
    if names.iter().any(|name| name.is_empty() || name.len() > 15) {
        return Err(de::Error::custom("an interface's name has 1 to 15 bytes"));
    }
    Ok(names)
}

fn some_family<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FamilyName>, D::Error> {
    let families = Vec::<FamilyName>::deserialize(deserializer)?;
    if families.is_empty() {
        return Err(de::Error::custom(
            "families is empty: nobody could be let in; leave the key out for both",
        ));
    }
    Ok(families)
}

fn tolerance<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tolerance, D::Error> {
    let window = Window::deserialize(deserializer)?;
    Tolerance::new(window.duration()).map_err(de::Error::custom)
}

fn any_interface() -> Vec<String> {
    vec!["any".to_owned()]
}

fn default_keys() -> PathBuf {
    "keys".into()
}

fn default_state() -> PathBuf {
    "/var/lib/postern".into()
}

const fn default_window() -> Window {
    Window::DEFAULT
}

const fn default_max_window() -> Window {
    Window::DEFAULT_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_reads() {
        let text = include_str!("../posternd.example.toml");
        let raw: RawConfig = from_toml(text).unwrap();
        assert_eq!(raw.check(text), Ok(()));
        // With the defaults that its comments name.
        let uncommented =
            |line: &'static str| line.strip_prefix('#').filter(|rest| rest.contains(" = ")).unwrap_or(line);
        let all = text.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        let full: RawConfig = from_toml(&all).unwrap();
        let (ssh, full_ssh) =
            (raw.services.first_key_value().unwrap().1, full.services.first_key_value().unwrap().1);
        assert_eq!(ssh.get_ref().window, full_ssh.get_ref().window);
        assert_eq!(ssh.get_ref().max_window, full_ssh.get_ref().max_window);
        assert_eq!(raw.gate.tolerance, full.gate.tolerance);
        assert_eq!((raw.gate.keys, raw.gate.state), (full.gate.keys, full.gate.state));
        assert_eq!(raw.firewall.variant, full.firewall.variant);
    }
}
