//! What only Linux tells. The one module that asks it; elsewhere the answer is that nothing is known, and the client does
//! without.

use std::fs;
use std::path::PathBuf;

mod signals;

pub(crate) use signals::HeldSignals;

/// The terminal of this process by a name that no other terminal has.
pub(crate) fn terminal() -> Option<PathBuf> {
    terminal_in(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// By its number (proc(5)): the fifth field behind the name of the program.
fn terminal_in(stat: &str) -> Option<PathBuf> {
    let (_, fields) = stat.rsplit_once(')')?;
    let number: u32 = fields.split_whitespace().nth(4)?.parse().ok()?;
    let (major, minor) = (number >> 8 & 0xff, number & 0xff | number >> 12 & 0xf_ff00);
    match major {
        4 if minor < 64 => Some(format!("/dev/tty{minor}").into()),
        136..=143 => Some(format!("/dev/pts/{}", (major - 136) << 8 | minor).into()),
        _ => None,
    }
}

/// Whether whoever started this process has it ignore a signal, as nohup does. To be asked before the signal is handled.
pub(crate) fn ignores(signal: i32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| is_in(&status, signal))
}

/// Whether a signal is in the set of those that are ignored: a number of 64 bits, one for each from 1 on.
fn is_in(status: &str, signal: i32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    let bit = u32::try_from(signal - 1).ok().and_then(|place| 1_u64.checked_shl(place));
    set.zip(bit).is_some_and(|(set, bit)| set & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_a_name_of_its_own() {
        let named = |number: u32| {
            terminal_in(&format!("1 (a ) b) S 1 2 3 {number} 4 5")).map(|path| path.display().to_string())
        };
        assert_eq!(named(0), None);
        assert_eq!(named(136 << 8 | 3).as_deref(), Some("/dev/pts/3"));
        assert_eq!(named(136 << 8 | 1 << 20 | 4).as_deref(), Some("/dev/pts/260"));
        assert_eq!(named(4 << 8 | 1).as_deref(), Some("/dev/tty1"));
        assert_eq!(terminal_in("nothing"), None);
    }

    #[test]
    fn signals_are_counted_from_one() {
        let status = "Name:\tpostern\nSigBlk:\tffffffffffffffff\nSigIgn:\t8000000000001001\nSigCgt:\tffffffffffffffff\n";
        let ignored: Vec<_> = (-1..70).filter(|signal| is_in(status, *signal)).collect();
        assert_eq!(ignored, [1, 13, 64]);
        assert!(!is_in("", 1) && !is_in("SigIgn:\tnone\n", 1));
    }
}
