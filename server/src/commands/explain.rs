//! `posternd explain FILE.pcap`: what the gate would do with each packet of a capture file, and why. Offline: what the
//! running gate remembers is not asked, so a knock counts as new the first time the file shows it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use postern_proto::datagram::KNOCK_LEN;
use postern_proto::{Datagram, Epoch, GateKeys, Hint, Refusal, WallTime, open};

use super::print::say;
use crate::clock::{BootTime, Now};
use crate::config::Config;
use crate::front::capture::read_file;
use crate::front::frame::{Content, Frame};
use crate::front::gate::{Client, Gate, Memory, Outcome, Refused, Verdict};
use crate::front::sequences::Sequences;

/// How far a clock may be off for a knock to be named all the same.
const SEARCH: Duration = Duration::from_hours(24);
/// Hints that are computed for that, at the most: about 2 GB.
const MOST_HINTS: u64 = 50_000_000;

pub(crate) fn run(path: &Path, file: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let (mut first, mut last) = (None, WallTime::from_micros(0));
    read_file(file, |at, _| {
        first = Some(first.unwrap_or(at).min(at));
        last = last.max(at);
    })?;
    let Some(first) = first else {
        return say!("{}: holds no packet", file.display());
    };
    let mut explainer = Explainer::new(&config, first, last)?;
    let mut said = Ok(());
    read_file(file, |at, frame| {
        if said.is_ok() {
            said = match frame {
                Ok(frame) => say!("{at}  {}", explainer.explain(at, &frame)),
                Err(unfit) => say!("{at}  not for the gate: {unfit}"),
            };
        }
    })?;
    said
}

struct Explainer {
    config_ports: Vec<std::num::NonZeroU16>,
    sequences: Sequences,
    gate: Gate,
    keys: GateKeys,
    first: WallTime,
    last: WallTime,
    /// Clients and epochs by hint, a day around the file; made when a knock is unknown.
    wide: Option<HashMap<Hint, (usize, Epoch)>>,
}

impl Explainer {
    fn new(config: &Config, first: WallTime, last: WallTime) -> anyhow::Result<Self> {
        let watch = config.watch();
        let memory = Memory::new(WallTime::from_micros(0));
        let keys = GateKeys::derive(&watch.gate);
        let clients = Client::all(&watch.gate, &config.clients, &config.authorized);
        let services = config.service_table();
        let gate = Gate::new(keys.clone(), watch.tolerance, services, clients, memory, first, false);
        // Nobody floods a file: the key need not be a secret.
        let sequences = Sequences::new(config.enrolled().sequences, [0; 16])?;
        Ok(Self { config_ports: watch.sought.knocks, sequences, gate, keys, first, last, wide: None })
    }

    fn explain(&mut self, at: WallTime, frame: &Frame<'_>) -> String {
        let Frame { source, source_port, destination, port, content } = frame;
        let route = format!("{source} port {source_port} -> {destination} port {port}");
        let now = Now { wall: at, boot: BootTime::from_boot(at.since(self.first)) };
        let is_knock_port = self.config_ports.iter().any(|knock| knock.get() == *port);
        let Content::Datagram(payload) = content else {
            return self.step(now, frame).unwrap_or_else(|| format!("{route}: not for the gate: TCP"));
        };
        if !is_knock_port {
            let nothing = || format!("{route}: not for the gate: {port} is not a knock port");
            return self.step(now, frame).unwrap_or_else(nothing);
        }
        let Some(datagram) = Datagram::new(payload) else {
            return format!("{route}: not for the gate: {} bytes; a knock has {KNOCK_LEN}", payload.len());
        };
        let verdict = match self.gate.handle(now, frame.way(), datagram) {
            Verdict::Refused(refused) => self.refusal(at, &refused, datagram),
            Verdict::Decided(decided) => match decided.preview() {
                Outcome::Refused(refused) => self.refusal(at, refused, datagram),
                Outcome::Open(grant) => {
                    let services: Vec<_> =
                        grant.services.iter().map(|(name, window)| format!("{name} for {window}")).collect();
                    let from = grant.from_port.map(|port| format!(" port {port}")).unwrap_or_default();
                    let who = self.name(grant.client);
                    format!("accepted: {who} opens {} to {}{from}", services.join(", "), grant.source)
                }
                Outcome::Close(closure) => {
                    let services: Vec<_> = closure.services.iter().map(ToString::to_string).collect();
                    format!(
                        "accepted: {} closes {} to {}",
                        self.name(closure.client),
                        services.join(", "),
                        closure.source
                    )
                }
                Outcome::Heard => "accepted: a probe, which asks for nothing".to_owned(),
            },
        };
        format!("{route}: {verdict}")
    }

