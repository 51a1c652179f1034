//! Reads what `iptables-save` prints. What is not known here is not guessed at: it makes a rule one that applies perhaps.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::fate::{Base, Chain, Chains, Condition, Hook, Rule, Side, Surely, Verdict};

/// The tables of a family, by name.
pub(super) fn read(saved: &str) -> Vec<(String, Chains)> {
    let mut tables: Vec<(String, Chains)> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.to_owned(), Chains::new()));
            continue;
        }
        let Some((table, chains)) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            let base = base(table, name, policy == Some("DROP"));
            chains.insert(name.to_owned(), Chain { base, rules: vec![] });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = split(rule);
            let Some((chain, words)) = words.split_first() else { continue };
            let (conditions, verdict) = rule_of(words.to_vec());
            let rule = Rule { conditions, verdict, text: line.to_owned() };
            chains.entry(chain.clone()).or_default().rules.push(rule);
        }
    }
    tables
}

/// Chains that packets to or from this host pass, and when.
fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" | "INPUT" => Hook::In,
        "OUTPUT" => Hook::Out,
        _ => return None,
    };
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    };
    Some(Base { hook, priority, drops })
}

/// The words of a rule: those with spaces in them stand in quotes.
fn split(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = rule.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(letters.next()),
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    words
}

type Words = Peekable<IntoIter<String>>;

fn rule_of(words: Vec<String>) -> (Vec<Condition>, Verdict) {
    let (mut conditions, mut not) = (Vec::new(), false);
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "!" => {
                not = true;
                continue;
            }
            "-j" => return (conditions, target(&words.collect::<Vec<_>>())),
            "-g" => return (conditions, Verdict::Goto(words.next().unwrap_or_default())),
            "-m" | "--comment" => drop(words.next()),
            option if option.starts_with('-') => conditions.push(condition(option, not, &mut words)),
            // What belongs to an option that is not known.
            _ => {}
        }
        not = false;
    }
    (conditions, Verdict::Goes)
}

fn condition(option: &str, not: bool, words: &mut Words) -> Condition {
    let mut value = || words.next_if(|word| !word.starts_with('-')).unwrap_or_default();
    let known = |surely: Surely| Condition::Known(surely.unless(not));
    match option {
        "-p" => Condition::Protocol { among: vec![value()], not },
        "--dport" | "--dports" => ports(Side::Destination, &value(), not),
        "--sport" | "--sports" => ports(Side::Source, &value(), not),
        // An address that no rule names is not among those that one names.
        "-s" => known(Surely::known(value().ends_with("/0"))),
        "-d" => known(if value().ends_with("/0") { Surely::Always } else { Surely::Somewhere }),
        "-i" => known(if value() == "lo" { Surely::Never } else { Surely::Somewhere }),
        "-o" => known(Surely::Somewhere),
        "--src-range" | "--mac-source" => {
            value();
            known(Surely::Never)
        }
        "--match-set" => {
            value();
            known(if value().starts_with("src") { Surely::Never } else { Surely::Perhaps })
        }
        "--ctstate" | "--state" => known(Surely::known(value().split(',').any(|state| state == "NEW"))),
        "--dst-type" => known(Surely::known(value().split(',').any(|kind| kind == "LOCAL"))),
        "--tcp-flags" => {
            let flags = (value(), value());
            let syn = flags.0.split(',').any(|flag| flag == "SYN") && flags.1 == "SYN";
            known(if syn { Surely::Always } else { Surely::Never })
        }
        _ => known(Surely::Perhaps),
    }
}

