//! `posternd client import`: the clients of a table, all of them or none.
//!
//! Every row is checked before anything is made. Profiles come first, as one folder that is whole when it gets its name, then the key
//! file in one go, then the gate. Whatever fails before the key file is replaced takes the folder away again.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressIterator, ProgressStyle};
use postern_proto::ClientName;
use zeroize::Zeroizing;

use self::folder::NewFolder;
use self::rows::{Row, read};
use super::super::print::count;
use super::delivery::{GOOD_FOR_NOTHING, print};
use super::draft::{Mistake, New};
use super::key_file::LockedKeys;
use super::seal::Seal;
use super::{addresses, given, profile, read_given, tell_gate};
use crate::cli::Usage;
use crate::cli::client::{Format, Import};
use crate::clock::Now;
use crate::config::{Config, ConfigError};

mod folder;
mod rows;

/// Longest table that is read, in bytes: that of a million clients.
const LONGEST_TABLE: u64 = 1 << 30;

pub(super) fn run(path: &Path, config: &Config, import: &Import) -> anyhow::Result<()> {
    let seal = Seal::new(&import.sealing)?;
    if import.out.is_none() && !seal.is_open() {
        bail!(Usage("encrypted profiles go into a folder: name a new one with --out".to_owned()));
    }
    let format = import.format.map_or_else(|| format_of(&import.file), Ok)?;
    let text = read_given(&import.file, LONGEST_TABLE)?;
    let mistake = |error| in_file(&import.file, error);
    let new = check(config, read(&text, format).map_err(mistake)?).map_err(mistake)?;

    let addresses = addresses(path, config, &import.addresses)?;
    let mut out = Out::new(import.out.as_deref(), seal.is_open())?;
    for (line, New { entry, identities }) in new.iter().progress_with(bar(new.len())) {
        let profile = profile(config, entry, addresses, identities.clone());
        let sealed = seal.close(&profile.to_line(), identities).map_err(|error| mistake(at(*line, error)))?;
        out.add(&entry.name, &Zeroizing::new(sealed))?;
    }

    let keys = LockedKeys::of(config)?;
    let checked = keys.with(new.iter().map(|(_, new)| &new.entry))?;
    out.finish()?;
    keys.replace(checked).context(GOOD_FOR_NOTHING)?;
    tell_gate(config, &format!("added {}, {}", count(new.len() as u64, "client"), out.keep()))
}

fn format_of(file: &Path) -> Result<Format, Usage> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("toml") => Ok(Format::Toml),
        _ => Err(Usage(format!("{}: say --format csv or --format toml", given(file).display()))),
    }
}

/// A row, by its line, with what it makes.
type Numbered = (usize, New);

/// Checks every row, against the others as well.
fn check(config: &Config, rows: Vec<Row>) -> anyhow::Result<Vec<Numbered>> {
    let now = Now::read().wall;
    let there: HashSet<_> = config.clients.iter().map(|client| &client.name).collect();
    let mut seen: HashMap<ClientName, usize> = HashMap::with_capacity(rows.len());
    let mut new = Vec::with_capacity(rows.len());
    for Row { line, draft } in rows {
        if there.contains(&draft.name) {
            let problem = format!("the key file has a client {} already", draft.name);
            return Err(at(line, Mistake::new("name", problem)));
        }
        if let Some(first) = seen.insert(draft.name.clone(), line) {
            let problem = format!("line {first} has a client {} as well", draft.name);
            return Err(at(line, Mistake::new("name", problem)));
        }
        new.push((line, draft.check(config, now).map_err(|error| at(line, error))?));
    }
    Ok(new)
}

/// How far it is, for a person: where stderr is no terminal, nothing is drawn.
fn bar(len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} profiles, {eta} left");
    ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr())
        .with_style(style.expect("the template is a constant that reads"))
        .with_finish(ProgressFinish::AndClear)
}

/// Where the profiles go: they are nowhere before all are there.
enum Out<'a> {
    /// Into a folder, in files of this kind.
    Folder { folder: NewFolder, path: &'a Path, kind: &'static str },
    /// To stdout.
    Lines(Zeroizing<String>),
}

impl<'a> Out<'a> {
    fn new(path: Option<&'a Path>, is_open: bool) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::Lines(Zeroizing::default())) };
        let kind = if is_open { "profile" } else { "age" };
        Ok(Self::Folder { folder: NewFolder::beside(path)?, path, kind })
    }

    fn add(&mut self, name: &ClientName, profile: &str) -> anyhow::Result<()> {
        match self {
            Self::Folder { folder, kind, .. } => folder.add(&format!("{name}.{kind}"), profile)?,
            // Neither a name nor a profile has anything in it that is quoted in such a table.
            Self::Lines(lines) => [name.as_str(), ",", profile].iter().for_each(|part| lines.push_str(part)),
        }
        Ok(())
    }

    /// All are there: hands them over.
    fn finish(&self) -> anyhow::Result<()> {
        match self {
            Self::Folder { folder, .. } => folder.finish(),
            Self::Lines(lines) => print(lines),
        }
    }

    /// The key file knows the clients: says where their profiles are.
    fn keep(self) -> String {
        match self {
            Self::Folder { folder, path, .. } => {
                folder.keep();
                format!("their profiles are in {}", path.display())
            }
            Self::Lines(_) => "the lines above hold their secrets and are not shown again".to_owned(),
        }
    }
}

fn at(line: usize, error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = error.into();
    anyhow!("line {line}, {error:#}")
}

/// A mistake in the table, which is the administrator's to mend.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn in_file(file: &Path, error: anyhow::Error) -> anyhow::Error {
    ConfigError::Unfit { path: given(file), problem: format!("{error:#}; nothing was changed") }.into()
}
