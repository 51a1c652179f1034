//! Reads what `nft -j list ruleset` prints. What is not known here is not guessed at: it makes a rule one that applies
//! perhaps.

use std::collections::HashMap;
use std::process::Command;

use serde_json::Value;

use super::fate::{Base, Chain, Chains, Condition, Hook, Rule, Side, Surely, Verdict};
use crate::warden::firewall::iptables;
use crate::warden::firewall::{Family, FirewallError};

/// A table of nftables.
pub(super) struct NftTable {
    /// `ip`, `ip6`, `inet`, `netdev`.
    pub(super) family: String,
    pub(super) name: String,
    pub(super) chains: Chains,
}

/// Whether packets of a family pass tables of one of nftables' families.
pub(super) fn serves(table_family: &str, family: Family) -> bool {
    match table_family {
        "ip" => family == Family::V4,
        "ip6" => family == Family::V6,
        "inet" | "netdev" => true,
        _ => false,
    }
}

/// All tables of nftables.
pub(super) async fn tables() -> Result<Vec<NftTable>, FirewallError> {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "ruleset"]);
    let ruleset = iptables::ask("nft", command).await?;
    read(&ruleset).ok_or(FirewallError::Unreadable { program: "nft" })
}

/// Contents of sets and maps, by the table's family and name and their own.
type Sets<'a> = HashMap<[&'a str; 3], &'a [Value]>;

/// The tables in a ruleset; `None` when it is none.
pub(super) fn read(ruleset: &str) -> Option<Vec<NftTable>> {
    let ruleset: Value = serde_json::from_str(ruleset).ok()?;
    let objects = ruleset.get("nftables")?.as_array()?;
    let each = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let sets: Sets = each("set").chain(each("map")).filter_map(contents).collect();

    let mut tables = Vec::new();
    for table in each("table") {
        let (family, name) = (text(table, "family"), text(table, "name"));
        let here = |object: &&Value| text(object, "family") == family && text(object, "table") == name;
        let mut chains = Chains::new();
        for chain in each("chain").filter(here) {
            chains.insert(text(chain, "name").to_owned(), Chain { base: base(chain), rules: vec![] });
        }
        for rule in each("rule").filter(here) {
            let rules = Reader { sets: &sets, table: [family, name] }.rules(rule);
            chains.entry(text(rule, "chain").to_owned()).or_default().rules.extend(rules);
        }
        tables.push(NftTable { family: family.to_owned(), name: name.to_owned(), chains });
    }
    Some(tables)
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn contents(set: &Value) -> Option<([&str; 3], &[Value])> {
    let key = [text(set, "family"), text(set, "table"), text(set, "name")];
    Some((key, set.get("elem")?.as_array()?))
}

fn base(chain: &Value) -> Option<Base> {
    let hook = match text(chain, "hook") {
        "ingress" | "prerouting" | "input" => Hook::In,
        "output" => Hook::Out,
        _ => return None,
    };
    let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or_default();
    Some(Base { hook, priority, drops: text(chain, "policy") == "drop" })
}

struct Reader<'a> {
    sets: &'a Sets<'a>,
    /// Family and name.
    table: [&'a str; 2],
}

impl Reader<'_> {
    /// One rule, or one for each verdict of a map.
    fn rules(&self, rule: &Value) -> Vec<Rule> {
        let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or_default();
        let text = format!("handle {handle}");
        let (mut rules, mut conditions) = (Vec::new(), Vec::new());
        for statement in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
            let Some((kind, value)) = only_entry(statement) else { continue };
            if kind == "vmap" {
                rules.extend(self.verdict_map(value, &conditions, &text));
            } else if let Some(verdict) = verdict(kind, value) {
                conditions.extend(self.mapped(value));
                rules.push(Rule { conditions: conditions.clone(), verdict, text: text.clone() });
            } else {
                conditions.extend(self.conditions(kind, value));
            }
        }
        rules
    }

    fn verdict_map(&self, map: &Value, conditions: &[Condition], text: &str) -> Vec<Rule> {
        let (Some(key), Some(data)) = (map.get("key"), map.get("data")) else { return vec![] };
        let branch = |element: &Value| {
            let (value, (name, target)) = (element.get(0)?, only_entry(element.get(1)?)?);
            let verdict = verdict(name, target)?;
            let conditions = [conditions, &compare(key, &[value], false)].concat();
            Some(Rule { conditions, verdict, text: text.to_owned() })
        };
        self.elements(data).into_iter().filter_map(branch).collect()
    }

    /// What a destination that is looked up in a map asks of the packet: that it is in the map.
    fn mapped(&self, value: &Value) -> Vec<Condition> {
        let lookup = ["addr", "port"].iter().find_map(|part| value.get(part)?.get("map"));
        let Some((key, data)) = lookup.and_then(|map| Some((map.get("key")?, map.get("data")?))) else {
            return vec![];
        };
        let keys: Vec<&Value> =
            self.elements(data).into_iter().filter_map(|element| element.get(0)).collect();
        compare(key, &keys, false)
    }

    fn conditions(&self, kind: &str, value: &Value) -> Vec<Condition> {
        let perhaps = vec![Condition::Known(Surely::Perhaps)];
        match kind {
            "match" => {
                let (Some(left), Some(right)) = (value.get("left"), value.get("right")) else {
                    return perhaps;
                };
                match text(value, "op") {
                    "==" | "in" => compare(left, &self.elements(right), false),
                    "!=" => compare(left, &self.elements(right), true),
                    _ => perhaps,
                }
            }
            "counter" | "log" | "mangle" | "set" | "map" | "last" => vec![],
            _ => perhaps,
        }
    }

    /// The values on the right of a comparison: one, several, or those of a set that has a name.
    fn elements<'b>(&'b self, right: &'b Value) -> Vec<&'b Value> {
        let [family, table] = self.table;
        let named = right.as_str().and_then(|name| name.strip_prefix('@'));
        let several = match named {
            Some(name) => self.sets.get(&[family, table, name]).copied().or(Some(&[])),
            None => right.as_array().or_else(|| right.get("set")?.as_array()).map(Vec::as_slice),
        };
        // An element with a timeout or a comment of its own is wrapped up with it.
        let bare = |element| Value::get(element, "elem").and_then(|elem| elem.get("val")).unwrap_or(element);
        several.map_or_else(|| vec![right], |several| several.iter().map(bare).collect())
    }
}

