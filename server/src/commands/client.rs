//! `posternd client`: the key file, edited in place and never half.

use std::path::Path;

use anyhow::{Context, bail};
use postern_proto::keyfile::{ClientEntry, KeyFile};
use postern_proto::profile::Profile;
use postern_proto::{ClientId, ClientName, ClientSecret};
use toml_edit::{ArrayOfTables, DocumentMut, value};
use zeroize::Zeroizing;

use super::random;
use crate::admin::reload_if_running;
use crate::cli::{ClientCommand, NewClient};
use crate::config::{Config, ConfigError, Exposure, read_safe};
use crate::files::FolderLock;

pub(crate) fn run(path: &Path, command: &ClientCommand) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    match command {
        ClientCommand::Add(new) => add(path, &config, new),
        ClientCommand::List => {
            list(&config);
            Ok(())
        }
        ClientCommand::Enable { name } => {
            edit(&config, name, |clients, at| {
                drop(clients.get_mut(at).and_then(|client| client.remove("disabled")));
            })?;
            tell_gate(&config, &format!("{name} may knock again"))
        }
        ClientCommand::Disable { name } => {
            edit(&config, name, |clients, at| {
                if let Some(client) = clients.get_mut(at) {
                    client["disabled"] = value(true);
                }
            })?;
            tell_gate(&config, &format!("{name} is disabled"))
        }
        ClientCommand::Remove { name } => {
            edit(&config, name, |clients, at| drop(clients.remove(at)))?;
            tell_gate(&config, &format!("{name} is removed"))
        }
    }
}

/// Has a running gate take it up.
fn tell_gate(config: &Config, what: &str) -> anyhow::Result<()> {
    let told = reload_if_running(&config.admin.socket)
        .with_context(|| format!("{what} in {}, but the running gate was not told", config.keys.display()))?;
    eprintln!(
        "{what}; {}",
        if told { "the gate knows" } else { "no gate runs: it will know when it starts" }
    );
    Ok(())
}

fn add(path: &Path, config: &Config, new: &NewClient) -> anyhow::Result<()> {
    if let Some(service) = new.services.iter().find(|service| !config.services.contains_key(service)) {
        bail!("{} has no [services.{service}]", path.display());
    }
    let addresses = if new.address.is_empty() { &config.gate.addresses } else { &new.address };
    if addresses.is_empty() {
        let problem = "addresses is empty in [gate]: list what clients reach this host by, or give --address"
            .to_owned();
        return Err(ConfigError::Unfit { path: path.to_owned(), problem }.into());
    }
    let id = ClientId::from_bytes(random()?);
    let secret = ClientSecret::from_bytes(*Zeroizing::new(random()?));
    let entry = ClientEntry {
        max_window: new.max_window,
        sources: new.sources.clone(),
        must_state_source: new.must_state_source,
        may_state_other_source: new.may_state_other_source,
        max_leases: new.max_leases,
        not_before: new.not_before,
        expires: new.expires,
        ..ClientEntry::new(new.name.clone(), id, secret, new.services.clone())
    };
    let profile = Profile {
        gate: config.gate.id.clone(),
        client: entry.id,
        secret: entry.secret.clone(),
        addresses: addresses.clone(),
        ports: config.gate.ports.clone(),
        services: new
            .services
            .iter()
            .map(|name| (name.clone(), config.services[name].ports.clone()))
            .collect(),
        answers: config.gate.answer,
        identities: vec![],
    };
    append(config, &entry)?;
    println!("{}", *profile.to_line());
    let added = format!("{} is added, the line above holds its secret and is not shown again", new.name);
    tell_gate(config, &added)
}

fn append(config: &Config, entry: &ClientEntry) -> anyhow::Result<()> {
    let keys = &config.keys;
    let lock = FolderLock::around(keys).with_context(|| format!("cannot lock {}", keys.display()))?;
    let text = read_safe(keys, Exposure::NotReadable)?;
    let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { "\n" };
    let text = Zeroizing::new(format!("{}{gap}{}", *text, *Zeroizing::new(entry.to_toml())));
    // Read before it is written: a name that is taken is found here.
    KeyFile::parse(&text).map_err(|cause| ConfigError::Text { path: keys.clone(), cause })?;
    lock.replace(keys, &text).with_context(|| format!("cannot write {}", keys.display()))
}

/// Changes one client's entry; everything else in the file stays as it is, comments too.
fn edit(
    config: &Config,
    name: &ClientName,
    change: impl Fn(&mut ArrayOfTables, usize),
) -> anyhow::Result<()> {
    let keys = &config.keys;
    let lock = FolderLock::around(keys).with_context(|| format!("cannot lock {}", keys.display()))?;
    let text = read_safe(keys, Exposure::NotReadable)?;
    let unfit = |problem: String| ConfigError::Unfit { path: keys.clone(), problem };
    let mut document: DocumentMut =
        text.parse().map_err(|_| unfit("it changed just now and does not read any more".to_owned()))?;
    let clients = document.get_mut("client").and_then(|clients| clients.as_array_of_tables_mut());
    let clients = clients.ok_or_else(|| unfit(format!("it has no [[client]] entry for {name}")))?;
    let position = clients
        .iter()
        .position(|client| client.get("name").and_then(toml_edit::Item::as_str) == Some(name.as_str()));
    let Some(position) = position else {
        return Err(unfit(format!("it has no client {name}")).into());
    };
    change(clients, position);
    let text = Zeroizing::new(document.to_string());
    KeyFile::parse(&text).map_err(|cause| ConfigError::Text { path: keys.clone(), cause })?;
    lock.replace(keys, &text).with_context(|| format!("cannot write {}", keys.display()))
}

fn list(config: &Config) {
    let width = config.clients.iter().map(|client| client.name.as_str().len()).max().unwrap_or(0).max(4);
    println!("{:width$}  {:11}  {:8}  SERVICES AND LIMITS", "NAME", "ID", "STATE");
    for client in &config.clients {
        let state = if client.disabled { "disabled" } else { "enabled" };
        println!("{:width$}  {:11}  {state:8}  {}", client.name, client.id, limits(client));
    }
}

fn limits(client: &ClientEntry) -> String {
    let services: Vec<_> = client.services.iter().map(ToString::to_string).collect();
    let mut words = vec![services.join(",")];
    words.extend(client.max_window.map(|window| format!("max-window={window}")));
    words.extend(client.sources.iter().map(|source| format!("source={source}")));
    words.extend(client.must_state_source.then(|| "must-state-source".to_owned()));
    words.extend(client.may_state_other_source.then(|| "may-state-other-source".to_owned()));
    words.extend(client.max_leases.map(|leases| format!("max-leases={leases}")));
    words.extend(client.not_before.map(|date| format!("not-before={date}")));
    words.extend(client.expires.map(|date| format!("expires={date}")));
    words.join(" ")
}
