//! `posternd remove`: every rule of ours away, whatever the configuration says or whether it reads at all.

use anyhow::bail;

use crate::process::event_loop;
use crate::warden::firewall::{FirewallError, installed};

pub(crate) fn run() -> anyhow::Result<()> {
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
        println!(
            "{}",
            if removed { "every rule of Postern is gone" } else { "there was no rule of Postern" }
        );
        Ok(())
    })
}
