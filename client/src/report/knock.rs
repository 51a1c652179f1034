//! What became of knocks, those that close among them.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use postern_proto::ServiceName;
use serde::Serialize;

use super::{AnswerReport, FailedReport, OpenReport, joined};

/// Knocks that were sent.
#[derive(Debug, Serialize)]
pub struct KnockReport {
    /// The gate's name, or `-`.
    pub gate: String,
    /// What was asked for.
    pub services: Vec<ServiceName>,
    /// For how long, in seconds, when that was said.
    pub window_seconds: Option<u32>,
    /// Where knocks went.
    pub knocks: Vec<KnockedReport>,
    /// Names and addresses that no knock could be sent to.
    pub failed: Vec<FailedReport>,
    /// What the gate answered, where it does.
    pub answer: Option<AnswerReport>,
    /// The one source port that is let in.
    #[serde(skip)]
    pub from_port: Option<NonZeroU16>,
    /// What let a connection in, when that was waited for.
    pub open: Option<Vec<OpenReport>>,
    /// Whether nothing was sent.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

/// Knocks that were sent to close something.
#[derive(Debug, Serialize)]
pub struct CloseReport {
    /// The gate's name, or `-`.
    pub gate: String,
    /// What was to be closed.
    pub services: Vec<ServiceName>,
    /// Where knocks went.
    pub knocks: Vec<KnockedReport>,
    /// Names and addresses that no knock could be sent to.
    pub failed: Vec<FailedReport>,
    /// What the gate answered, where it does.
    pub answer: Option<AnswerReport>,
    /// Whether nothing was sent.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

/// One address and port that was knocked at.
#[derive(Debug, Serialize)]
pub struct KnockedReport {
    /// The address.
    pub address: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// How many knocks left this host.
    pub sent: u8,
    /// Whom they asked to let in: `observed`, or an address.
    pub source: String,
    /// How many there are, if only in a rehearsal.
    #[serde(skip)]
    pub times: u8,
    /// The datagram in hexadecimal digits, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagram: Option<String>,
}

impl fmt::Display for KnockReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = joined(&self.services);
        if let Some(answer) = &self.answer {
            // Then nobody asks what was sent.
            writeln!(f, "{}", answer.line(&services, self.from_port))?;
        } else {
            let line = |knocked: &KnockedReport| knocked.line(&format!("open {services} to"));
            self.knocks.iter().try_for_each(|knocked| writeln!(f, "{}", line(knocked)))?;
        }
        for OpenReport { service, address, port, after_ms } in self.open.iter().flatten() {
            let service = service.as_ref().map(|service| format!("{service} at ")).unwrap_or_default();
            writeln!(f, "open: {service}{address} port {port}, {after_ms} ms after the knock")?;
        }
        Ok(())
    }
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = joined(&self.services);
        if let Some(answer) = &self.answer {
            return writeln!(f, "{}", answer.line(&services, None));
        }
        let line = |knocked: &KnockedReport| knocked.line(&format!("close {services} for"));
        self.knocks.iter().try_for_each(|knocked| writeln!(f, "{}", line(knocked)))
    }
}

impl KnockedReport {
    /// What was sent, or would be, in one line; `what` it asks to do to whom.
    fn line(&self, what: &str) -> String {
        let Self { address, port, sent, source, times, datagram } = self;
        if let Some(digits) = datagram {
            return digits.clone();
        }
        let verb = if *sent == 0 { "would send" } else { "sent" };
        let knocks = if *times == 1 { "1 knock".to_owned() } else { format!("{times} knocks") };
        let whom = if source == "observed" { "the address it comes from" } else { source };
        format!("{verb} {knocks} to {address} port {port}: {what} {whom}")
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}
