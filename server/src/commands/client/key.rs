//! `posternd client key`: which key has to sign for a client that is there already.

use anyhow::Context;
use postern_proto::IdentityKey;

use super::super::print::say;
use super::key_file::{LockedKeys, set};
use super::{signing, tell_gate};
use crate::cli::client::NewKey;
use crate::config::Config;

pub(super) fn run(config: &Config, new: &NewKey) -> anyhow::Result<()> {
    let name = &new.name;
    let (identity, authorized) = signing::read(&new.signing)?;
    let signers = signing::keys(identity.as_ref(), authorized.as_deref())?;
    let keys = LockedKeys::of(config)?;
    let checked = keys.edit(name, |client| {
        for (field, text) in [
            ("identity", identity.as_ref().map(ToString::to_string)),
            ("authorized-keys", authorized.as_ref().map(|path| path.display().to_string())),
        ] {
            match text {
                Some(text) => set(client, field, &text),
                None => drop(client.remove(field)),
            }
        }
        Ok(())
    })?;
    if !signers.is_empty() {
        say!("{}", line(&signers)).context("nothing was changed")?;
    }
    keys.replace(checked)?;
    if signers.is_empty() {
        return tell_gate(config, &format!("{name} need not sign any more"));
    }
    let said = format!(
        "{name} has a new key{}; the line above belongs in the client's config.toml, in place of the one of this gate there",
        signing::names(&signers)
    );
    tell_gate(config, &said)
}

/// What the client's configuration has to say of its gate. It is no secret.
fn line(signers: &[IdentityKey]) -> String {
    let keys: toml_edit::Array = signers.iter().map(ToString::to_string).collect();
    format!("identities = {keys}")
}
