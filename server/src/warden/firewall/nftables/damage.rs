//! Whether the table is as we left it. Chains, rules and sets have numbers that are never given twice: what has the same
//! numbers in the same order is the same. Elements come and go, and are compared one by one.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::elements::{Element, Held};
use super::netlink::{Kind, Read};
use super::sets::{SET_HANDLE, SET_NAME, Set};
use super::socket::Socket;
use super::table::{
    CHAIN_HANDLE, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, RULE_CHAIN, RULE_HANDLE, TABLE, TABLE_NAME, named,
};

/// By how much an element may end earlier or later than it should: the kernel's clock ticks, and what ends now may be
/// there or not.
const SLACK: Duration = Duration::from_secs(1);

/// The table without its elements, as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Printed {
    /// With name, number, hook and policy.
    chains: Vec<(String, u64, Vec<u8>, Option<u32>)>,
    /// With chain and number, in their order.
    rules: Vec<(String, u64)>,
    sets: Vec<(String, u64)>,
}

impl Printed {
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn read(socket: &mut Socket) -> io::Result<Self> {
        let ours = |attributes: Read<'_>| attributes.text(TABLE_NAME) == Some(TABLE);
        let named_and_numbered = |attributes: Read<'_>, name, number| {
            let name = attributes.text(name).unwrap_or_default().to_owned();
            (name, attributes.be64(number).unwrap_or_default())
        };
        let chains = socket.list(Kind::GET_CHAIN, &named(), Vec::new, |chains, attributes| {
            if ours(attributes) {
                let (name, number) = named_and_numbered(attributes, CHAIN_NAME, CHAIN_HANDLE);
                let hook = attributes.bytes(CHAIN_HOOK).unwrap_or_default().to_vec();
                chains.push((name, number, hook, attributes.be32(CHAIN_POLICY)));
            }
        })?;
        let rules = socket.list(Kind::GET_RULE, &named(), Vec::new, |rules, attributes| {
            if ours(attributes) {
                rules.push(named_and_numbered(attributes, RULE_CHAIN, RULE_HANDLE));
            }
        })?;
        let sets = socket.list(Kind::GET_SET, &named(), Vec::new, |sets, attributes| {
            if ours(attributes) {
                sets.push(named_and_numbered(attributes, SET_NAME, SET_HANDLE));
            }
        });
        let sets = match sets {
            // There is no such table, and so no set in it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            sets => sets?,
        };
        Ok(Self { chains, rules, sets })
    }

    /// Whether there are as many rules as went in.
    pub(super) fn has_rules(&self, count: usize) -> bool {
        self.rules.len() == count
    }
}

/// How a set is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// While elements are being taken out, those that let in somebody for whom nobody asks any more are excused.
    pub(super) taking_out: bool,
    /// How much later the set was read than what is wanted in it: tens of thousands of elements take a while.
    pub(super) later: Duration,
}

/// Whether a set holds something else than what is wanted in it.
pub(super) fn damage(set: Set, wanted: &[Element], held: &[Held], look: Look) -> bool {
    let mut there: HashMap<&[u8], &Held> = held.iter().map(|held| (held.key.as_slice(), held)).collect();
    for element in wanted.iter().filter(|element| element.set == set) {
        let ends_now = element.timeout.is_some_and(|timeout| timeout <= look.later + SLACK);
        match there.remove(element.key.as_slice()) {
            Some(held) if is_as_wanted(element, held, look) => {}
            None if ends_now => {}
            _ => return true,
        }
    }
    let ends_now = |held: &Held| held.left.is_some_and(|left| left <= SLACK);
    !look.taking_out && !there.into_values().all(ends_now)
}

fn is_as_wanted(element: &Element, held: &Held, look: Look) -> bool {
    let in_time = match (element.timeout, held.left) {
        (None, None) => true,
        (Some(wanted), Some(left)) => {
            left + look.later + SLACK >= wanted && (look.taking_out || left <= wanted.saturating_add(SLACK))
        }
        _ => false,
    };
    in_time && element.comment == held.comment
}

#[cfg(test)]
mod tests {
    use super::super::elements::door;
    use super::super::sets;
    use super::*;

    #[test]
    fn what_is_wrong_in_a_set_is_noticed() {
        let element = |port: &str, secs: Option<u64>| Element {
            set: sets::PORTS,
            key: door(port.parse().unwrap()),
            timeout: secs.map(Duration::from_secs),
            comment: None,
        };
        let held = |port: &str, millis: Option<u64>| Held {
            key: door(port.parse().unwrap()),
            left: millis.map(Duration::from_millis),
            comment: None,
        };
        let (ssh, web) = ("22/tcp", "80/tcp");
        let wanted = [element(ssh, Some(30)), element(web, None)];
        let table: &[(&str, &[Held], bool, bool)] = &[
            ("as it was", &[held(ssh, Some(29_500)), held(web, None)], false, false),
            ("one gone", &[held(web, None)], false, true),
            ("all gone", &[], true, true),
            ("cut short", &[held(ssh, Some(5_000)), held(web, None)], true, true),
            ("prolonged", &[held(ssh, Some(90_000)), held(web, None)], false, true),
            ("not shortened yet", &[held(ssh, Some(90_000)), held(web, None)], true, false),
            ("for ever", &[held(ssh, None), held(web, None)], true, true),
            ("one more", &[held(ssh, Some(30_000)), held(web, None), held("9/tcp", None)], false, true),
            ("not out yet", &[held(ssh, Some(30_000)), held(web, None), held("9/tcp", None)], true, false),
            ("ends now", &[held(ssh, Some(30_000)), held(web, None), held("9/tcp", Some(9))], false, false),
        ];
        for &(what, held, taking_out, expected) in table {
            let look = Look { taking_out, later: Duration::ZERO };
            assert_eq!(damage(sets::PORTS, &wanted, held, look), expected, "{what}");
        }
        let look = Look::default();
        assert!(!damage(sets::PORTS, &[element(ssh, Some(1))], &[], look), "it has just ended");
        assert!(!damage(sets::KNOCKS, &wanted, &[], look), "it is another set's");
    }

    #[test]
    fn what_ran_on_while_a_large_set_was_read_is_no_damage() {
        let element = |secs| Element {
            set: sets::PORTS,
            key: door("22/tcp".parse().unwrap()),
            timeout: Some(Duration::from_secs(secs)),
            comment: None,
        };
        let held = |secs| Held {
            key: door("22/tcp".parse().unwrap()),
            left: Some(Duration::from_secs(secs)),
            comment: None,
        };
        let look = Look { taking_out: false, later: Duration::from_secs(5) };
        assert!(!damage(sets::PORTS, &[element(30)], &[held(25)], look));
        assert!(!damage(sets::PORTS, &[element(30)], &[held(30)], look));
        assert!(!damage(sets::PORTS, &[element(5)], &[], look), "it has ended meanwhile");
        assert!(damage(sets::PORTS, &[element(30)], &[held(20)], look), "cut short");
        assert!(damage(sets::PORTS, &[element(30)], &[held(35)], look), "prolonged");
        assert!(damage(sets::PORTS, &[element(30)], &[], look), "gone");
    }
}
