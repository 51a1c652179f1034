//! Profiles as pictures: what stands on a terminal, photographed and read by zbarimg.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{run, succeed};
use postern_tests::wait::LONG;

use super::{AT, Desk, is_profile_of, keeps_secret};

/// One module of a picture is so many points of the photograph wide and high.
const SCALE: usize = 4;
/// Ink and paper, as a dark terminal has them and as a light one.
pub(super) const WHITE_ON_BLACK: [u8; 2] = [255, 0];
const BLACK_ON_WHITE: [u8; 2] = [0, 255];
/// How each line begins and ends on a terminal: black on white, and as it was before.
const COLOURS: [&str; 2] = ["\x1b[0;30;47;107m", "\x1b[0m"];

#[test]
fn in_a_pipe_the_picture_is_that_of_a_dark_terminal_and_of_a_light_one() -> Result<()> {
    let desk = Desk::new()?;
    let added = desk.client(&["add", "bob", "--service", "ssh", "--qr"])?;
    let bob = desk.entry("bob")?;
    keeps_secret(&added, &bob)?;
    let lines: Vec<_> = added.text().lines().map(ToOwned::to_owned).collect();
    let read = decode(&desk, &photograph(&lines, WHITE_ON_BLACK)?, &[])?;
    is_profile_of(&read, &bob, &[])?;
    // Black on white it is the negative, which not every reader tries.
    let negative = decode(&desk, &photograph(&lines, BLACK_ON_WHITE)?, &["--set", "test-inverted"])?;
    assert_eq!(negative, read);
    Ok(())
}

#[test]
fn on_a_terminal_the_picture_is_black_on_white_whatever_the_terminal_is() -> Result<()> {
    let desk = Desk::new()?;
    let (_, public) = desk.keygen("ed25519", "id")?;
    let signer = fs::read_to_string(&public)?;
    let words = ["client", "add", "bob", "--service", "ssh", "--ssh-key", &public, "--qr"];
    let shown = succeed(desk.on_terminal("exec", &[&words[..], &AT].concat())?, b"", LONG)?;
    let bob = desk.entry("bob")?;
    keeps_secret(&shown, &bob)?;
    // The terminal shows both streams; the picture is what has colours.
    let text = shown.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains('\x1b')).map(str::trim_end).collect();
    let strip = |line: &&str| line.strip_prefix(COLOURS[0])?.strip_suffix(COLOURS[1]).map(ToOwned::to_owned);
    let lines: Option<Vec<_>> = lines.iter().map(strip).collect();
    let lines = lines.with_context(|| format!("a line without its colours in {text:?}"))?;
    ensure!(!lines.iter().any(|line| line.contains('\x1b')), "more colours in {text:?}");
    is_profile_of(&decode(&desk, &photograph(&lines, BLACK_ON_WHITE)?, &[])?, &bob, &[&signer])
}

#[test]
fn a_picture_that_nobody_could_read_changes_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let hosts: Vec<_> = (0..200).map(|host| format!("--address=host-{host}.example.net")).collect();
    let long: Vec<_> = hosts.iter().map(String::as_str).collect();
    let add = ["add", "bob", "--service", "ssh", "--qr"];
    desk.refuses(&[&add[..], &long].concat(), 1, "--out FILE")?;
    desk.refuses(&[&["rotate", "alice", "--qr"], &long[..]].concat(), 1, "--out FILE")?;

    let before = desk.keys()?;
    let narrow = desk.on_terminal("stty cols 40; exec", &[&["client"], &add[..], &AT].concat())?;
    let shown = run(narrow, b"", LONG)?;
    ensure!(shown.code == 1 && shown.text().contains("make it wider"), "{shown:?}");
    assert_eq!(desk.keys()?, before);
    Ok(())
}

/// What a camera sees of half blocks in these colours: that of the text, and that behind it. A portable greymap.
pub(super) fn photograph(lines: &[String], [ink, paper]: [u8; 2]) -> Result<Vec<u8>> {
    let width = lines.first().map(|line| line.chars().count()).context("a picture has lines")?;
    let mut rows: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        ensure!(line.chars().count() == width, "a line of another length in {lines:#?}");
        let halves = line.chars().map(|block| match block {
            ' ' => Ok([paper, paper]),
            '▀' => Ok([ink, paper]),
            '▄' => Ok([paper, ink]),
            '█' => Ok([ink, ink]),
            other => anyhow::bail!("{other:?} is no half block"),
        });
        let halves: Vec<_> = halves.collect::<Result<_>>()?;
        for half in 0..2 {
            rows.push(halves.iter().flat_map(|block| [block[half]; SCALE]).collect());
        }
    }
    let mut picture = format!("P5 {} {} 255\n", width * SCALE, rows.len() * SCALE).into_bytes();
    for row in &rows {
        picture.extend(row.repeat(SCALE));
    }
    Ok(picture)
}

/// What zbarimg reads in a picture.
pub(super) fn decode(desk: &Desk, picture: &[u8], options: &[&str]) -> Result<String> {
    let file = desk.path("picture.pgm");
    fs::write(&file, picture)?;
    let mut command = Command::new("zbarimg");
    command.args(["--raw", "-q", "--nodbus"]).args(options).arg(&file);
    let read = succeed(command, b"", LONG)?.text();
    fs::remove_file(&file)?;
    Ok(read)
}
