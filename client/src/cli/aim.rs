//! How to knock: whom to let in, at which addresses, how often.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use postern_proto::Window;

use super::one_family;
use crate::error::Error;
use crate::gate::Options;
use crate::resolve::Family;
use crate::source::SourceChoice;

/// How to knock.
#[derive(Args)]
pub(crate) struct HowArgs {
    /// Ask for this window, such as 30s or 10m [default: the service's own]
    #[arg(long)]
    pub(crate) window: Option<Window>,
    #[command(flatten)]
    pub(crate) aim: AimArgs,
}

/// Where to knock at, and from where.
#[derive(Args)]
pub(crate) struct AimArgs {
    /// Whom to let in: auto, observed, or an IP address
    ///
    /// "auto" states this host's address where it is a global one, and otherwise leaves it to the gate to observe where
    /// the knock comes from ("observed"). Stating it is the stronger: a knock that somebody holds back and sends first
    /// then lets in nobody else. With an IP address, only addresses of its family are knocked at.
    #[arg(long, default_value = "auto")]
    source: SourceChoice,
    /// Knock this many times, 100 ms apart, or until the gate answers; each knock is a fresh one
    ///
    /// For networks that lose packets. A gate that answers, and did not, is knocked at again in any case.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=20))]
    pub(crate) repeat: u8,
    /// Knock at IPv4 addresses only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Knock at IPv6 addresses only
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Sign with this key, where the gate wants that [default: what the ssh-agent has of the profile's, else ~/.ssh/id_ed25519]
    ///
    /// The private half, or the public half of a key that the ssh-agent has. identity-file in the configuration says the
    /// same for each gate. A passphrase is asked for on the terminal.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The profile of the gate "-"; the file "-" is stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) profile_file: Option<PathBuf>,
}

impl HowArgs {
    /// How to knock, and how long to wait for the answer.
    pub(crate) fn options(&self, timeout: Duration) -> Result<Options, Error> {
        Ok(Options { window: self.window, ..self.aim.options(timeout)? })
    }

    /// For a sequence the address that the gate will see, where that was stated, and the one family, if any, that is left.
    /// It can say nothing else of this; and the address only where it is bound to it.
    pub(crate) fn of_sequence(&self, is_bound: bool) -> Result<(Option<IpAddr>, Option<Family>), Error> {
        let (source, family) = self.aim.source_and_family()?;
        let (stated, is_auto) = (self.aim.stated(), source == SourceChoice::Auto);
        let takes_source = is_auto || is_bound && stated.is_some();
        if self.window.is_some() || !takes_source || self.aim.repeat > 1 || self.aim.identity.is_some() {
            return Err(Error::Usage(
                "a sequence says neither window nor source, is not signed, and is sent once: leave --window, --source, \
                 --identity and --repeat out"
                    .into(),
            ));
        }
        Ok((stated, family))
    }
}

impl AimArgs {
    /// How to knock, and how long to wait for the answer.
    pub(crate) fn options(&self, timeout: Duration) -> Result<Options, Error> {
        let (source, family) = self.source_and_family()?;
        Ok(Options { source, family, repeat: self.repeat, timeout, ..Options::default() })
    }

    /// The source and the one family, if any, that it and `-4` and `-6` leave.
    fn source_and_family(&self) -> Result<(SourceChoice, Option<Family>), Error> {
        let family = family_with(self.stated(), one_family(self.ipv4, self.ipv6))?;
        Ok((self.source, family))
    }

    const fn stated(&self) -> Option<IpAddr> {
        if let SourceChoice::Stated(address) = self.source { Some(address) } else { None }
    }
}

/// The one family, if any, that a stated source and what `-4` or `-6` asks for leave.
pub(super) fn family_with(stated: Option<IpAddr>, asked: Option<Family>) -> Result<Option<Family>, Error> {
    let Some(address) = stated else { return Ok(asked) };
    let stated = Family::of(address);
    if asked.is_some_and(|asked| asked != stated) {
        return Err(Error::Usage(format!("--source {address} is an {stated} address: leave -4 and -6 out")));
    }
    Ok(Some(stated))
}
