//! What only Linux tells. The one module that asks it; elsewhere the answer is that nothing is known, and the client does
//! without.

use std::fs;

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
    fn signals_are_counted_from_one() {
        let status = "Name:\tpostern\nSigBlk:\tffffffffffffffff\nSigIgn:\t8000000000001001\nSigCgt:\tffffffffffffffff\n";
        let ignored: Vec<_> = (-1..70).filter(|signal| is_in(status, *signal)).collect();
        assert_eq!(ignored, [1, 13, 64]);
        assert!(!is_in("", 1) && !is_in("SigIgn:\tnone\n", 1));
    }
}
