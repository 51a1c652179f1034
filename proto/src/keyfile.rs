//! The gate's key file: one entry a client, in TOML. `keys.example` at the top of the tree shows every field.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use toml::Spanned;

use crate::identity::IdentityKey;
use crate::keys::{ClientId, ClientSecret};
use crate::names::{ClientName, ServiceName};
use crate::text::{TextError, from_toml};
use crate::time::{WallTime, Window};

/// One client of a gate: its keys, and what it may ask for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientEntry {
    /// What people call it. Unique in the file.
    pub name: ClientName,
    /// What the protocol calls it. Unique in the file, and for ever.
    pub id: ClientId,
    /// The root of its keys. Unique in the file.
    pub secret: ClientSecret,
    /// The secret that it had before, which is good until then as well. Unique in the file, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret: Option<ClientSecret>,
    /// The instant from which on the previous secret is nobody's any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<WallTime>,
    /// The key that has to sign each of its knocks (SPEC 4.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityKey>,
    /// Or a file of which one key has to, in the form of sshd's `authorized_keys`: an absolute path.
    #[serde(default, deserialize_with = "absolute", skip_serializing_if = "Option::is_none")]
    pub authorized_keys: Option<PathBuf>,
    /// The services it may open.
    pub services: Vec<ServiceName>,
    /// The longest window it may ask for; the service's own limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_window: Option<Window>,
    /// The networks that the address to let in must belong to; any when absent.
    #[serde(default, deserialize_with = "at_least_one", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
    /// Refuse knocks that leave the address to let in to be observed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub must_state_source: bool,
    /// Allow knocks that let in another address than the one they come from.
    #[serde(default, skip_serializing_if = "is_false")]
    pub may_state_other_source: bool,
    /// How many leases it may hold at a time; [`ClientEntry::DEFAULT_MAX_LEASES`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leases: Option<u32>,
    /// The first instant at which it may knock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<WallTime>,
    /// The instant from which on it may not knock any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallTime>,
    /// Refuse it as if it were not there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

/// An empty list of networks reads like "nobody" and would mean "anybody": only leaving it out means that.
fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let networks = Vec::deserialize(deserializer)?;
    if networks.is_empty() {
        return Err(de::Error::custom(
            "an empty list of networks: list at least one, or leave it out for any",
        ));
    }
    Ok(networks)
}

/// Relative to whatever, a path would name another file for each who reads it.
fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        Err(de::Error::custom("write the whole path, from / on"))
    }
}

impl ClientEntry {
    /// Leases a client may hold at a time unless its entry says otherwise.
    pub const DEFAULT_MAX_LEASES: u32 = 256;

    /// An entry that nothing limits but its services, and that need not sign.
    #[must_use]
    pub fn new(name: ClientName, id: ClientId, secret: ClientSecret, services: Vec<ServiceName>) -> Self {
        Self {
            name,
            id,
            secret,
            previous_secret: None,
            previous_until: None,
            identity: None,
            authorized_keys: None,
            services,
            max_window: None,
            sources: vec![],
            must_state_source: false,
            may_state_other_source: false,
            max_leases: None,
            not_before: None,
            expires: None,
            disabled: false,
        }
    }

    /// Its previous secret and the end of that, while both are good.
    #[must_use]
    pub fn previous(&self) -> Option<(&ClientSecret, WallTime)> {
        self.previous_secret.as_ref().zip(self.previous_until)
    }

    /// The entry as a `[[client]]` table, to be appended to a key file. It holds the secret.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let table = toml::to_string(self).expect("every field of an entry has a TOML form");
        format!("[[client]]\n{table}")
    }
}

impl ClientEntry {
    /// What is wrong with it that none of its fields shows alone.
    fn mistake(&self) -> Option<String> {
        if self.services.is_empty() {
            return Some("has no services: list at least one, or disable it".to_owned());
        }
        if self.identity.is_some() && self.authorized_keys.is_some() {
            return Some("has identity and authorized-keys: leave one out".to_owned());
        }
        if self.previous_secret.is_some() != self.previous_until.is_some() {
            return Some("has one of previous-secret and previous-until: give both or none".to_owned());
        }
        match (self.not_before, self.expires) {
            (Some(from), Some(until)) if until <= from => {
                Some(format!("expires ({until}) before it begins ({from})"))
            }
            _ => None,
        }
    }
}

/// A key file that was read whole: no two clients share a name, an id or a secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct KeyFile {
    clients: Vec<ClientEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeyFile {
    #[serde(default)]
    client: Vec<Spanned<ClientEntry>>,
}

impl KeyFile {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`TextError`] with the place of the first mistake; it never repeats what stands there.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let raw: RawKeyFile = from_toml(text)?;
        unique(text, &raw.client, "name", |client| [&client.name])?;
        unique(text, &raw.client, "id", |client| [client.id])?;
        unique(text, &raw.client, "secret", |client| {
            [Some(&client.secret), client.previous_secret.as_ref()]
                .into_iter()
                .flatten()
                .map(ClientSecret::expose)
        })?;
        for entry in &raw.client {
            if let Some(mistake) = entry.get_ref().mistake() {
                let message = format!("client {} {mistake}", entry.get_ref().name);
                return Err(TextError::at(text, &entry.span(), message));
            }
        }
        Ok(Self { clients: raw.client.into_iter().map(Spanned::into_inner).collect() })
    }

    /// The clients in the order of the file.
    #[must_use]
    pub fn clients(&self) -> &[ClientEntry] {
        &self.clients
    }

    /// The clients in the order of the file, owned.
    #[must_use]
    pub fn into_clients(self) -> Vec<ClientEntry> {
        self.clients
    }
}