fn ports(side: Side, value: &str, not: bool) -> Condition {
    let range = |text: &str| {
        let (from, to) = text.split_once(':').unwrap_or((text, text));
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    value
        .split(',')
        .map(range)
        .collect::<Option<_>>()
        .map_or(Condition::Known(Surely::Perhaps), |among| Condition::Ports { side, among, not })
}

fn target(words: &[String]) -> Verdict {
    let name = words.first().map_or("", String::as_str);
    match name {
        "DROP" => Verdict::Drop,
        "REJECT" => Verdict::Reject,
        "RETURN" => Verdict::Return,
        "DNAT" | "REDIRECT" | "NETMAP" => Verdict::Lead,
        "NOTRACK" => Verdict::Untrack,
        "CT" if words.iter().any(|word| word == "--notrack") => Verdict::Untrack,
        // A program decides; it cannot be asked.
        "ACCEPT" | "QUEUE" | "NFQUEUE" => Verdict::Accept,
        // A chain; those of them that are targets of the kernel's do not decide, and no chain has their name.
        name => Verdict::Jump(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fate::{Decision, Fate, Packet, Way, decide};
    use super::*;
    use crate::warden::firewall::Family;

    fn decision(saved: &str, table: &str, chain: &str, port: &str, way: Way) -> Decision {
        let tables = read(saved);
        let (_, chains) = tables.iter().find(|(name, _)| name == table).unwrap();
        decide(chains, chain, Packet { family: Family::V4, port: port.parse().unwrap(), way }, |_| false)
    }

    fn fate(table: &str, chain: &str, policy: &str, rules: &[&str]) -> Fate {
        let rules = rules.iter().map(|rule| format!("-A {rule}\n")).collect::<Vec<_>>().concat();
        let saved =
            format!("# by iptables-save\n*{table}\n:{chain} {policy} [0:0]\n:other - [0:0]\n{rules}COMMIT\n");
        decision(&saved, table, chain, "22/tcp", Way::In).fate
    }

    #[test]
    fn rules_of_others_lead_the_ports_that_they_name() {
        for (rules, led) in [
            (
                &["PREROUTING ! -i docker0 -p tcp -m tcp --dport 22 -j DNAT --to-destination 172.17.0.2:22"]
                    [..],
                true,
            ),
            (&["PREROUTING -p tcp -m multiport --dports 80,20:25 -j DNAT --to-destination 10.0.0.2"], true),
            (&["PREROUTING -d 192.0.2.1/32 -j DNAT --to-destination 10.0.0.2"], true),
            (&["PREROUTING -p tcp -m tcp --dport 22 -j REDIRECT --to-ports 2222"], true),
            (
                &[
                    "PREROUTING -m addrtype --dst-type LOCAL -j other",
                    "other -p tcp -m tcp --dport 22 -j DNAT",
                ],
                true,
            ),
            (&["other -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.0.0.2"], false),
            (&["PREROUTING -p tcp -m tcp --dport 2222 -j DNAT --to-destination 172.17.0.2:22"], false),
            (&["PREROUTING -p udp -m udp --dport 22 -j DNAT --to-destination 172.17.0.2:22"], false),
            (&["PREROUTING -p tcp -m tcp ! --dport 22 -j DNAT --to-destination 172.17.0.2:22"], false),
            (&["PREROUTING -p tcp -m multiport --dports 80,23:25 -j DNAT --to-destination 10.0.0.2"], false),
            (
                &["PREROUTING -p tcp -m tcp --dport 22 -j ACCEPT", "PREROUTING -p tcp --dport 22 -j DNAT"],
                false,
            ),
            (&["PREROUTING -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.0.0.2"], false),
            (&["PREROUTING -m comment --comment \"-p tcp --dport 22 -j DNAT\" -j RETURN"], false),
        ] {
            let expected = if led { Fate::Led } else { Fate::Accepted };
            assert_eq!(fate("nat", "PREROUTING", "ACCEPT", rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn what_is_dropped_for_everybody_is_dropped() {
        for (rules, dropped) in [
            (&["INPUT -j DROP"][..], true),
            (&["INPUT -p tcp -m conntrack --ctstate NEW -j DROP"], true),
            (&["INPUT ! -i lo -j DROP"], true),
            (&["INPUT ! -s 10.0.0.0/8 -p tcp --dport 22 -j DROP"], true),
            (&["INPUT -i eth0 -p tcp -m tcp --dport 22 -j DROP"], true),
            (&["INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"], true),
            (&["INPUT -g other", "INPUT -j ACCEPT", "other -j DROP"], true),
            (&["INPUT -j other", "other -i lo -j ACCEPT", "other -p tcp -j DROP"], true),
            (&["INPUT -s 10.0.0.0/8 -j ACCEPT", "INPUT -j DROP"], true),
            (&["INPUT -p tcp --dport 22 -m set --match-set office src -j ACCEPT", "INPUT -j DROP"], true),
            (
                &[
                    "INPUT -p tcp --dport 22 -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT",
                    "INPUT -j DROP",
                ],
                true,
            ),
            (&["INPUT -p tcp --dport 22 -m set ! --match-set office src -j DROP"], true),
            (&["INPUT -m set --match-set banned src -j DROP"], false),
            (&["INPUT -s 10.0.0.1/32 -j DROP"], false),
            (&["INPUT -i eth0 -j DROP"], false),
            (&["INPUT -m conntrack --ctstate INVALID -j DROP"], false),
            (&["INPUT -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP"], false),
            (&["INPUT -p tcp --dport 22 -m recent --update --seconds 30 --hitcount 6 -j DROP"], false),
            (&["INPUT -p udp -j DROP", "INPUT -d 172.17.0.2/32 ! -i docker0 -j DROP"], false),
            (&["INPUT -j other", "other -m addrtype --dst-type LOCAL -j RETURN", "other -j DROP"], false),
            (&["INPUT -i eth0 -j other", "other -p tcp --dport 22 -j ACCEPT", "INPUT -j DROP"], false),
            (&["INPUT -p tcp --dport 22 -m limit --limit 3/min -j ACCEPT", "INPUT -j DROP"], false),
            (&["INPUT -j INPUT", "INPUT -j ACCEPT"], false),
        ] {
            let expected = if dropped { Fate::Dropped } else { Fate::Accepted };
            assert_eq!(fate("filter", "INPUT", "ACCEPT", rules), expected, "{rules:?}");
        }
        assert_eq!(fate("filter", "INPUT", "DROP", &[]), Fate::Dropped);
        assert_eq!(
            fate("filter", "INPUT", "DROP", &["INPUT -p tcp --dport 20:25 -j ACCEPT"]),
            Fate::Accepted
        );
        assert_eq!(
            fate("filter", "INPUT", "ACCEPT", &["INPUT -j REJECT --reject-with tcp-reset"]),
            Fate::Rejected
        );
    }

    #[test]
    fn what_is_not_tracked_is_told_in_both_directions() {
        let saved = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                     -A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack\n\
                     -A OUTPUT -p tcp -m tcp --sport 22 -j NOTRACK\nCOMMIT\n";
        let fate = |chain, port, way| decision(saved, "raw", chain, port, way).fate;
        assert_eq!(fate("PREROUTING", "80/tcp", Way::In), Fate::Untracked);
        assert_eq!(fate("OUTPUT", "22/tcp", Way::Out), Fate::Untracked);
        assert_eq!(fate("PREROUTING", "22/tcp", Way::In), Fate::Accepted);
        assert_eq!(fate("OUTPUT", "80/tcp", Way::Out), Fate::Accepted);
    }

    #[test]
    fn who_decided_is_told() {
        let saved = "*filter\n:INPUT DROP [0:0]\n:ufw-user-input - [0:0]\n-A INPUT -i lo -j ACCEPT\n\
                     -A INPUT -j ufw-user-input\n-A ufw-user-input -p tcp --dport 23 -j DROP\nCOMMIT\n";
        let rule = decision(saved, "filter", "INPUT", "23/tcp", Way::In);
        assert_eq!((rule.chain.as_str(), rule.index), ("ufw-user-input", 1));
        assert_eq!(rule.rule.as_deref(), Some("-A ufw-user-input -p tcp --dport 23 -j DROP"));
        let policy = decision(saved, "filter", "INPUT", "22/tcp", Way::In);
        assert_eq!((policy.chain.as_str(), policy.rule, policy.index), ("INPUT", None, 2));
    }
}
