//! What each room is told of the configuration, and no more.

use std::path::PathBuf;

use postern_proto::keyfile::ClientEntry;
use postern_proto::{ServiceName, WallTime};

use super::Config;
use super::sections::{
    BackendName, Established, FamilyName, GrantStyle, GuardStyle, KernelFilter, ServiceConfig,
};
use super::sequences::SequenceConfig;
use crate::clock::BootTime;
use crate::front::filter::Sought;
use crate::front::gate::{ServiceLimits, ServiceTable};
use crate::front::process::{self as front, Enrolled, Watch};
use crate::runner::CommandTable;
use crate::runner::process as runner;
use crate::warden::firewall::{Backend, Family};
use crate::warden::guard::{Admit, Guard, GuardedPort, Refuse};
use crate::warden::process::{self as warden, Reach};
use crate::warden::roll::{Member, Roll, Service};

impl Config {
    /// What a front is told whose store's folder is new, or is not.
    pub(crate) fn front(&self, is_new: bool) -> front::Settings {
        front::Settings {
            is_new,
            watch: self.watch(),
            clients: self.clients.len() + self.clients.iter().filter_map(ClientEntry::previous).count(),
            enrolled: self.enrolled(),
        }
    }

    /// What one front watches and remembers.
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            interfaces: self.gate.interfaces.clone(),
            sought: self.sought(),
            gate: self.gate.id.clone(),
            tolerance: self.gate.tolerance,
            answers: self.gate.answer,
            kernel_filter: self.gate.kernel_filter == KernelFilter::Auto,
            store: self.store(),
        }
    }

    /// What its captures are to see.
    pub(crate) fn sought(&self) -> Sought {
        Sought {
            knocks: self.gate.ports.clone(),
            steps: self.sequences.values().flat_map(SequenceConfig::touches).collect(),
            strays: self.sequences.values().any(SequenceConfig::counts_strays),
        }
    }

    /// Where the front keeps what it must remember.
    pub(crate) fn store(&self) -> PathBuf {
        self.gate.state.join("front")
    }

    /// Who may knock, with keys.
    pub(crate) fn enrolled(&self) -> Enrolled {
        let sequences =
            self.sequences.iter().filter_map(|(name, sequence)| sequence.settings(name)).collect();
        let (keys, authorized) = (self.key_text.clone(), self.authorized.clone());
        Enrolled { services: self.service_table(), keys, authorized, sequences }
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

    /// What is run for whom, and where it is written down.
    pub(crate) fn runner(&self) -> runner::Settings {
        let ledger = self.gate.state.join("runner").join("ledger.redb");
        runner::Settings { commands: self.commands(), ledger }
    }

    /// What is run for the leases of each service.
    pub(crate) fn commands(&self) -> CommandTable {
        let commands =
            |(name, service): (&ServiceName, &ServiceConfig)| Some((name.clone(), service.commands()?));
        self.services.iter().filter_map(commands).collect()
    }

    /// How the warden reaches the firewall.
    pub(crate) fn reach(&self) -> Reach {
        let firewall = &self.firewall;
        let family = |name: &FamilyName| match name {
            FamilyName::Ipv4 => Family::V4,
            FamilyName::Ipv6 => Family::V6,
        };
        let families = firewall.families.iter().map(family).collect();
        let admit = match firewall.grants {
            Some(GrantStyle::Return) => Admit::Return,
            Some(GrantStyle::Accept) | None => Admit::Accept,
        };
        let backend = match firewall.backend {
            BackendName::Iptables => Backend::Iptables { variant: firewall.variant, admit },
            BackendName::Nftables => Backend::Nftables,
        };
        let answers = if self.gate.answer { self.gate.ports.clone() } else { Vec::new() };
        Reach { backend, families, answers }
    }

    /// What is shut unless granted.
    pub(crate) fn guard(&self, trial_end: Option<WallTime>) -> Guard {
        let firewall = &self.firewall;
        Guard {
            knock_ports: self.gate.ports.clone(),
            answers: self.gate.answer,
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
        let service = |config: &ServiceConfig| Service {
            ports: config.ports.clone(),
            max_window: config.max_window,
            has_commands: config.commands().is_some(),
        };
        let enabled = self.clients.iter().filter(|entry| !entry.disabled);
        let sequences = self.sequences.iter().map(|(name, sequence)| sequence.member(name));
        Roll {
            members: enabled.map(|entry| (entry.id, member(entry))).chain(sequences).collect(),
            services: self.services.iter().map(|(name, config)| (name.clone(), service(config))).collect(),
        }
    }
}
