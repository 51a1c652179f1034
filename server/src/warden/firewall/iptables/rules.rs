//! The text of our iptables rules, and nothing else's. Built from typed addresses, ports and names only, none of
//! which can hold a space: the iptables crate splits a rule at spaces.
//!
//! ```text
//! INPUT ──first rule──▶ POSTERN                                POSTERN-GRANTS
//!                        loopback            ─▶ back            one rule a lease and port, with its end ─▶ accept
//!                        always-allow, established ─▶ accept    sessions that stood before the guard    ─▶ accept
//!                        guarded ports       ─▶ goto ─────────▶ everything else                          ─▶ drop
//!                        knock ports         ─▶ drop
//! ```
//! A goto, not a jump: `-j RETURN` in POSTERN-GRANTS, for `grants = "return"`, then leads back to INPUT.

use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use postern_proto::{Port, Protocol, WallTime};

use crate::warden::firewall::{Family, Found};
use crate::warden::guard::{Admit, Guard, Refuse, Session};
use crate::warden::ledger::{Lease, LeaseKey, last_second};

/// The chain that INPUT jumps to first.
pub(crate) const GUARD_CHAIN: &str = "POSTERN";
/// The chain of the grants.
pub(crate) const GRANTS_CHAIN: &str = "POSTERN-GRANTS";

/// A rule holds from a little before it is made, so that no rounding shuts it, and a clock that steps back does.
const EARLIER: Duration = Duration::from_secs(5);
/// The match for time knows no later second: 2038-01-19T03:14:07.
const LAST_SECOND: u64 = i32::MAX as u64;
const COMMENT: &str = "postern";
const STANDING: &str = "postern:standing";

const fn port_unreachable(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    }
}

/// The rules of the guard chain of one family, in order.
pub(crate) fn guard_chain(family: Family, guard: &Guard, admit: Admit) -> Vec<String> {
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    let networks = guard.always_allow.iter().filter(|network| Family::of(network.addr()) == family);
    let accept = verdict(admit);
    for network in networks {
        rules.extend(
            guard.ports.iter().map(|guarded| format!("-s {network} {} -j {accept}", to(guarded.port))),
        );
    }
    for guarded in &guard.ports {
        let port = to(guarded.port);
        if guarded.keep_established {
            rules.push(format!("{port} -m conntrack --ctstate ESTABLISHED -j {accept}"));
        }
        rules.push(format!("{port} -g {GRANTS_CHAIN}"));
    }
    for &number in &guard.knock_ports {
        let port = to(Port { protocol: Protocol::Udp, number });
        if !guard.answers {
            // A reply to a question that this host asked from that port is no stranger's packet.
            rules.push(format!("{port} -m conntrack --ctstate ESTABLISHED -j RETURN"));
        }
        rules.extend(refusals(family, guard, Some(&port)));
    }
    rules
}

/// The rules that end the grants chain: whoever comes so far was not let in.
pub(crate) fn end_of_grants(family: Family, guard: &Guard) -> Vec<String> {
    refusals(family, guard, None)
}

fn refusals(family: Family, guard: &Guard, port: Option<&str>) -> Vec<String> {
    let to = port.map(|port| format!("{port} ")).unwrap_or_default();
    // In a trial the kernel itself lets the guard fall.
    let trial = guard
        .until
        .map(|until| format!("-m time --datestop {} ", date(last_second(until))))
        .unwrap_or_default();
    match guard.refuse {
        Refuse::Drop => vec![format!("{to}{trial}-j DROP")],
        Refuse::Reset => {
            let reset = format!("-p tcp {trial}-j REJECT --reject-with tcp-reset");
            let unreachable = format!("{to}{trial}-j REJECT --reject-with {}", port_unreachable(family));
            if port.is_some() { vec![unreachable] } else { vec![reset, unreachable] }
        }
    }
}

