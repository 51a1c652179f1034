//! How a client gets what it knocks with: profiles as lines, files, pictures and encrypted ones, to which the programs that others
//! use for these are the judges (ssh-keygen, age, zbarimg); new secrets for old; and many clients at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postern_proto::{ClientEntry, KeyFile, Profile};
use postern_tests::gate::{Gate, Settings};
use postern_tests::process::{Finished, run, succeed};
use postern_tests::wait::LONG;

use crate::world::World;

mod delivery;
mod import;
mod listing;
mod picture;
mod postern;
mod rotation;
mod signers;

/// Where the gate is, for profiles: the configuration of the tests does not say it.
const AT: [&str; 2] = ["--address", "10.0.0.1"];

/// A gate that does not run, and what is given to it by hand.
struct Desk {
    world: World,
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { world: World::new(Settings::default())? })
    }

    fn gate(&self) -> &Gate {
        &self.world.gate
    }

    /// A file of this test, as an argument.
    fn path(&self, name: &str) -> String {
        self.gate().directory().join(name).display().to_string()
    }

    /// Makes a pair of SSH keys, and gives the paths of both halves.
    fn keygen(&self, kind: &str, name: &str) -> Result<(String, String)> {
        let private = self.path(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", kind, "-N", "", "-C", name, "-f", &private]);
        succeed(command, b"", LONG)?;
        Ok((private.clone(), format!("{private}.pub")))
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// The key file as it is.
    fn keys(&self) -> Result<String> {
        Ok(fs::read_to_string(self.gate().keys())?)
    }

    fn entry(&self, name: &str) -> Result<ClientEntry> {
        let clients = KeyFile::parse(&self.keys()?)?.into_clients();
        clients.into_iter().find(|client| client.name.as_str() == name).with_context(|| format!("no {name}"))
    }

    /// What is in the folder of the gate.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.gate().directory())?;
        let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.sort();
        Ok(files)
    }

    /// `posternd client` with a profile to make, which says where the gate is.
    fn client(&self, arguments: &[&str]) -> Result<Finished> {
        self.gate().administer(&[&["client"], arguments, &AT].concat())
    }

    /// The words of a `posternd` command that begin with the program: those before it lead to its host.
    fn words(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let posternd = self.gate().posternd(arguments)?;
        let words: Vec<_> = posternd.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let program =
            words.iter().position(|word| word.ends_with("/posternd")).context("a posternd to run")?;
        Ok(words[program..].to_vec())
    }

    /// A `posternd` command on a terminal, which `script` is; its words need no quotes.
    fn on_terminal(&self, before: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.gate().host().command("script");
        command.args(["-qec", &format!("{before} {}", self.words(arguments)?.join(" ")), "/dev/null"]);
        command.env("TERM", "xterm");
        Ok(command)
    }

    /// `posternd client`, refused with words, and without a trace.
    fn refuses(&self, arguments: &[&str], code: i32, says: &str) -> Result<()> {
        self.refuses_with(self.gate().posternd(&[&["client"], arguments].concat())?, code, says)
    }

    fn refuses_with(&self, command: Command, code: i32, says: &str) -> Result<()> {
        let name = format!("{command:?}");
        let before = (self.keys()?, self.files()?);
        let Finished { code: ended, stdout, stderr } = run(command, b"", LONG)?;
        ensure!(ended == code && stderr.contains(says), "{name} ended with {ended}, not {code}: {stderr}");
        ensure!(stdout.is_empty(), "{name} printed {:?}", String::from_utf8_lossy(&stdout));
        ensure!((self.keys()?, self.files()?) == before, "{name} was refused and has changed something");
        Ok(())
    }
}

/// The profile is that of the client in the key file, and of its keys.
fn is_profile_of(line: &str, entry: &ClientEntry, signers: &[&str]) -> Result<()> {
    let profile = Profile::from_line(line)?;
    ensure!(*profile.to_line() == line.trim(), "the line and nothing else");
    ensure!(profile.client == entry.id && profile.secret == entry.secret, "the profile is the entry's");
    let identities: Vec<_> = profile.identities.iter().map(ToString::to_string).collect();
    for (identity, signer) in identities.iter().zip(signers) {
        let blob = |line: &str| line.split(' ').nth(1).map(ToOwned::to_owned);
        ensure!(blob(identity) == blob(signer), "{identity} signs, not {signer}");
    }
    ensure!(identities.len() == signers.len(), "{identities:?} sign, not {signers:?}");
    Ok(())
}

/// Nothing that was printed has a secret of the client in it, in whatever form.
fn keeps_secret(finished: &Finished, entry: &ClientEntry) -> Result<()> {
    for text in [&finished.text(), &finished.stderr] {
        ensure!(!text.contains("postern1:"), "a profile is printed: {text}");
        ensure!(!text.contains(&**entry.secret.to_text()), "a secret is printed: {text}");
    }
    Ok(())
}

fn mode(path: impl AsRef<Path>) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}
