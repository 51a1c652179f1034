//! A gate's refusal, in words: why, and what whoever knocked can do about it.

use std::fmt;

use postern_proto::Refusal;

use crate::reply::Reply;

/// The gate's refusal of a knock.
#[derive(Debug)]
pub struct Refused {
    /// The gate's name.
    pub gate: String,
    /// The reason.
    pub refusal: Refusal,
    /// The whole answer.
    pub reply: Reply,
}

impl std::error::Error for Refused {}

impl Refused {
    /// What whoever knocked can do.
    pub(crate) const fn advice(&self) -> &'static str {
        match self.refusal {
            Refusal::UnusableSource => "state an address that it can let in: --source ADDRESS",
            Refusal::NotYetValid => "wait for that date, or ask the gate's administrator",
            Refusal::Expired => "ask the gate's administrator for more time",
            Refusal::SourceNotStated => "state this host's own: --source ADDRESS",
            Refusal::SourceNotOwn => "leave --source out",
            Refusal::SourceNotAllowed => "knock from one of those, or ask the gate's administrator",
            Refusal::UnknownService => "ask the gate's administrator for a new profile",
            Refusal::ServiceNotAllowed => "name only those it may have, or ask the gate's administrator",
            Refusal::WindowTooLong => "ask for less with --window, or leave it out",
            Refusal::Unsigned => {
                "import the new profile from the gate's administrator, or name the file of the key, either half, with --identity FILE"
            }
            Refusal::BadSignature => {
                "the gate knows another key: name its file with --identity FILE, or ask the gate's administrator for a new profile"
            }
            _ => "the gate's log says more",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gate, refusal, reply } = self;
        write!(f, "gate {gate} refused: {} ({refusal})", refusal.meaning())?;
        if *refusal == Refusal::SourceNotAllowed {
            write!(f, ": it is {}", reply.let_in())?;
        }
        write!(f, "; {}", self.advice())
    }
}
