//! What a diagnosis has found: one line each for people, as it comes; a list for programs.

use std::fmt;
use std::io::{self, Write as _};

use crate::report::{DoctorReport, Finding, Level};

/// What was found up to now.
pub(super) struct Findings {
    all: Vec<Finding>,
    /// Whether a person reads along.
    prints: bool,
}

impl Findings {
    pub(super) const fn new(prints: bool) -> Self {
        Self { all: Vec::new(), prints }
    }

    /// All is well there.
    pub(super) fn ok(&mut self, id: &'static str, message: impl fmt::Display) {
        self.add(id, Level::Ok, message, None);
    }

    /// Neither well nor ill, but good to know.
    pub(super) fn note(&mut self, id: &'static str, message: impl fmt::Display) {
        self.add(id, Level::Note, message, None);
    }

    /// It works, and could be better.
    pub(super) fn warning(&mut self, id: &'static str, message: impl fmt::Display, advice: &str) {
        self.add(id, Level::Warning, message, Some(advice));
    }

    /// It does not work.
    pub(super) fn fault(&mut self, id: &'static str, message: impl fmt::Display, advice: &str) {
        self.add(id, Level::Fault, message, Some(advice));
    }

    pub(super) fn report(self, gate: String) -> DoctorReport {
        let is_well = |finding: &Finding| matches!(finding.level, Level::Ok | Level::Note);
        DoctorReport { gate, healthy: self.all.iter().all(is_well), findings: self.all }
    }

    fn add(&mut self, id: &'static str, level: Level, message: impl fmt::Display, advice: Option<&str>) {
        let finding = Finding { id, level, message: message.to_string(), advice: advice.map(str::to_owned) };
        if self.prints {
            // The diagnosis goes on, and its exit code stands, where stdout is gone.
            let _ = writeln!(io::stdout(), "{finding}");
        }
        self.all.push(finding);
    }
}
