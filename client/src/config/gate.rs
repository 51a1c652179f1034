//! What the configuration says of one gate: the profile to knock with, the sequences to send, or both.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::PathBuf;

use postern_proto::keys::SequenceKey;
use postern_proto::profile::Host;
use postern_proto::sequence::{PortRange, Rolling, Steps, steps};
use postern_proto::{
    ClientId, ClientSecret, GateId, GateName, IdentityKey, Port, Profile, Protocol, SequenceName,
    ServiceName, TextError,
};
use serde::Deserialize;
use toml::Spanned;

use crate::course::{Ports, RollingPorts};

/// A gate of the configuration.
#[derive(PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where it is: one address at least.
    pub(crate) addresses: Vec<Host>,
    /// What to knock with. A host that only has classic sequences, knockd's for one, has none.
    pub(crate) profile: Option<Profile>,
    /// Its classic sequences; where there is no profile, one at least.
    pub(crate) sequences: BTreeMap<SequenceName, Sequence>,
    /// Whether a proxy closes at its end what it opened.
    pub(crate) close_on_exit: bool,
    /// The file of the key that signs, where it is not the usual one.
    pub(crate) identity_file: Option<PathBuf>,
}

/// A classic sequence of a gate.
#[derive(PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) ports: Ports,
    /// The ports that it opens, as far as the configuration says.
    pub(crate) opens: Vec<Port>,
}

impl Entry {
    /// The sequences that open a TCP port.
    pub(crate) fn sequences_at(
        &self,
        number: NonZeroU16,
    ) -> impl Iterator<Item = (&SequenceName, &Sequence)> {
        let port = Port { protocol: Protocol::Tcp, number };
        self.sequences.iter().filter(move |(_, sequence)| sequence.opens.contains(&port))
    }
}

impl From<Profile> for Entry {
    fn from(profile: Profile) -> Self {
        let (addresses, sequences) = (profile.addresses.clone(), BTreeMap::new());
        Self { addresses, profile: Some(profile), sequences, close_on_exit: false, identity_file: None }
    }
}

/// The fields of a profile, all or none, and the sequences.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawEntry {
    gate_id: Option<GateId>,
    client_id: Option<ClientId>,
    secret: Option<ClientSecret>,
    addresses: Vec<Host>,
    ports: Option<Vec<NonZeroU16>>,
    services: Option<BTreeMap<ServiceName, Vec<Port>>>,
    answers: Option<bool>,
    identities: Option<Vec<IdentityKey>>,
    close_on_exit: Option<bool>,
    identity_file: Option<PathBuf>,
    #[serde(default)]
    sequences: BTreeMap<SequenceName, Spanned<RawSequence>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSequence {
    /// As texts: a mistake in them must be named without them.
    steps: Option<Spanned<Vec<String>>>,
    /// Or the range from which they are computed, and what with.
    rolling: Option<PortRange>,
    key: Option<SequenceKey>,
    length: Option<usize>,
    bound_to_source: Option<bool>,
    #[serde(default)]
    opens: Vec<Port>,
}

/// A place in the text of a configuration, and what is wrong there.
type Mistake = (Range<usize>, String);

impl RawEntry {
    /// The gate of that name, whose table is at `span` of `text`.
    pub(super) fn check(self, text: &str, span: Range<usize>, name: &GateName) -> Result<Entry, TextError> {
        let at_gate = |message| (span, format!("gate {name} {message}"));
        self.entry(at_gate).map_err(|(span, message)| TextError::at(text, &span, message))
    }

    fn entry(self, at_gate: impl FnOnce(String) -> Mistake) -> Result<Entry, Mistake> {
        let missing = self.missing_of_profile();
        let Self {
            gate_id,
            client_id,
            secret,
            addresses,
            ports,
            services,
            answers,
            identities,
            close_on_exit,
            identity_file,
            sequences,
        } = self;
        let sequences = sequences.into_iter().map(|(name, raw)| {
            let sequence = sequence(&name, raw)?;
            Ok((name, sequence))
        });
        let sequences: BTreeMap<_, _> = sequences.collect::<Result<_, Mistake>>()?;
        let profile = match (gate_id, client_id, secret, ports, services) {
            (Some(gate), Some(client), Some(secret), Some(ports), Some(services)) => {
                // A gate answers unless its administrator says otherwise.
                let answers = answers.unwrap_or(true);
                let identities = identities.unwrap_or_default();
                let addresses = addresses.clone();
                Some(Profile { gate, client, secret, addresses, ports, services, answers, identities })
            }
            (None, None, None, None, None) if answers.is_none() && identities.is_none() => None,
            _ => {
                return Err(at_gate(format!(
                    "lacks {} of its profile: import it again with --force",
                    missing.join(", ")
                )));
            }
        };
        let lack = match &profile {
            Some(profile) => super::lacks(profile),
            None if addresses.is_empty() => Some("no address: add one to `addresses`"),
            None if sequences.is_empty() => Some("neither a profile to knock with nor a sequence"),
            None if close_on_exit.is_some() => Some("close-on-exit, and no profile: a sequence cannot close"),
            None if identity_file.is_some() => {
                Some("identity-file, and no profile: a sequence is not signed")
            }
            None => None,
        };
        if let Some(lack) = lack {
            return Err(at_gate(format!("has {lack}")));
        }
        let close_on_exit = close_on_exit.unwrap_or(false);
        Ok(Entry { addresses, profile, sequences, close_on_exit, identity_file })
    }

