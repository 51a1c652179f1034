//! From the names of a gate's host to the addresses to knock at: all of them, for nobody can tell from here which of
//! them the gate listens at, or which the connection will take.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use postern_proto::profile::Host;
use tokio::net::lookup_host;
use tokio::task::JoinSet;

use crate::error::Error;

/// The one family of addresses to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What became of the names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Each address once, in order.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The names that have no address, each with the reason.
    pub(crate) failed: Vec<(Host, String)>,
    /// The names that have no address of the one family asked for.
    left_out: Vec<(Host, String)>,
}

impl Resolved {
    /// # Errors
    /// [`Error::Unresolved`] when there is not one address.
    pub(crate) fn require_one(&self) -> Result<(), Error> {
        if !self.addresses.is_empty() {
            return Ok(());
        }
        let all = self.failed.iter().chain(&self.left_out);
        Err(Error::Unresolved(all.map(|(host, reason)| format!("{host}: {reason}")).collect()))
    }
}

/// Looks all names up at once; addresses stand for themselves and ask no resolver.
pub(crate) async fn resolve(hosts: &[Host], family: Option<Family>) -> Resolved {
    let mut lookups = JoinSet::new();
    for host in hosts.iter().cloned() {
        lookups.spawn(async move {
            let found = look_up(&host).await;
            (host, found)
        });
    }
    let mut resolved = Resolved::default();
    for (host, found) in lookups.join_all().await {
        match (found, family) {
            (Err(reason), _) => resolved.failed.push((host, reason)),
            (Ok(found), Some(family)) if found.iter().all(|&one| Family::of(one) != family) => {
                resolved.left_out.push((host, format!("it has no {family} address")));
            }
            (Ok(found), _) => resolved.addresses.extend(
                found.into_iter().filter(|&one| family.is_none_or(|family| family == Family::of(one))),
            ),
        }
    }
    resolved.failed.sort();
    resolved.left_out.sort();
    resolved
}

/// The first address of one host, in the resolver's order.
///
/// # Errors
/// [`Error::Unresolved`] when it has none, or none of the family.
pub(crate) async fn first(host: &Host, family: Option<Family>) -> Result<IpAddr, Error> {
    let unresolved = |reason| Error::Unresolved(vec![format!("{host}: {reason}")]);
    let mut found = look_up(host).await.map_err(unresolved)?.into_iter();
    found.find(|&one| family.is_none_or(|family| family == Family::of(one))).ok_or_else(|| {
        unresolved(
            family.map_or("it has no address".to_owned(), |family| format!("it has no {family} address")),
        )
    })
}

async fn look_up(host: &Host) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.as_str().parse::<IpAddr>() {
        return Ok(vec![address.to_canonical()]);
    }
    // The port is of no account here.
    let found = lookup_host((host.as_str(), 0)).await.map_err(reason)?;
    Ok(found.map(|found| found.ip().to_canonical()).collect())
}

/// The resolver's own words, without the "failed to lookup address information" that stands before them.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn reason(error: std::io::Error) -> String {
    let message = error.to_string();
    message.rsplit(": ").next().unwrap_or(&message).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Vec<Host> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn every_address_is_found_once() {
        let names = hosts(&["2001:db8::1", "192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1"]);
        let resolved = resolve(&names, None).await;
        assert_eq!(resolved.addresses, addresses(&["192.0.2.1", "2001:db8::1"]));
        assert!(resolved.failed.is_empty());
        assert!(
            resolve(&hosts(&["localhost"]), Some(Family::V4)).await.addresses == addresses(&["127.0.0.1"])
        );
    }

    #[tokio::test]
    async fn a_family_leaves_the_other_out() {
        let names = hosts(&["2001:db8::1", "192.0.2.1"]);
        let resolved = resolve(&names, Some(Family::V6)).await;
        assert_eq!(resolved.addresses, addresses(&["2001:db8::1"]));
        assert!(resolved.failed.is_empty(), "to leave it out is no failure");

        let error = resolve(&names[1..], Some(Family::V6)).await.require_one().unwrap_err();
        let says = "cannot resolve 192.0.2.1: it has no IPv6 address; check ";
        assert!(error.to_string().starts_with(says), "{error}");
    }
}