/// The rule that lets a lease's source in to one port, until its end.
pub(crate) fn grant(lease: &Lease, port: Port, admit: Admit) -> String {
    let LeaseKey { client, service, source, from_port } = &lease.key;
    let network = IpNet::from(*source);
    let from_port = from_port.map(|port| format!("--sport {port} ")).unwrap_or_default();
    let (start, stop) = (lease.from.before(EARLIER).as_secs(), last_second(lease.until));
    format!(
        "-s {network} -p {} {from_port}--dport {} -m time --datestart {} --datestop {} \
         -m comment --comment {COMMENT}:{client}:{service}:{} -j {}",
        port.protocol.as_str(),
        port.number,
        date(start),
        date(stop),
        lease.id,
        verdict(admit)
    )
}

/// The rule that lets a session go on that stood before the guard: it names the whole connection, and begins no other.
pub(crate) fn standing(session: &Session, admit: Admit) -> String {
    let (remote, local) = (session.remote, session.local);
    format!(
        "-s {} -d {} -p tcp --sport {} --dport {} ! --syn -m comment --comment {STANDING} -j {}",
        IpNet::from(remote.ip()),
        IpNet::from(local.ip()),
        remote.port(),
        local.port(),
        verdict(admit)
    )
}

/// Reads a line of `iptables -S POSTERN-GRANTS`; `None` for a rule that is neither a grant nor a standing session.
pub(crate) fn read(line: &str) -> Option<Found> {
    let words: Vec<&str> = line.split(' ').map(|word| word.trim_matches('"')).collect();
    let after =
        |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied();
    let address = |flag| after(flag)?.parse::<IpNet>().ok().map(|network| network.addr());
    let number = |flag| after(flag)?.parse::<NonZeroU16>().ok();
    let comment = after("--comment")?;
    if comment == STANDING {
        return Some(Found::Standing(Session {
            remote: (address("-s")?, number("--sport")?.get()).into(),
            local: (address("-d")?, number("--dport")?.get()).into(),
        }));
    }
    let [COMMENT, client, service, id] = comment.split(':').collect::<Vec<_>>()[..] else { return None };
    let key = LeaseKey {
        client: client.parse().ok()?,
        service: service.parse().ok()?,
        source: address("-s")?,
        from_port: number("--sport"),
    };
    let second = |flag| format!("{}Z", after(flag)?).parse::<WallTime>().ok();
    Some(Found::Grant {
        key,
        id: id.parse().ok()?,
        port: format!("{}/{}", number("--dport")?, after("-p")?).parse().ok()?,
        from: second("--datestart")?.after(EARLIER),
        until: second("--datestop")?.after(Duration::from_secs(1)),
    })
}

/// UTC, without a zone, as iptables reads and prints it.
fn date(secs: u64) -> String {
    WallTime::from_secs(secs.min(LAST_SECOND)).to_string().trim_end_matches('Z').to_owned()
}

fn to(port: Port) -> String {
    format!("-p {} --dport {}", port.protocol.as_str(), port.number)
}

