//! What an administrator is told: what another firewall does, why that matters, and, behind `run:`, the command that
//! sets it right.

use postern_proto::{Port, Protocol};

use super::fate::{Decision, Fate, Packet, Rule, Verdict, Way, decide};
use super::{Finding, Owner, Remark, Surroundings, Table};
use crate::warden::firewall::iptables::{GUARD_CHAIN, Iptables, Tables};
use crate::warden::firewall::{Family, Firewall, nftables};
use crate::warden::guard::{Admit, Guard};

/// The priority of iptables' filter table, and so of the guard: what has a smaller one comes before it.
const IPTABLES_PRIORITY: i64 = 0;

/// Judges everything.
pub(super) fn judge(here: &Surroundings, firewall: &Firewall, guard: &Guard, remarks: &mut Vec<Remark>) {
    let returns = firewall.iptables().is_some_and(|iptables| iptables.admit == Admit::Return);
    let warnings = firewall.families().into_iter().flat_map(|family| {
        let guarded = guard.ports.iter().flat_map(move |guarded| {
            let returned = returns.then(|| of_return(here, family, guarded.port));
            of_guarded_port(here, family, guarded.port, guarded.keep_established).chain(returned.flatten())
        });
        let knocks = guard.knock_ports.iter().map(|&number| Port { protocol: Protocol::Udp, number });
        guarded.chain(knocks.flat_map(move |port| of_knock_port(here, family, port)))
    });
    let tables = firewall.iptables().into_iter().flat_map(|iptables| &iptables.families);
    let jumps = tables.filter_map(|tables| of_the_jump(here, tables));
    remarks.extend(jumps.chain(warnings).map(Remark::Warning));
    if let Some(iptables) = firewall.iptables() {
        remarks.extend(of_firewalld(here, iptables, guard).into_iter().map(Remark::Warning));
        remarks.extend(of_ufw_without_ipv6(here, iptables).map(Remark::Warning));
    }
    remarks.extend(of_who_is_here(here, firewall).map(Remark::Note));
}

fn of_guarded_port(
    here: &Surroundings,
    family: Family,
    port: Port,
    keeps_sessions: bool,
) -> impl Iterator<Item = String> {
    let findings = |way| here.findings(Packet { family, port, way }).map(move |finding| (finding, way));
    findings(Way::In).chain(findings(Way::Out)).filter_map(move |(finding, way)| {
        let (place, accept) = (finding.place(), finding.accept(port, way));
        Some(match finding.decision.fate {
            Fate::Dropped | Fate::Rejected if way == Way::In => shut(&finding, port),
            // The guard of nftables comes before.
            Fate::Led if here.ours.is_none() => return None,
            Fate::Led if finding.is_docker() => format!(
                "{port} is published by a container, so its packets go round the guard ({place}); publish it on 127.0.0.1 \
                 only, or let docker-proxy take them from behind the guard; run: {accept}"
            ),
            Fate::Led => format!(
                "{port} is led elsewhere, round the guard, by {place}; guard the port that it is led to, if that is one of \
                 this host, or keep it here; run: {accept}"
            ),
            Fate::Untracked if keeps_sessions => format!(
                "{port} is not tracked because of {place}, so sessions end with their window; to track it run: {accept}"
            ),
            _ => return None,
        })
    })
}

fn shut(finding: &Finding, port: Port) -> String {
    let Some(zone) = finding.firewalld_zone() else {
        let (place, accept) = (finding.place(), finding.accept(port, Way::In));
        return format!(
            "{port} is shut by {place}, so a grant does not open it; accept it there, and where those rules are kept: the \
             guard still shuts it; run: {accept}"
        );
    };
    format!(
        "{port} is shut by firewalld, so a grant does not open it; allow it there: the guard still shuts it; \
         run: firewall-cmd --permanent{zone} --add-port={port} && firewall-cmd --reload"
    )
}

