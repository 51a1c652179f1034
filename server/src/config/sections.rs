//! The sections of posternd.toml as they are written, and what is wrong with one that cannot be meant.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;
use std::path::PathBuf;

use ipnet::IpNet;
use postern_proto::profile::Host;
use postern_proto::text::TextError;
use postern_proto::{ClientName, GateId, Port, ServiceName, Tolerance, Window};
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::sequences::SequenceConfig;
use crate::admin::DEFAULT_SOCKET;
use crate::runner::command::Argv;
use crate::runner::{ByFamily, Commands};
use crate::warden::firewall::Variant;

/// Knock ports of one gate, at the most.
const MAX_KNOCK_PORTS: usize = 8;
/// Interfaces of one gate, at the most.
const MAX_INTERFACES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) gate: GateConfig,
    #[serde(default)]
    pub(super) services: BTreeMap<ServiceName, Spanned<ServiceConfig>>,
    #[serde(default)]
    pub(super) sequences: BTreeMap<ClientName, Spanned<SequenceConfig>>,
    #[serde(default)]
    pub(super) firewall: FirewallConfig,
    #[serde(default)]
    pub(super) process: ProcessConfig,
    #[serde(default)]
    pub(super) admin: AdminConfig,
}

/// `[gate]`.
#[derive(PartialEq, Eq, Deserialize)]
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
    #[serde(default = "answers")]
    pub(crate) answer: bool,
    #[serde(default, rename = "kernel-filter")]
    pub(super) kernel_filter: KernelFilter,
    #[serde(default = "default_keys")]
    pub(super) keys: PathBuf,
    #[serde(default = "default_state")]
    pub(crate) state: PathBuf,
}

const fn answers() -> bool {
    true
}

/// Whether the kernel looks hints up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KernelFilter {
    /// Where it can.
    #[default]
    Auto,
    Off,
}

/// `[services.NAME]`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServiceConfig {
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    #[serde(default = "default_window")]
    pub(crate) window: Window,
    #[serde(default = "default_max_window")]
    pub(crate) max_window: Window,
    #[serde(default)]
    pub(super) established: Established,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_open: Option<Argv>,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_open_ipv4: Option<Argv>,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_open_ipv6: Option<Argv>,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_close: Option<Argv>,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_close_ipv4: Option<Argv>,
    #[serde(default, deserialize_with = "some_command")]
    pub(super) on_close_ipv6: Option<Argv>,
    #[serde(default = "default_command_timeout")]
    pub(super) command_timeout: Window,
}

impl ServiceConfig {
    /// What is run for its leases, if anything is.
    pub(super) fn commands(&self) -> Option<Commands> {
        let by_family = |any: &Option<Argv>, ipv4: &Option<Argv>, ipv6: &Option<Argv>| ByFamily {
            ipv4: ipv4.clone().or_else(|| any.clone()),
            ipv6: ipv6.clone().or_else(|| any.clone()),
        };
        let commands = Commands {
            on_open: by_family(&self.on_open, &self.on_open_ipv4, &self.on_open_ipv6),
            on_close: by_family(&self.on_close, &self.on_close_ipv4, &self.on_close_ipv6),
            deadline: self.command_timeout.duration(),
            ports: self.ports.clone(),
        };
        let all = [&commands.on_open, &commands.on_close];
        all.iter().any(|command| command.ipv4.is_some() || command.ipv6.is_some()).then_some(commands)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Established {
    #[default]
    Keep,
    Cut,
}

/// `[firewall]`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct FirewallConfig {
    pub(super) backend: BackendName,
    pub(super) variant: Variant,
    #[serde(deserialize_with = "some_family")]
    pub(super) families: Vec<FamilyName>,
    pub(super) guard: GuardStyle,
    /// `None` where it is left out: then each backend does what it can.
    pub(super) grants: Option<GrantStyle>,
    pub(super) always_allow: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BackendName {
    Iptables,
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum GuardStyle {
    Drop,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum GrantStyle {
    Accept,
    Return,
}

impl Default for FirewallConfig {
    fn default() -> Self {
        Self {
            backend: BackendName::Iptables,
            variant: Variant::Auto,
            families: vec![FamilyName::Ipv4, FamilyName::Ipv6],
            guard: GuardStyle::Drop,
            grants: None,
            always_allow: vec![],
        }
    }
}

/// `[process]`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct ProcessConfig {
    pub(super) user: String,
    pub(super) landlock: Landlock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Landlock {
    Require,
    IfAvailable,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { user: "postern".to_owned(), landlock: Landlock::Require }
    }
}

/// `[admin]`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct AdminConfig {
    /// Where the gate answers its administrators.
    pub(crate) socket: PathBuf,
    /// Who may ask beside root.
    pub(super) group: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into(), group: None }
    }
}

