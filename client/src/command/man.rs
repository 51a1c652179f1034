//! `postern man`: a page of the manual for each command, from the definitions of the arguments.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::{Cli, ManArgs};
use crate::error::Error;
use crate::file::{Access, replace};
use crate::report::{PageReport, Report};

pub(super) fn run(args: &ManArgs) -> Result<Report, Error> {
    if let Some(folder) = &args.out {
        return write(folder);
    }
    let mut root = root();
    let command = match &args.command {
        None => &root,
        Some(name) => {
            let known: Vec<_> = root.get_subcommands().map(|command| command.get_name().to_owned()).collect();
            let unknown =
                || Error::Usage(format!("there is no command {name}; there are {}", known.join(", ")));
            root.find_subcommand_mut(name).ok_or_else(unknown)?
        }
    };
    Ok(Report::Man {
        folder: None,
        pages: vec![PageReport { name: file_name(command), text: Some(page(command)) }],
    })
}

/// All pages.
fn write(folder: &Path) -> Result<Report, Error> {
    fs::create_dir_all(folder).map_err(Error::unwritable(folder))?;
    let root = root();
    let mut pages = Vec::new();
    for command in std::iter::once(&root).chain(root.get_subcommands()) {
        let name = file_name(command);
        let path = folder.join(&name);
        replace(&path, page(command).as_bytes(), Access::READABLE).map_err(Error::unwritable(&path))?;
        pages.push(PageReport { name, text: None });
    }
    Ok(Report::Man { folder: Some(folder.to_owned()), pages })
}

/// The commands with what they share, and with the names of their pages.
fn root() -> Command {
    let mut root = Cli::command();
    root.build();
    root
}

/// What the page is called, such as `postern-knock`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn file_name(command: &Command) -> String {
    format!("{}.1", title(command))
}

fn page(command: &Command) -> String {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).expect("memory takes what is written");
    let page = String::from_utf8(page).expect("a page is made of texts");
    let title = title(command).to_uppercase();
    // Of the header, clap_mangen leaves out what is empty: the date, in whose place the version would stand.
    let header = format!(".TH {title} 1 \"\" \"postern {}\" \"Postern\"", env!("CARGO_PKG_VERSION"));
    let line = |line: &str| match line {
        _ if line.starts_with(".TH ") => header.clone(),
        // Line by line, as in the help.
        ".SH EXTRA" => ".SH NOTES\n.nf".to_owned(),
        _ => line.to_owned(),
    };
    page.lines().map(|text| line(text) + "\n").collect()
}