/// Whatever becomes of a knock, it was read before: what matters is that nobody answers.
fn of_knock_port(here: &Surroundings, family: Family, port: Port) -> impl Iterator<Item = String> {
    here.findings(Packet { family, port, way: Way::In }).filter_map(move |finding| {
        let (place, accept) = (finding.place(), finding.accept(port, Way::In));
        let why = match finding.decision.fate {
            Fate::Led if here.ours.is_none() => return None,
            Fate::Led => "is led elsewhere, where it may be answered,",
            Fate::Rejected if finding.base.priority < here.guard_priority() => "is answered before the guard",
            _ => return None,
        };
        Some(format!("knock port {port} {why} by {place}, so strangers can find it; run: {accept}"))
    })
}

/// What the rest of INPUT does with a packet that a grant gives back to it.
fn of_return(here: &Surroundings, family: Family, port: Port) -> Option<String> {
    let table = here.filter(family)?;
    let Owner::Iptables { program, .. } = table.owner else { return None };
    let decision = decide(&table.chains, "INPUT", Packet { family, port, way: Way::In }, is_jump);
    if !matches!(decision.fate, Fate::Dropped | Fate::Rejected) {
        return None;
    }
    let accept = if here.has_chain(is_of_ufw) {
        format!("ufw allow {port}")
    } else {
        let (number, matches) = (decision.index + 1, iptables_match(port, Way::In));
        format!("{program} -I INPUT {number} {matches} -j ACCEPT")
    };
    let place = table.place(&decision);
    Some(format!(
        "{port} is shut by {place}, and with grants = \"return\" that is who decides, so a grant does not open it; \
         set grants = \"accept\", or run: {accept}"
    ))
}

/// The guard's jump has to be the first of INPUT's rules.
fn of_the_jump(here: &Surroundings, tables: &Tables) -> Option<String> {
    const REMEDY: &str = "a running gate sets that right; without one run: posternd guard";
    let chains = &here.filter(tables.family)?.chains;
    chains.get(GUARD_CHAIN)?;
    let rules = &chains.get("INPUT")?.rules;
    let (program, first) = (tables.program(), rules.first().map_or("", |rule| &rule.text));
    match rules.iter().position(is_jump) {
        Some(0) => None,
        Some(_) => Some(format!(
            "the guard is not the first in INPUT of {program}, so what comes before it ({first} and so on) goes round it; \
             {REMEDY}"
        )),
        None => Some(format!("INPUT of {program} does not lead to the guard, so it shuts nothing; {REMEDY}")),
    }
}

/// firewalld throws away the guard when it is reloaded. Where it lets a port through, as it has to for grants, the port
/// is open until the guard is back, unless INPUT shuts it by itself; and firewalld's own rules come with the reload.
fn of_firewalld(here: &Surroundings, firewall: &Iptables, guard: &Guard) -> Option<String> {
    if !here.firewalld_flushes || here.usual != here.ours {
        return None;
    }
    let mut commands = Vec::new();
    for tables in &firewall.families {
        let family = tables.family;
        let stays_shut = |port: Port| {
            let packet = Packet { family, port, way: Way::In };
            let decide = |table: &Table| decide(&table.chains, "INPUT", packet, is_jump).fate;
            here.filter(family).is_some_and(|table| matches!(decide(table), Fate::Dropped | Fate::Rejected))
        };
        let open = guard.ports.iter().map(|guarded| guarded.port).filter(|&port| !stays_shut(port));
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        commands.extend(open.map(|port| {
            let matches = iptables_match(port, Way::In);
            format!("firewall-cmd --permanent --direct --add-rule {name} filter INPUT 0 {matches} -j DROP")
        }));
    }
    if commands.is_empty() {
        return None;
    }
    let what = "firewalld throws every rule of iptables away when it starts, stops or reloads, and the ports that it \
                allows are open until a running gate has put its guard back";
    Some(match firewall.admit {
        Admit::Accept => format!(
            "{what}; to have firewalld shut them while it reloads run: {} && firewall-cmd --reload",
            commands.join(" && ")
        ),
        Admit::Return => {
            format!("{what}; with grants = \"accept\" firewalld can be told to shut them while it reloads")
        }
    })
}

