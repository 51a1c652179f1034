//! `[sequences.NAME]`: ports that open services when somebody touches them in order. To everything behind it, a sequence
//! is a client without a key: it has a name, services and limits, and its leases are its own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use postern_proto::keys::SequenceKey;
use postern_proto::sequence::{Door, PortRange, Rolling, Sequence, Steps, Strays, TcpFlags};
use postern_proto::text::TextError;
use postern_proto::{ClientEntry, ClientId, ClientName, Port, Protocol, ServiceName, Window};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use toml::Spanned;

use super::sections::RawConfig;
use super::{ConfigError, one_time};
use crate::front::filter::Touch;
use crate::front::sequences::{Ports, SequenceSettings};
use crate::warden::roll::Member;

/// `[sequences.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SequenceConfig {
    /// The ports, always the same.
    steps: Option<Steps>,
    /// Or the range from which they are computed, others in every epoch.
    rolling: Option<PortRange>,
    key: Option<SequenceKey>,
    length: Option<usize>,
    #[serde(default = "yes")]
    bound_to_source: bool,
    /// Or a file with a sequence a line, each good once.
    one_time: Option<PathBuf>,
    /// What is unused in that file.
    #[serde(skip)]
    unused: Vec<Steps>,
    services: Vec<ServiceName>,
    timeout: Option<Window>,
    #[serde(default)]
    flags: TcpFlags,
    target: Option<IpAddr>,
    #[serde(default)]
    strays: Strays,
    max_leases: Option<u32>,
    #[serde(default)]
    sources: Vec<IpNet>,
}

/// By name.
pub(super) type Sequences = BTreeMap<ClientName, SequenceConfig>;

impl SequenceConfig {
    /// Reads the file of one-time sequences, if it has one; its path is relative to a folder.
    pub(super) fn read_file(&mut self, folder: &Path) -> Result<(), ConfigError> {
        if let Some(file) = &mut self.one_time {
            *file = folder.join(&file);
            self.unused = one_time::read(file)?;
        }
        Ok(())
    }

    /// Forgets a sequence of its file that was used.
    pub(crate) fn spend(&mut self, used: &Steps) {
        if let Some(at) = self.unused.iter().position(|steps| steps == used) {
            self.unused.remove(at);
        }
    }

    /// The file of one-time sequences.
    pub(crate) fn one_time(&self) -> Option<&Path> {
        self.one_time.as_deref()
    }

    /// Whether it holds a secret.
    pub(super) const fn is_secret(&self) -> bool {
        self.key.is_some()
    }

    /// Whether a scan that takes one port after another goes through it.
    pub(crate) fn opens_to_a_scan(&self) -> bool {
        let door = |steps: &Steps| Door { strays: self.strays, ..Door::new(Sequence::Fixed(steps.clone())) };
        self.steps.as_ref().is_some_and(|steps| door(steps).opens_to_a_scan())
    }

    /// What the front is told.
    pub(super) fn settings(&self, name: &ClientName) -> Option<SequenceSettings> {
        let ports = match (&self.steps, self.rolling, &self.key) {
            (None, None, None) if self.one_time.is_some() => Ports::OneTime(self.unused.clone()),
            (Some(steps), None, None) => Ports::Fixed(steps.clone()),
            (None, Some(range), Some(key)) => Ports::Rolling {
                key: key.clone(),
                range,
                length: self.length.unwrap_or(Rolling::LENGTH),
                bound_to_source: self.bound_to_source,
            },
            _ => return None,
        };
        Some(SequenceSettings {
            name: name.clone(),
            id: id_of(name),
            services: self.services.clone(),
            max_leases: self.max_leases.unwrap_or(ClientEntry::DEFAULT_MAX_LEASES),
            sources: self.sources.clone(),
            ports,
            timeout: self.timeout.map_or(Door::TIMEOUT, Window::duration),
            flags: self.flags,
            target: self.target,
            strays: self.strays,
        })
    }

    /// What the warden is told.
    pub(super) fn member(&self, name: &ClientName) -> (ClientId, Member) {
        let member = Member {
            name: name.clone(),
            services: self.services.clone(),
            max_window: None,
            max_leases: self.max_leases.unwrap_or(ClientEntry::DEFAULT_MAX_LEASES),
            sources: self.sources.clone(),
            not_before: None,
            expires: None,
        };
        (id_of(name), member)
    }

    /// What the captures are to see of it.
    pub(super) fn touches(&self) -> Vec<Touch> {
        let flags = (self.flags.set(), self.flags.clear());
        let touch = |protocol, first, last| Touch { protocol, ports: (first, last), flags };
        let steps = self.steps.iter().chain(&self.unused).flat_map(Steps::as_slice);
        let fixed = steps.map(|step| touch(step.protocol, step.number, step.number));
        let rolling = self.rolling.iter().map(|range| {
            let (first, last) = range.numbers().into_inner();
            touch(range.protocol(), first, last)
        });
        // Strays have the same flags as steps: a scan by other packets than SYNs is one too.
        let strays = self.counts_strays().then(|| touch(Protocol::Tcp, NonZeroU16::MIN, NonZeroU16::MAX));
        let strays = strays.filter(|strays| !strays.begins_connections());
        fixed.chain(rolling).chain(strays).collect()
    }

