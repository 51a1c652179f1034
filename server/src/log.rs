//! The log: lines on standard error, as text or as one JSON object each. Every process of the gate writes its own. Under
//! systemd a line begins with its priority, as the journal takes it (sd-daemon(3)): a socket to the journal would be
//! one more thing for the front to hold.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format as Lines, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The environment variable with the level, or with directives such as `postern_server=debug`.
pub(crate) const LEVEL: &str = "POSTERND_LOG";
/// systemd sets it when standard error is the journal.
const JOURNAL: &str = "JOURNAL_STREAM";

/// Starts the log of this process.
///
/// # Errors
/// When the level in the environment does not read.
pub(crate) fn start(format: Format) -> anyhow::Result<()> {
    let level = env::var(LEVEL).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| anyhow::anyhow!("{LEVEL}: {error}; use error, warn, info, debug or trace"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        Format::Json => lines.json().flatten_event(true).init(),
        Format::Text if env::var_os(JOURNAL).is_some() => {
            lines
                .with_ansi(false)
                .event_format(Prioritized(
                    Lines::default().with_target(false).with_level(false).without_time(),
                ))
                .init();
        }
        Format::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
    }
    Ok(())
}

/// Lines for the journal, which keeps the time by itself.
struct Prioritized(Lines<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritized
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
