//! A client that is to be: what `add` is told of one, and a table of each of many. It is checked whole before anything is made.

use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use postern_proto::keyfile::ClientEntry;
use postern_proto::{ClientId, ClientName, IdentityKey, ServiceName, WallTime, Window};
use serde::Deserialize;

use super::{new_secret, random, signing};
use crate::config::Config;

/// An entry of the key file without its id and its secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Draft {
    pub(super) name: ClientName,
    pub(super) services: Vec<ServiceName>,
    #[serde(alias = "ssh-key")]
    pub(super) identity: Option<IdentityKey>,
    pub(super) authorized_keys: Option<PathBuf>,
    pub(super) max_window: Option<Window>,
    pub(super) sources: Option<Vec<IpNet>>,
    #[serde(default)]
    pub(super) must_state_source: bool,
    #[serde(default)]
    pub(super) may_state_other_source: bool,
    pub(super) max_leases: Option<u32>,
    pub(super) not_before: Option<WallTime>,
    pub(super) expires: Option<WallTime>,
    #[serde(default)]
    pub(super) disabled: bool,
}

/// What is wrong with a draft: a field, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct Mistake {
    field: &'static str,
    problem: String,
}

impl Mistake {
    pub(super) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// A client as the key file will have it, and the keys that sign for it.
pub(super) struct New {
    pub(super) entry: ClientEntry,
    pub(super) identities: Vec<IdentityKey>,
}

impl Draft {
    /// Checks what the key file alone does not show, draws an id and a secret, and reads the keys that it points to.
    ///
    /// # Errors
    /// The first [`Mistake`]; when the keys cannot be read; and when the system gives no random bytes.
    pub(super) fn check(self, config: &Config, now: WallTime) -> anyhow::Result<New> {
        self.mistake(config, now).map_or(Ok(()), Err)?;
        let identities = signing::keys(self.identity.as_ref(), self.authorized_keys.as_deref())
            .context("authorized-keys")?;
        let id = ClientId::from_bytes(random()?);
        let entry = ClientEntry {
            identity: self.identity,
            authorized_keys: self.authorized_keys,
            max_window: self.max_window,
            sources: self.sources.unwrap_or_default(),
            must_state_source: self.must_state_source,
            may_state_other_source: self.may_state_other_source,
            max_leases: self.max_leases,
            not_before: self.not_before,
            expires: self.expires,
            disabled: self.disabled,
            ..ClientEntry::new(self.name, id, new_secret()?, self.services)
        };
        Ok(New { entry, identities })
    }

    fn mistake(&self, config: &Config, now: WallTime) -> Option<Mistake> {
        if self.services.is_empty() {
            return Some(Mistake::new("services", "list at least one"));
        }
        if let Some(unknown) = self.services.iter().find(|name| !config.services.contains_key(name)) {
            return Some(Mistake::new("services", format!("posternd.toml has no [services.{unknown}]")));
        }
        if config.sequences.contains_key(&self.name) {
            let problem = format!("posternd.toml has [sequences.{}]: take another name", self.name);
            return Some(Mistake::new("name", problem));
        }
        if self.identity.is_some() && self.authorized_keys.is_some() {
            return Some(Mistake::new("authorized-keys", "leave it out, or the key beside it"));
        }
        if self.sources.as_ref().is_some_and(Vec::is_empty) {
            return Some(Mistake::new("sources", "list at least one network, or leave it out for any"));
        }
        match (self.not_before, self.expires) {
            (_, Some(until)) if until <= now => {
                Some(Mistake::new("expires", format!("{until} is over: such a client could never knock")))
            }
            (Some(from), Some(until)) if until <= from => {
                Some(Mistake::new("expires", format!("{until} is before it begins ({from})")))
            }
            _ => None,
        }
    }
}
