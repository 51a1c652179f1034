//! Names: of services, clients and gates. Short ASCII words that are safe in logs, firewall comments and file
//! names without quoting.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a name was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} name is 1 to {max} letters, digits, '-', '_' or '.', and begins with a letter or digit")]
pub struct NameError {
    kind: &'static str,
    max: usize,
}

fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    (1..=max).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        ///
        /// Cheap to clone: the text is shared.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Longest name in bytes.
            pub const MAX_LEN: usize = $max;

            /// The name's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_name(text, Self::MAX_LEN) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { kind: $kind, max: Self::MAX_LEN })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

name!(
    /// A service of a gate, such as `ssh`; it travels in the knock (SPEC 4.2).
    ServiceName, "service", 32
);
name!(
    /// A client of a gate, such as `alice-laptop`; it never travels.
    ClientName, "client", 64
);
name!(
    /// A sequence of ports that opens services, such as `legacy-ssh`; it never travels.
    SequenceName, "sequence", 32
);
name!(
    /// What a client calls a gate, such as `bastion`.
    GateName, "gate", 64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_words() {
        for text in ["ssh", "a", "web-1.prod_x", &"x".repeat(32)] {
            assert_eq!(text.parse::<ServiceName>().unwrap().as_str(), text);
        }
        for text in ["", "-x", ".x", "a b", "a:b", "a/b", "é", "a\n", &"x".repeat(33)] {
            assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
        }
    }
}
