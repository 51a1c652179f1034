//! Where the attempts are made: a gate that runs, files that are none of its processes' business, and a process that
//! nothing confines, for comparison.

use std::fs::{self, Permissions};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postern_tests::debugger::Calls;
use postern_tests::gate::Settings;
use postern_tests::held::{Kind, descriptors, threads};
use postern_tests::netns::Family;
use postern_tests::orders::orders;
use postern_tests::process::Process;
use postern_tests::wait::{LONG, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use super::attempts::{Attempts, compare};
use crate::world::World;

/// Where somebody listens on the gate's host.
pub(super) const ABSTRACT_NAME: &str = "postern-takeover";

pub(super) struct Scene {
    pub(super) world: World,
    pub(super) front: Pid,
    pub(super) warden: Pid,
    pub(super) supervisor: Pid,
    /// Takes connections at [`ABSTRACT_NAME`].
    _listener: UnixListener,
}

/// Who makes the attempts, by what it holds.
#[derive(Default)]
pub(super) struct Subject {
    /// Its capture.
    pub(super) capture: Option<i32>,
    /// Its end of the link between front and warden.
    pub(super) orders: Option<i32>,
}

impl Scene {
    pub(super) fn new(settings: Settings) -> Result<Self> {
        let world = World::running(settings)?;
        // The threads that a knock starts are there, too.
        world.opens(Family::V4)?;
        let pid = |name| world.gate.pid_of(name);
        let (front, warden, supervisor) = (pid("postern-front")?, pid("postern-warden")?, pid("posternd")?);
        let name = SocketAddr::from_abstract_name(ABSTRACT_NAME)?;
        let listener = world.gate.host().enter(|| UnixListener::bind_addr(&name))??;
        let scene = Self { world, front, warden, supervisor, _listener: listener };
        for (path, mode) in [(scene.lost_key(), 0o644), (scene.beside(), 0o666)] {
            fs::write(&path, "anybody may read this\n")?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
        fs::create_dir(scene.open_folder())?;
        fs::set_permissions(scene.open_folder(), Permissions::from_mode(0o777))?;
        Ok(scene)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.gate.directory().join(name)
    }

    pub(super) fn key_file(&self) -> PathBuf {
        self.file("keys")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.file("posternd.toml")
    }

    /// The front's folder.
    pub(super) fn folder(&self) -> PathBuf {
        self.file("state/front")
    }

    pub(super) fn store(&self) -> PathBuf {
        self.folder().join("replay.redb")
    }

    /// Somebody's ssh key with a mode that lets everybody read it: only Landlock stands before it.
    pub(super) fn lost_key(&self) -> PathBuf {
        self.file("id_ed25519")
    }

    /// A file beside the front's folder, which everybody may write.
    pub(super) fn beside(&self) -> PathBuf {
        self.file("state/beside")
    }

    /// A folder in which everybody may make files.
    pub(super) fn open_folder(&self) -> PathBuf {
        self.file("open")
    }

    /// Files of the front's user in the front's folder.
    pub(super) fn spare(&self) -> PathBuf {
        self.folder().join("spare")
    }

    /// A process of root's on the gate's host that nothing confines. Whatever it has taken hold of goes on when it ends, and
    /// only then: a warden that it traces stands still at the first signal, such as that a program of its own has ended.
    fn free(&self) -> Result<Process> {
        let mut command = self.world.gate.host().command("sleep");
        command.arg("600");
        let free = Process::spawn(command)?;
        wait_for("a process that nothing confines", LONG, || {
            Ok((fs::read_to_string(format!("/proc/{}/comm", raw(free.pid())))?.trim() == "sleep")
                .then_some(()))
        })?;
        Ok(free)
    }

    /// Has both a free process and this one make the same attempts.
    pub(super) fn is_confined(
        &self,
        name: &str,
        pid: Pid,
        attempts: impl Fn(&Subject) -> Attempts,
    ) -> Result<()> {
        self.lay_spare()?;
        let free = self.unwatched(|| attempts(&Subject::default()).make(self.free()?.pid()))?;
        self.lay_spare()?;
        let subject = self.subject(pid)?;
        let confined = self.unwatched(|| attempts(&subject).make(pid))?;
        compare(name, &free, &confined)
    }

    /// Does something for which a process has to stand still: as long as it takes, which the supervisor would take for a
    /// process that hangs, and replace it.
    fn unwatched<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        stop_for_a_while(self.supervisor)?;
        let done = act();
        kill_process(self.supervisor, Signal::CONT)?;
        done
    }

    /// Files of the front's user in the front's folder.
    fn lay_spare(&self) -> Result<()> {
        let user = *threads(self.front)?.first().and_then(|thread| thread.users.first()).context("a user")?;
        let spare = self.spare();
        if spare.exists() {
            fs::remove_dir_all(&spare)?;
        }
        fs::create_dir_all(spare.join("below"))?;
        for name in ["file", "second", "third"] {
            fs::write(spare.join(name), "spare\n")?;
            chown(spare.join(name), Some(user), None)?;
        }
        chown(spare.join("below"), Some(user), None)?;
        Ok(chown(spare, Some(user), None)?)
    }

    fn subject(&self, pid: Pid) -> Result<Subject> {
        let held = descriptors(pid)?;
        let capture = held.iter().find(|descriptor| descriptor.kind == Kind::Packet);
        let orders = orders(&held, &descriptors(self.supervisor)?).map(|descriptor| descriptor.number);
        Ok(Subject { capture: capture.map(|descriptor| descriptor.number), orders })
    }

    /// A process cannot become another program, and one that nothing confines does.
    pub(super) fn runs_no_program(&self, pid: Pid) -> Result<()> {
        let program = || {
            let mut calls = Calls::default();
            let (path, argument) = (calls.text("/bin/sleep"), calls.text("601"));
            let arguments = calls.words(&[path, argument, 0]);
            let environment = calls.words(&[0]);
            let call = calls.call(libc::SYS_execve, &[&path, &arguments, &environment]);
            (calls, call)
        };
        let (calls, call) = program();
        let answer = self.unwatched(|| calls.make(pid))?.of(call);
        ensure!(answer == Err(libc::EPERM), "execve: {answer:?}");
        // It never comes back from this call.
        let (calls, _) = program();
        let free = self.free()?;
        drop(calls.make(free.pid()));
        // On a busy machine it takes a moment to be another program.
        let file = format!("/proc/{}/cmdline", raw(free.pid()));
        wait_for("the free process to run another program", LONG, || {
            Ok(fs::read(&file)?.ends_with(b"\x00601\0").then_some(()))
        })
    }

    /// The processes are the same as before, and a fresh knock opens.
    pub(super) fn goes_on(&self) -> Result<()> {
        let gate = &self.world.gate;
        self.world.opens_to(&self.world.stranger, Family::V4)?;
        assert_eq!(gate.pid_of("postern-front")?, self.front);
        assert_eq!(gate.pid_of("postern-warden")?, self.warden);
        Ok(())
    }
}

pub(super) fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// Stops a process in its tracks, and waits until it stands still.
pub(super) fn stop_for_a_while(pid: Pid) -> Result<()> {
    kill_process(pid, Signal::STOP)?;
    wait_for("a process that stands still", LONG, || {
        let status = fs::read_to_string(format!("/proc/{}/status", raw(pid)))?;
        Ok(status.lines().any(|line| line.starts_with("State:\tT")).then_some(()))
    })
}

/// The first mapping of a process: an address that it can be read at.
pub(super) fn mapping(pid: Pid) -> i64 {
    let maps = fs::read_to_string(format!("/proc/{}/maps", raw(pid))).expect("the process runs");
    let address = maps.split('-').next().expect("a process has a mapping");
    i64::from_str_radix(address, 16).expect("an address")
}

/// Private keys of this machine's sshd.
pub(super) fn host_keys() -> Vec<PathBuf> {
    let entries = fs::read_dir("/etc/ssh").into_iter().flatten().flatten();
    let keys = entries.map(|entry| entry.path());
    keys.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(b"_key")))
        .collect()
}
