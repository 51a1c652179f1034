//! All that uses ssh goes through the gate by itself, once `postern ssh-config --install` has been there: each tool at its
//! first try, with the door shut before it.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use postern_tests::gate::{SSH, Settings, Variant};
use postern_tests::home::Home;
use postern_tests::netns::Family;
use postern_tests::probe::{Seen, wait_to_see};
use postern_tests::process::{Finished, succeed};
use postern_tests::sshd::Sshd;
use postern_tests::wait::LONG;
use ring::rand::{SecureRandom, SystemRandom};

use crate::world::World;

/// What scp carries, in bytes.
const TRANSFER: usize = 100_000_000;
/// How many run ssh at once.
const CROWD: usize = 20;
/// What the user has for himself: nobody is there to be asked.
const BY_HAND: &str =
    "BatchMode yes\nStrictHostKeyChecking yes\nLogLevel ERROR\n\nHost other\n    Port 2200\n";

#[test]
fn every_tool_of_ssh_at_the_first_try_over_ipv4() -> Result<()> {
    every_tool(Family::V4)
}

#[test]
fn every_tool_of_ssh_at_the_first_try_over_ipv6() -> Result<()> {
    every_tool(Family::V6)
}

fn every_tool(family: Family) -> Result<()> {
    let user = User::new(family)?;
    user.world.opens(family)?;
    let address = user.world.gate.host().ip(family).to_string();
    for host in ["bastion", address.as_str()] {
        ensure!(user.first_try(&["ssh", host, "echo", "through"])?.text() == "through\n", "{host}");
    }
    user.copies_100_megabytes()?;
    user.synchronizes_a_folder()?;
    user.puts_and_gets()?;
    user.clones()?;
    user.comes_in_a_crowd()?;
    user.leaves()
}

/// Somebody with a home, who was added by the gate's administrator and has done what README says.
pub(crate) struct User {
    pub(crate) world: World,
    family: Family,
    pub(crate) home: Home,
    _sshd: Sshd,
}

impl User {
    pub(crate) fn new(family: Family) -> Result<Self> {
        let settings = Settings { variant: Variant::Nftables, ..Settings::default() };
        let mut world = World::new(settings)?;
        let sshd = Sshd::start(world.gate.host())?;
        world.gate.start(&[])?;
        let address = world.gate.host().ip(family).to_string();
        let added =
            world.gate.administer(&["client", "add", "bob", "--service", "ssh", "--address", &address])?;
        world.gate.reload()?;

        let home = Home::new()?;
        sshd.befriend(&home, &["bastion".to_owned(), address])?;
        fs::write(home.path(".ssh/config"), BY_HAND)?;
        succeed(home.command(&world.home, &["postern", "import", "bastion", "-"])?, &added.stdout, LONG)?;
        succeed(home.command(&world.home, &["postern", "ssh-config", "bastion", "--install"])?, b"", LONG)?;
        let installed = fs::read_to_string(home.path(".ssh/config"))?;
        ensure!(installed.contains(" proxy --gate bastion %h %p\n"), "{installed}");
        ensure!(installed.ends_with(BY_HAND), "{installed}");
        Ok(Self { world, family, home, _sshd: sshd })
    }

    /// Runs a command that has to succeed, once, with the door shut to the user.
    fn first_try(&self, words: &[&str]) -> Result<Finished> {
        self.door_is_shut()?;
        self.run(words, b"")
    }

    /// The door shuts behind him, and a fresh knock opens it.
    pub(crate) fn leaves(&self) -> Result<()> {
        self.door_is_shut()?;
        self.world.opens(self.family).map(drop)
    }

    pub(crate) fn door_is_shut(&self) -> Result<()> {
        wait_to_see(&self.world.home, self.world.gate.at(self.family, SSH), Seen::Nothing)
    }

    fn run(&self, words: &[&str], stdin: &[u8]) -> Result<Finished> {
        succeed(self.home.command(&self.world.home, words)?, stdin, LONG)
    }

    fn copies_100_megabytes(&self) -> Result<()> {
        let mut sent = vec![0; TRANSFER];
        SystemRandom::new().fill(&mut sent).expect("the kernel gives random bytes to whoever asks");
        fs::write(self.home.path("large"), &sent)?;
        let copy = self.there("large")?;
        self.first_try(&["scp", "large", &format!("bastion:{copy}")])?;
        ensure!(fs::read(copy)? == sent, "what scp copied is something else");
        Ok(())
    }

    fn synchronizes_a_folder(&self) -> Result<()> {
        fs::create_dir_all(self.home.path("tree/branch"))?;
        for name in ["one", "branch/two", "branch/three"] {
            fs::write(self.home.path("tree").join(name), name.repeat(1000))?;
        }
        let copy = self.there("tree")?;
        self.first_try(&["rsync", "--recursive", "tree/", &format!("bastion:{copy}/")])?;
        for name in ["one", "branch/two", "branch/three"] {
            ensure!(fs::read_to_string(Path::new(&copy).join(name))? == name.repeat(1000), "{name}");
        }
        Ok(())
    }

    fn puts_and_gets(&self) -> Result<()> {
        let copy = self.there("put")?;
        fs::write(self.home.path("batch"), format!("put tree/one {copy}\nget {copy} got\n"))?;
        self.first_try(&["sftp", "-b", "batch", "bastion"])?;
        ensure!(fs::read_to_string(self.home.path("got"))? == "one".repeat(1000));
        Ok(())
    }

    fn clones(&self) -> Result<()> {
        let there = self.there("project")?;
        let git = |words: &[&str]| self.run(&[&["git", "-C", &there], words].concat(), b"");
        self.run(&["git", "init", "--quiet", &there], b"")?;
        fs::write(Path::new(&there).join("readme"), "cloned")?;
        git(&["add", "readme"])?;
        git(&[
            "-c",
            "user.name=bob",
            "-c",
            "user.email=bob@example.org",
            "commit",
            "--quiet",
            "-m",
            "first",
        ])?;
        self.first_try(&["git", "clone", "--quiet", &format!("bastion:{there}"), "clone"])?;
        ensure!(fs::read_to_string(self.home.path("clone/readme"))? == "cloned");
        Ok(())
    }

    /// All at once, each with a knock of its own.
    fn comes_in_a_crowd(&self) -> Result<()> {
        self.door_is_shut()?;
        thread::scope(|scope| {
            let come = |number: usize| {
                let number = number.to_string();
                let said = self.run(&["ssh", "bastion", "echo", &number], b"")?.text();
                ensure!(said.trim_end() == number, "{said}");
                Ok(())
            };
            let crowd: Vec<_> = (0..CROWD).map(|number| scope.spawn(move || come(number))).collect();
            crowd.into_iter().try_for_each(|one| one.join().expect("ssh does not panic"))
        })
    }

    /// A path on the gate's host.
    fn there(&self, name: &str) -> Result<String> {
        let path = self.world.gate.directory().join(name);
        Ok(path.to_str().context("a path that is text")?.to_owned())
    }
}
