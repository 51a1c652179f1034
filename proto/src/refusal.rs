//! Why a gate refuses a knock. One reason each, in the order of the checks (SPEC 5). The wire never tells.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $meaning:literal,)*) => {
        /// The one reason why a gate refused a knock, in the order in which the gate checks (SPEC 5).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Refusal {
            $($(#[$doc])* #[doc = $meaning] $variant,)*
        }

        impl Refusal {
            /// Every reason, in the order of the checks.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in logs, counters and the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for a person.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

refusals! {
    Unknown = "unknown": "no enabled client of this gate has this hint within the clock tolerance",
    Replayed = "replayed": "this knock was seen before",
    Forged = "forged": "a client's hint, but not sealed with that client's key for this gate",
    Malformed = "malformed": "sealed by the client, but not a valid payload",
    Stale = "stale": "made too long ago, or before something the gate no longer remembers",
    Early = "early": "made further in the future than the clock tolerance allows",
    UnusableSource = "unusable-source": "the address to let in is not a unicast address that can be let in",
    NotYetValid = "not-yet-valid": "before the first date of this client",
    Expired = "expired": "after the last date of this client",
    SourceNotStated = "source-not-stated": "this client must state the address to let in",
    SourceNotOwn = "source-not-own": "this client may let in only the address it knocks from",
    SourceNotAllowed = "source-not-allowed": "the address to let in is outside this client's networks",
    UnknownService = "unknown-service": "the gate has no such service",
    ServiceNotAllowed = "service-not-allowed": "this client may not have this service",
    WindowTooLong = "window-too-long": "the window asked for is longer than this client may have",
    Unsigned = "unsigned": "this client must sign its knocks with its identity key, and this one is not signed",
    Busy = "busy": "a quota is full: remembered knocks or live leases, of this client or of the gate",
    BadSignature = "bad-signature": "no identity key of this client signed this knock",
    Unrecorded = "unrecorded": "the knock could not be recorded durably, so the door stayed shut",
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Line {
        reason: Refusal,
    }

    #[test]
    fn each_is_written_by_its_name() {
        for refusal in Refusal::ALL {
            let text = format!("reason = \"{refusal}\"");
            assert_eq!(toml::from_str::<Line>(&text).unwrap().reason, *refusal);
        }
    }
}
