//! What a command reports: for people, or with `--json` one object on stdout. Fields of the objects are only ever
//! added, unless `version` changes.
//!
//! `docs/output.schema.json` says what each object holds.

mod answer;
mod doctor;
mod knock;
mod ssh_config;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use postern_proto::profile::Host;
use postern_proto::sequence::Steps;
use postern_proto::{GateName, Port, Protocol, SequenceName, ServiceName};
use serde::Serialize;

use crate::error::{Error, without_profiles};

pub use answer::AnswerReport;
pub(crate) use answer::{CLOCK_WARNING_SECONDS, Off, open_line, warn_of_clock};
pub use doctor::{DoctorReport, Finding, Level};
pub use knock::{CloseReport, KnockReport, KnockedReport};
pub use ssh_config::SshConfigReport;

const VERSION: u8 = 1;

/// Whether only errors are told. It is the process's, as its stdout and stderr are.
static QUIET: AtomicBool = AtomicBool::new(false);

/// What a command that was done has to say.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Report {
    /// Knocks were sent.
    Knock(KnockReport),
    /// Knocks that close were sent.
    Close(CloseReport),
    /// What is well and what is not.
    Doctor(DoctorReport),
    /// A sequence was sent, or printed.
    Sequence(SequenceReport),
    /// The gates of the configuration.
    Gates {
        /// In the order of their names.
        gates: Vec<GateReport>,
    },
    /// A profile is in the configuration now.
    Import {
        /// What it is called.
        gate: GateName,
        /// The configuration.
        config: PathBuf,
        /// Whether there was a gate of that name.
        replaced: bool,
    },
    /// What ssh needs to go through a gate.
    SshConfig(SshConfigReport),
    /// What a shell completes.
    Completions {
        /// The shell.
        shell: String,
        /// What it is to source.
        script: String,
    },
    /// Pages of the manual.
    Man {
        /// Where they are now; else the text of one is here.
        folder: Option<PathBuf>,
        /// The pages.
        pages: Vec<PageReport>,
    },
    /// A connection was carried to its end; stdout was the connection's.
    #[serde(skip)]
    Carried,
}

/// A sequence that was sent, or only printed.
#[derive(Debug, Serialize)]
pub struct SequenceReport {
    /// The host, or the gate's name.
    pub host: String,
    /// The sequence's name, when it was asked for by its name.
    pub sequence: Option<SequenceName>,
    /// Its steps; those of a rolling one only where they are to be printed.
    pub steps: Option<Steps>,
    /// How many they are.
    #[serde(skip)]
    pub count: usize,
    /// How long the steps that are printed can be used, if not for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_for_seconds: Option<u64>,
    /// Where all of them were sent.
    pub addresses: Vec<IpAddr>,
    /// Names and addresses that they could not be sent to.
    pub failed: Vec<FailedReport>,
    /// What let a connection in, when that was waited for.
    pub open: Option<Vec<OpenReport>>,
    /// Whether the steps are all that was asked for.
    #[serde(skip)]
    pub print: bool,
}

/// A name or an address that nothing, or not all of it, could be sent to.
#[derive(Debug, Serialize)]
pub struct FailedReport {
    /// The name, or the address with the port.
    pub host: String,
    /// Why.
    pub message: String,
}

/// A port that let a connection in.
#[derive(Debug, Serialize)]
pub struct OpenReport {
    /// The service, after a knock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The address that did.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
    /// Milliseconds from the last knock, or step.
    pub after_ms: u64,
}

/// A gate of the configuration, without its secret.
#[derive(Debug, Serialize)]
pub struct GateReport {
    /// Its name.
    pub name: GateName,
    /// Where to knock.
    pub addresses: Vec<Host>,
    /// UDP ports to knock at.
    pub ports: Vec<u16>,
    /// The services and their ports.
    pub services: BTreeMap<ServiceName, Vec<Port>>,
    /// The keys of which one signs each knock; none where that is not wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<IdentityReport>,
    /// The sequences and the ports that they open.
    pub sequences: BTreeMap<SequenceName, Vec<Port>>,
}

/// A key that signs knocks.
#[derive(Debug, Serialize)]
pub struct IdentityReport {
    /// As ssh-add and ssh-keygen show it, such as `SHA256:...`.
    pub fingerprint: String,
    /// Whose it is, as far as anybody wrote that down.
    pub comment: String,
    /// Whether each signature takes a touch of a security key.
    pub needs_touch: bool,
}

/// A page of the manual.
#[derive(Debug, Serialize)]
pub struct PageReport {
    /// What its file is called.
    pub name: String,
    /// The page, as roff, when it was not written into a file.
    pub text: Option<String>,
}

