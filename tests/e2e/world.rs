//! The small world of a test: a gate with an open service behind it, a client who may come in, and a stranger.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{Gate, KNOCK_PORTS, SSH, Settings, WEB};
use postern_tests::knocks::{Client, Knock};
use postern_tests::netns::{Family, Host, Network};
use postern_tests::probe::{Echo, Seen, probe, udp, wait_to_see};
use postern_tests::wait::{LONG, wait_for};
use serde_json::Value;

/// Most by which a window may outlast its end: the kernel counts whole seconds (P5).
const GRACE: Duration = Duration::from_secs(1);

pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) gate: Gate,
    /// What knocks at the gate as a rule, from `home`.
    pub(crate) alice: Client,
    pub(crate) home: Host,
    pub(crate) stranger: Host,
    settings: Settings,
    echoes: Vec<Echo>,
}

/// A door that a test has seen open: when its window began, as closely as can be said from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    to: SocketAddr,
    earliest_end: Instant,
    latest_end: Instant,
}

impl World {
    /// Hosts and files; no process runs yet.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let mut network = Network::new()?;
        let (host, home, stranger) = (network.host([1])?, network.host([2])?, network.host([3])?);
        let gate = Gate::new(host, settings)?;
        let alice = gate.client("alice")?;
        gate.write_clients(&[&alice])?;
        Ok(Self { network, gate, alice, home, stranger, settings, echoes: Vec::new() })
    }

    /// A gate that runs, with something that answers on the port of each service.
    pub(crate) fn running(settings: Settings) -> Result<Self> {
        let mut world = Self::new(settings)?;
        world.listen(&[SSH, WEB])?;
        world.gate.start(&[])?;
        Ok(world)
    }

    /// Puts something that answers on ports of the gate's host.
    pub(crate) fn listen(&mut self, ports: &[u16]) -> Result<()> {
        for &port in ports {
            self.echoes.push(Echo::start(self.gate.host(), port)?);
        }
        Ok(())
    }

    /// What a guarded port shows.
    pub(crate) fn shut(&self) -> Seen {
        if self.settings.guard == "reset" { Seen::Refused } else { Seen::Nothing }
    }

    /// The door is shut, a fresh knock opens it.
    pub(crate) fn opens(&self, family: Family) -> Result<Opened> {
        self.opens_to(&self.home, family)
    }

    /// The door is shut to a host, a fresh knock from there opens it.
    pub(crate) fn opens_to(&self, host: &Host, family: Family) -> Result<Opened> {
        let to = self.gate.at(family, SSH);
        let seen = probe(host, to)?;
        ensure!(seen == self.shut(), "before the knock, {to} shows {seen:?}");
        let knocked = Instant::now();
        self.gate.knock(host, &self.alice, family, &[])?;
        wait_to_see(host, to, Seen::Open)
            .with_context(|| format!("a fresh knock opens; the log: {:#?}", self.gate.log()))?;
        Ok(self.opened(to, knocked))
    }

    /// The door that was knocked at is open, as was seen just now.
    pub(crate) fn opened(&self, to: SocketAddr, knocked: Instant) -> Opened {
        let window = Duration::from_secs(u64::from(self.settings.window_secs));
        Opened { to, earliest_end: knocked + window, latest_end: Instant::now() + window }
    }

    /// Looks at an open door until it is shut: it stays open to the end of the window, and not a second longer.
    pub(crate) fn shuts_on_time(&self, opened: Opened) -> Result<()> {
        let mut last_open = None;
        loop {
            let sent = Instant::now();
            if probe(&self.home, opened.to)? == Seen::Open {
                let late = sent.saturating_duration_since(opened.latest_end);
                ensure!(late <= GRACE, "{} is open {late:?} after its end", opened.to);
                last_open = Some(sent);
            } else if sent > opened.latest_end + GRACE {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let last_open = last_open.context("the door was shut already")?;
        let early = opened.earliest_end.saturating_duration_since(last_open);
        ensure!(early <= GRACE, "{} shut {early:?} before its end", opened.to);
        Ok(())
    }

    /// Sends bytes to the gate's first knock port, from a host's own address.
    pub(crate) fn send(&self, from: &Host, family: Family, knock: &Knock) -> Result<()> {
        send(from, &self.gate, family, knock)
    }
}

/// A gate refuses one more datagram for this reason, and says so in its log.
pub(crate) fn refuses(gate: &Gate, reason: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    logs_one_more(gate, "refused", |event| event["reason"] == reason, act).context(reason.to_owned())
}

/// A gate grants one more lease, and says so in its log.
pub(crate) fn grants(gate: &Gate, act: impl FnOnce() -> Result<()>) -> Result<()> {
    logs_one_more(gate, "granted", |_| true, act)
}

/// A gate refuses so many more datagrams, each for whatever reason.
pub(crate) fn refuses_some(gate: &Gate, more: usize, act: impl FnOnce() -> Result<()>) -> Result<()> {
    logs_more(gate, "refused", more, |_| true, act)
}

fn logs_one_more(
    gate: &Gate,
    message: &str,
    matches: impl Fn(&Value) -> bool,
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    logs_more(gate, message, 1, matches, act)
}

fn logs_more(
    gate: &Gate,
    message: &str,
    more: usize,
    matches: impl Fn(&Value) -> bool,
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let count = || {
        let seen = gate.events(message)?.iter().filter(|event| matches(event)).count();
        // The kernel refuses without a word: the front says how many those were.
        let unseen = if message == "refused" { gate.events("refused in the kernel")? } else { Vec::new() };
        let unseen = unseen.iter().filter(|event| matches(event)).filter_map(|event| event["count"].as_u64());
        Ok::<_, anyhow::Error>(seen + usize::try_from(unseen.sum::<u64>())?)
    };
    let before = count()?;
    act()?;
    let what = format!("{more} more lines \"{message}\"");
    wait_for(&what, LONG, || Ok((count()? >= before + more).then_some(())))
}

/// Sends bytes to a gate's first knock port, from a host's own address.
pub(crate) fn send(from: &Host, gate: &Gate, family: Family, knock: &Knock) -> Result<()> {
    let to = gate.at(family, KNOCK_PORTS[0]);
    udp(from, from.ip(family))?.send_to(knock, to)?;
    Ok(())
}
