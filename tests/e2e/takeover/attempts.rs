//! Attempts of a process that was taken over, and what has to come of them: the kernel refuses whoever is confined, and
//! takes up the same from whoever is not, so that the refusal says something.

use std::fmt::Display;
use std::io;

use anyhow::{Result, ensure};
use libc::c_long;
use postern_tests::debugger::{Argument, Calls, Returned};
use rustix::process::Pid;

/// What a call came back with: a result, or an error number.
type Answer = Result<i64, i32>;

/// What one process attempts.
#[derive(Default)]
pub(super) struct Attempts {
    /// What else it has to call on the way.
    pub(super) calls: Calls,
    tried: Vec<(String, Expected, Returned)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// It fails for want of a permission, and succeeds without confinement.
    Refused,
    /// It fails for want of a permission, and without confinement for its arguments, which let nobody do harm.
    RefusedUnread,
    /// The kernel seems to know no such call, and does.
    Missing,
    /// It succeeds, confined or not: the attempts are made as they should be.
    Allowed,
}

impl Attempts {
    /// An attempt that only a confined process is refused.
    pub(super) fn refused(
        &mut self,
        what: impl Display,
        call: c_long,
        arguments: &[&dyn Argument],
    ) -> Returned {
        self.attempt(what, Expected::Refused, call, arguments)
    }

    /// An attempt that a confined process is refused before anybody looks at its arguments, which make no sense.
    pub(super) fn refused_unread(&mut self, what: impl Display, call: c_long, arguments: &[&dyn Argument]) {
        self.attempt(what, Expected::RefusedUnread, call, arguments);
    }

    /// An attempt at something that the kernel hides from a confined process.
    pub(super) fn missing(&mut self, what: impl Display, call: c_long, arguments: &[&dyn Argument]) {
        self.attempt(what, Expected::Missing, call, arguments);
    }

    /// Something that a confined process can do as well.
    pub(super) fn allowed(
        &mut self,
        what: impl Display,
        call: c_long,
        arguments: &[&dyn Argument],
    ) -> Returned {
        self.attempt(what, Expected::Allowed, call, arguments)
    }

    fn attempt(
        &mut self,
        what: impl Display,
        expected: Expected,
        call: c_long,
        arguments: &[&dyn Argument],
    ) -> Returned {
        let returned = self.calls.call(call, arguments);
        self.tried.push((what.to_string(), expected, returned));
        returned
    }

    /// Has a process make them all.
    ///
    /// # Errors
    /// When it cannot be taken over.
    pub(super) fn make(self, pid: Pid) -> Result<Vec<Outcome>> {
        let answers = self.calls.make(pid)?;
        let outcome = |(what, expected, call)| Outcome { what, expected, answer: answers.of(call) };
        Ok(self.tried.into_iter().map(outcome).collect())
    }
}

/// What came of an attempt.
pub(super) struct Outcome {
    what: String,
    expected: Expected,
    answer: Answer,
}

/// Prints what a process that nothing confines and one that is confined met with the same attempts.
///
/// # Errors
/// Every attempt that did not end as it should.
pub(super) fn compare(name: &str, free: &[Outcome], confined: &[Outcome]) -> Result<()> {
    ensure!(free.len() == confined.len(), "both attempt the same");
    println!("{:<56} {:<42} {name}", "attempt", "not confined");
    let mut wrong = Vec::new();
    for (free, confined) in free.iter().zip(confined) {
        let line = format!("{:<56} {:<42} {}", confined.what, told(free.answer), told(confined.answer));
        println!("{line}");
        if !confined.expected.is_met(free.answer, confined.answer) {
            wrong.push(line);
        }
    }
    ensure!(wrong.is_empty(), "of {} attempts of the {name}, these end otherwise: {wrong:#?}", free.len());
    Ok(())
}

impl Expected {
    fn is_met(self, free: Answer, confined: Answer) -> bool {
        let is_refused = |answer| matches!(answer, Err(libc::EPERM | libc::EACCES));
        match self {
            Self::Refused => free.is_ok() && is_refused(confined),
            Self::RefusedUnread => free.is_err() && !is_refused(free) && is_refused(confined),
            Self::Missing => free != Err(libc::ENOSYS) && confined == Err(libc::ENOSYS),
            Self::Allowed => free.is_ok() && confined.is_ok(),
        }
    }
}

fn told(answer: Answer) -> String {
    answer.map_or_else(|number| io::Error::from_raw_os_error(number).to_string(), |_| "done".to_owned())
}