    /// Whether everything that begins a connection is to be seen.
    pub(super) fn counts_strays(&self) -> bool {
        self.strays != Strays::Unlimited
    }

    /// Where its ports come from, if it rolls.
    pub(crate) const fn range(&self) -> Option<PortRange> {
        self.rolling
    }

    fn has(&self, port: Port) -> bool {
        self.steps.iter().chain(&self.unused).any(|steps| steps.as_slice().contains(&port))
            || self.rolling.is_some_and(|range| range.contains(port))
    }

    /// What is wrong with it, by itself.
    fn problem(&self) -> Option<String> {
        let is_rolling = self.rolling.is_some() || self.key.is_some() || self.length.is_some();
        let kinds = [self.steps.is_some(), is_rolling, self.one_time.is_some()];
        if kinds.into_iter().filter(|&kind| kind).count() > 1 {
            return Some(
                "steps are always the same, rolling ones never, one-time ones from a file: choose one"
                    .to_owned(),
            );
        }
        match (&self.steps, self.rolling, &self.key) {
            (None, None, None) if self.one_time.is_some() => {}
            (None, Some(_), None) | (None, None, Some(_)) => {
                return Some("a rolling sequence has a range (rolling) and a key".to_owned());
            }
            (None, None, None) => {
                return Some("it has no ports: list steps, such as [\"7000\", \"8000:udp\"]".to_owned());
            }
            (Some(_), ..) => {}
            (None, Some(range), Some(key)) => {
                let length = self.length.unwrap_or(Rolling::LENGTH);
                if let Err(error) = Rolling::new(key, range, length, self.bound_to_source) {
                    return Some(error.to_string());
                }
            }
        }
        if self.services.is_empty() {
            return Some("it opens nothing: list services".to_owned());
        }
        let timeout = self.timeout.map_or(Duration::ZERO, Window::duration);
        (timeout > LONGEST_TIMEOUT).then(|| "a sequence may take ten minutes at the most".to_owned())
    }
}

impl fmt::Display for SequenceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.steps, self.rolling) {
            (Some(steps), _) => write!(f, "{steps}")?,
            (None, Some(range)) => {
                write!(f, "{} of {range}, rolling", self.length.unwrap_or(Rolling::LENGTH))?;
            }
            (None, None) => write!(f, "{} of them unused, each good once,", self.unused.len())?,
        }
        let services: Vec<_> = self.services.iter().map(ToString::to_string).collect();
        write!(f, " opens {}; strays: {}", services.join(", "), self.strays)
    }
}

/// Attempts are remembered for as long.
const LONGEST_TIMEOUT: Duration = Duration::from_mins(10);

impl RawConfig {
    /// What no single field of a sequence can tell.
    pub(super) fn check_sequences(&self, text: &str) -> Result<(), TextError> {
        let knocks = self.gate.ports.iter().map(|&number| Port { protocol: Protocol::Udp, number });
        let knocks: Vec<_> = knocks.map(|port| (port, "a knock port of this gate".to_owned())).collect();
        let guarded = |(name, service): (&ServiceName, &Spanned<super::ServiceConfig>)| {
            let ports = service.get_ref().ports.clone();
            ports
                .into_iter()
                .map(move |port| (port, format!("guarded, for service {name}")))
                .collect::<Vec<_>>()
        };
        let taken: Vec<_> = knocks.into_iter().chain(self.services.iter().flat_map(guarded)).collect();
        for (name, sequence) in &self.sequences {
            let error = |problem: &str| {
                Err(TextError::at(text, &sequence.span(), format!("sequence {name}: {problem}")))
            };
            let config = sequence.get_ref();
            if let Some(problem) = config.problem() {
                return error(&problem);
            }
            if let Some(unknown) = config.services.iter().find(|name| !self.services.contains_key(*name)) {
                return error(&format!("there is no [services.{unknown}]"));
            }
            // Its packets would be dropped before they are heard of, or be taken for something else.
            if let Some((port, what)) = taken.iter().find(|(port, _)| config.has(*port)) {
                return error(&format!("{port} is {what}; choose another"));
            }
        }
        Ok(())
    }
}

/// Stands for the sequence where a client's id does. The name is all that there is to it, and no client has it.
pub(super) fn id_of(name: &ClientName) -> ClientId {
    let text = format!("postern sequence {name}");
    let hash = digest(&SHA256, text.as_bytes());
    ClientId::from_bytes(*hash.as_ref().first_chunk().expect("SHA-256 gives 32 bytes"))
}

const fn yes() -> bool {
    true
}
