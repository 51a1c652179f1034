//! For nft, with sets that the kernel fills: one table for IPv4 and one of the same shape for IPv6.
//!
//! What has a timeout leaves its set by itself. A set that is full takes nobody more, and who is in it stays in it.

use postern_proto::{Port, Protocol};

use super::words::{Text, Use, head};
use super::{Knocked, Ruleset, STRAYS};

/// Addresses in a set.
const ROOM: u32 = 65536;
/// Before the chains of others, so that what is shut here is no matter of theirs.
const PRIORITY: &str = "filter - 10";

pub(super) fn print(ruleset: &Ruleset) -> String {
    let mut text = Text::new();
    let table = format!("knock_{}", ruleset.name);
    // Who has taken the first step is remembered for so long.
    let first = if ruleset.last() == 1 { ruleset.window } else { ruleset.timeout };
    let limits = [
        "The line for nmap is for IPv4; with -6, it is for IPv6.".to_owned(),
        "The rules of other tables still hold: let them accept the door's port. This table is before them and shuts it to \
         who has not knocked; what it lets pass, they can still drop."
            .to_owned(),
        format!(
            "A set has room for {ROOM} addresses. First steps from more made-up addresses than that within {}, about {} a \
             second, keep others from beginning; who has begun goes on.",
            first,
            (ROOM / first.as_secs()).max(1)
        ),
    ];
    let how = Use {
        nmap: "nmap",
        reader: "nft (IPv4 and IPv6; made with nftables 1.0.6)",
        load: &["nft -f FILE     # again and again, if need be: attempts are forgotten, and doors shut"
            .to_owned()],
        boot: &["echo 'include \"FILE\"' >> /etc/nftables.conf     # with nftables.service".to_owned()],
        out: &[format!("nft delete table ip {table}"), format!("nft delete table ip6 {table}")],
        limits: &limits,
    };
    head(&mut text, ruleset, &how);
    for family in ["ip", "ip6"] {
        let mut rules = Rules { ruleset, family, text };
        rules.table(&table);
        text = rules.text;
    }
    text.finish()
}

struct Rules<'a> {
    ruleset: &'a Ruleset,
    family: &'static str,
    text: Text,
}

