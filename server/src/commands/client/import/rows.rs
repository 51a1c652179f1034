//! Tables of clients: comma-separated values with a line of titles, or the tables of a key file without ids and secrets.

use std::str::FromStr;

use csv::{ReaderBuilder, StringRecord, Trim};
use postern_proto::text::{TextError, from_toml};
use serde::Deserialize;
use toml::Spanned;

use super::super::draft::{Draft, Mistake};
use super::at;
use crate::cli::client::Format;

/// A row of the table, and the line on which it begins.
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) draft: Draft,
}

/// Reads all rows.
///
/// # Errors
/// The first mistake, with its line and field.
pub(super) fn read(text: &str, format: Format) -> anyhow::Result<Vec<Row>> {
    // Spreadsheets put a mark before the first title.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = match format {
        Format::Csv => read_csv(text)?,
        Format::Toml => read_toml(text)?,
    };
    anyhow::ensure!(!rows.is_empty(), "it has no clients");
    Ok(rows)
}

fn read_toml(text: &str) -> Result<Vec<Row>, TextError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        #[serde(default)]
        client: Vec<Spanned<Draft>>,
    }
    let table: Table = from_toml(text)?;
    // Counted from one row to the next: from the start for each, it would take for ever.
    let (mut line, mut counted) = (1, 0);
    let row = |draft: Spanned<Draft>| {
        let start = draft.span().start;
        line += text.get(counted..start).map_or(0, |between| between.matches('\n').count());
        counted = counted.max(start);
        Row { line, draft: draft.into_inner() }
    };
    Ok(table.client.into_iter().map(row).collect())
}

/// The titles that a table may have.
const TITLES: [&str; 11] = [
    "name",
    "services",
    "ssh-key",
    "authorized-keys",
    "max-window",
    "sources",
    "must-state-source",
    "may-state-other-source",
    "max-leases",
    "not-before",
    "expires",
];

fn read_csv(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).comment(Some(b'#')).from_reader(text.as_bytes());
    let titles = reader.headers().map_err(|error| of_csv(text, error))?.clone();
    for (number, title) in titles.iter().enumerate() {
        anyhow::ensure!(
            TITLES.contains(&title),
            "line 1, column {}: there is no field of that title; the fields are {}",
            number + 1,
            TITLES.join(", ")
        );
        anyhow::ensure!(
            titles.iter().take(number).all(|other| other != title),
            "line 1, {title}: stands there twice"
        );
    }
    for needed in ["name", "services"] {
        anyhow::ensure!(
            titles.iter().any(|title| title == needed),
            "line 1, {needed}: this title is missing"
        );
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| of_csv(text, error))?;
        let line = record.position().map_or(1, |position| line_of(text, position));
        let draft =
            Cells { titles: &titles, record: &record }.draft().map_err(|mistake| at(line, mistake))?;
        rows.push(Row { line, draft });
    }
    Ok(rows)
}

/// The line on which a record begins: what the reader skips before it counts for it as a part of it.
fn line_of(text: &str, position: &csv::Position) -> usize {
    let number = |number| usize::try_from(number).unwrap_or(usize::MAX);
    let rest = text.get(number(position.byte())..).unwrap_or_default();
    let is_skipped = |line: &&str| line.is_empty() || line.starts_with('#');
    number(position.line()) + rest.lines().take_while(is_skipped).count()
}

/// In the words of the other mistakes, and without what stands there.
fn of_csv(text: &str, error: csv::Error) -> anyhow::Error {
    let line = error.position().map_or(1, |position| line_of(text, position));
    match error.into_kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            anyhow::anyhow!("line {line}: it has {len} fields, and there are {expected_len} titles")
        }
        csv::ErrorKind::Utf8 { .. } => anyhow::anyhow!("line {line}: it is not UTF-8"),
        _ => anyhow::anyhow!("line {line}: it does not read as comma-separated values"),
    }
}

/// The cells of one row, by title; an empty one says nothing.
struct Cells<'a> {
    titles: &'a StringRecord,
    record: &'a StringRecord,
}

impl Cells<'_> {
    fn draft(&self) -> Result<Draft, Mistake> {
        Ok(Draft {
            name: self.parsed("name")?.ok_or_else(|| Mistake::new("name", "every client has one"))?,
            services: self.list("services")?.unwrap_or_default(),
            identity: self.parsed("ssh-key")?,
            authorized_keys: self.text("authorized-keys").map(Into::into),
            max_window: self.parsed("max-window")?,
            sources: self.list("sources")?,
            must_state_source: self.flag("must-state-source")?,
            may_state_other_source: self.flag("may-state-other-source")?,
            max_leases: self.parsed("max-leases")?,
            not_before: self.parsed("not-before")?,
            expires: self.parsed("expires")?,
            disabled: false,
        })
    }

    fn text(&self, title: &str) -> Option<&str> {
        let at = self.titles.iter().position(|other| other == title)?;
        self.record.get(at).filter(|text| !text.is_empty())
    }

    fn parsed<T: FromStr<Err: ToString>>(&self, title: &'static str) -> Result<Option<T>, Mistake> {
        self.text(title).map(|text| parse(title, text)).transpose()
    }

    /// What is between spaces or semicolons.
    fn list<T: FromStr<Err: ToString>>(&self, title: &'static str) -> Result<Option<Vec<T>>, Mistake> {
        let words = |text: &str| {
            let words = text.split([' ', ';', '\n']).filter(|word| !word.is_empty());
            words.map(|word| parse(title, word)).collect()
        };
        self.text(title).map(words).transpose()
    }

    fn flag(&self, title: &'static str) -> Result<bool, Mistake> {
        match self.text(title) {
            Some("true") => Ok(true),
            None | Some("false") => Ok(false),
            Some(_) => Err(Mistake::new(title, "write true, or false, or nothing")),
        }
    }
}

