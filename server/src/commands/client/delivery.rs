//! How a profile gets from here to its client: as a line, as a picture, or encrypted; on stdout or in a file.
//!
//! It is handed over before the key file is written. Where that then fails, what was printed is good for nothing, and a file is
//! removed again.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use postern_proto::Profile;
use rustix::termios::tcgetwinsize;
use zeroize::Zeroizing;

use super::key_file::{Checked, LockedKeys};
use super::qr::{self, Canvas};
use super::seal::Seal;
use crate::cli::client::DeliveryArgs;
use crate::config::ConfigError;
use crate::files::create_private;

pub(super) struct Delivery<'a> {
    out: Option<&'a Path>,
    as_picture: bool,
    seal: Seal,
}

impl<'a> Delivery<'a> {
    /// What a command line asks for.
    ///
    /// # Errors
    /// [`ConfigError`] when the keys to encrypt to cannot be read.
    pub(super) fn new(args: &'a DeliveryArgs) -> Result<Self, ConfigError> {
        Ok(Self { out: args.out.as_deref(), as_picture: args.qr, seal: Seal::new(&args.sealing)? })
    }

    /// Hands a profile over.
    ///
    /// # Errors
    /// When it cannot be rendered, printed or written: then nothing has changed.
    pub(super) fn hand_over(&self, profile: &Profile) -> anyhow::Result<HandedOver<'a>> {
        let text = self.render(profile)?;
        match self.out {
            Some(path) => write_new(path, &text)?,
            None => print(&text)?,
        }
        let said = match (self.out, self.as_picture, self.seal.is_open()) {
            (Some(path), ..) => format!("its profile is in {}", path.display()),
            (_, true, _) => "the picture above holds its secret and is not shown again".to_owned(),
            (_, _, true) => "the line above holds its secret and is not shown again".to_owned(),
            (_, _, false) => "the text above holds its secret, for whom it is encrypted to".to_owned(),
        };
        Ok(HandedOver { file: self.out, said })
    }

    fn render(&self, profile: &Profile) -> anyhow::Result<Zeroizing<String>> {
        let line = profile.to_line();
        if self.as_picture {
            qr::draw(&line, canvas()).map_err(|problem| anyhow!(problem))
        } else {
            self.seal.close(&line, &profile.identities).map(Zeroizing::new)
        }
    }
}

fn canvas() -> Canvas {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return Canvas::Plain;
    }
    // Zero is what a terminal says that does not know.
    let columns =
        tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0);
    Canvas::Terminal { columns }
}

/// What is said of profiles that were handed over in vain.
pub(super) const GOOD_FOR_NOTHING: &str = "no client was changed, and what was printed is good for nothing";

/// A profile that its client has and the gate does not know yet; unless that changes, its file is removed again.
#[must_use]
pub(super) struct HandedOver<'a> {
    file: Option<&'a Path>,
    said: String,
}

impl HandedOver<'_> {
    /// Has the key file know it, and says where it is.
    pub(super) fn enrol(mut self, keys: LockedKeys<'_>, checked: Checked) -> anyhow::Result<String> {
        keys.replace(checked).context(GOOD_FOR_NOTHING)?;
        self.file = None;
        Ok(std::mem::take(&mut self.said))
    }
}

impl Drop for HandedOver<'_> {
    fn drop(&mut self) {
        let Some(path) = self.file else { return };
        if let Err(error) = std::fs::remove_file(path) {
            eprintln!("cannot remove {}, which is good for nothing: {error}", path.display());
        }
    }
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    create_private(path, text).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            anyhow!("{} exists already: it is left as it is, and nothing was changed", path.display())
        } else {
            anyhow::Error::new(error)
                .context(format!("cannot write {}, and nothing was changed", path.display()))
        }
    })
}

/// Prints a text whole.
///
/// # Errors
/// When whoever should take it does not.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot print the profile, and nothing was changed")
}
