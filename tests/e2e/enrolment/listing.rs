//! What `client list` says of when each client knocked last.

use std::fs;

use anyhow::{Result, ensure};

use super::{AT, Desk};

#[test]
fn last_uses_are_listed_and_what_cannot_be_read_is_said() -> Result<()> {
    let desk = Desk::new()?;
    desk.gate().administer(&[&["client", "add", "bob", "--service", "ssh"], &AT[..]].concat())?;
    let (alice, state) = (desk.entry("alice")?, desk.gate().state().to_owned());
    fs::create_dir_all(&state)?;
    let file = state.join("last-use");
    fs::write(&file, format!("{} = \"2026-11-24T12:00:00Z\"\n", alice.id))?;
    let listed = desk.gate().administer(&["client", "list"])?;
    let of = |name: &str| listed.text().lines().find(|line| line.starts_with(name)).map(ToOwned::to_owned);
    ensure!(of("alice").is_some_and(|line| line.contains("  2026-11-24T12:00:00Z  ssh")), "{listed:?}");
    ensure!(of("bob").is_some_and(|line| line.contains("  never  ")), "{listed:?}");
    ensure!(listed.stderr.is_empty(), "{listed:?}");

    fs::write(&file, "what is this")?;
    let listed = desk.gate().administer(&["client", "list"])?;
    ensure!(listed.text().matches("  ?  ").count() == 2, "{listed:?}");
    ensure!(listed.stderr.contains("warning") && listed.stderr.contains("last-use"), "{listed:?}");
    let listed = desk.gate().administer(&["client", "list", "--json"])?;
    let rows: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    ensure!(rows[0].get("last-use").is_none() && rows[1]["name"] == "bob", "{rows}");
    Ok(())
}
