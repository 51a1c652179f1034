//! Whether the firewall is as we left it. Pure: a listing is compared with what we put in.
//!
//! iptables prints rules in its own form, which is not the one that they are given in and differs between versions. So
//! the rules that stay as they are, those of the guard and those that end the grants, are compared with what was printed
//! right after they had gone in; grants come and go, and are read.

use std::collections::HashSet;
use std::fmt;

use super::Chains;
use super::rules::{self, GRANTS_CHAIN, GUARD_CHAIN};
use super::tables::Listing;
use crate::warden::firewall::Found;

/// The parts of what we put up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The jump: once, as INPUT's first rule.
    Jump,
    /// The guard's chain: its rules in their order, and no other.
    Guard,
    /// The grants' chain: whoever is let in, then the refusals in their order, and nothing else.
    Grants,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jump => "jump",
            Self::Guard => "guard",
            Self::Grants => "grants",
        })
    }
}

/// How iptables printed the rules that stay as they are.
#[derive(Clone, Debug)]
pub(super) struct Printed {
    guard: Vec<String>,
    refusals: Vec<String>,
}

impl Printed {
    /// From a listing right after these chains went in; `None` when there are not as many rules as went in, since
    /// somebody else was there already.
    pub(super) fn read(listing: &Listing, chains: &Chains) -> Option<Self> {
        let rules = |chain| listing.rules(chain).map(ToOwned::to_owned).collect::<Vec<_>>();
        let (guard, mut grants) = (rules(GUARD_CHAIN), rules(GRANTS_CHAIN));
        let as_many =
            guard.len() == chains.guard.len() && grants.len() == chains.grants.len() + chains.refusals.len();
        as_many.then(|| Self { guard, refusals: grants.split_off(chains.grants.len()) })
    }

    fn grants_stand(&self, listing: &Listing, chains: &Chains, taking_out: bool) -> bool {
        let rules: Vec<&str> = listing.rules(GRANTS_CHAIN).collect();
        let Some(count) = rules.len().checked_sub(self.refusals.len()) else { return false };
        let (grants, refusals) = rules.split_at(count);
        let Some(found) = grants.iter().map(|rule| admission(rule)).collect::<Option<HashSet<_>>>() else {
            return false;
        };
        let wanted: HashSet<_> = chains.grants.iter().filter_map(|rule| admission(rule)).collect();
        refusals == self.refusals && wanted.is_subset(&found) && (taking_out || found.is_subset(&wanted))
    }
}

/// What is wrong in a listing. While rules are being taken out, those that let in somebody whom we do not know any more
/// are no damage.
pub(super) fn damage(
    listing: &Listing,
    chains: &Chains,
    printed: Option<&Printed>,
    taking_out: bool,
) -> Vec<Part> {
    let guard_stands = printed.is_some_and(|printed| listing.rules(GUARD_CHAIN).eq(&printed.guard));
    let grants_stand = printed.is_some_and(|printed| printed.grants_stand(listing, chains, taking_out));
    [(Part::Jump, listing.jumps_first()), (Part::Guard, guard_stands), (Part::Grants, grants_stand)]
        .into_iter()
        .filter_map(|(part, stands)| (!stands).then_some(part))
        .collect()
}

