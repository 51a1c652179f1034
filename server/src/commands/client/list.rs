//! `posternd client list`: who may knock, and who has. Tables for people, JSON for programs; never a secret.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use ipnet::IpNet;
use postern_proto::keyfile::ClientEntry;
use postern_proto::{ClientId, ClientName, IdentityKey, ServiceName, WallTime, Window};
use serde::Serialize;

use super::super::print::whole;
use crate::cli::printable;
use crate::clock::Now;
use crate::config::Config;
use crate::last_use::{self, LastUse};

pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let used = last_use::read(&config.gate.state)
        .inspect_err(|error| eprintln!("warning: when clients knocked last is not known: {error}"))
        .ok();
    let list = List { clients: &config.clients, used: used.as_ref(), now: Now::read().wall };
    whole(|out| if json { list.json(out) } else { list.table(out) })
}

struct List<'a> {
    clients: &'a [ClientEntry],
    /// Nothing when it could not be read.
    used: Option<&'a LastUse>,
    now: WallTime,
}

impl List<'_> {
    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self.clients.iter().map(|client| client.name.as_str().len()).max().unwrap_or(0).max(4);
        writeln!(
            out,
            "{:width$}  {:11}  {:8}  {:20}  SERVICES AND LIMITS",
            "NAME", "ID", "STATE", "LAST USE"
        )?;
        for client in self.clients {
            let state = if client.disabled { "disabled" } else { "enabled" };
            let limits = self.limits(client);
            let used = self.last_use(client.id);
            writeln!(out, "{:width$}  {:11}  {state:8}  {used:20}  {limits}", client.name, client.id)?;
        }
        Ok(())
    }

    fn last_use(&self, client: ClientId) -> LastUsed {
        match self.used.map(|used| used.get(&client)) {
            Some(Some(&date)) => LastUsed::At(date),
            Some(None) => LastUsed::Never,
            None => LastUsed::Unknown,
        }
    }

    /// The end of the grace time, while it lasts.
    fn rotating_until(&self, client: &ClientEntry) -> Option<WallTime> {
        client.previous().map(|(_, until)| until).filter(|&until| until > self.now)
    }

    fn limits(&self, client: &ClientEntry) -> String {
        let services: Vec<_> = client.services.iter().map(ToString::to_string).collect();
        let mut words = vec![services.join(",")];
        words.extend(client.identity.as_ref().map(|key| format!("identity={}", key.fingerprint())));
        words.extend(
            client
                .authorized_keys
                .as_ref()
                .map(|path| format!("authorized-keys={}", printable(&path.display().to_string()))),
        );
        words.extend(self.rotating_until(client).map(|date| format!("rotating-until={date}")));
        words.extend(client.max_window.map(|window| format!("max-window={window}")));
        words.extend(client.sources.iter().map(|source| format!("source={source}")));
        words.extend(client.must_state_source.then(|| "must-state-source".to_owned()));
        words.extend(client.may_state_other_source.then(|| "may-state-other-source".to_owned()));
        words.extend(client.max_leases.map(|leases| format!("max-leases={leases}")));
        words.extend(client.not_before.map(|date| format!("not-before={date}")));
        words.extend(client.expires.map(|date| format!("expires={date}")));
        words.join(" ")
    }

    fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        let rows: Vec<_> = self.clients.iter().map(|client| self.row(client)).collect();
        serde_json::to_writer(&mut *out, &rows)?;
        writeln!(out)
    }

    fn row<'a>(&'a self, client: &'a ClientEntry) -> Row<'a> {
        Row {
            name: &client.name,
            id: client.id,
            disabled: client.disabled,
            last_use: self.last_use(client.id),
            services: &client.services,
            identity: client.identity.as_ref(),
            authorized_keys: client.authorized_keys.as_deref(),
            rotating_until: self.rotating_until(client),
            max_window: client.max_window,
            sources: &client.sources,
            must_state_source: client.must_state_source,
            may_state_other_source: client.may_state_other_source,
            max_leases: client.max_leases.unwrap_or(ClientEntry::DEFAULT_MAX_LEASES),
            not_before: client.not_before,
            expires: client.expires,
        }
    }
}

