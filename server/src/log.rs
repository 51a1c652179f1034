//! The log: to journald when systemd started us, else to standard error, as text or as one JSON object a line.

use std::env;
use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// How lines on standard error are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The environment variable with the level, or with directives such as `postern_server=debug`.
pub(crate) const LEVEL: &str = "POSTERND_LOG";

/// Starts the log of this process.
///
/// # Errors
/// When the level in the environment does not read.
pub(crate) fn start(format: Format) -> anyhow::Result<()> {
    let level = env::var(LEVEL).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| anyhow::anyhow!("{LEVEL}: {error}; use error, warn, info, debug or trace"))?;
    let registry = tracing_subscriber::registry().with(filter);
    // systemd names the journal's socket here when our standard error is the journal.
    if format == Format::Text
        && env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journald) = tracing_journald::layer()
    {
        registry.with(journald).init();
        return Ok(());
    }
    let layer = fmt::layer().with_writer(io::stderr).with_target(false);
    match format {
        Format::Text => registry.with(layer.with_ansi(io::stderr().is_terminal())).init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    Ok(())
}