/// Whom a rule lets in, and what it does with his packets.
fn admission(rule: &str) -> Option<(Found, &str)> {
    Some((rules::read(rule)?, rule.rsplit(' ').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUMP: &str = "-A INPUT -j POSTERN";
    const GUARD: [&str; 2] =
        ["-A POSTERN -i lo -j RETURN", "-A POSTERN -p tcp -m tcp --dport 22 -g POSTERN-GRANTS"];
    const REFUSALS: [&str; 2] = [
        "-A POSTERN-GRANTS -p tcp -j REJECT --reject-with tcp-reset",
        "-A POSTERN-GRANTS -j REJECT --reject-with icmp-port-unreachable",
    ];
    const STANDING: &str = "-A POSTERN-GRANTS -s 192.0.2.9/32 -d 192.0.2.1/32 -p tcp -m tcp --sport 40000 --dport 22 \
                            ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment \"postern:standing\" -j ACCEPT";
    const OTHERS: &str = "-A INPUT -p icmp -j ACCEPT";

    fn given(client: &str, verdict: &str) -> String {
        format!(
            "-s 192.0.2.7/32 -p tcp --dport 22 -m time --datestart 2026-11-22T09:59:55 \
             --datestop 2026-11-22T10:00:29 -m comment --comment postern:{client}:ssh:1f -j {verdict}"
        )
    }

    /// A grant as iptables prints it.
    fn grant(client: &str, verdict: &str) -> String {
        let printed = given(client, verdict).replace("-p tcp", "-p tcp -m tcp");
        format!("-A POSTERN-GRANTS {}", printed.replace(" postern:", " \"postern:").replace(":1f ", ":1f\" "))
    }

    fn listing(rules: &[&str]) -> Listing {
        Listing(format!("-P INPUT ACCEPT\n-N POSTERN\n-N POSTERN-GRANTS\n{}\n", rules.join("\n")))
    }

    /// Two rules of the guard, alice and a standing session let in, two refusals.
    fn chains() -> Chains {
        let standing = "-s 192.0.2.9/32 -d 192.0.2.1/32 -p tcp --sport 40000 --dport 22 ! --syn -m comment \
                        --comment postern:standing -j ACCEPT";
        Chains {
            guard: vec!["-i lo -j RETURN".to_owned(), "-p tcp --dport 22 -g POSTERN-GRANTS".to_owned()],
            grants: vec![given("alice", "ACCEPT"), standing.to_owned()],
            refusals: vec!["-p tcp -j REJECT --reject-with tcp-reset".to_owned(), "-j REJECT".to_owned()],
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use Part::{Grants, Guard, Jump};

        let (chains, alice) = (chains(), grant("alice", "ACCEPT"));
        let (bob, refused) = (grant("bob", "ACCEPT"), grant("alice", "DROP"));
        let ([lo, ssh], [reset, unreachable]) = (GUARD, REFUSALS);
        let intact = listing(&[JUMP, OTHERS, lo, ssh, &alice, STANDING, reset, unreachable]);
        let printed = Printed::read(&intact, &chains);
        assert!(printed.is_some());
        let table: &[(&str, &[&str], &[Part])] = &[
            ("nothing", &[JUMP, OTHERS, lo, ssh, STANDING, &alice, reset, unreachable], &[]),
            ("everything gone", &[OTHERS], &[Jump, Guard, Grants]),
            ("no jump", &[OTHERS, lo, ssh, &alice, STANDING, reset, unreachable], &[Jump]),
            (
                "a rule before the jump",
                &[OTHERS, JUMP, lo, ssh, &alice, STANDING, reset, unreachable],
                &[Jump],
            ),
            ("a second jump", &[JUMP, OTHERS, JUMP, lo, ssh, &alice, STANDING, reset, unreachable], &[Jump]),
            ("another order of the guard", &[JUMP, ssh, lo, &alice, STANDING, reset, unreachable], &[Guard]),
            (
                "a rule in the guard",
                &[JUMP, "-A POSTERN -j ACCEPT", lo, ssh, &alice, STANDING, reset, unreachable],
                &[Guard],
            ),
            ("a rule of the guard gone", &[JUMP, ssh, &alice, STANDING, reset, unreachable], &[Guard]),
            ("a lease gone", &[JUMP, lo, ssh, STANDING, reset, unreachable], &[Grants]),
            ("a session gone", &[JUMP, lo, ssh, &alice, reset, unreachable], &[Grants]),
            ("a lease refused", &[JUMP, lo, ssh, &refused, STANDING, reset, unreachable], &[Grants]),
            ("somebody let in", &[JUMP, lo, ssh, &bob, &alice, STANDING, reset, unreachable], &[Grants]),
            (
                "everybody let in",
                &[JUMP, lo, ssh, "-A POSTERN-GRANTS -j ACCEPT", &alice, STANDING, reset, unreachable],
                &[Grants],
            ),
            ("a refusal gone", &[JUMP, lo, ssh, &alice, STANDING, reset], &[Grants]),
            ("another order of refusals", &[JUMP, lo, ssh, &alice, STANDING, unreachable, reset], &[Grants]),
            (
                "a lease behind the refusals",
                &[JUMP, lo, ssh, STANDING, reset, unreachable, &alice],
                &[Grants],
            ),
            ("grants gone", &[JUMP, lo, ssh], &[Grants]),
        ];
        for (what, rules, wrong) in table {
            assert_eq!(damage(&listing(rules), &chains, printed.as_ref(), false), *wrong, "{what}");
        }
    }

    #[test]
    fn rules_on_their_way_out_are_no_damage_and_nothing_else_is_excused() {
        let (alice, bob) = (grant("alice", "ACCEPT"), grant("bob", "ACCEPT"));
        let ([lo, ssh], [reset, unreachable]) = (GUARD, REFUSALS);
        let printed =
            Printed::read(&listing(&[JUMP, lo, ssh, &alice, STANDING, reset, unreachable]), &chains());
        let wrong = |grants: &[&str]| {
            let rules = [&[JUMP, lo, ssh], grants, &[reset, unreachable]].concat();
            damage(&listing(&rules), &chains(), printed.as_ref(), true)
        };
        assert_eq!(wrong(&[&bob, &alice, STANDING]), []);
        for grants in [&[&*bob, STANDING][..], &[&alice, "-A POSTERN-GRANTS -j ACCEPT", STANDING]] {
            assert_eq!(wrong(grants), [Part::Grants], "{grants:?}");
        }
    }

    #[test]
    fn what_somebody_else_has_had_a_hand_in_is_not_taken_for_ours() {
        let alice = grant("alice", "ACCEPT");
        let ([lo, ssh], [reset, unreachable]) = (GUARD, REFUSALS);
        for rules in [
            &[JUMP, lo, "-A POSTERN -j ACCEPT", ssh, &alice, STANDING, reset, unreachable][..],
            &[JUMP, lo, ssh, &alice, reset, unreachable],
            &[OTHERS],
        ] {
            let listing = listing(rules);
            assert!(Printed::read(&listing, &chains()).is_none());
            assert!(!damage(&listing, &chains(), None, false).is_empty(), "it is put up once more");
        }
    }
}