/// Doors that another file describes, in this one's terms.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Doors {
    #[serde(default)]
    services: BTreeMap<ServiceName, ServiceConfig>,
    #[serde(default)]
    sequences: BTreeMap<ClientName, SequenceConfig>,
}

impl RawConfig {
    /// Has these doors as well.
    ///
    /// # Errors
    /// The name of one that there is already.
    pub(super) fn add(&mut self, doors: Doors) -> Result<(), String> {
        for (name, service) in doors.services {
            if self.services.insert(name.clone(), Spanned::new(0..0, service)).is_some() {
                return Err(format!("posternd.toml has a [services.{name}]: rename one of them"));
            }
        }
        for (name, sequence) in doors.sequences {
            if self.sequences.insert(name.clone(), Spanned::new(0..0, sequence)).is_some() {
                return Err(format!("posternd.toml has a [sequences.{name}]: rename one of them"));
            }
        }
        Ok(())
    }

    /// What no single field can tell.
    pub(super) fn check(&self, text: &str) -> Result<(), TextError> {
        if self.gate.ports.is_empty() && self.sequences.is_empty() {
            let at = text.find("\nports").map_or(0, |line| line + 1);
            let message = format!("ports: list 1 to {MAX_KNOCK_PORTS} different UDP ports for knocks");
            return Err(TextError::at(text, &(at..at), message));
        }
        if self.firewall.backend == BackendName::Nftables && self.firewall.grants == Some(GrantStyle::Accept)
        {
            let at = text.find("\ngrants").map_or(0, |line| line + 1);
            let message = "grants: with backend = \"nftables\" a grant cannot overrule the rules of others; leave it out, or \
                           set \"return\", which is what it does";
            return Err(TextError::at(text, &(at..at), message.to_owned()));
        }
        let mut taken = HashMap::new();
        for (name, service) in &self.services {
            let error = |message: String| Err(TextError::at(text, &service.span(), message));
            let config = service.get_ref();
            if config.ports.is_empty() && config.commands().is_none() {
                return error(format!(
                    "service {name} has no ports: list at least one, such as \"22/tcp\", or commands (on-open)"
                ));
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
        self.check_sequences(text)
    }
}

fn knock_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NonZeroU16>, D::Error> {
    let ports = Vec::<NonZeroU16>::deserialize(deserializer)?;
    let twice = ports.iter().enumerate().any(|(i, port)| ports[..i].contains(port));
    if ports.len() > MAX_KNOCK_PORTS || twice {
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

fn some_command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Argv>, D::Error> {
    let argv = Argv::new(Vec::deserialize(deserializer)?);
    argv.map(Some).ok_or_else(|| {
        de::Error::custom("a command is a program and its arguments, such as [\"/usr/bin/logger\", \"open\"]")
    })
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

fn default_command_timeout() -> Window {
    Window::from_secs(10).unwrap_or(Window::DEFAULT)
}

#[cfg(test)]
mod tests {
    use postern_proto::text::from_toml;

    use super::*;

    #[test]
    fn the_example_reads() {
        let text = include_str!("../../posternd.example.toml");
        let raw: RawConfig = from_toml(text).unwrap();
        assert_eq!(raw.check(text), Ok(()));
        // With the defaults that its comments name.
        let is_toml = |rest: &&str| rest.starts_with('[') || rest.contains(" = ") && !rest.starts_with(' ');
        let uncommented = |line: &'static str| line.strip_prefix('#').filter(is_toml).unwrap_or(line);
        let all = text.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        let mut full: RawConfig = from_toml(&all).unwrap();
        assert_eq!(full.check(&all), Ok(()));
        // What stands there for an example, where the default is none.
        for service in full.services.values_mut() {
            (service.get_mut().on_open, service.get_mut().on_close) = (None, None);
        }
        assert_eq!(full.sequences.len(), 1);
        full.gate.interfaces = any_interface();
        full.firewall.always_allow.clear();
        assert_eq!(full.firewall.grants.take(), Some(GrantStyle::Accept));
        full.admin.group = None;
        assert!(raw.gate == full.gate, "[gate]");
        assert_eq!((raw.firewall, raw.process, raw.admin), (full.firewall, full.process, full.admin));
        let services = |raw: BTreeMap<_, Spanned<ServiceConfig>>| {
            raw.into_iter()
                .map(|(name, service)| (name, service.into_inner()))
                .collect::<Vec<(ServiceName, _)>>()
        };
        assert_eq!(services(raw.services), services(full.services));
    }
}
