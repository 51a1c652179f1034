//! `posternd client rotate`: a new secret for a client, in place of one that others may have or that is old.
//!
//! For a grace time both are good, so that nothing has to be changed on two hosts at one instant. A client has two secrets at the
//! most: a second rotation within the grace time of the first would end a secret that may be the one in use. Only the administrator
//! can know that the new one never got anywhere, and then says so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use postern_proto::{ClientName, ClientSecret, WallTime};
use toml_edit::{Item, Table};
use zeroize::Zeroizing;

use super::delivery::Delivery;
use super::key_file::{LockedKeys, set};
use super::{addresses, new_secret, profile, signing, tell_gate};
use crate::cli::client::Rotation;
use crate::clock::Now;
use crate::config::Config;

pub(super) fn run(path: &Path, config: &Config, rotation: &Rotation) -> anyhow::Result<()> {
    let Rotation { name, grace, again, addresses: given, delivery } = rotation;
    let (delivery, addresses) = (Delivery::new(delivery)?, addresses(path, config, given)?);
    let (now, secret) = (Now::read().wall, new_secret()?);
    let how = if *again { How::Again } else { How::Until(end_of(now, *grace)) };
    let keys = LockedKeys::of(config)?;
    let checked = keys.edit(name, |client| replace_secret(client, name, &secret, now, how))?;
    let entry = checked.client(name).expect("the entry that was edited is there");
    let identities = signing::keys(entry.identity.as_ref(), entry.authorized_keys.as_deref())?;
    let profile = profile(config, entry, addresses, identities);
    let until = entry.previous().map(|(_, until)| until);
    let said = delivery.hand_over(&profile)?.enrol(keys, checked)?;
    let old = until.map_or("good for nothing any more".to_owned(), |until| format!("good until {until}"));
    tell_gate(config, &format!("{name} has a new secret, {said}; the old one is {old}"))
}

/// The end of a grace time, if it is any: in whole seconds, as the key file has it, and no sooner than was asked for.
fn end_of(now: WallTime, grace: Duration) -> Option<WallTime> {
    let almost_a_second = Duration::from_micros(999_999);
    (!grace.is_zero()).then(|| WallTime::from_secs(now.after(grace).after(almost_a_second).as_secs()))
}

/// What becomes of the secret before.
#[derive(Clone, Copy)]
enum How {
    /// It is good until then, or not any more.
    Until(Option<WallTime>),
    /// It is that of the last rotation, whose new one nobody has: nothing becomes of it.
    Again,
}

fn replace_secret(
    client: &mut Table,
    name: &ClientName,
    secret: &ClientSecret,
    now: WallTime,
    how: How,
) -> anyhow::Result<()> {
    let text =
        |field: &str| client.get(field).and_then(Item::as_str).map(|text| Zeroizing::new(text.to_owned()));
    let before: Option<WallTime> = text("previous-until").and_then(|date| date.parse().ok());
    let before = before.filter(|&before| before > now);
    let until = match (how, before) {
        (How::Again, Some(_)) => {
            set(client, "secret", &secret.to_text());
            return Ok(());
        }
        (How::Again, None) => {
            bail!("{name} has one secret: no rotation is under way that could be made again")
        }
        (How::Until(Some(_)), Some(before)) => bail!(
            "{name} was rotated before, and both its secrets are good until {before}. Rotate it again then; or, where the \
             new profile was lost on its way, with --again, which gives another one and leaves the old secret as it is; or with \
             --grace 0s, which ends both"
        ),
        (How::Until(until), _) => until,
    };
    let old = text("secret").context("an entry has a secret")?;
    set(client, "secret", &secret.to_text());
    if let Some(until) = until {
        set(client, "previous-secret", &old);
        set(client, "previous-until", &until.to_string());
    } else {
        client.remove("previous-secret");
        client.remove("previous-until");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use postern_proto::{ClientEntry, ClientId, KeyFile};
    use toml_edit::DocumentMut;

    use super::*;

    fn secret(number: u8) -> ClientSecret {
        ClientSecret::from_bytes([number; 32])
    }

    /// Rotates to a secret at an instant, and gives the entry that is read then.
    fn rotate(text: &mut String, number: u8, now: u64, grace: Option<u64>) -> anyhow::Result<ClientEntry> {
        let (now, name) = (WallTime::from_secs(now), "alice".parse().unwrap());
        let mut document: DocumentMut = text.parse().unwrap();
        let client = document["client"].as_array_of_tables_mut().unwrap().get_mut(0).unwrap();
        let how = grace.map_or(How::Again, |grace| How::Until(end_of(now, Duration::from_secs(grace))));
        replace_secret(client, &name, &secret(number), now, how)?;
        *text = document.to_string();
        Ok(KeyFile::parse(text).unwrap().into_clients().remove(0))
    }

    #[test]
    fn two_secrets_are_good_at_the_most_and_neither_is_lost_before_its_time() {
        let id = ClientId::from_bytes([1; 8]);
        let entry = ClientEntry::new("alice".parse().unwrap(), id, secret(1), vec!["ssh".parse().unwrap()]);
        let mut text =
            entry.to_toml().replace("=\"\n", "=\" # hers\n").replace("secret = ", "# of hers\nsecret = ");
        let previous =
            |entry: &ClientEntry| entry.previous().map(|(old, end)| (old.expose()[0], end.as_secs()));
        let comments = text.matches('#').count();

        assert!(
            rotate(&mut text, 2, 1000, None).err().unwrap().to_string().contains("no rotation is under way")
        );
        let entry = rotate(&mut text, 2, 1000, Some(60)).unwrap();
        assert_eq!((entry.secret.expose()[0], previous(&entry)), (2, Some((1, 1060))));
        let before = text.clone();
        let error = rotate(&mut text, 3, 1059, Some(60)).err().unwrap().to_string();
        assert!(error.contains("until 1970-01-01T00:17:40Z") && error.contains("--grace 0s"), "{error}");
        assert_eq!(text, before);
        // Its profile was lost: the old one is as good as before, and for no longer.
        let entry = rotate(&mut text, 3, 1059, None).unwrap();
        assert_eq!((entry.secret.expose()[0], previous(&entry)), (3, Some((1, 1060))));
        // Once the grace time is over there is nothing to lose.
        assert!(rotate(&mut text, 4, 1060, None).is_err());
        let entry = rotate(&mut text, 4, 1060, Some(60)).unwrap();
        assert_eq!((entry.secret.expose()[0], previous(&entry)), (4, Some((3, 1120))));
        let entry = rotate(&mut text, 5, 1061, Some(0)).unwrap();
        assert_eq!((entry.secret.expose()[0], previous(&entry)), (5, None));
        assert_eq!(text.matches('#').count(), comments, "{text}");
    }

    #[test]
    fn a_grace_time_is_never_shorter_than_asked_for() {
        let now = WallTime::from_micros(1_000_001);
        assert_eq!(end_of(now, Duration::from_secs(5)), Some(WallTime::from_secs(7)));
        assert_eq!(end_of(WallTime::from_secs(1), Duration::from_secs(5)), Some(WallTime::from_secs(6)));
        assert_eq!(end_of(now, Duration::ZERO), None);
    }
}