fn of_ufw_without_ipv6(here: &Surroundings, firewall: &Iptables) -> Option<String> {
    let guards_ipv6 = firewall.families.iter().any(|tables| tables.family == Family::V6);
    let serves_ipv6 = here.has_chain(|name| name.starts_with("ufw6-"));
    (guards_ipv6 && here.has_chain(is_of_ufw) && !serves_ipv6).then(|| {
        "ufw does without IPv6 and throws every rule of ip6tables away when it starts, the guard's too; \
         run: sed -i s/^IPV6=.*/IPV6=yes/ /etc/default/ufw && ufw reload"
            .to_owned()
    })
}

fn of_who_is_here(here: &Surroundings, firewall: &Firewall) -> impl Iterator<Item = String> {
    let accepts = firewall.iptables().is_some_and(|iptables| iptables.admit == Admit::Accept);
    let mut notes = Vec::new();
    if here.has_chain(is_of_ufw) {
        notes.push(if accepts {
            "ufw is active: what it allows stays shut until somebody knocks, and who knocks is let in whatever it denies"
        } else {
            "ufw is active: what it allows stays shut until somebody knocks, and who knocks meets ufw's rules"
        });
    }
    if here.has_chain(|name| name.starts_with("f2b-")) {
        notes.push(if accepts {
            "fail2ban bans in INPUT, behind the guard: a banned address that knocks is let in; \
             grants = \"return\" keeps it out"
        } else {
            "fail2ban bans in INPUT, behind the guard: its bans hold for who knocks as well"
        });
    }
    if here.has_table(|name| name.starts_with("f2b-")) {
        notes.push(
            "fail2ban bans in a table of its own: its bans hold for who knocks as well, and a banned address is answered \
             before the guard unless its action has blocktype = drop",
        );
    }
    if here.has_chain(|name| name == "DOCKER") || here.has_table(|name| name.starts_with("docker")) {
        notes.push(if firewall.iptables().is_some() {
            "Docker is here: a guarded port that a container publishes goes round the guard; check again when one does"
        } else {
            "Docker is here: a guarded port that a container publishes is guarded as well"
        });
    }
    notes.into_iter().map(ToOwned::to_owned)
}

fn is_of_ufw(name: &str) -> bool {
    // The chains that ufw still has when it is disabled do not include this one.
    name == "ufw-user-input"
}

pub(super) fn is_jump(rule: &Rule) -> bool {
    rule.verdict == Verdict::Jump(GUARD_CHAIN.to_owned())
}

impl Surroundings {
    fn guard_priority(&self) -> i64 {
        if self.ours.is_some() { IPTABLES_PRIORITY } else { i64::from(nftables::PRIORITY) }
    }

    /// Whether some iptables has a chain of such a name.
    fn has_chain(&self, is_it: impl Fn(&str) -> bool) -> bool {
        let tables = self.tables.iter().filter(|table| matches!(table.owner, Owner::Iptables { .. }));
        tables.flat_map(|table| table.chains.keys()).any(|name| is_it(name))
    }

    /// Whether somebody has a table of nftables of such a name.
    fn has_table(&self, is_it: impl Fn(&str) -> bool) -> bool {
        let natives = self.tables.iter().filter(|table| matches!(table.owner, Owner::Nft { .. }));
        natives.map(|table| &table.name).any(|name| is_it(name))
    }
}

impl Finding<'_> {
    fn place(&self) -> String {
        self.table.place(&self.decision)
    }

    fn is_docker(&self) -> bool {
        self.decision.chain.contains("DOCKER") || self.table.name.starts_with("docker")
    }

    /// For a verdict of firewalld's: the option that names its zone, where it is not the default one.
    fn firewalld_zone(&self) -> Option<String> {
        if !is_firewalld(self.table) {
            return None;
        }
        let zone = self.decision.chain.strip_prefix("filter_IN_").filter(|zone| !zone.starts_with("policy_"));
        let zone = zone.map(|zone| zone.trim_end_matches("_deny").trim_end_matches("_post"));
        Some(zone.map_or(String::new(), |zone| format!(" --zone={zone}")))
    }

    /// The command that has the packet accepted at the head of the chain.
    fn accept(&self, port: Port, way: Way) -> String {
        let (name, chain) = (&self.table.name, self.chain);
        match &self.table.owner {
            Owner::Iptables { program, .. } => {
                let table = if name == "filter" { String::new() } else { format!(" -t {name}") };
                format!("{program}{table} -I {chain} {} -j ACCEPT", iptables_match(port, way))
            }
            Owner::Nft { family } => {
                let side = if way == Way::In { "dport" } else { "sport" };
                let (protocol, number) = (port.protocol.as_str(), port.number);
                format!("nft insert rule {family} {name} {chain} {protocol} {side} {number} accept")
            }
        }
    }
}

