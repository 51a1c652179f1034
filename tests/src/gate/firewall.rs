//! The rules that let somebody in, as a gate's kernel holds them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use postern_proto::WallTime;

use super::Gate;
use crate::netns::Family;

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
