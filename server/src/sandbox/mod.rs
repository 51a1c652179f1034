//! What a process gives up before it meets the world, and the proof that it is gone (P6).
//!
//! Front and warden do it while they have one thread and no event loop: what the one thread gives up, every later one
//! never had. The order is that of what the next step needs: files are looked up as root, then user and capabilities
//! go ([`give_up_root`]), then Landlock and seccomp shut the door behind ([`Threshold::shut`]).

use std::fs::File;
use std::io::{self, Read};

use rustix::process::{
    DumpableBehavior, Gid, Signal, Uid, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

mod held;
mod landlock;
mod seccomp;

pub(crate) use held::{Held, names, threads_of};
pub(crate) use landlock::{Access, Files};
pub(crate) use seccomp::Calls;

/// Who the processes are once they have given up root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Go on where the kernel has no Landlock.
    pub(crate) landlock_optional: bool,
}

/// What a process keeps; everything else goes.
pub(crate) struct Keeps {
    pub(crate) capabilities: CapabilitySet,
    pub(crate) files: Files,
    pub(crate) calls: Calls,
}

/// Why a process does not run: it would hold more than it may.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error(
        "cannot give up {what}: {cause}; posternd must be started as root, with the capabilities of its unit"
    )]
    GiveUp { what: &'static str, cause: io::Error },
    #[error(transparent)]
    Landlock(#[from] landlock::LandlockError),
    #[error("cannot filter system calls: {0}")]
    Seccomp(String),
    #[error("after giving up its privileges this process still holds some: {0}")]
    StillHeld(String),
}

/// A process that is the unprivileged user already, and can still reach whatever that user can: what it has to lay out
/// for itself comes now.
#[must_use]
pub(crate) struct Threshold {
    identity: Identity,
    keeps: Keeps,
    files: Vec<landlock::Kept>,
    status: File,
}

/// Gives up root and every capability but those that are kept.
///
/// # Errors
/// [`SandboxError`]; the process must end then.
pub(crate) fn give_up_root(identity: Identity, keeps: Keeps) -> Result<Threshold, SandboxError> {
    // Landlock will not let /proc be opened: this file says what is held when it is read, not when it was opened.
    let status = File::open("/proc/thread-self/status").map_err(give_up("/proc"))?;
    let files = keeps.files.open()?;
    drop_user(identity, keeps.capabilities)?;
    // Whatever becomes of the line: who has lost the supervisor ends. Another user is only told so from now on.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(give_up("life without a supervisor"))?;
    // No other process of its user gets at it, and no dump of its memory, with every key, comes onto a disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(give_up("being dumped"))?;
    set_no_new_privs(true).map_err(give_up("new privileges"))?;
    Ok(Threshold { identity, keeps, files, status })
}

impl Threshold {
    /// Shuts everything but what is kept away, for good, and proves it. Says whether Landlock is in force.
    ///
    /// # Errors
    /// [`SandboxError`]; the process must end then.
    pub(crate) fn shut(self) -> Result<bool, SandboxError> {
        let Self { identity, keeps, files, mut status } = self;
        let landlocked = landlock::restrict(files, identity.landlock_optional)?;
        keeps.calls.restrict()?;

        let mut text = String::new();
        status.read_to_string(&mut text).map_err(give_up("/proc"))?;
        let held = Held::parse(&text).map_err(SandboxError::StillHeld)?;
        held.is_no_more_than(identity, keeps.capabilities).map_err(SandboxError::StillHeld)?;
        if held.threads != 1 {
            return Err(SandboxError::StillHeld(format!("{} threads instead of one", held.threads)));
        }
        Ok(landlocked)
    }
}

/// Becomes the unprivileged user, with these capabilities and no way to any other.
fn drop_user(identity: Identity, keep: CapabilitySet) -> Result<(), SandboxError> {
    limit_bounding_set(keep)?;
    set_keep_capabilities(true).map_err(give_up("root"))?;
    set_thread_groups(&[]).map_err(give_up("its groups"))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).map_err(give_up("root's group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(give_up("root"))?;
    set_keep_capabilities(false).map_err(give_up("root"))?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: keep };
    set_capabilities(None, sets).map_err(give_up("capabilities"))?;
    // Ambient: the programs that the warden runs are not root either.
    for capability in keep.iter() {
        configure_capability_in_ambient_set(capability, true).map_err(give_up("capabilities"))?;
    }
    Ok(())
}

/// Holds on to nothing but these capabilities, as the user it is: what the supervisor does with itself.
///
/// # Errors
/// [`SandboxError::GiveUp`]
pub(crate) fn limit_capabilities(keep: CapabilitySet) -> Result<(), SandboxError> {
    limit_bounding_set(keep)?;
    let now = rustix::thread::capabilities(None).map_err(give_up("capabilities"))?;
    let keep = keep & now.permitted;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(give_up("capabilities"))?;
    set_no_new_privs(true).map_err(give_up("new privileges"))
}

fn limit_bounding_set(keep: CapabilitySet) -> Result<(), SandboxError> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        // The kernel refuses to tell of capabilities that it does not know.
        let is_held = capability_is_in_bounding_set(capability).unwrap_or(false);
        if is_held && !keep.contains(capability) {
            remove_capability_from_bounding_set(capability).map_err(give_up("capabilities"))?;
        }
    }
    Ok(())
}

fn give_up<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SandboxError {
    move |cause| SandboxError::GiveUp { what, cause: cause.into() }
}
