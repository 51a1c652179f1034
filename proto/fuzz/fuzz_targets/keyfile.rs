//! Key files: what reads prints and reads back the same, and an error points into the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proto::{ClientEntry, KeyFile};

fuzz_target!(|text: &str| {
    match KeyFile::parse(text) {
        Ok(file) => {
            let printed: String = file.clients().iter().map(ClientEntry::to_toml).collect();
            let Ok(again) = KeyFile::parse(&printed) else { panic!("what was printed does not read") };
            assert!(again == file, "what was printed reads as something else");
        }
        Err(error) => {
            assert!((1..=text.matches('\n').count() + 1).contains(&error.line), "{error}");
            let line = text.split('\n').nth(error.line - 1).expect("the line is in the text");
            assert!((1..=line.chars().count() + 1).contains(&error.column), "{error}");
        }
    }
});