impl Table {
    /// Where somebody finds what decided.
    fn place(&self, decision: &Decision) -> String {
        let Decision { chain, rule, .. } = decision;
        let what = rule.as_ref().map_or_else(|| "its policy".to_owned(), |rule| format!("rule {rule}"));
        match &self.owner {
            Owner::Iptables { program, .. } => {
                format!("{program}, table {}, chain {chain}, {what}", self.name)
            }
            Owner::Nft { family } => format!("nftables, table {family} {}, chain {chain}, {what}", self.name),
        }
    }
}

pub(super) fn is_firewalld(table: &Table) -> bool {
    matches!(table.owner, Owner::Nft { .. }) && table.name == "firewalld"
}

fn iptables_match(port: Port, way: Way) -> String {
    let side = if way == Way::In { "--dport" } else { "--sport" };
    format!("-p {} {side} {}", port.protocol.as_str(), port.number)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use serde_json::json;

    use super::super::{nft, saved, with_natives};
    use super::*;
    use crate::warden::firewall::{Backend, Variant};
    use crate::warden::guard::{GuardedPort, Refuse};

    /// IPv4 through iptables-nft, with these rules, and this chain of a table of nftables.
    fn surroundings(rules: &str, native: &serde_json::Value) -> Surroundings {
        let owner = || Owner::Iptables { kind: Variant::Nft, family: Family::V4, program: "iptables" };
        let tables = saved::read(rules).into_iter();
        let tables = tables.map(|(name, chains)| Table { owner: owner(), name, chains }).collect();
        let mut objects = vec![json!({"table": {"family": "inet", "name": native["table"]}})];
        if let Some(name) = native["chain"].as_str() {
            let base = json!({"family": "inet", "table": native["table"], "name": name, "type": "filter",
                              "hook": native["hook"], "prio": native["prio"], "policy": "accept"});
            objects.push(json!({"chain": base}));
            objects.push(
                json!({"rule": {"family": "inet", "table": native["table"], "chain": name, "handle": 7,
                                         "expr": native["expr"]}}),
            );
        }
        let natives = nft::read(&json!({"nftables": objects}).to_string()).unwrap();
        let tables = with_natives(tables, natives);
        let firewalld_flushes = tables.iter().any(is_firewalld);
        Surroundings { tables, ours: Some(Variant::Nft), usual: Some(Variant::Nft), firewalld_flushes }
    }

    /// The remarks on them, for 22/tcp and the knock port 62201.
    fn judged(here: &Surroundings, admit: Admit) -> Vec<String> {
        let firewall = Firewall::new(Backend::Iptables { variant: Variant::Auto, admit }, &[Family::V4]);
        let guard = Guard {
            knock_ports: vec![NonZeroU16::new(62201).unwrap()],
            answers: true,
            ports: vec![GuardedPort { port: "22/tcp".parse().unwrap(), keep_established: true }],
            always_allow: vec![],
            refuse: Refuse::Drop,
            until: None,
        };
        let mut remarks = Vec::new();
        judge(here, &firewall, &guard, &mut remarks);
        remarks.iter().map(ToString::to_string).collect()
    }

    /// A filter table with the guard's jump, a policy and rules of INPUT.
    fn filter(policy: &str, rules: &str) -> String {
        format!(
            "*filter\n:INPUT {policy} [0:0]\n:POSTERN - [0:0]\n:POSTERN-GRANTS - [0:0]\n-A INPUT -j POSTERN\n{rules}\
             -A POSTERN -p tcp -m tcp --dport 22 -g POSTERN-GRANTS\n-A POSTERN-GRANTS -j DROP\nCOMMIT\n"
        )
    }

    #[test]
    fn each_remark_says_what_helps() {
        let compare = |protocol: &str, field: &str, port: u16| {
            let left = json!({"payload": {"protocol": protocol, "field": field}});
            json!({"match": {"op": "==", "left": left, "right": port}})
        };
        let native = |hook: &str, prio: i64, expr: serde_json::Value| json!({"table": "t", "chain": "c", "hook": hook, "prio": prio, "expr": expr});
        let (nothing, alone) = (json!({"table": "t"}), filter("ACCEPT", ""));
        for (rules, native, admit, remark, command) in [
            (
                filter("DROP", "-A INPUT -p tcp --dport 80 -j ACCEPT\n"),
                nothing.clone(),
                Admit::Return,
                "22/tcp is shut by iptables, table filter, chain INPUT, its policy",
                "iptables -I INPUT 3 -p tcp --dport 22 -j ACCEPT",
            ),
            (
                filter("ACCEPT", "-A INPUT -j DROP\n"),
                nothing.clone(),
                Admit::Return,
                "grants = \"accept\"",
                "iptables -I INPUT 2 -p tcp --dport 22 -j ACCEPT",
            ),
            (
                alone.clone(),
                native("input", -1, json!([compare("udp", "dport", 62201), {"reject": {"type": "icmpx"}}])),
                Admit::Accept,
                "knock port 62201/udp is answered before the guard by nftables, table inet t, chain c, rule handle 7",
                "nft insert rule inet t c udp dport 62201 accept",
            ),
            (
                alone.clone(),
                native("output", -300, json!([compare("tcp", "sport", 22), {"notrack": null}])),
                Admit::Accept,
                "22/tcp is not tracked",
                "nft insert rule inet t c tcp sport 22 accept",
            ),
            (
                alone.clone(),
                native(
                    "prerouting",
                    -100,
                    json!([compare("tcp", "dport", 22), {"redirect": {"port": 2222}}]),
                ),
                Admit::Accept,
                "guard the port that it is led to",
                "nft insert rule inet t c tcp dport 22 accept",
            ),
            (
                alone.clone(),
                json!({"table": "firewalld"}),
                Admit::Accept,
                "firewalld throws every rule of iptables away",
                "firewall-cmd --permanent --direct --add-rule ipv4 filter INPUT 0 -p tcp --dport 22 -j DROP && \
                 firewall-cmd --reload",
            ),
        ] {
            let judged = judged(&surroundings(&rules, &native), admit);
            let [only] = &judged[..] else { panic!("one remark, not {judged:#?}") };
            assert!(only.starts_with("warning: ") && only.contains(remark), "{remark:?} is not in {only:?}");
            assert_eq!(only.split_once("run: ").map(|(_, command)| command), Some(command));
        }
    }

    #[test]
    fn nothing_is_said_of_what_does_no_harm() {
        let knocks = json!({"payload": {"protocol": "udp", "field": "dport"}});
        let rejects = json!({"table": "t", "chain": "c", "hook": "input", "prio": 10,
                             "expr": [{"match": {"op": "==", "left": knocks, "right": 62201}},
                                      {"reject": {"type": "icmpx"}}]});
        for (rules, native, admit) in [
            (filter("DROP", "-A INPUT -j DROP\n"), json!({"table": "t"}), Admit::Accept),
            (filter("DROP", "-A INPUT -p tcp --dport 22 -j ACCEPT\n"), json!({"table": "t"}), Admit::Return),
            (filter("ACCEPT", ""), rejects, Admit::Accept),
            (filter("DROP", ""), json!({"table": "firewalld"}), Admit::Accept),
            (String::new(), json!({"table": "t"}), Admit::Accept),
        ] {
            assert_eq!(judged(&surroundings(&rules, &native), admit), Vec::<String>::new(), "{rules}");
        }
    }
}
