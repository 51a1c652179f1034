//! The key file, edited in place and never half: everything else in it stays as it is, comments too.

use std::path::Path;

use anyhow::Context;
use postern_proto::ClientName;
use postern_proto::keyfile::{ClientEntry, KeyFile};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};
use zeroize::Zeroizing;

use crate::config::{Config, ConfigError, Exposure, read_safe};
use crate::files::FolderLock;

/// The key file as it is, locked until this is dropped: nobody changes it between what is read and what is written.
pub(super) struct LockedKeys<'a> {
    path: &'a Path,
    lock: FolderLock,
    text: Zeroizing<String>,
}

/// What the key file is to become: it was read, so that no mistake is written.
pub(super) struct Checked {
    text: Zeroizing<String>,
    clients: Vec<ClientEntry>,
}

impl<'a> LockedKeys<'a> {
    /// Locks and reads the key file of a configuration.
    pub(super) fn of(config: &'a Config) -> anyhow::Result<Self> {
        let path = &config.keys;
        let lock = FolderLock::around(path).with_context(|| format!("cannot change {}", path.display()))?;
        let text = read_safe(path, Exposure::NotReadable)?;
        Ok(Self { path, lock, text })
    }

    /// With entries behind those that are there. The text is not taken apart for that: there may be very many.
    pub(super) fn with<'e>(
        &self,
        entries: impl IntoIterator<Item = &'e ClientEntry>,
    ) -> Result<Checked, ConfigError> {
        let entries: Vec<_> = entries.into_iter().map(|entry| Zeroizing::new(entry.to_toml())).collect();
        // All of it at once: a text that has to grow leaves copies of its secrets behind.
        let len = entries.iter().fold(self.text.len(), |len, entry| len + 1 + entry.len());
        let mut text = Zeroizing::new(String::with_capacity(len));
        text.push_str(&self.text);
        for entry in &entries {
            let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { "\n" };
            text.push_str(gap);
            text.push_str(entry);
        }
        self.check(text)
    }

    /// With a change of one client's entry.
    pub(super) fn edit(
        &self,
        name: &ClientName,
        change: impl FnOnce(&mut Table) -> anyhow::Result<()>,
    ) -> anyhow::Result<Checked> {
        self.change(name, |clients, at| change(clients.get_mut(at).expect("it was found there")))
    }

    /// Without one client.
    pub(super) fn without(&self, name: &ClientName) -> anyhow::Result<Checked> {
        self.change(name, |clients, at| {
            clients.remove(at);
            Ok(())
        })
    }

    fn change(
        &self,
        name: &ClientName,
        change: impl FnOnce(&mut ArrayOfTables, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Checked> {
        let mut document: DocumentMut = self
            .text
            .parse()
            .map_err(|_| self.unfit("it changed just now and does not read any more".to_owned()))?;
        let clients = document.get_mut("client").and_then(Item::as_array_of_tables_mut);
        let clients = clients.ok_or_else(|| self.unfit(format!("it has no [[client]] entry for {name}")))?;
        let is_it = |client: &Table| client.get("name").and_then(Item::as_str) == Some(name.as_str());
        let at = clients.iter().position(is_it);
        change(clients, at.ok_or_else(|| self.unfit(format!("it has no client {name}")))?)?;
        Ok(self.check(Zeroizing::new(document.to_string()))?)
    }

    fn check(&self, text: Zeroizing<String>) -> Result<Checked, ConfigError> {
        // A name that is taken is found here.
        let file =
            KeyFile::parse(&text).map_err(|cause| ConfigError::Text { path: self.path.to_owned(), cause })?;
        Ok(Checked { text, clients: file.into_clients() })
    }

    fn unfit(&self, problem: String) -> ConfigError {
        ConfigError::Unfit { path: self.path.to_owned(), problem }
    }

    /// Makes it what the file says. It is others' turn then: to tell the gate may take long.
    ///
    /// # Errors
    /// When it cannot be written: then it is what it was.
    pub(super) fn replace(self, checked: Checked) -> anyhow::Result<()> {
        let Checked { text, .. } = checked;
        let Err(error) = self.lock.replace(self.path, &text) else { return Ok(()) };
        let path = self.path.display();
        // It may have its new name, and the folder could not be made durable: then what it says is in force.
        if read_safe(self.path, Exposure::NotReadable).is_ok_and(|there| *there == *text) {
            eprintln!("warning: {path} is changed, and the disk may lose that again with the power: {error}");
            return Ok(());
        }
        Err(error).with_context(|| format!("cannot write {path}"))
    }
}

impl Checked {
    /// One of its clients.
    pub(super) fn client(&self, name: &ClientName) -> Option<&ClientEntry> {
        self.clients.iter().find(|client| client.name == *name)
    }
}

/// Sets a field of an entry; what stands beside it as a comment stays.
pub(super) fn set(client: &mut Table, field: &str, text: &str) {
    match client.get_mut(field).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = text.into();
            *old.decor_mut() = decor;
        }
        None => drop(client.insert(field, toml_edit::value(text))),
    }
}
