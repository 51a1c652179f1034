//! The arguments of `postern ssh-config`.

use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::Args;
use postern_proto::GateName;

#[derive(Args)]
pub(crate) struct SshConfigArgs {
    /// A gate of the configuration
    pub(crate) gate: GateName,
    /// The TCP port of ssh [default: that of the service, or sequence, called ssh, else 22, else the gate's only one]
    #[arg(long)]
    pub(crate) port: Option<NonZeroU16>,
    /// Put the block at the head of ~/.ssh/config, or in the place of an earlier one of this gate
    ///
    /// ssh takes the first value that it meets, so the block comes first; it ends with "Host *", so that what follows is
    /// for the hosts that it was for. All else in the file stays as it is, and the file as it was is kept beside it with
    /// ".postern-backup" at the end of its name; later ones are numbered, and none is ever replaced. A second time changes
    /// nothing.
    #[arg(long)]
    pub(crate) install: bool,
    /// Put it into this file instead
    #[arg(long, requires = "install")]
    pub(crate) file: Option<PathBuf>,
}