/// When a client knocked last.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum LastUsed {
    At(WallTime),
    /// In JSON, `null`.
    Never,
    /// It could not be read; in JSON, the field is not there.
    #[serde(skip)]
    Unknown,
}

impl LastUsed {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

impl fmt::Display for LastUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(date) => f.pad(&date.to_string()),
            Self::Never => f.pad("never"),
            Self::Unknown => f.pad("?"),
        }
    }
}

/// One client for programs, in the words of the key file. Every field is always there, but `last-use` where it is not known.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row<'a> {
    name: &'a ClientName,
    id: ClientId,
    disabled: bool,
    #[serde(skip_serializing_if = "LastUsed::is_unknown")]
    last_use: LastUsed,
    services: &'a [ServiceName],
    identity: Option<&'a IdentityKey>,
    authorized_keys: Option<&'a Path>,
    rotating_until: Option<WallTime>,
    max_window: Option<Window>,
    sources: &'a [IpNet],
    must_state_source: bool,
    may_state_other_source: bool,
    max_leases: u32,
    not_before: Option<WallTime>,
    expires: Option<WallTime>,
}

#[cfg(test)]
mod tests {
    use postern_proto::ClientSecret;
    use serde_json::json;

    use super::*;

    fn client(number: u8) -> ClientEntry {
        let (id, secret) = (ClientId::from_bytes([number; 8]), ClientSecret::from_bytes([number; 32]));
        ClientEntry::new(format!("c{number}").parse().unwrap(), id, secret, vec!["ssh".parse().unwrap()])
    }

    fn printed(list: &List<'_>) -> (String, serde_json::Value) {
        let (mut table, mut json) = (Vec::new(), Vec::new());
        list.table(&mut table).unwrap();
        list.json(&mut json).unwrap();
        (String::from_utf8(table).unwrap(), serde_json::from_slice(&json).unwrap())
    }

    #[test]
    fn it_says_who_has_knocked_who_signs_and_who_has_two_secrets() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";
        let mut clients = vec![client(1), client(2), client(3)];
        clients[0].identity = Some(line.parse().unwrap());
        clients[1].authorized_keys = Some("/etc/postern/c2.keys".into());
        for (client, until) in clients[1..].iter_mut().zip([2000, 1000]) {
            client.previous_secret = Some(ClientSecret::from_bytes([9; 32]));
            client.previous_until = Some(WallTime::from_secs(until));
        }
        let used = LastUse::from([(clients[0].id, WallTime::from_secs(0))]);
        let list = List { clients: &clients, used: Some(&used), now: WallTime::from_secs(1000) };
        let (table, json) = printed(&list);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].contains("LAST USE"), "{table}");
        assert!(lines[1].contains("1970-01-01T00:00:00Z  ssh identity=SHA256:"), "{table}");
        assert!(lines[2].contains("never"), "{table}");
        let end = "authorized-keys=/etc/postern/c2.keys rotating-until=1970-01-01T00:33:20Z";
        assert!(lines[2].ends_with(end), "{table}");
        assert!(!lines[3].contains("rotating-until"), "what is over is not said: {table}");
        assert_eq!(json[0]["last-use"], "1970-01-01T00:00:00Z");
        assert_eq!((&json[0]["identity"], &json[1]["last-use"]), (&json!(line), &json!(null)));
        assert_eq!(json[1]["rotating-until"], "1970-01-01T00:33:20Z");
        assert_eq!(json[2]["rotating-until"], json!(null));
        for secret in [&clients[0].secret, clients[1].previous_secret.as_ref().unwrap()] {
            assert!(!table.contains(&**secret.to_text()) && !json.to_string().contains(&**secret.to_text()));
        }

        let (table, json) = printed(&List { used: None, ..list });
        assert!(table.lines().nth(1).unwrap().contains("  ?  "), "{table}");
        assert!(json[0].get("last-use").is_none(), "{json}");
    }
}
