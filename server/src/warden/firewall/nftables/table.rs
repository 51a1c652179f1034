//! The table of ours: its sets, chains and rules.
//!
//! ```text
//! prerouting (before destination NAT) ─┐ guarded port, for this host ──▶ doors: always-allow, established,
//!                                      ├                                        grants, standing sessions ─▶ accept
//! input (what is delivered here) ──────┘ knock port ──▶ knocks: established     everything else ─▶ refuse
//! ```
//! Two hooks: a port that is led elsewhere by destination NAT is seen before it is, and one that something else is led
//! to is seen where it is delivered. What this host forwards for others passes neither of them.
//!
//! Whatever is accepted here still meets the other tables; whatever is refused does not.

use std::time::Duration;

use super::elements::{Element, door};
use super::netlink::{Attributes, INET, Kind, Message};
use super::rule::{Field, Rule};
use super::sets::{self, Set};
use crate::warden::firewall::Family;
use crate::warden::guard::{Guard, Refuse};

pub(in crate::warden::firewall) const TABLE: &str = "postern";
/// The chain that everybody comes to who wants in: where it is, the guard is up.
pub(super) const DOORS: &str = "doors";
const KNOCKS: &str = "knocks";
const REFUSE: &str = "refuse";

/// Behind connection tracking (-200), and just before destination NAT (-100).
pub(in crate::warden::firewall) const PRIORITY: i32 = -101;
/// `NF_INET_PRE_ROUTING`
const PREROUTING: Hook = Hook { number: 0, priority: PRIORITY, text: "prerouting priority dstnat - 1" };
/// `NF_INET_LOCAL_IN`, before the filter tables of others.
const INPUT: Hook = Hook { number: 1, priority: -10, text: "input priority filter - 10" };

