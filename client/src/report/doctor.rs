//! What a diagnosis has found.

use std::fmt;

use serde::Serialize;

/// All that was found about a gate, and on the way to it.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// The gate's name, or `-`.
    pub gate: String,
    /// Whether there is neither a warning nor a fault.
    pub healthy: bool,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

/// One thing that was found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it is about. An id never changes its meaning.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, for a person.
    pub message: String,
    /// What to do about it, where all is not well.
    pub advice: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// Good to know.
    Note,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Fault => "fault",
        };
        write!(f, "{level:8} {}: {}", self.id, self.message)?;
        self.advice.iter().try_for_each(|advice| write!(f, "; {advice}"))
    }
}

impl fmt::Display for DoctorReport {
    /// The findings themselves were printed as they came.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.healthy {
            return writeln!(f, "all is well with {}", self.gate);
        }
        let count = |level, word| {
            let count = self.findings.iter().filter(|finding| finding.level == level).count();
            if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
        };
        let (faults, warnings) = (count(Level::Fault, "fault"), count(Level::Warning, "warning"));
        writeln!(f, "{}: {faults}, {warnings}", self.gate)
    }
}