/// From here on only errors are told.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints what came of a command and gives the exit code.
#[must_use]
pub fn finish(json: bool, outcome: Result<Report, Error>) -> ExitCode {
    let code = match &outcome {
        Ok(Report::Doctor(report)) if !report.healthy => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    };
    let printed = match outcome {
        Err(error) => {
            let answer = match &error {
                Error::Refused(refused) => Some(AnswerReport::from(&refused.reply)),
                _ => None,
            };
            return fail_with(json, &error.to_string(), error.exit_code(), answer);
        }
        Ok(Report::Carried) => return ExitCode::SUCCESS,
        Ok(_) if is_quiet() => return code,
        Ok(report) if json => print_json(&report),
        Ok(report) => write!(io::stdout(), "{report}"),
    };
    match printed.and_then(|()| io::stdout().flush()) {
        Ok(()) => code,
        Err(error) => fail(false, &format!("cannot write to stdout: {error}"), 1),
    }
}

/// Prints what went wrong and gives the exit code.
pub(crate) fn fail(json: bool, message: &str, code: u8) -> ExitCode {
    fail_with(json, message, code, None)
}

fn fail_with(json: bool, message: &str, code: u8, answer: Option<AnswerReport>) -> ExitCode {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: ErrorReport<'a>,
        answer: Option<AnswerReport>,
    }
    #[derive(Serialize)]
    struct ErrorReport<'a> {
        code: u8,
        message: &'a str,
    }
    let message = &without_profiles(message);
    if !json || print_json(&Failure { error: ErrorReport { code, message }, answer }).is_err() {
        tell(message);
    }
    code.into()
}

/// Tells a person something beside the report, in one line on stderr.
pub(crate) fn say(message: &str) {
    if !is_quiet() {
        tell(message);
    }
}

fn tell(message: &str) {
    // Where stderr is gone, nobody is left to tell.
    let _ = writeln!(io::stderr(), "postern: {message}");
}

/// Says which step leaves now, on stdout and in knock's words.
pub(crate) fn print_hit(protocol: Protocol, to: SocketAddr) {
    // The steps are sent all the same where stdout is gone.
    let _ = writeln!(io::stdout(), "hitting {} {}:{}", protocol.as_str(), to.ip(), to.port());
}

fn print_json(report: &impl Serialize) -> io::Result<()> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        version: u8,
        #[serde(flatten)]
        report: &'a T,
    }
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &Versioned { version: VERSION, report })?;
    writeln!(stdout)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Knock(report) => report.fmt(f),
            Self::Close(report) => report.fmt(f),
            Self::Doctor(report) => report.fmt(f),
            Self::Sequence(report) => report.fmt(f),
            Self::Gates { gates } => gates.iter().try_for_each(|gate| gate.fmt(f)),
            Self::Import { gate, config, replaced } => {
                let verb = if *replaced { "replaced" } else { "added" };
                writeln!(f, "{verb} {gate} in {}", config.display())
            }
            Self::SshConfig(report) => report.fmt(f),
            Self::Completions { script, .. } => f.write_str(script),
            Self::Man { folder: None, pages } => {
                pages.iter().flat_map(|page| &page.text).try_for_each(|text| f.write_str(text))
            }
            Self::Man { folder: Some(folder), pages } => {
                writeln!(f, "wrote {} pages into {}", pages.len(), folder.display())
            }
            Self::Carried => Ok(()),
        }
    }
}

impl fmt::Display for SequenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(steps) = self.steps.as_ref().filter(|_| self.print) {
            return writeln!(f, "{}", steps.to_string().replace(',', " "));
        }
        for address in &self.addresses {
            let steps = if self.count == 1 { "1 step".to_owned() } else { format!("{} steps", self.count) };
            writeln!(f, "sent {steps} to {address}")?;
        }
        for OpenReport { address, port, after_ms, .. } in self.open.iter().flatten() {
            writeln!(f, "open: {address} port {port}, {after_ms} ms after the last step")?;
        }
        Ok(())
    }
}

impl fmt::Display for GateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        writeln!(f, "  addresses  {}", joined(&self.addresses))?;
        if !self.ports.is_empty() {
            writeln!(f, "  ports      {}", joined(&self.ports))?;
        }
        for (service, ports) in &self.services {
            writeln!(f, "  service    {service} ({})", joined(ports))?;
        }
        for IdentityReport { fingerprint, comment, .. } in &self.identities {
            let comment = if comment.is_empty() { String::new() } else { format!(" ({comment})") };
            writeln!(f, "  signed by  {fingerprint}{comment}")?;
        }
        for (sequence, opens) in &self.sequences {
            let opens = if opens.is_empty() { String::new() } else { format!(" ({})", joined(opens)) };
            writeln!(f, "  sequence   {sequence}{opens}")?;
        }
        Ok(())
    }
}

/// The items in one line.
pub(crate) fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
