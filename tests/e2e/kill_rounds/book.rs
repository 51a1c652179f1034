//! Every knock that was ever sent, and how often it was seen to open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use postern_proto::WallTime;
use postern_tests::gate::{Grant, Role};
use postern_tests::knocks::{Knock, now};
use serde_json::Value;

use super::scene::Scene;
use super::{SLACK, WINDOW};

#[derive(Default)]
pub(super) struct Book {
    entries: BTreeMap<IpAddr, Entry>,
    /// The addresses, in the order of their first knock.
    order: Vec<IpAddr>,
    /// Lines of the log that were read.
    heard: usize,
}

/// The one knock of an address.
struct Entry {
    knock: Knock,
    sent: WallTime,
    /// Its lines in the log: their leases.
    granted: Vec<String>,
    /// Its rules: their leases and last seconds.
    rules: BTreeSet<(String, WallTime)>,
    /// It was recorded, and whoever could have opened for it is dead.
    lost: bool,
}

impl Book {
    /// Enters a knock that is about to be sent from an address, for the first time or again.
    pub(super) fn enter(&mut self, from: IpAddr, knock: Knock) {
        let new = || Entry { knock, sent: now(), granted: vec![], rules: BTreeSet::new(), lost: false };
        if !self.entries.contains_key(&from) {
            self.order.push(from);
        }
        self.entries.entry(from).or_insert_with(new).sent = now();
    }

    /// The knocks that were sent last, or all.
    pub(super) fn latest(&self, count: usize) -> Vec<(IpAddr, Knock)> {
        let skipped = self.order.len().saturating_sub(count);
        self.order[skipped..].iter().map(|from| (*from, self.entries[from].knock)).collect()
    }

    /// Takes in what the log of the running gate has said since the last time.
    pub(super) fn hear(&mut self, lines: &[String]) -> Result<()> {
        for line in lines.iter().skip(self.heard) {
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            if event["message"] == "granted" {
                let from: IpAddr = event["source"].as_str().context("a source")?.parse()?;
                let entry = self.entries.get_mut(&from).with_context(|| format!("who is {from}?"))?;
                entry.granted.push(event["lease"].as_str().context("a lease")?.to_owned());
            }
        }
        self.heard = lines.len();
        Ok(())
    }

    /// The next log is a new one.
    pub(super) fn hear_anew(&mut self) {
        self.heard = 0;
    }

    pub(super) fn was_granted(&self, from: IpAddr) -> bool {
        self.entries.get(&from).is_some_and(|entry| !entry.granted.is_empty())
    }

    /// Takes in what a kill has left: no rule is there whose knock is not recorded, or for longer than it asked.
    pub(super) fn look_at(&mut self, scene: &Scene, killed: &[Role]) -> Result<()> {
        for grant in &scene.grants {
            let Grant { source, lease, stops, .. } = grant;
            let entry = self.entries.get_mut(source).with_context(|| format!("whose is {grant:?}?"))?;
            ensure!(scene.has_recorded(&entry.knock), "open before it is recorded: {grant:?}");
            let latest = entry.sent.after(WINDOW + SLACK);
            ensure!(*stops <= latest, "{grant:?} was sent last at {}", entry.sent);
            entry.rules.insert((lease.clone(), *stops));
        }
        // An order that the front had sent waits for another warden only where the supervisor lives.
        if killed.contains(&Role::Front) && killed.contains(&Role::Warden) {
            for entry in self.entries.values_mut().filter(|entry| entry.opened() == 0) {
                entry.lost |= scene.has_recorded(&entry.knock);
            }
        }
        Ok(())
    }

    /// How many have opened; none did twice, and none whose opening died with everybody.
    pub(super) fn opened(&self) -> Result<usize> {
        for (from, entry) in &self.entries {
            let Entry { granted, rules, lost, .. } = entry;
            ensure!(entry.opened() <= 1, "{from} was let in twice: {granted:?} {rules:?}");
            ensure!(!lost || entry.opened() == 0, "{from} was let in by a replay: {granted:?} {rules:?}");
        }
        Ok(self.entries.values().filter(|entry| entry.opened() > 0).count())
    }
}

impl Entry {
    /// A lease has one rule and one line, and either may have been missed: a rule that came and went between two looks, a
    /// line that the kill kept from being written.
    fn opened(&self) -> usize {
        let unheard = self.rules.iter().filter(|(lease, _)| !self.granted.contains(lease)).count();
        (self.granted.len() + unheard).max(self.rules.len())
    }
}