/// Two clients with one name, id or secret are a configuration error (SPEC 2), and so is one client that has a secret twice.
fn unique<'a, K: Eq + Hash, I: IntoIterator<Item = K>>(
    text: &str,
    clients: &'a [Spanned<ClientEntry>],
    field: &str,
    keys: impl Fn(&'a ClientEntry) -> I,
) -> Result<(), TextError> {
    let mut seen = HashMap::with_capacity(clients.len());
    for entry in clients {
        let client = entry.get_ref();
        for key in keys(client) {
            if let Some(other) = seen.insert(key, &client.name) {
                let message =
                    format!("clients {other} and {} have the same {field}: give each its own", client.name);
                return Err(TextError::at(text, &entry.span(), message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_has_no_clients() {
        assert!(KeyFile::parse("# nobody yet\n").unwrap().clients().is_empty());
    }

    #[test]
    fn the_example_reads() {
        let example = KeyFile::parse(include_str!("../../keys.example")).unwrap();
        assert!(example.clients().len() >= 3);
    }

    const LINE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    fn secret(number: u8) -> zeroize::Zeroizing<String> {
        ClientSecret::from_bytes([number; 32]).to_text()
    }

    fn entry(name: &str, id: u8, number: u8) -> String {
        let (id, secret) = (ClientId::from_bytes([id; 8]), secret(number));
        format!(
            "[[client]]\nname = \"{name}\"\nid = \"{id}\"\nsecret = \"{}\"\nservices = [\"ssh\"]\n",
            *secret
        )
    }

    fn previous(number: u8) -> String {
        format!("previous-secret = \"{}\"\nprevious-until = \"2027-01-01T00:00:00Z\"\n", *secret(number))
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let good = entry("alice", 1, 1);
        for (bad, line, says) in [
            (good.replace("name = \"alice\"", "name = \"al ice\""), 2, "client name"),
            (good.replace("id = \"", "id = \"x"), 3, "a client id is 8 bytes"),
            (good.replace("secret = \"", "secret = \"x"), 4, "a client secret is 32 bytes"),
            (good.replace("[\"ssh\"]", "\"ssh\""), 5, "expected a sequence"),
            (good.replace("[\"ssh\"]", "[]"), 1, "no services"),
            (format!("{good}color = \"red\"\n"), 6, "unknown field `color`"),
            (format!("{good}max-window = \"soon\"\n"), 6, "a window is a whole number of seconds"),
            (format!("{good}sources = [\"10.0.0.0\"]\n"), 6, "invalid IP address syntax"),
            (format!("{good}sources = []\n"), 6, "an empty list of networks"),
            (format!("{good}expires = \"soon\"\n"), 6, "a date is written in UTC"),
            (
                format!("{good}not-before = \"2027-01-01T00:00:00Z\"\nexpires = \"2026-01-01T00:00:00Z\"\n"),
                1,
                "before it begins",
            ),
            (format!("{good}disabled = \"yes\"\n"), 6, "expected a boolean"),
            (format!("{good}name = \"bob\"\n"), 6, "duplicate key"),
            (good.replace("[[client]]", "[[clients]]"), 1, "unknown field `clients`"),
            (
                good.lines().filter(|line| !line.starts_with("secret")).collect::<Vec<_>>().join("\n"),
                1,
                "missing field `secret`",
            ),
            (format!("{good}{}", entry("alice", 2, 2)), 6, "the same name"),
            (format!("{good}{}", entry("bob", 1, 2)), 6, "the same id"),
            (format!("{good}{}", entry("bob", 2, 1)), 6, "the same secret"),
            (good.replace("[[client]]", "[[client]"), 1, ""),
            (format!("{good}identity = \"ssh-ed25519 AAAA\"\n"), 6, "a public key is one line"),
            (format!("{good}identity = \"ssh-rsa AAAA a@b\"\n"), 6, "can sign knocks"),
            (format!("{good}authorized-keys = \"keys\"\n"), 6, "the whole path"),
            (format!("{good}identity = \"{LINE}\"\nauthorized-keys = \"/k\"\n"), 1, "leave one out"),
            (format!("{good}previous-until = \"2027-01-01T00:00:00Z\"\n"), 1, "give both or none"),
            (format!("{good}previous-secret = \"{}\"\n", *secret(5)), 1, "give both or none"),
            (format!("{good}{}", previous(1)), 1, "the same secret"),
            (format!("{good}{}{}", previous(2), entry("bob", 2, 2)), 8, "the same secret"),
        ] {
            let error = KeyFile::parse(&bad).err().unwrap_or_else(|| panic!("accepted:\n{bad}"));
            assert!(error.message.contains(says), "{error}\n{bad}");
            assert_eq!(error.line, line, "{error}\n{bad}");
            assert!(!error.message.contains("AQEB"), "an error repeats key material: {error}");
        }
    }

    #[test]
    fn entries_print_and_read_back() {
        let mut file = KeyFile::parse(&entry("alice", 1, 1)).unwrap();
        let client = &mut file.clients[0];
        client.max_window = Some(Window::DEFAULT);
        client.sources = vec!["2001:db8::/32".parse().unwrap()];
        client.must_state_source = true;
        client.max_leases = Some(3);
        client.expires = Some("2027-01-01T00:00:00Z".parse().unwrap());
        client.disabled = true;
        client.identity = Some(LINE.parse().unwrap());
        client.previous_secret = Some(ClientSecret::from_bytes([9; 32]));
        client.previous_until = client.expires;
        assert!(KeyFile::parse(&client.to_toml()).unwrap() == file);
    }
}