/// The name and content of an object that has one entry.
fn only_entry(value: &Value) -> Option<(&str, &Value)> {
    value.as_object()?.iter().next().map(|(name, value)| (name.as_str(), value))
}

fn verdict(kind: &str, value: &Value) -> Option<Verdict> {
    let target = || text(value, "target").to_owned();
    Some(match kind {
        // A program decides; it cannot be asked.
        "accept" | "queue" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "reject" => Verdict::Reject,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        "dnat" | "redirect" => Verdict::Lead,
        "notrack" => Verdict::Untrack,
        _ => return None,
    })
}

/// What a rule asks with a comparison: that what is on the left is, or is not, among the values.
fn compare(left: &Value, among: &[&Value], not: bool) -> Vec<Condition> {
    let known = |surely: Surely| vec![Condition::Known(surely.unless(not))];
    let has = |name: &str| among.iter().any(|value| value.as_str() == Some(name));
    let everything =
        || among.iter().any(|value| value.pointer("/prefix/len").and_then(Value::as_u64) == Some(0));
    let Some((kind, what)) = only_entry(left) else { return known(Surely::Perhaps) };
    let (of, field) = match kind {
        "payload" => (text(what, "protocol"), text(what, "field")),
        "meta" | "ct" => (kind, text(what, "key")),
        "fib" => (kind, text(what, "result")),
        // Some of the bits of something.
        "&" => (kind, what.pointer("/0/payload").map_or("", |payload| text(payload, "field"))),
        _ => (kind, ""),
    };
    match (of, field) {
        ("tcp" | "udp" | "th", "dport") => ports(of, Side::Destination, among, not),
        ("tcp" | "udp" | "th", "sport") => ports(of, Side::Source, among, not),
        ("meta", "l4proto") | ("ip", "protocol") | ("ip6", "nexthdr") => {
            let names = among.iter().filter_map(|value| value.as_str()).map(ToOwned::to_owned);
            vec![Condition::Protocol { among: names.collect(), not }]
        }
        ("meta", "nfproto" | "protocol") if !not && (has("ipv4") || has("ip")) => {
            vec![Condition::Family(Family::V4)]
        }
        ("meta", "nfproto" | "protocol") if !not && (has("ipv6") || has("ip6")) => {
            vec![Condition::Family(Family::V6)]
        }
        // An address that no rule names is not among those that one names.
        ("ip" | "ip6", "saddr") => [of_family(of), known(Surely::known(everything()))].concat(),
        ("ip" | "ip6", "daddr") => {
            let surely = if everything() { Surely::Always } else { Surely::Somewhere };
            [of_family(of), known(surely)].concat()
        }
        ("meta", "iif" | "iifname") => {
            let loopback = among.iter().all(|name| *name == "lo");
            known(if loopback { Surely::Never } else { Surely::Somewhere })
        }
        ("ct", "state") => known(Surely::known(has("new"))),
        // It is nobody's that was led here, and no answer to anything.
        ("ct", "status") | ("icmp" | "icmpv6", _) => known(Surely::Never),
        ("fib", "type") => known(Surely::known(has("local"))),
        ("&" | "tcp", "flags") => known(Surely::known(among.len() == 1 && has("syn"))),
        _ => known(Surely::Perhaps),
    }
}

