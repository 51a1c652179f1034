//! The files that a process can still open, and that is all it can: Landlock, a part of the kernel since 5.13.
//! Where the kernel knows it, it takes TCP, signals to others and others' abstract sockets as well.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version that this was tried with; older kernels give what they have.
const NEWEST: ABI = ABI::V6;

/// A file that was opened to be kept.
pub(super) type Kept = PathBeneath<PathFd>;

/// What may be done with a file, or with all beneath a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it, and list the folder.
    Read,
    /// Read and run it.
    Run,
    /// Read and write it, and make files in the folder.
    Write,
}

/// The files that a process keeps.
#[derive(Default)]
pub(crate) struct Files(Vec<(PathBuf, Access)>);

/// Why the files cannot be shut away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LandlockError {
    #[error(
        "this kernel has no Landlock, which keeps the processes from files that are none of theirs: enable it \
         (lsm=landlock,...), or set landlock = \"if-available\" in [process]"
    )]
    Missing,
    #[error("cannot restrict files with Landlock: {0}")]
    Failed(#[from] RulesetError),
    #[error("cannot restrict files with Landlock: {0}")]
    Path(#[from] landlock::PathFdError),
}

impl Files {
    /// Keeps this one, which must be there.
    pub(crate) fn keep(mut self, path: impl Into<PathBuf>, access: Access) -> Self {
        self.0.push((path.into(), access));
        self
    }

    /// Keeps those of these that are there.
    pub(crate) fn keep_existing(mut self, paths: &[&str], access: Access) -> Self {
        let existing = paths.iter().filter(|path| Path::new(path).exists());
        self.0.extend(existing.map(|path| (path.into(), access)));
        self
    }

    /// Opens them, to be kept.
    ///
    /// # Errors
    /// When one is missing or cannot be opened.
    pub(super) fn open(&self) -> Result<Vec<Kept>, LandlockError> {
        let opened = self.0.iter().map(|(path, access)| {
            let fd = PathFd::new(path)?;
            let rights =
                if path.is_dir() { access.rights() } else { access.rights() & AccessFs::from_file(NEWEST) };
            Ok(PathBeneath::new(fd, rights))
        });
        opened.collect()
    }
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            Self::Run => read | AccessFs::Execute,
            Self::Write => read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg,
        }
    }
}

/// Shuts everything else away, for good; `false` where the kernel has no Landlock and that is allowed.
pub(super) fn restrict(files: Vec<Kept>, optional: bool) -> Result<bool, LandlockError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(files.into_iter().map(Ok::<_, RulesetError>))?
        .restrict_self()?;
    match status.ruleset {
        RulesetStatus::NotEnforced if optional => Ok(false),
        RulesetStatus::NotEnforced => Err(LandlockError::Missing),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(true),
    }
}
