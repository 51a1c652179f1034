//! `posternd remove`: every rule of ours away, whatever the configuration says or whether it reads at all.

use anyhow::{Context, bail};

use super::print::say;
use crate::alone::Alone;
use crate::process::event_loop;
use crate::warden::firewall::{FirewallError, installed};

pub(crate) fn run() -> anyhow::Result<()> {
    // A gate that runs would put its rules up again.
    let _alone = Alone::take()?.context("a gate runs here: stop it first, or its rules come back")?;
    event_loop(async {
        let (mut removed, mut asked, mut failures) = (false, 0, Vec::new());
        for firewall in installed() {
            match firewall.remove().await {
                Ok(any) => (removed, asked) = (removed | any, asked + 1),
                Err(error) => failures.push(error),
            }
        }
        // A host need not have both kinds of iptables; that it has neither is worth a word.
        failures.retain(|error| asked == 0 || !matches!(error, FirewallError::Missing { .. }));
        if !failures.is_empty() {
            let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
            bail!("{}", failures.join("; "));
        }
        say!("{}", if removed { "every rule of Postern is gone" } else { "there was no rule of Postern" })
    })
}
