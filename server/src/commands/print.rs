//! How commands print. Whoever reads the first lines alone (`| head`) has what he wanted: that he is gone is no failure,
//! and the command goes on to its end.

use std::fmt;
use std::io::{self, Write};

use anyhow::Context;

/// Prints a line, as `println!` does; whoever calls hands on why it cannot be printed.
macro_rules! say {
    ($($text:tt)*) => { $crate::commands::print::line(format_args!($($text)*)) };
}

pub(super) use say;

/// Prints a line.
///
/// # Errors
/// When stdout takes nothing, as on a full disk.
pub(super) fn line(line: fmt::Arguments<'_>) -> anyhow::Result<()> {
    whole(|out| writeln!(out, "{line}"))
}

/// Prints what `write` writes.
///
/// # Errors
/// When stdout takes nothing, as on a full disk.
pub(super) fn whole(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot print"),
    }
}

/// Prints columns as wide as what stands in them; nothing at all where there are no rows.
///
/// # Errors
/// When stdout takes nothing, as on a full disk.
pub(super) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let heads = heads.map(ToOwned::to_owned);
    let all = || std::iter::once(&heads).chain(rows);
    let widths: [usize; N] =
        std::array::from_fn(|column| all().map(|row| row[column].len()).max().unwrap_or_default());
    whole(|out| {
        for row in all() {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    })
}

/// So many of them: `1 lease`, `2 leases`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
