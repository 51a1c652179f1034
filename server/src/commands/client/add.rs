//! `posternd client add`: one client, and its profile.

use std::path::Path;

use super::delivery::Delivery;
use super::draft::{Draft, New};
use super::key_file::LockedKeys;
use super::{addresses, profile, signing, tell_gate};
use crate::cli::client::NewClient;
use crate::clock::Now;
use crate::config::Config;

pub(super) fn run(path: &Path, config: &Config, new: &NewClient) -> anyhow::Result<()> {
    let New { entry, identities } = draft(new)?.check(config, Now::read().wall)?;
    let delivery = Delivery::new(&new.delivery)?;
    let signs = signing::names(&identities);
    let profile = profile(config, &entry, addresses(path, config, &new.addresses)?, identities);
    let keys = LockedKeys::of(config)?;
    let checked = keys.with([&entry])?;
    let said = delivery.hand_over(&profile)?.enrol(keys, checked)?;
    tell_gate(config, &format!("{} is added{signs}, {said}", entry.name))
}

fn draft(new: &NewClient) -> anyhow::Result<Draft> {
    let (identity, authorized_keys) = signing::read(&new.signing)?;
    Ok(Draft {
        name: new.name.clone(),
        services: new.services.clone(),
        identity,
        authorized_keys,
        max_window: new.max_window,
        sources: Some(new.sources.clone()).filter(|sources| !sources.is_empty()),
        must_state_source: new.must_state_source,
        may_state_other_source: new.may_state_other_source,
        max_leases: new.max_leases,
        not_before: new.not_before,
        expires: new.expires,
        disabled: false,
    })
}
