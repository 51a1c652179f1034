//! What becomes of a packet among somebody's rules, whichever program wrote them. Pure.
//!
//! The question is always the same: a new connection from an address that no rule names, to one of our ports. What a
//! rule asks beyond that (a rate, a mark, a list of ports that only the kernel knows) cannot be answered here: such a rule
//! is taken to accept where it names the port, and not to drop. So what is found to be dropped is dropped.

use std::collections::BTreeMap;

use postern_proto::Port;

use crate::warden::firewall::Family;

/// A port of clients, from the range that every system draws them from.
const CLIENT_PORT: u16 = 50_000;
/// Jumps that are followed into one another; the kernel allows no more.
const DEPTH: usize = 16;

/// A packet that somebody's rules are asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) family: Family,
    /// The port on this host.
    pub(super) port: Port,
    /// Which way it goes.
    pub(super) way: Way,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To this host: the first packet of a connection.
    In,
    /// From this host: the answer.
    Out,
}

/// Which of the two ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Packet {
    fn is_ours(self, side: Side) -> bool {
        (self.way == Way::In) == (side == Side::Destination)
    }

    fn number(self, side: Side) -> u16 {
        if self.is_ours(side) { self.port.number.get() } else { CLIENT_PORT }
    }
}

/// How surely a rule applies to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Surely {
    Never,
    /// It depends on something that cannot be known here.
    Perhaps,
    /// On some interfaces, or to some of this host's addresses.
    Somewhere,
    Always,
}

impl Surely {
    pub(super) const fn known(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }

    /// When the rule asks for the contrary.
    #[must_use]
    pub(super) const fn unless(self, not: bool) -> Self {
        match self {
            Self::Always if not => Self::Never,
            // Not that interface, but any other.
            Self::Never | Self::Somewhere if not => Self::Always,
            same => same,
        }
    }
}

/// One thing that a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// What does not depend on the packet in question.
    Known(Surely),
    Family(Family),
    Protocol {
        among: Vec<String>,
        not: bool,
    },
    /// Ports from one to another, both included.
    Ports {
        side: Side,
        among: Vec<(u16, u16)>,
        not: bool,
    },
}

impl Condition {
    fn holds(&self, packet: Packet) -> Surely {
        match self {
            Self::Known(surely) => *surely,
            Self::Family(family) => Surely::known(*family == packet.family),
            Self::Protocol { among, not } => {
                let protocol = packet.port.protocol.as_str();
                Surely::known(among.iter().any(|name| name == protocol) != *not)
            }
            Self::Ports { side, among, not } => {
                let number = packet.number(*side);
                Surely::known(among.iter().any(|&(from, to)| (from..=to).contains(&number)) != *not)
            }
        }
    }

    fn names_port(&self, packet: Packet) -> bool {
        matches!(self, Self::Ports { side, .. } if packet.is_ours(*side))
    }
}

/// What a rule does with a packet that it applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing that matters here: it counts, logs, marks.
    Goes,
    Accept,
    Drop,
    Reject,
    /// Sends it to another port or host.
    Lead,
    /// Keeps it from connection tracking.
    Untrack,
    Return,
    Jump(String),
    Goto(String),
}

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) verdict: Verdict,
    /// How a person finds it.
    pub(super) text: String,
}

/// Where in a packet's way a chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// On the way in, to this host.
    In,
    /// On the way out, from this host.
    Out,
}

/// What makes a chain one that the kernel calls.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) hook: Hook,
    /// The smaller, the earlier.
    pub(super) priority: i64,
    /// What becomes of a packet that no rule decided.
    pub(super) drops: bool,
}

/// The rules of one chain, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// The chains of a table, by name.
pub(super) type Chains = BTreeMap<String, Chain>;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Dropped,
    Rejected,
    Led,
    Untracked,
}

/// What decided, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) fate: Fate,
    pub(super) chain: String,
    /// The rule; `None` for the chain's policy.
    pub(super) rule: Option<String>,
    /// Which rule of the base chain led there, from 0; behind its last one for the policy.
    pub(super) index: usize,
}

/// What becomes of a packet that the kernel hands to a base chain; a rule that `ours` tells is passed over.
pub(super) fn decide(chains: &Chains, name: &str, packet: Packet, ours: impl Fn(&Rule) -> bool) -> Decision {
    let accepted = Decision { fate: Fate::Accepted, chain: name.to_owned(), rule: None, index: 0 };
    let Some(chain) = chains.get(name) else { return accepted };
    for (index, rule) in chain.rules.iter().enumerate().filter(|(_, rule)| !ours(rule)) {
        match apply(chains, name, rule, packet, (Surely::Always, false), DEPTH) {
            Step::Decided(decision) => return Decision { index, ..decision },
            Step::Back => break,
            Step::On => {}
        }
    }
    let drops = chain.base.as_ref().is_some_and(|base| base.drops);
    let fate = if drops { Fate::Dropped } else { Fate::Accepted };
    Decision { fate, index: chain.rules.len(), ..accepted }
}

enum Step {
    Decided(Decision),
    /// Back to the chain that this one was called from.
    Back,
    /// To the next rule.
    On,
}

/// `so_far`: how surely the packet got to this chain, and whether a rule on its way has named the port.
fn apply(
    chains: &Chains,
    chain: &str,
    rule: &Rule,
    packet: Packet,
    so_far: (Surely, bool),
    depth: usize,
) -> Step {
    let holds = rule.conditions.iter().map(|condition| condition.holds(packet)).min();
    let surely = so_far.0.min(holds.unwrap_or(Surely::Always));
    let named = so_far.1 || rule.conditions.iter().any(|condition| condition.names_port(packet));
    if surely == Surely::Never {
        return Step::On;
    }
    let certain = surely == Surely::Always;
    let fate = match &rule.verdict {
        Verdict::Goes => return Step::On,
        Verdict::Return => return if certain { Step::Back } else { Step::On },
        Verdict::Jump(target) | Verdict::Goto(target) => {
            let step = follow(chains, target, packet, (surely, named), depth);
            let gone = matches!(rule.verdict, Verdict::Goto(_)) && certain;
            return match step {
                Step::Decided(decision) => Step::Decided(decision),
                Step::Back | Step::On if gone => Step::Back,
                Step::Back | Step::On => Step::On,
            };
        }
        Verdict::Accept => (certain || named).then_some(Fate::Accepted),
        Verdict::Drop => (certain || named && surely == Surely::Somewhere).then_some(Fate::Dropped),
        Verdict::Reject => (certain || named && surely == Surely::Somewhere).then_some(Fate::Rejected),
        // What may go round the guard, or lose its session, is worth a warning.
        Verdict::Lead => (named || surely >= Surely::Somewhere).then_some(Fate::Led),
        Verdict::Untrack => (named || surely >= Surely::Somewhere).then_some(Fate::Untracked),
    };
    let decided = |fate| Decision { fate, chain: chain.to_owned(), rule: Some(rule.text.clone()), index: 0 };
    fate.map_or(Step::On, |fate| Step::Decided(decided(fate)))
}

fn follow(chains: &Chains, target: &str, packet: Packet, so_far: (Surely, bool), depth: usize) -> Step {
    let Some(chain) = chains.get(target).filter(|_| depth > 0) else { return Step::On };
    for rule in &chain.rules {
        match apply(chains, target, rule, packet, so_far, depth - 1) {
            Step::On => {}
            step => return step,
        }
    }
    Step::Back
}