/// `NFTA_TABLE_NAME`, and the table's name in chains, rules, sets and elements.
pub(super) const TABLE_NAME: u16 = 1;
/// `NFTA_CHAIN_*`
pub(super) const CHAIN_HANDLE: u16 = 2;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_*`
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;

struct Hook {
    number: u32,
    priority: i32,
    text: &'static str,
}

pub(super) struct Chain {
    pub(super) name: &'static str,
    hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// The chains, each behind those that it leads to.
pub(super) fn chains(guard: &Guard, families: &[Family]) -> Vec<Chain> {
    let refuse = match guard.refuse {
        Refuse::Drop => vec![Rule::default().drop()],
        Refuse::Reset => vec![Rule::default().reset_tcp(), Rule::default().port_unreachable()],
    };
    // A reply to a question that this host asked from such a port is no stranger's packet.
    let replies = (!guard.answers).then(|| Rule::default().established().accept());
    let knocks = replies.into_iter().chain([Rule::default().goto(REFUSE)]).collect();
    vec![
        Chain { name: REFUSE, hook: None, rules: refuse },
        Chain { name: KNOCKS, hook: None, rules: knocks },
        Chain { name: DOORS, hook: None, rules: doors(guard, families) },
        Chain { name: "prerouting", rules: entrance(&PREROUTING, families), hook: Some(PREROUTING) },
        Chain { name: "input", rules: entrance(&INPUT, families), hook: Some(INPUT) },
    ]
}

/// What a packet meets first: most are no business of the guard's.
fn entrance(hook: &Hook, families: &[Family]) -> Vec<Rule> {
    let mut rules = vec![Rule::default().over_loopback().accept()];
    for (family, is_ipv4) in [(Family::V4, true), (Family::V6, false)] {
        if !families.contains(&family) {
            rules.push(Rule::default().of_family(is_ipv4).accept());
        }
    }
    for (set, chain) in [(sets::PORTS, DOORS), (sets::KNOCKS, KNOCKS)] {
        let rule = Rule::default().found_in(set.name, PORT, true);
        let rule = if hook.number == PREROUTING.number { rule.for_this_host() } else { rule };
        rules.push(rule.goto(chain));
    }
    rules
}

const PORT: &[Field] = &[Field::Protocol, Field::DestinationPort];

fn doors(guard: &Guard, families: &[Family]) -> Vec<Rule> {
    let networks = guard.always_allow.iter().filter(|network| families.contains(&Family::of(network.addr())));
    let mut rules: Vec<_> = networks.map(|network| Rule::default().out_of(network).accept()).collect();
    rules.push(Rule::default().found_in(sets::KEPT.name, PORT, true).established().accept());
    for &family in families {
        let is_ipv4 = family == Family::V4;
        let from_port = [Field::Source, Field::Protocol, Field::DestinationPort, Field::SourcePort];
        let connection = [Field::Source, Field::Destination, Field::SourcePort, Field::DestinationPort];
        rules.push(Rule::default().found_in(sets::grants(family).name, &from_port[..3], is_ipv4).accept());
        rules.push(Rule::default().found_in(sets::from_port(family).name, &from_port, is_ipv4).accept());
        let standing = Rule::default().begins_nothing();
        rules.push(standing.found_in(sets::standing(family).name, &connection, is_ipv4).accept());
    }
    rules.push(Rule::default().goto(REFUSE));
    rules
}

/// The ports that are guarded, in a trial only until its end: then the kernel itself lets the guard fall.
pub(super) fn guarded(guard: &Guard, left: Option<Duration>) -> Vec<Element> {
    let element = |set, port| Element { set, key: door(port), timeout: left, comment: None };
    let knock = |&number| postern_proto::Port { protocol: postern_proto::Protocol::Udp, number };
    let kept = guard.ports.iter().filter(|guarded| guarded.keep_established);
    (guard.ports.iter().map(|guarded| element(sets::PORTS, guarded.port)))
        .chain(guard.knock_ports.iter().map(|number| element(sets::KNOCKS, knock(number))))
        .chain(kept.map(|guarded| Element { timeout: None, ..element(sets::KEPT, guarded.port) }))
        .collect()
}

/// The messages that put the table up anew; nothing of an earlier one stays.
pub(super) fn build(guard: &Guard, families: &[Family]) -> Vec<Message> {
    let new = |kind, attributes| Message::new(kind, libc::NLM_F_CREATE, INET, attributes);
    let mut messages = remove();
    messages.push(new(Kind::NEW_TABLE, named()));
    messages
        .extend(sets::ALL.iter().zip(1..).map(|(set, id)| new(Kind::NEW_SET, set.attributes(named(), id))));
    let chains = chains(guard, families);
    messages.extend(chains.iter().map(|chain| new(Kind::NEW_CHAIN, chain.attributes())));
    for chain in &chains {
        let append = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let rule = |rule: &Rule| {
            let attributes = named().text(RULE_CHAIN, chain.name).nest(RULE_EXPRESSIONS, rule.expressions());
            Message::new(Kind::NEW_RULE, append, INET, attributes)
        };
        messages.extend(chain.rules.iter().map(rule));
    }
    messages
}

/// The messages that take the table away, whether it is there or not.
pub(super) fn remove() -> Vec<Message> {
    vec![
        Message::new(Kind::NEW_TABLE, libc::NLM_F_CREATE, INET, named()),
        Message::new(Kind::DELETE_TABLE, 0, INET, named()),
    ]
}

/// The table's name, which begins every message about it.
pub(super) fn named() -> Attributes {
    Attributes::default().text(TABLE_NAME, TABLE)
}

/// The table without its elements, as `nft` prints it, but for the guarded ports, which stand in it.
pub(super) fn text(guard: &Guard, families: &[Family]) -> Vec<String> {
    let mut lines = vec![format!("table inet {TABLE} {{")];
    for set in sets::ALL {
        lines.extend(set.text(&guarded(guard, None)));
    }
    for chain in chains(guard, families) {
        lines.push(format!("\tchain {} {{", chain.name));
        lines.extend(
            chain.hook.as_ref().map(|hook| format!("\t\ttype filter hook {}; policy accept;", hook.text)),
        );
        lines.extend(chain.rules.iter().map(|rule| format!("\t\t{}", rule.text())));
        lines.push("\t}".to_owned());
    }
    lines.push("}".to_owned());
    lines
}

impl Chain {
    fn attributes(&self) -> Attributes {
        let attributes = named().text(CHAIN_NAME, self.name);
        let Some(hook) = &self.hook else { return attributes };
        let at = Attributes::default()
            .be32(HOOK_NUMBER, hook.number)
            .be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
        attributes.nest(CHAIN_HOOK, &at).be32(CHAIN_POLICY, ACCEPT).text(CHAIN_TYPE, "filter")
    }
}

impl Set {
    /// The set, with those of these elements that are in it.
    fn text(&self, elements: &[Element]) -> Vec<String> {
        let mut lines = vec![format!("\tset {} {{", self.name), format!("\t\ttype {}", self.type_text())];
        lines.push(format!("\t\tsize {}", self.size));
        lines.extend(self.ends.then(|| "\t\tflags timeout".to_owned()));
        let own: Vec<_> =
            elements.iter().filter(|element| element.set == *self).map(Element::port_text).collect();
        lines.extend((!own.is_empty()).then(|| format!("\t\telements = {{ {} }}", own.join(", "))));
        lines.push("\t}".to_owned());
        lines
    }
}