fn of_family(protocol: &str) -> Vec<Condition> {
    vec![Condition::Family(if protocol == "ip" { Family::V4 } else { Family::V6 })]
}

fn ports(protocol: &str, side: Side, among: &[&Value], not: bool) -> Vec<Condition> {
    let number = |value: &Value| value.as_u64()?.try_into().ok();
    let range = |value: &&Value| match value.get("range") {
        Some(range) => Some((number(range.get(0)?)?, number(range.get(1)?)?)),
        None => number(value).map(|number| (number, number)),
    };
    let ports = among.iter().map(range).collect::<Option<_>>();
    let ports =
        ports.map_or(Condition::Known(Surely::Perhaps), |among| Condition::Ports { side, among, not });
    let carrier =
        (protocol != "th").then(|| Condition::Protocol { among: vec![protocol.to_owned()], not: false });
    carrier.into_iter().chain([ports]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fate::{Fate, Packet, Way, decide};
    use super::*;

    /// What becomes of a packet for 22/tcp in a chain of these rules that drops the rest; a chain `other` accepts.
    fn fate(family: Family, rules: &[Value]) -> Fate {
        let rule = |chain: &str, expr: &Value| {
            let rule = json!({"family": "inet", "table": "t", "chain": chain, "handle": 7, "expr": expr});
            json!({"rule": rule})
        };
        let mut objects = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"table": {"family": "inet", "name": "t"}}),
            json!({"set": {"family": "inet", "table": "t", "name": "some", "elem": [80, {"range": [20, 25]}]}}),
            json!({"set": {"family": "inet", "table": "t", "name": "wrapped",
                           "elem": [{"elem": {"val": 22, "timeout": 60}}]}}),
            json!({"map": {"family": "inet", "table": "t", "name": "verdicts", "elem": [[22, {"accept": null}]]}}),
            json!({"chain": {"family": "inet", "table": "t", "name": "in", "type": "filter", "hook": "input",
                             "prio": 10, "policy": "drop"}}),
            json!({"chain": {"family": "inet", "table": "t", "name": "other"}}),
            rule("other", &json!([{"accept": null}])),
        ];
        objects.extend(rules.iter().map(|expr| rule("in", expr)));
        let tables = read(&json!({"nftables": objects}).to_string()).unwrap();
        let [table] = &tables[..] else { panic!("one table") };
        let packet = Packet { family, port: "22/tcp".parse().unwrap(), way: Way::In };
        decide(&table.chains, "in", packet, |_| false).fate
    }

    /// A rule with one comparison, in front of a verdict.
    fn matching(left: &Value, op: &str, right: &Value, verdict: &str) -> Value {
        json!([{"match": {"op": op, "left": left, "right": right}}, {"counter": {}}, {verdict: null}])
    }

    #[test]
    fn rules_apply_to_the_packets_that_they_name() {
        let field = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        let meta = |key: &str| json!({"meta": {"key": key}});
        let (dport, state) = (field("tcp", "dport"), json!({"ct": {"key": "state"}}));
        let ten = json!({"prefix": {"addr": "10.0.0.0", "len": 8}});
        for (left, op, right, accepted) in [
            (&dport, "==", json!(22), true),
            (&dport, "==", json!({"set": [80, {"range": [20, 30]}]}), true),
            (&dport, "==", json!("@some"), true),
            (&dport, "==", json!("@wrapped"), true),
            (&dport, "==", json!("@unknown"), false),
            (&dport, "!=", json!(22), false),
            (&dport, "==", json!(80), false),
            (&field("udp", "dport"), "==", json!(22), false),
            (&field("th", "dport"), "==", json!(22), true),
            (&field("tcp", "sport"), "==", json!({"range": [1024, 65535]}), true),
            (&field("tcp", "sport"), "==", json!(22), false),
            (&meta("l4proto"), "==", json!({"set": ["tcp", "udp"]}), true),
            (&meta("l4proto"), "==", json!("udp"), false),
            (&meta("nfproto"), "==", json!("ipv4"), true),
            (&meta("nfproto"), "==", json!("ipv6"), false),
            (&meta("iifname"), "==", json!("lo"), false),
            (&meta("iifname"), "!=", json!("lo"), true),
            (&meta("iifname"), "==", json!("eth0"), false),
            (&meta("mark"), "==", json!(1), false),
            (&state, "in", json!(["established", "related"]), false),
            (&state, "in", json!("new"), true),
            (&state, "!=", json!("new"), false),
            (&field("ip", "saddr"), "==", ten.clone(), false),
            (&field("ip", "saddr"), "!=", json!({"set": [ten, "192.0.2.1"]}), true),
            (&field("ip6", "saddr"), "!=", json!("2001:db8::1"), false),
            (&json!({"fib": {"result": "type", "flags": ["daddr"]}}), "==", json!("local"), true),
            (&json!({"&": [field("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}), "==", json!("syn"), true),
            (
                &json!({"concat": [dport, field("ip", "saddr")]}),
                "==",
                json!({"set": [{"concat": [22, "192.0.2.1"]}]}),
                false,
            ),
        ] {
            let expected = if accepted { Fate::Accepted } else { Fate::Dropped };
            let rule = matching(left, op, &right, "accept");
            assert_eq!(fate(Family::V4, std::slice::from_ref(&rule)), expected, "{rule}");
        }
    }

    #[test]
    fn maps_and_verdicts_are_followed() {
        let dport = json!({"payload": {"protocol": "tcp", "field": "dport"}});
        let state = json!({"ct": {"key": "state"}});
        let limited = json!([{"match": {"op": "==", "left": dport, "right": 22}},
                             {"limit": {"rate": 5, "per": "minute"}}, {"accept": null}]);
        for (rules, expected) in [
            (vec![], Fate::Dropped),
            (vec![json!([{"reject": {"type": "icmpx"}}])], Fate::Rejected),
            (vec![json!([{"jump": {"target": "other"}}])], Fate::Accepted),
            (vec![json!([{"goto": {"target": "other"}}])], Fate::Accepted),
            (vec![json!([{"log": {"prefix": "x"}}])], Fate::Dropped),
            (vec![json!([{"limit": {"rate": 10, "inv": true}}, {"accept": null}])], Fate::Dropped),
            (vec![limited], Fate::Accepted),
            (
                vec![
                    json!([{"vmap": {"key": dport, "data": {"set": [[22, {"jump": {"target": "other"}}]]}}}]),
                ],
                Fate::Accepted,
            ),
            (vec![json!([{"vmap": {"key": dport, "data": "@verdicts"}}])], Fate::Accepted),
            (
                vec![json!([{"vmap": {"key": state, "data": {"set": [["established", {"accept": null}],
                                                                    ["invalid", {"drop": null}]]}}}])],
                Fate::Dropped,
            ),
            (vec![json!([{"redirect": {"port": 2222}}])], Fate::Led),
            (
                vec![
                    json!([{"dnat": {"addr": {"map": {"key": dport, "data": {"set": [[22, "192.0.2.2"]]}}}}}]),
                ],
                Fate::Led,
            ),
            (
                vec![
                    json!([{"dnat": {"addr": {"map": {"key": dport, "data": {"set": [[80, "192.0.2.2"]]}}}}}]),
                ],
                Fate::Dropped,
            ),
            (vec![json!([{"notrack": null}])], Fate::Untracked),
        ] {
            assert_eq!(fate(Family::V4, &rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn what_is_no_ruleset_is_not_read() {
        for text in ["", "{}", "{\"nftables\": 1}", "Error: syntax error, JSON support not compiled-in"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