    /// What a packet means to the sequences, if anything.
    fn step(&mut self, now: Now, frame: &Frame<'_>) -> Option<String> {
        let completed = self.sequences.advance(now, frame);
        let names = completed.iter().map(|completion| {
            let name = &completion.sequence.name;
            match self.gate.complete(now, completion) {
                Verdict::Decided(_) => format!("sequence {name} is complete and opens"),
                Verdict::Refused(refused) => {
                    format!("sequence {name} is complete, and refused: {}", refused.reason)
                }
            }
        });
        let names: Vec<_> = names.collect();
        let Frame { source, port, .. } = frame;
        if !names.is_empty() {
            return Some(format!("{source} -> port {port}: {}", names.join("; ")));
        }
        self.sequences
            .names_with(frame)
            .map(|names| format!("{source} -> port {port}: a port of sequence {names}"))
    }

    fn refusal(&mut self, at: WallTime, refused: &Refused, datagram: Datagram<'_>) -> String {
        let Refused { reason, client, at: made } = refused;
        let mut text = format!("refused: {reason}: {}", reason.meaning());
        if *reason == Refusal::Unknown {
            text.push_str(&self.search(at, datagram).unwrap_or_default());
            return text;
        }
        if let Some(client) = client {
            text = format!("{text}; client {client}");
        }
        if let Some(made) = made {
            text = format!("{text}; {}", clock(at, *made));
        }
        text
    }

    /// Whose knock would it be if the clocks were off by up to a day, or the client enabled?
    fn search(&mut self, at: WallTime, datagram: Datagram<'_>) -> Option<String> {
        let (position, epoch) = {
            let wide = self.wide.get_or_insert_with(|| wide(self.gate.clients(), self.first, self.last));
            *wide.get(&datagram.unveil(&self.keys))?
        };
        let client = &self.gate.clients()[position];
        let name = &client.name;
        Some(match open(&self.keys, client.seal_key(), epoch, datagram) {
            Ok(_) if client.policy.is_disabled() => format!("; made by client {name}, which is disabled"),
            Ok(knock) => format!("; made by client {name}, {}", clock(at, knock.at())),
            Err(reason) => format!("; under a hint of client {name}, {reason}: {}", reason.meaning()),
        })
    }

    fn name(&self, id: postern_proto::ClientId) -> String {
        let client = self.gate.clients().iter().find(|client| client.id == id);
        client.map_or_else(|| id.to_string(), |client| client.name.to_string())
    }
}

/// The hints of all clients, disabled ones too, for every epoch of the file and a day around it; less than a day when
/// that would be too many.
fn wide(clients: &[Client], first: WallTime, last: WallTime) -> HashMap<Hint, (usize, Epoch)> {
    let most_epochs = MOST_HINTS / (clients.len() as u64).max(1);
    let from = first.before(SEARCH).epoch().number();
    let to = last.after(SEARCH).epoch().number();
    let cut = (to - from + 1).saturating_sub(most_epochs).div_ceil(2);
    if cut > 0 {
        eprintln!("many clients, or a long file: searched for clocks that are off by less than a day only");
    }
    let mut hints = HashMap::new();
    for epoch in (from + cut..=to.saturating_sub(cut)).map(Epoch::new) {
        hints.extend(
            clients.iter().enumerate().map(|(i, client)| (client.any_hint_key().hint(epoch), (i, epoch))),
        );
    }
    hints
}

/// How the client's clock compares with the one that stamped the packet.
fn clock(at: WallTime, made: WallTime) -> String {
    let (off, direction) = if made > at { (made.since(at), "ahead") } else { (at.since(made), "behind") };
    let off = Duration::from_millis(u64::try_from(off.as_millis()).unwrap_or(u64::MAX));
    format!(
        "made at {made}: its clock is {} {direction} (or the packet was held back)",
        humantime::format_duration(off)
    )
}