    fn missing_of_profile(&self) -> Vec<&'static str> {
        let fields = [
            ("gate-id", self.gate_id.is_none()),
            ("client-id", self.client_id.is_none()),
            ("secret", self.secret.is_none()),
            ("ports", self.ports.is_none()),
            ("services", self.services.is_none()),
        ];
        fields.into_iter().filter_map(|(name, is_missing)| is_missing.then_some(name)).collect()
    }
}

fn sequence(name: &SequenceName, raw: Spanned<RawSequence>) -> Result<Sequence, Mistake> {
    let span = raw.span();
    if name.as_str().bytes().all(|b| b.is_ascii_digit()) {
        return Err((span, format!("sequence {name} is called like a port: put a letter into its name")));
    }
    let RawSequence { steps, rolling, key, length, bound_to_source, opens } = raw.into_inner();
    let is_rolling = rolling.is_some() || key.is_some() || length.is_some() || bound_to_source.is_some();
    let ports = match (steps, rolling, key) {
        (Some(_), ..) if is_rolling => {
            let message =
                format!("sequence {name} has steps, which are always the same, and is rolling: choose one");
            return Err((span, message));
        }
        (Some(texts), ..) => Ports::Fixed(fixed(&texts)?),
        (None, Some(range), Some(key)) => {
            let length = length.unwrap_or(Rolling::LENGTH);
            let ports = RollingPorts { key, range, length, bound_to_source: bound_to_source.unwrap_or(true) };
            ports.rolling().map_err(|error| (span, format!("sequence {name}: {error}")))?;
            Ports::Rolling(ports)
        }
        (None, ..) => {
            let message = format!("sequence {name} needs steps, or a range (rolling) and a key");
            return Err((span, message));
        }
    };
    Ok(Sequence { ports, opens })
}