fn parse<T: FromStr<Err: ToString>>(title: &'static str, text: &str) -> Result<T, Mistake> {
    text.parse().map_err(|error: T::Err| Mistake::new(title, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";

    #[test]
    fn both_kinds_of_table_say_the_same() {
        let csv = format!(
            "\u{feff}name,services,ssh-key,max-window,sources,must-state-source,max-leases,expires\n\
             # of the office\n\
             alice,ssh web,{KEY},20s,192.0.2.0/24;2001:db8::/32,true,3,2027-01-31T18:00:00Z\n\
             \n\
             bob,ssh;web,,,,,,\n"
        );
        let toml = format!(
            "# of the office\n\n[[client]]\nname = \"alice\"\nservices = [\"ssh\", \"web\"]\nidentity = \"{KEY}\"\n\
             max-window = \"20s\"\nsources = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nmust-state-source = true\n\
             max-leases = 3\nexpires = \"2027-01-31T18:00:00Z\"\n\n[[client]]\nname = \"bob\"\nservices = [\"ssh\", \"web\"]\n"
        );
        for (text, format, lines) in [(csv, Format::Csv, [3, 5]), (toml, Format::Toml, [3, 13])] {
            let rows = read(&text, format).unwrap();
            assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), lines, "{format:?}");
            let [alice, bob] = [&rows[0].draft, &rows[1].draft];
            assert_eq!((alice.name.as_str(), bob.name.as_str()), ("alice", "bob"));
            assert_eq!(alice.services, bob.services);
            assert_eq!(alice.services.len(), 2);
            assert_eq!(alice.identity, Some(KEY.parse().unwrap()));
            assert_eq!(alice.sources.as_ref().unwrap().len(), 2);
            assert_eq!(alice.max_window, Some("20s".parse().unwrap()));
            assert_eq!((alice.must_state_source, bob.must_state_source), (true, false));
            assert_eq!((alice.max_leases, bob.max_leases), (Some(3), None));
            assert!(alice.expires.is_some() && bob.expires.is_none() && bob.sources.is_none());
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_field() {
        for (text, format, says) in [
            ("name,services\n", Format::Csv, "no clients"),
            ("name\nalice\n", Format::Csv, "line 1, services: this title is missing"),
            ("name,services,colour\na,ssh,red\n", Format::Csv, "line 1, column 3: there is no field"),
            ("name,services,name\na,ssh,b\n", Format::Csv, "line 1, name: stands there twice"),
            ("name,services\na,ssh\nb\n", Format::Csv, "line 3: it has 1 fields, and there are 2 titles"),
            ("name,services\n\n\nal ice,ssh\n", Format::Csv, "line 4, name: a client name is"),
            (
                "name,services\r\na,ssh\r\n\r\n#\r\nb,ssh\r\n,ssh\r\n",
                Format::Csv,
                "line 6, name: every client has one",
            ),
            ("name,services\na,\"ssh;\nweb\"\n,ssh\n", Format::Csv, "line 4, name: every client has one"),
            ("name,services\n,ssh\n", Format::Csv, "line 2, name: every client has one"),
            ("name,services\na,s/h\n", Format::Csv, "line 2, services: a service name is"),
            (
                "name,services,ssh-key\na,ssh,-----BEGIN OPENSSH PRIVATE KEY-----\n",
                Format::Csv,
                "ssh-key: this is a private",
            ),
            ("name,services,sources\na,ssh,10.0.0.0\n", Format::Csv, "line 2, sources: invalid"),
            ("name,services,max-window\na,ssh,soon\n", Format::Csv, "line 2, max-window: a window is"),
            ("name,services,max-leases\na,ssh,-1\n", Format::Csv, "line 2, max-leases: invalid digit"),
            ("name,services,expires\na,ssh,soon\n", Format::Csv, "line 2, expires: a date is"),
            (
                "name,services,must-state-source\na,ssh,yes\n",
                Format::Csv,
                "line 2, must-state-source: write true",
            ),
            (
                "[[client]]\nname = \"a\"\nservices = [\"ssh\"]\nsecret = \"x\"\n",
                Format::Toml,
                "line 4, column 1: unknown field `secret`",
            ),
            ("[[client]]\nname = \"a\"\n", Format::Toml, "line 1, column 1: missing field `services`"),
            ("[[clients]]\n", Format::Toml, "unknown field `clients`"),
            ("", Format::Toml, "no clients"),
        ] {
            let error = read(text, format).err().unwrap_or_else(|| panic!("accepted:\n{text}")).to_string();
            assert!(error.contains(says), "{error}\n{text}");
        }
    }
}
