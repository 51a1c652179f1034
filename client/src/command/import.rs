//! `postern import`: keeps a profile in the configuration.
//!
//! The configuration is written by people too, so all else in it stays as it is. It is replaced in one step, by a
//! whole file that was read back first. Imports at the same time follow one another, so that none is lost.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postern_proto::{GateName, Profile};
use toml_edit::{DocumentMut, Item, Table, value};
use zeroize::Zeroizing;

use crate::cli::ImportArgs;
use crate::config::{Config, Origin, lacks, read_private};
use crate::enrolment;
use crate::error::Error;
use crate::file::{Access, folder_of, replace};
use crate::report::{Report, say};

/// What a gate of the configuration has beside its profile.
const BESIDE: [&str; 3] = ["close-on-exit", "identity-file", "sequences"];

pub(super) fn run(path: &Path, args: &ImportArgs) -> Result<Report, Error> {
    let origin = origin(args);
    let no_profile =
        || Error::Usage("give the profile on stdin (-), in --file FILE or in POSTERN_PROFILE".into());
    let mut profile = enrolment::profile(&origin, args.identity.as_deref())?.ok_or_else(no_profile)?;
    if !args.addresses.is_empty() {
        profile.addresses.clone_from(&args.addresses);
    }
    if let Some(lack) = lacks(&profile) {
        return Err(Error::Incomplete { origin: origin.name(), message: format!("the profile has {lack}") });
    }
    let replaced = keep(path, &args.name, &profile, args.force)?;
    Ok(Report::Import { gate: args.name.clone(), config: path.to_owned(), replaced })
}

fn origin(args: &ImportArgs) -> Origin<'_> {
    match (args.profile.as_deref(), args.file.as_deref()) {
        (Some("-"), _) => Origin::Stdin,
        (Some(line), _) => {
            say(
                "other users of this host can see a profile in the arguments; give it on stdin: postern import NAME -",
            );
            Origin::Argument(line)
        }
        (None, Some(file)) => Origin::file(file),
        (None, None) => Origin::Environment,
    }
}

/// Puts the profile into the file, and says whether it took another's place.
fn keep(path: &Path, name: &GateName, profile: &Profile, force: bool) -> Result<bool, Error> {
    // Where the name is a link, the file that it leads to is replaced and the link stays.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::unwritable(folder))?;
    let _lock = lock(path)?;

    let old = read_private(path)?.unwrap_or_default();
    let mistake = |source| Error::Mistake { path: path.to_owned(), source };
    let replaces = Config::parse(&old).map_err(mistake)?.gates().contains_key(name);
    if replaces && !force {
        return Err(Error::Exists { name: name.clone(), path: path.to_owned() });
    }
    let new = with_gate(&old, name, profile);
    let reads_back = Config::parse(&new).map_err(mistake)?.gates()[name].profile.as_ref() == Some(profile);
    assert!(reads_back, "the profile that was put in is the one that is read");
    replace(path, new.as_bytes(), Access::PRIVATE).map_err(Error::unwritable(path))?;
    Ok(replaces)
}

/// Holds other imports off until dropped. A file of its own, for the configuration's is another one each time; it
/// stays, for whoever removes a lock may remove the one that another has just taken.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
    file.and_then(|file| file.lock().map(|()| file)).map_err(Error::unwritable(&path))
}

/// The text with one gate added at its end, or replaced: what is no part of the profile, its sequences above all, stays.
fn with_gate(old: &str, name: &GateName, profile: &Profile) -> Zeroizing<String> {
    let mut document: DocumentMut = old.parse().expect("the text was read as TOML before");
    let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
    let gates = document.entry("gates").or_insert_with(|| {
        let mut gates = Table::new();
        gates.set_implicit(true);
        Item::Table(gates)
    });
    let is_appended = gates.is_table() && gates.get(name.as_str()).is_none();
    let gates = gates.as_table_like_mut().expect("the configuration was read with a table of gates before");
    let mut table = table(profile);
    if let Some(replaced) = gates.get(name.as_str()) {
        for name in BESIDE {
            if let Some(kept) = replaced.get(name) {
                table.insert(name, kept.clone());
            }
        }
        if let Some(replaced) = replaced.as_table() {
            table.set_position(replaced.position());
            table.decor_mut().clone_from(replaced.decor());
        }
    }
    if is_appended {
        // Comments at the end of the file stay before what is added behind them.
        let gap = if old.is_empty() { "" } else { "\n" };
        table.decor_mut().set_prefix(format!("{trailing}{gap}"));
    }
    gates.insert(name.as_str(), Item::Table(table));
    if is_appended {
        document.set_trailing("");
    }
    Zeroizing::new(document.to_string())
}

/// The profile as a table of its own, the services in one line.
fn table(profile: &Profile) -> Table {
    let text = Zeroizing::new(toml::to_string(profile).expect("every field of a profile has a TOML form"));
    let document: DocumentMut = text.parse().expect("what was just written as TOML reads as TOML");
    let mut table = document.into_table();
    if let Some(Item::Table(services)) = table.remove("services") {
        table.insert("services", value(services.into_inline_table()));
    }
    if profile.identities.is_empty() {
        table.remove("identities");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = include_str!("../../config.example.toml");

    #[test]
    fn whatever_the_file_looks_like_the_gate_is_added_behind_it() {
        let profile =
            Config::parse(ONE).unwrap().gates()[&"office".parse().unwrap()].profile.clone().unwrap();
        let header = ONE.find("[gates.office]").unwrap();
        let keys = ONE[header..].lines().skip(1).map(|line| line.split('#').next().unwrap().trim_end());
        let inline = keys.collect::<Vec<_>>().join(", ");
        for old in [
            "",
            "\n",
            "# only a comment\n",
            "# no newline",
            "gates = {}\n",
            "[gates]\n# none yet\n",
            ONE,
            ONE.trim_end(),
            &ONE.replace('\n', "\r\n"),
            &format!("{ONE}\n\n# the end\n"),
            &format!("gates = {{ a = {{ {inline} }} }} # in one line\n"),
            &format!("gates.a = {{ {inline} }}\n# dotted\n"),
            &format!("[gates]\na = {{ {inline} }} # in a table\n"),
        ] {
            let before = Config::parse(old).unwrap_or_else(|error| panic!("{error}\n{old}"));
            let name: GateName = "new.gate".parse().unwrap();
            let new = with_gate(old, &name, &profile);
            let after = Config::parse(&new).unwrap_or_else(|error| panic!("{error}\n{}", *new));
            assert_eq!(after.gates().len(), before.gates().len() + 1, "{}", *new);
            assert!(after.gates()[&name].profile.as_ref() == Some(&profile));
            assert!(before.gates().iter().all(|(name, gate)| after.gates()[name] == *gate));
            let comments = |text: &str| text.matches('#').count();
            assert_eq!(comments(&new), comments(old), "{}", *new);
            if old.contains("[gates.") {
                assert!(new.replace('\r', "").starts_with(&old.replace('\r', "")), "{}", *new);
            }
        }
    }
}