impl Rules<'_> {
    fn table(&mut self, table: &str) {
        let name = format!("table {} {table}", self.family);
        self.text.line("");
        // Made if need be, so that there is one to be deleted.
        self.text.lines([name.clone(), format!("delete {name}"), format!("{name} {{")]);
        self.sets();
        self.input();
        for port in self.ruleset.ports() {
            self.knocked(&port);
        }
        if self.ruleset.last() > 1 {
            self.stray();
            self.count();
            self.end();
        }
        self.text.line("}");
    }

    fn sets(&mut self) {
        let Ruleset { window, timeout, .. } = self.ruleset;
        self.text.comment("    ", "Who has taken which step, for so long; and whose strays are counted.");
        let last = self.ruleset.last();
        for step in 1..=last {
            let timeout = if step == last { window } else { timeout };
            self.set(&set(step, last), timeout.as_secs());
        }
        if last > 1 {
            // As long as the longest attempt.
            let steps = u32::try_from(last).unwrap_or(u32::MAX);
            self.set("strays", timeout.as_secs().saturating_mul(steps));
        }
    }

    fn set(&mut self, name: &str, timeout: u32) {
        let kind = if self.family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        self.text.line(&format!(
            "    set {name} {{ type {kind}; flags dynamic,timeout; timeout {timeout}s; size {ROOM}; }}"
        ));
    }

    fn input(&mut self) {
        let door = to(self.ruleset.door);
        let open = set(self.ruleset.last(), self.ruleset.last());
        let from = self.from();
        let mut rules = vec![
            format!("type filter hook input priority {PRIORITY}; policy accept;"),
            "# This host itself is not kept out, nor is what has begun already.".to_owned(),
            "iifname \"lo\" accept".to_owned(),
            "ct state established,related accept".to_owned(),
            "# The door: open to who has taken the last step; shut to everybody else, without an answer."
                .to_owned(),
            format!("{door} {from} @{open} accept"),
            format!("{door} drop"),
            "# The ports of the steps never answer.".to_owned(),
        ];
        let ports = self.ruleset.ports();
        rules.extend(ports.iter().map(|known| format!("{} goto step_{}", to(known.port), known.number())));
        if self.ruleset.last() > 1 {
            rules.extend(
                [
                    "# What is new, and for another port.",
                    "tcp flags & (fin | syn | rst | ack) == syn jump stray",
                    "meta l4proto udp jump stray",
                ]
                .map(str::to_owned),
            );
        }
        self.chain("input", None, &rules);
    }

    /// The chain of a port of the sequence.
    fn knocked(&mut self, knocked: &Knocked) {
        let (from, last) = (self.from(), self.ruleset.last());
        let take = |step| format!("update @{} {{ {from} }}", set(step, last));
        let is_first = knocked.number() == 1;
        let mut rules = Vec::new();
        if knocked.port.protocol == Protocol::Tcp {
            rules.push("tcp flags & (fin | syn | rst | ack) != syn drop".to_owned());
        }
        for &step in knocked.steps.iter().rev().filter(|&&step| step > 1) {
            let then = if step == last { "goto end" } else { "drop" };
            rules.push(format!("{from} @{} {} {then}", set(step - 1, last), take(step)));
        }
        if is_first {
            if last > 1 {
                // Who has begun keeps his strays: else the first port, touched again and again, would let a scan look for
                // the others.
                let begins: Vec<_> =
                    (1..last).map(|step| format!("{from} != @{} ", set(step, last))).collect();
                let begins = begins.concat();
                rules.push(format!("{begins}delete @strays {{ {from} }}"));
            }
            rules.extend([take(1), "drop".to_owned()]);
        } else {
            let taken = knocked.steps.iter().filter(|&&step| step < last);
            rules.extend(taken.map(|&step| format!("{from} @{} drop", set(step, last))));
            rules.push("goto end".to_owned());
        }
        let comment = match (is_first, last) {
            (true, 1) => "It opens.",
            (true, _) => "It is remembered, and whoever begins has no strays.",
            (false, _) => {
                "Counts after the step before. A packet that was sent twice is let be; one out of turn ends the attempt."
            }
        };
        self.chain(&format!("step_{}", knocked.number()), Some(comment), &rules);
    }

    fn stray(&mut self) {
        let (from, last) = (self.from(), self.ruleset.last());
        let rules: Vec<_> = (1..last).map(|step| format!("{from} @{} goto count", set(step, last))).collect();
        self.chain("stray", Some("A stray is one only from who has an attempt."), &rules);
    }

    fn count(&mut self) {
        let from = self.from();
        let comment =
            format!("Stray {} ends the attempt, and so does one that the set has no room for.", STRAYS + 1);
        let rules = [
            format!("add @strays {{ {from} limit rate 1/day burst {STRAYS} packets }} return"),
            "goto forget".to_owned(),
        ];
        self.chain("count", Some(&comment), &rules);
    }

    fn end(&mut self) {
        let (from, last) = (self.from(), self.ruleset.last());
        self.chain(
            "end",
            Some("The end of an attempt, right or wrong, without an answer."),
            &["jump forget".to_owned(), "drop".to_owned()],
        );
        let mut rules: Vec<_> =
            (1..last).map(|step| format!("delete @{} {{ {from} }}", set(step, last))).collect();
        rules.push(format!("delete @strays {{ {from} }}"));
        let comment = "All attempts of an address are over. A door that is open to it stays open.";
        self.chain("forget", Some(comment), &rules);
    }

    fn chain(&mut self, name: &str, comment: Option<&str>, rules: &[String]) {
        self.text.line("");
        if let Some(comment) = comment {
            self.text.comment("    ", comment);
        }
        self.text.line(&format!("    chain {name} {{"));
        self.text.lines(rules.iter().map(|rule| format!("        {rule}")));
        self.text.line("    }");
    }

    fn from(&self) -> String {
        format!("{} saddr", self.family)
    }
}

/// The set of those who took a step.
fn set(step: usize, last: usize) -> String {
    if step == last { "open".to_owned() } else { format!("step{step}") }
}

fn to(port: Port) -> String {
    format!("{} dport {}", port.protocol.as_str(), port.number)
}
