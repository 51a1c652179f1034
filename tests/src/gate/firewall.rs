//! The firewall of a gate under test, as its kernel holds it.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use postern_proto::WallTime;

use super::{Gate, Variant};
use crate::netns::Family;
use crate::process::succeed;
use crate::wait::LONG;

/// One rule of one lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Whom it lets in.
    pub source: IpAddr,
    /// The number of the lease, as the log prints it.
    pub lease: String,
    /// From when on; an element of nftables lets in from the moment that it is there.
    pub starts: Option<WallTime>,
    /// The last second of its time.
    pub stops: WallTime,
}

impl Gate {
    /// The rules of a chain of the filter table, as `iptables -S` prints them.
    ///
    /// # Errors
    /// When there is no such chain.
    pub fn rules(&self, family: Family, chain: &str) -> Result<Vec<String>> {
        let mut command = self.firewall(family, "");
        command.args(["-w", "-S", chain]);
        let printed = succeed(command, b"", LONG)?.text();
        Ok(printed.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect())
    }

    /// The guard itself, without those who are let in, as the firewall's own program prints it.
    ///
    /// # Errors
    /// When there is none.
    pub fn guard(&self, family: Family) -> Result<Vec<String>> {
        if self.settings.variant != Variant::Nftables {
            return self.rules(family, "POSTERN");
        }
        let sets = ["ports", "knocks", "kept"].map(|set| self.elements(set)).into_iter();
        let table = self.nft(&["--terse", "list", "table", "inet", "postern"])?;
        let sets = sets.collect::<Result<Vec<_>>>()?;
        Ok(table.lines().map(str::to_owned).chain(sets.concat()).collect())
    }

    /// What the kernel holds of each lease of a family, as the firewall's own program prints it, but for the time that is
    /// left.
    ///
    /// # Errors
    /// When there is no guard.
    pub fn entries(&self, family: Family) -> Result<Vec<String>> {
        if self.settings.variant != Variant::Nftables {
            return self.rules(family, "POSTERN-GRANTS");
        }
        self.elements(if family == Family::V4 { "leases_ipv4" } else { "leases_ipv6" })
    }

    /// The elements of a set of nftables, but for the time that is left.
    ///
    /// # Errors
    /// When there is no such set.
    pub fn elements(&self, set: &str) -> Result<Vec<String>> {
        let printed = self.nft(&["list", "set", "inet", "postern", set])?;
        let elements = printed.split_once("elements = {").and_then(|(_, behind)| behind.split_once('}'));
        Ok(elements.map_or_else(Vec::new, |(elements, _)| elements.split(',').map(without_times).collect()))
    }

    /// Runs `nft` on the gate's host; gives what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn nft(&self, arguments: &[&str]) -> Result<String> {
        let mut nft = self.host.command("nft");
        nft.args(arguments);
        Ok(succeed(nft, b"", LONG)?.text())
    }

    /// Everything in the filter table, without counters and comments.
    ///
    /// # Errors
    /// When `iptables-save` fails.
    pub fn saved(&self, family: Family) -> Result<String> {
        let saved = succeed(self.firewall(family, "-save"), b"", LONG)?.text();
        let rules = saved.lines().filter(|line| !line.starts_with('#'));
        Ok(rules.map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n").collect())
    }

    /// This gate's `iptables`, of its variant.
    #[must_use]
    pub fn firewall(&self, family: Family, suffix: &str) -> Command {
        let mut command = self.host.command(self.settings.variant.program(family, suffix));
        command.env("XTABLES_LOCKFILE", self.directory().join("xtables.lock"));
        command
    }

    /// The grants of a family; nobody is waited for who holds the lock of iptables and stands still.
    ///
    /// # Errors
    /// When there is no guard, or a grant without an end.
    pub fn grants(&self, family: Family) -> Result<Vec<Grant>> {
        if self.settings.variant == Variant::Nftables {
            return read(self.entries(family)?.iter().map(String::as_str), read_element);
        }
        let saved = self.saved(family)?;
        read(saved.lines().filter(|rule| rule.contains("--comment") && rule.contains("postern:")), read_rule)
    }
}

fn read<'a>(
    entries: impl Iterator<Item = &'a str>,
    read: impl Fn(&str) -> Option<Grant>,
) -> Result<Vec<Grant>> {
    entries.map(|entry| read(entry).with_context(|| format!("not a grant: {entry}"))).collect()
}

/// A grant, as `iptables-save` prints it.
fn read_rule(rule: &str) -> Option<Grant> {
    let after = |flag: &str| rule.split(' ').skip_while(|word| *word != flag).nth(1);
    let date = |flag: &str| format!("{}Z", after(flag)?).parse().ok();
    let comment = after("--comment")?.trim_matches('"');
    Some(Grant {
        source: after("-s")?.split('/').next()?.parse().ok()?,
        lease: comment.rsplit(':').next()?.to_owned(),
        starts: Some(date("--datestart")?),
        stops: date("--datestop")?,
    })
}

/// A grant, as `nft` prints it: address, protocol, port, source port and number, and behind them the text.
fn read_element(element: &str) -> Option<Grant> {
    let words: Vec<_> = element.split(' ').filter(|word| *word != ".").collect();
    let lease = u32::from_str_radix(words.get(4)?.strip_prefix("0x")?, 16).ok()?;
    let until: WallTime = words.last()?.trim_matches('"').splitn(3, ':').last()?.parse().ok()?;
    Some(Grant {
        source: words.first()?.parse().ok()?,
        lease: format!("{lease:x}"),
        starts: None,
        stops: until.before(Duration::from_secs(1)),
    })
}

/// An element as `nft` prints it, without the time that it has and the time that it has left.
fn without_times(element: &str) -> String {
    let (mut words, mut kept) = (element.split_whitespace(), Vec::new());
    while let Some(word) = words.next() {
        if ["timeout", "expires"].contains(&word) {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}
