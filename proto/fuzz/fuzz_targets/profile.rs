//! Profiles: any line, any body under a right checksum, and any TOML. What reads prints and reads back the same, as a
//! line and as TOML.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use postern_proto::Profile;
use postern_proto::profile::{PREFIX, ProfileError};
use ring::digest;

/// The line of a body, with the length and the checksum it must have (SPEC 6.1).
fn line(body: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, body);
    let len = u32::try_from(body.len()).expect("a fuzzer's input is short").to_be_bytes();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([&len, &sum.as_ref()[..4], body].concat()))
}

fn assert_reads_back(profile: &Profile) {
    let line = profile.to_line();
    assert!(Profile::from_line(&line).as_ref() == Ok(profile));
    let text = toml::to_string(profile).expect("a profile has a TOML form");
    assert!(toml::from_str::<Profile>(&text).as_ref() == Ok(profile));
    // A line that lost its end says so, wherever it was cut.
    let end = line.len() - 1 - usize::from(line.as_bytes()[line.len() / 2]) % (line.len() - 1);
    assert_eq!(Profile::from_line(&line[..end.max(1)]).err(), Some(ProfileError::Cut));
}

fuzz_target!(|data: &[u8]| {
    match Profile::from_line(&line(data)) {
        Ok(profile) => assert_reads_back(&profile),
        Err(error) => assert_eq!(error, ProfileError::Unsupported),
    }
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(profile) = Profile::from_line(text) {
        assert_reads_back(&profile);
    }
    if let Ok(profile) = toml::from_str::<Profile>(text) {
        assert_reads_back(&profile);
    }
});
