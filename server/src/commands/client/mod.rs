//! `posternd client`: who may knock, and how each gets what he knocks with.
//!
//! ```text
//!  add, import ─ draft ─┐
//!  rotate ──────────────┼─ profile ─ delivery (line, qr, seal, file) ─▶ key_file ─▶ the running gate is told
//!  key, enable, ... ────┴──────────────────────────────────────────────────┘
//! ```
//! Nothing is half done: a profile is handed over before the key file knows its secret, so that no secret is ever in force that
//! nobody has, and is taken back where the key file cannot be written.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use postern_proto::keyfile::ClientEntry;
use postern_proto::profile::{Host, Profile};
use postern_proto::{ClientSecret, IdentityKey};
use toml_edit::value;
use zeroize::Zeroizing;

use super::random;
use crate::admin::reload_if_running;
use crate::cli::client::{Addresses, ClientCommand};
use crate::config::{Config, ConfigError};

mod add;
mod delivery;
mod draft;
mod import;
mod key;
mod key_file;
mod list;
mod qr;
mod rotate;
mod seal;
mod signing;

use key_file::LockedKeys;

pub(crate) fn run(path: &Path, command: &ClientCommand) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    match command {
        ClientCommand::Add(new) => add::run(path, &config, new),
        ClientCommand::Import(import) => import::run(path, &config, import),
        ClientCommand::Rotate(rotation) => rotate::run(path, &config, rotation),
        ClientCommand::Key(new) => key::run(&config, new),
        ClientCommand::List { json } => list::run(&config, *json),
        ClientCommand::Enable { name } => {
            let keys = LockedKeys::of(&config)?;
            let checked = keys.edit(name, |client| {
                client.remove("disabled");
                Ok(())
            })?;
            keys.replace(checked)?;
            tell_gate(&config, &format!("{name} may knock again"))
        }
        ClientCommand::Disable { name } => {
            let keys = LockedKeys::of(&config)?;
            let checked = keys.edit(name, |client| {
                client["disabled"] = value(true);
                Ok(())
            })?;
            keys.replace(checked)?;
            tell_gate(&config, &format!("{name} is disabled"))
        }
        ClientCommand::Remove { name } => {
            let keys = LockedKeys::of(&config)?;
            let checked = keys.without(name)?;
            keys.replace(checked)?;
            tell_gate(&config, &format!("{name} is removed"))
        }
    }
}

/// Has a running gate take it up.
fn tell_gate(config: &Config, what: &str) -> anyhow::Result<()> {
    let told = reload_if_running(&config.admin.socket).with_context(|| {
        let keys = config.keys.display();
        format!("{what}. So it stands in {keys}; but the running gate goes on as before. Mend this, then `posternd reload`")
    })?;
    eprintln!(
        "{what}; {}",
        if told { "the gate knows" } else { "no gate runs: it will know when it starts" }
    );
    Ok(())
}

fn new_secret() -> anyhow::Result<ClientSecret> {
    Ok(ClientSecret::from_bytes(*Zeroizing::new(random()?)))
}

/// Where profiles say that the gate is.
///
/// # Errors
/// [`ConfigError`] when nothing says it.
fn addresses<'a>(path: &Path, config: &'a Config, given: &'a Addresses) -> Result<&'a [Host], ConfigError> {
    let addresses = if given.address.is_empty() { &config.gate.addresses } else { &given.address };
    if addresses.is_empty() {
        let problem = "addresses is empty in [gate]: list what clients reach this host by, or give --address"
            .to_owned();
        return Err(ConfigError::Unfit { path: path.to_owned(), problem });
    }
    Ok(addresses)
}

/// What a client of this gate has to know today.
fn profile(
    config: &Config,
    entry: &ClientEntry,
    addresses: &[Host],
    identities: Vec<IdentityKey>,
) -> Profile {
    let ports = |name| config.services.get(name).map_or(vec![], |service| service.ports.clone());
    Profile {
        gate: config.gate.id.clone(),
        client: entry.id,
        secret: entry.secret.clone(),
        addresses: addresses.to_vec(),
        ports: config.gate.ports.clone(),
        services: entry.services.iter().map(|name| (name.clone(), ports(name))).collect(),
        answers: config.gate.answer,
        identities,
    }
}

/// Longest file of keys that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// A text that somebody hands over, from a file, or from stdin for `-`. It may be a private key, by mistake: it is wiped.
fn read_given(path: &Path, longest: u64) -> Result<Zeroizing<String>, ConfigError> {
    let mut text = Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(longest + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(longest + 1).read_to_string(&mut text))
    };
    match read {
        Ok(bytes) if bytes as u64 > longest => {
            let problem = format!("is longer than {longest} bytes");
            Err(ConfigError::Unfit { path: given(path), problem })
        }
        Ok(_) => Ok(text),
        Err(cause) => Err(ConfigError::Read { path: given(path), cause }),
    }
}

/// What a path of the command line is called in messages.
fn given(path: &Path) -> std::path::PathBuf {
    if path == Path::new("-") { "standard input".into() } else { path.to_owned() }
}
