//! Errors in text that people write, with line and column, and never with what stood there: the text may hold
//! secrets.

use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;

/// Longest name that is taken for a field's; no key material is as short.
const LONGEST_FIELD: usize = 24;

/// Where a text is wrong, and what to do about it.
///
/// It never repeats a value of the text: a key file's error may end in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there, and what to write instead.
    pub message: String,
}

impl TextError {
    /// An error at a byte range of `text`.
    #[must_use]
    pub fn at(text: &str, span: &Range<usize>, message: impl Into<String>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for TextError {}

/// Reads TOML into a type.
///
/// # Errors
/// The first mistake, with its place and without the values that stand there.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, TextError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let message = without_values(error.message());
        let message = match field_at(text, span.start) {
            Some(field) if !message.contains(&format!("`{field}`")) => format!("{field}: {message}"),
            _ => message,
        };
        TextError::at(text, &span, message)
    })
}

/// The field whose value begins on the line of a mistake and before it; TOML's own errors do not name it.
fn field_at(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?;
    let line = &before[before.rfind('\n').map_or(0, |newline| newline + 1)..];
    let field = line.split_once('=')?.0.trim();
    let is_name = (1..=LONGEST_FIELD).contains(&field.len())
        && field.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    is_name.then_some(field)
}

/// serde's type errors quote the value that they met (invalid type: string "…", or integer `…`): what stands from the
/// first quote to what was expected goes. Field names stand in other messages and stay.
fn without_values(message: &str) -> String {
    let quotes_value = message.starts_with("invalid type:") || message.starts_with("invalid value:");
    match (message.find(['"', '`']), message.rfind(", expected")) {
        (Some(value), Some(expected)) if quotes_value && value < expected => {
            format!("{}{}", message[..value].trim_end(), &message[expected..])
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read by serde only")]
    struct Sample {
        list: Vec<u8>,
    }

    #[test]
    fn errors_name_the_place_and_keep_the_value() {
        let error = from_toml::<Sample>("\n list = \"c2VjcmV0\"").unwrap_err();
        assert_eq!((error.line, error.column), (2, 9));
        assert_eq!(error.message, "list: invalid type: string, expected a sequence");
        let error = from_toml::<Sample>("list = 31337").unwrap_err();
        assert_eq!(error.message, "list: invalid type: integer, expected a sequence");
        let error = from_toml::<Sample>("list = []\nlisst = 1").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.message.contains("`lisst`"), "{error}");
    }
}
