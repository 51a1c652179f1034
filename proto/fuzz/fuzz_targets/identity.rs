//! Public keys and files of them: what reads prints and reads back the same, on one line that shows on any terminal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proto::IdentityKey;
use postern_proto::identity::MAX_IDENTITIES;

fuzz_target!(|text: &str| {
    let (keys, _) = IdentityKey::authorized(text);
    assert!(keys.len() <= MAX_IDENTITIES);
    for key in keys.into_iter().chain(text.parse()) {
        let printed = key.to_string();
        assert!(!printed.chars().any(char::is_control), "{printed:?}");
        assert!(printed.parse::<IdentityKey>() == Ok(key), "{printed:?}");
    }
});