fn fixed(texts: &Spanned<Vec<String>>) -> Result<Steps, Mistake> {
    let steps: Option<Vec<_>> = texts.get_ref().iter().map(|text| steps::step(text).ok()).collect();
    let steps = steps.ok_or_else(|| {
        let message = "steps: a step is a port from 1 to 65535, and \":udp\" behind it if it is not TCP";
        (texts.span(), message.to_owned())
    })?;
    Steps::new(steps).map_err(|error| (texts.span(), format!("steps: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::Ports;

    const LEGACY: &str = r#"
[gates.old]
addresses = ["old.example.org"]

[gates.old.sequences.ssh]
steps = ["7000", "8000:udp", "9000/tcp"]
opens = ["22/tcp"]
"#;

    #[test]
    fn a_gate_needs_no_profile_where_it_has_a_sequence() {
        let config = Config::parse(LEGACY).unwrap();
        let gate = &config.gates()[&"old".parse().unwrap()];
        assert!(gate.profile.is_none());
        let at = |port: u16| gate.sequences_at(port.try_into().unwrap()).map(|(name, _)| name.as_str());
        assert_eq!(at(22).collect::<Vec<_>>(), ["ssh"]);
        assert_eq!(at(8000).count(), 0);
        let Ports::Fixed(steps) = &gate.sequences[&"ssh".parse().unwrap()].ports else {
            panic!("it is always the same");
        };
        assert_eq!(steps.to_string(), "7000:tcp,8000:udp,9000:tcp");
    }

    #[test]
    fn every_mistake_of_a_sequence_is_named_with_its_place() {
        for (from, to, line, says) in [
            ("\"8000:udp\"", "\"8000:sctp\"", 6, "steps: a step is a port from 1 to 65535"),
            ("\"8000:udp\"", "\"0\"", 6, "steps: a step is a port from 1 to 65535"),
            ("\"8000:udp\"", "8000", 6, "steps: invalid type: integer, expected a string"),
            ("[\"7000\", \"8000:udp\", \"9000/tcp\"]", "[]", 6, "steps: a sequence has 1 to 32 steps"),
            ("steps =", "step =", 6, "unknown field `step`"),
            ("\"22/tcp\"", "\"22\"", 7, "opens: a port is a number from 1 to 65535 and a protocol"),
            ("sequences.ssh", "sequences.7000", 5, "sequence 7000 is called like a port"),
            ("sequences.ssh", "sequences.\"s h\"", 5, "a sequence name is 1 to 32 letters"),
            ("sequences.ssh", "seq.ssh", 5, "unknown field `seq`"),
            ("[\"old.example.org\"]", "[]", 2, "gate old has no address"),
            ("addresses", "ports = [1]\naddresses", 2, "gate old lacks gate-id, client-id, secret, services"),
        ] {
            let bad = LEGACY.replacen(from, to, 1);
            assert_ne!(bad, LEGACY, "{from} is not in the example");
            let error = Config::parse(&bad).err().unwrap_or_else(|| panic!("accepted:\n{bad}"));
            assert!(error.message.contains(says), "{error}\n{bad}");
            assert_eq!(error.line, line, "{error}\n{bad}");
            assert!(!error.message.contains("8000"), "an error repeats a step: {error}");
        }
        let neither = "[gates.old]\naddresses = [\"old.example.org\"]\n";
        let error = Config::parse(neither).err().unwrap();
        assert_eq!(error.message, "gate old has neither a profile to knock with nor a sequence");
    }

    const ROLLING: &str = r#"
[gates.bastion]
addresses = ["bastion.example.org"]

[gates.bastion.sequences.ssh]
rolling = "20000-29999"
key = "ABEiM0RVZneImaq7zN3u_wARIjNEVWZ3iJmqu8zd7v8"
"#;

    #[test]
    fn a_rolling_sequence_is_bound_and_has_five_ports_unless_it_says_otherwise() {
        for (more, length, is_bound) in
            [("", 5, true), ("length = 8\nbound-to-source = false\n", 8, false), ("length = 32\n", 32, true)]
        {
            let config = Config::parse(&format!("{ROLLING}{more}")).unwrap();
            let sequence = &config.gates()[&"bastion".parse().unwrap()].sequences[&"ssh".parse().unwrap()];
            let Ports::Rolling(ports) = &sequence.ports else { panic!("it rolls") };
            assert_eq!((ports.length, ports.bound_to_source), (length, is_bound));
            assert_eq!(ports.range.to_string(), "20000-29999/tcp");
        }
    }

    #[test]
    fn every_mistake_of_a_rolling_sequence_is_named_without_its_key() {
        for (from, to, line, says) in [
            (
                "rolling = \"20000-29999\"\n",
                "",
                5,
                "sequence ssh needs steps, or a range (rolling) and a key",
            ),
            ("\nkey = ", "\nlength = 5 # ", 5, "sequence ssh needs steps, or a range (rolling) and a key"),
            ("rolling = \"20000-29999\"", "steps = [\"7000\"]", 5, "sequence ssh has steps"),
            ("rolling = ", "steps = [\"7000\"]\nrolling = ", 5, "sequence ssh has steps"),
            ("20000-29999", "29999-20000", 6, "the last port of a range"),
            ("20000-29999", "20000-20003", 5, "no more ports than its range"),
            ("\nkey = ", "\nlength = 33\nkey = ", 5, "a rolling sequence has 1 to 32 ports"),
            ("\nkey = ", "\nlength = 0\nkey = ", 5, "a rolling sequence has 1 to 32 ports"),
            ("key = \"", "key = \"x", 7, "a sequence key is 32 bytes"),
            ("key = \"ABEiM0RV", "key = 5 # ", 7, "expected a string"),
            ("\nkey = ", "\nsecret = ", 7, "unknown field `secret`"),
        ] {
            let bad = ROLLING.replacen(from, to, 1);
            assert_ne!(bad, ROLLING, "{from} is not in the example");
            let error = Config::parse(&bad).err().unwrap_or_else(|| panic!("accepted:\n{bad}"));
            assert!(error.message.contains(says), "{error}\n{bad}");
            assert_eq!(error.line, line, "{error}\n{bad}");
            assert!(!error.message.contains("ABEiM0R"), "an error repeats a key: {error}");
        }
    }
}
