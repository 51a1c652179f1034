//! The firewall of a gate under test, as its kernel holds it.

use std::net::IpAddr;
use std::process::Command;

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
    /// From when on.
    pub starts: WallTime,
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

    /// What the kernel holds of each lease of a family, as the firewall's own program prints it.
    ///
    /// # Errors
    /// When there is no guard.
    pub fn entries(&self, family: Family) -> Result<Vec<String>> {
        if self.settings.variant != Variant::Nftables {
            return self.rules(family, "POSTERN-GRANTS");
        }
        let set = if family == Family::V4 { "leases_ipv4" } else { "leases_ipv6" };
        let mut list = self.host.command("nft");
        list.args(["list", "set", "inet", "postern", set]);
        Ok(succeed(list, b"", LONG)?.text().split(',').map(str::to_owned).collect())
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

    /// The grants of a family.
    ///
    /// # Errors
    /// When there is no guard, or a grant without an end.
    pub fn grants(&self, family: Family) -> Result<Vec<Grant>> {
        grants(self.rules(family, "POSTERN-GRANTS")?.iter().map(String::as_str))
    }
}

/// The grants among rules, as `iptables -S` and `iptables-save` print them.
///
/// # Errors
/// When one has no end.
pub fn grants<'a>(rules: impl IntoIterator<Item = &'a str>) -> Result<Vec<Grant>> {
    let rules = rules.into_iter().filter(|rule| rule.contains("--comment") && rule.contains("postern:"));
    rules.map(|rule| read(rule).with_context(|| format!("not a grant: {rule}"))).collect()
}

fn read(rule: &str) -> Option<Grant> {
    let after = |flag: &str| rule.split(' ').skip_while(|word| *word != flag).nth(1);
    let date = |flag: &str| format!("{}Z", after(flag)?).parse().ok();
    let comment = after("--comment")?.trim_matches('"');
    Some(Grant {
        source: after("-s")?.split('/').next()?.parse().ok()?,
        lease: comment.rsplit(':').next()?.to_owned(),
        starts: date("--datestart")?,
        stops: date("--datestop")?,
    })
}