const fn verdict(admit: Admit) -> &'static str {
    match admit {
        Admit::Accept => "ACCEPT",
        Admit::Return => "RETURN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootTime;
    use crate::warden::guard::GuardedPort;
    use crate::warden::ledger::LeaseId;

    fn guard() -> Guard {
        Guard {
            knock_ports: vec![NonZeroU16::new(62201).unwrap()],
            answers: false,
            ports: vec![
                GuardedPort { port: "22/tcp".parse().unwrap(), keep_established: true },
                GuardedPort { port: "51820/udp".parse().unwrap(), keep_established: false },
            ],
            always_allow: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            refuse: Refuse::Drop,
            until: None,
        }
    }

    fn lease(from_port: Option<u16>) -> Lease {
        Lease {
            key: LeaseKey {
                client: "alice".parse().unwrap(),
                service: "ssh".parse().unwrap(),
                source: "198.51.100.7".parse().unwrap(),
                from_port: from_port.map(|port| NonZeroU16::new(port).unwrap()),
            },
            id: LeaseId(0x1f),
            ports: vec!["22/tcp".parse().unwrap()],
            from: "2026-11-22T10:00:00Z".parse().unwrap(),
            until: "2026-11-22T10:00:30Z".parse().unwrap(),
            ends: BootTime::from_boot(Duration::ZERO),
        }
    }

    #[test]
    fn the_guard_reads_in_order() {
        assert_eq!(
            guard_chain(Family::V4, &guard(), Admit::Accept),
            [
                "-i lo -j RETURN",
                "-s 192.0.2.0/24 -p tcp --dport 22 -j ACCEPT",
                "-s 192.0.2.0/24 -p udp --dport 51820 -j ACCEPT",
                "-p tcp --dport 22 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
                "-p tcp --dport 22 -g POSTERN-GRANTS",
                "-p udp --dport 51820 -g POSTERN-GRANTS",
                "-p udp --dport 62201 -m conntrack --ctstate ESTABLISHED -j RETURN",
                "-p udp --dport 62201 -j DROP",
            ]
        );
        assert_eq!(end_of_grants(Family::V4, &guard()), ["-j DROP"]);
        let trial = Guard { until: Some(lease(None).until), refuse: Refuse::Reset, ..guard() };
        assert_eq!(
            end_of_grants(Family::V6, &trial),
            [
                "-p tcp -m time --datestop 2026-11-22T10:00:29 -j REJECT --reject-with tcp-reset",
                "-m time --datestop 2026-11-22T10:00:29 -j REJECT --reject-with icmp6-port-unreachable",
            ]
        );
    }

    #[test]
    fn a_grant_prints_and_reads_back() {
        let port = lease(None).ports[0];
        let rule = grant(&lease(Some(40000)), port, Admit::Return);
        assert_eq!(
            rule,
            "-s 198.51.100.7/32 -p tcp --sport 40000 --dport 22 -m time --datestart 2026-11-22T09:59:55 \
             --datestop 2026-11-22T10:00:29 -m comment --comment postern:alice:ssh:1f -j RETURN"
        );
        for from_port in [None, Some(40000)] {
            let lease = lease(from_port);
            let found = Found::Grant {
                key: lease.key.clone(),
                id: lease.id,
                port,
                from: lease.from,
                until: lease.until,
            };
            let printed = format!("-A POSTERN-GRANTS {}", grant(&lease, port, Admit::Accept));
            assert_eq!(read(&printed), Some(found.clone()));
            // As iptables prints it: with the match named, and the comment quoted.
            let printed = printed
                .replace("-p tcp ", "-p tcp -m tcp ")
                .replace("postern:alice:ssh:1f", "\"postern:alice:ssh:1f\"");
            assert_eq!(read(&printed), Some(found));
        }
    }

    #[test]
    fn a_standing_session_prints_and_reads_back() {
        for (local, remote) in
            [("192.0.2.1:22", "198.51.100.7:40000"), ("[2001:db8::1]:22", "[2001:db8::7]:40000")]
        {
            let session = Session { local: local.parse().unwrap(), remote: remote.parse().unwrap() };
            assert_eq!(read(&standing(&session, Admit::Accept)), Some(Found::Standing(session)));
        }
    }

    #[test]
    fn other_rules_are_not_ours() {
        for line in [
            "-A POSTERN-GRANTS -j DROP",
            "-A X -s 192.0.2.1/32 -m comment --comment \"postern: hello\" -j ACCEPT",
            "",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_rule_falls_at_the_first_full_second_at_or_behind_its_end() {
        for (micros, last) in [(100_000_000, 99), (100_000_001, 100), (100_999_999, 100), (101_000_000, 100)]
        {
            assert_eq!(last_second(WallTime::from_micros(micros)), last);
        }
        assert_eq!(date(last_second(WallTime::from_secs(u64::MAX / 2_000_000))), "2038-01-19T03:14:07");
    }
}
