//! The packets of a schedule, as it writes them.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result};

/// SYN, of TCP's flags.
const SYN: u8 = 0x02;
/// The letters of TCP's flags, from the lowest bit.
const FLAGS: &str = "fsrpau";

/// One packet: `[WAIT+][=][b][@]PORT[u|/FLAGS]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// How long after the one before, in milliseconds in text.
    pub(super) after: Duration,
    /// `=`: it is the one that this source has sent to this port before, once more.
    pub(super) again: bool,
    /// `b` for another source than the first.
    pub(super) source: u16,
    /// `@`: to the gate's other address.
    pub(super) elsewhere: bool,
    pub(super) port: u16,
    /// None with `u`, for UDP; SYN where nothing is said.
    pub(super) flags: Option<u8>,
}

impl FromStr for Packet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (after, rest) = text.split_once('+').unwrap_or(("0", text));
        let after = Duration::from_millis(after.parse()?);
        let (again, rest) = strip(rest, '=');
        let (is_other, rest) = strip(rest, 'b');
        let (elsewhere, rest) = strip(rest, '@');
        let (port, flags) = if let Some((port, letters)) = rest.split_once('/') {
            let bit = |letter| Some(1 << FLAGS.find(letter)?);
            let flags = letters.chars().try_fold(0, |flags, letter| Some(flags | bit(letter)?));
            (port, Some(flags.with_context(|| format!("no flags: {text}"))?))
        } else if let Some(port) = rest.strip_suffix('u') {
            (port, None)
        } else {
            (rest, Some(SYN))
        };
        let port = port.parse().with_context(|| format!("no packet: {text}"))?;
        Ok(Self { after, again, source: is_other.into(), elsewhere, port, flags })
    }
}

fn strip(text: &str, mark: char) -> (bool, &str) {
    text.strip_prefix(mark).map_or((false, text), |rest| (true, rest))
}
