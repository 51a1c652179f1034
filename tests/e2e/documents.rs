//! Documents name tests: each of these is there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

#[test]
fn every_test_that_the_table_of_weaknesses_names_is_there() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(here.join("../server/docs/weaknesses.md"))?;
    // Every other piece between backticks is code.
    let named: Vec<&str> =
        document.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect();
    ensure!(named.len() > 40, "only {} tests are named", named.len());
    for name in named.into_iter().filter(|name| *name != "file::test") {
        let (room, test) = name.rsplit_once("::").context("a room and a test")?;
        let path = room.replace("::tests", "").replace("::", "/");
        let places = ["e2e", "../server/src"].map(|place| here.join(place).join(&path));
        let files = places.iter().flat_map(|place| [place.with_extension("rs"), place.join("mod.rs")]);
        let file =
            files.into_iter().find(|file| file.exists()).with_context(|| format!("no room for {name}"))?;
        // A name without an underscore is a module's, or all of its tests.
        let prefix = format!("fn {}", test.trim_end_matches('*'));
        let is_there = !test.contains('_') || fs::read_to_string(&file)?.contains(&prefix);
        ensure!(is_there, "{name} is not in {}", file.display());
    }
    Ok(())
}
