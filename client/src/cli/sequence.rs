//! The arguments of `postern sequence`.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use clap::Args;
use postern_proto::profile::Host;
use postern_proto::sequence::{Steps, steps};
use postern_proto::{GateName, Port, Protocol, SequenceName};

use crate::error::Error;
use crate::resolve::Family;
use crate::sequence::DELAY;
use crate::source::unicast;

/// Longest time between two steps, in milliseconds: an hour.
const LONGEST_DELAY: u64 = 3_600_000;

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
pub(crate) struct SequenceArgs {
    /// A host, by its name or address; or, before the NAME of a sequence, a gate of the configuration
    #[arg(value_name = "HOST")]
    target: String,
    /// The ports to touch, such as 7000 or 8000:udp; or the NAME of one of the gate's sequences
    #[arg(value_name = "STEP", required = true)]
    steps: Vec<String>,
    /// Make all steps UDP, whatever they say
    #[arg(short = 'u', long)]
    udp: bool,
    /// Milliseconds from one step to the next [default: 100]
    ///
    /// Steps that overtake one another on their way open nothing.
    #[arg(short = 'd', long, value_name = "MS", value_parser = delay)]
    delay: Option<Duration>,
    /// Send to IPv4 addresses only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Send to IPv6 addresses only
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Say each step as it is sent
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    /// Compute a rolling sequence that is bound to its source for this address [default: this host's own]
    ///
    /// It is the address that the gate will see. A host behind address translation sees another one: there, the default
    /// does not work. Only addresses of its family are sent to.
    #[arg(long, value_name = "ADDRESS", value_parser = unicast)]
    pub(crate) source: Option<IpAddr>,
    /// Send a rolling sequence's ports of the next epoch
    ///
    /// A gate takes each of them once: this is for a second time within the same 30 seconds, where what the first one
    /// opened is shut again, or somebody else was let in with it.
    #[arg(long)]
    pub(crate) next: bool,
    /// Send nothing: print the steps in one line, as knock and others take them
    ///
    /// Those of a rolling sequence are to be sent at once, and once; a line on stderr says how long they are good.
    #[arg(long, conflicts_with_all = ["wait", "verbose"])]
    pub(crate) print: bool,
    /// Wait until the TCP ports that the sequence opens let a connection in, this long at most
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    pub(crate) wait: Option<Duration>,
    /// Wait for this TCP port [default: what the configuration says that the sequence opens]
    #[arg(long, requires = "wait")]
    pub(crate) port: Option<NonZeroU16>,
}

/// What to send, and where.
pub(crate) enum Which {
    /// These steps, to a host.
    Steps(Host, Steps),
    /// A sequence of a gate's.
    Named(GateName, SequenceName),
}

impl SequenceArgs {
    /// `HOST STEP...` or `GATE NAME`. A step is a port, and no sequence has a name that is all digits.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is neither.
    pub(crate) fn which(&self) -> Result<Which, Error> {
        if let [name] = &self.steps[..]
            && let Some(name) = sequence_name(name)
        {
            if self.udp {
                return Err(Error::Usage("--udp is for steps: a sequence by name has its own".into()));
            }
            return Ok(Which::Named(self.target.parse().map_err(usage)?, name));
        }
        if self.source.is_some() || self.next {
            return Err(Error::Usage("--source and --next are for a rolling sequence, by its name".into()));
        }
        let steps = parse_steps(&self.steps, self.udp)?;
        Ok(Which::Steps(self.target.parse().map_err(usage)?, steps))
    }

    pub(crate) fn delay(&self) -> Duration {
        self.delay.unwrap_or(DELAY)
    }

    /// The one family, if any, that `-4`, `-6` and `--source` leave.
    ///
    /// # Errors
    /// [`Error::Usage`] when they leave none.
    pub(crate) fn family(&self) -> Result<Option<Family>, Error> {
        super::family_with(self.source, super::one_family(self.ipv4, self.ipv6))
    }
}

/// A name of a sequence, which no port is.
fn sequence_name(text: &str) -> Option<SequenceName> {
    text.parse().ok().filter(|_| !text.bytes().all(|b| b.is_ascii_digit()))
}

/// Steps, one an argument; all UDP where that is asked for: knock's `-u` overrules what a step says itself.
///
/// # Errors
/// [`Error::Usage`], which names the step: it stands on the command line anyway.
pub(crate) fn parse_steps(texts: &[String], udp: bool) -> Result<Steps, Error> {
    let step = |text: &String| {
        let Port { protocol, number } = steps::step(text)?;
        Ok(Port { protocol: if udp { Protocol::Udp } else { protocol }, number })
    };
    let steps = texts.iter().map(step).collect::<Result<Vec<_>, _>>().and_then(Steps::new);
    steps.map_err(usage)
}

/// Milliseconds.
pub(crate) fn delay(text: &str) -> Result<Duration, &'static str> {
    let delay = text.parse().ok().filter(|&millis| millis <= LONGEST_DELAY);
    delay.map(Duration::from_millis).ok_or("a whole number of milliseconds, up to an hour")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn usage(error: impl ToString) -> Error {
    Error::Usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SequenceArgs,
    }

    fn which(line: &str) -> String {
        let line = Line::try_parse_from(format!("sequence {line}").split(' ')).unwrap();
        match line.args.which() {
            Ok(Which::Steps(host, steps)) => format!("host {host}: {steps}"),
            Ok(Which::Named(gate, name)) => format!("gate {gate}: {name}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn steps_are_told_from_names() {
        for (line, is) in [
            ("h 7000 8000:udp 9000/tcp", "host h: 7000:tcp,8000:udp,9000:tcp"),
            ("-u h 7000 8000:tcp", "host h: 7000:udp,8000:udp"),
            ("2001:db8::1 7000", "host 2001:db8::1: 7000:tcp"),
            ("bastion legacy", "gate bastion: legacy"),
            ("bastion 2nd", "gate bastion: 2nd"),
        ] {
            assert_eq!(which(line), is, "{line}");
        }
        for (line, says) in [
            ("h 99999", "\"99999\" is no step"),
            ("h 0", "\"0\" is no step"),
            ("h 22:foo", "\"22:foo\" is no step"),
            ("h 7000 legacy", "\"legacy\" is no step"),
            ("-u bastion legacy", "--udp is for steps"),
            ("a/b 7000", "a host is an IP address"),
            ("2001:db8::1 legacy", "a gate name is"),
        ] {
            assert!(which(line).starts_with(says), "{line}: {}", which(line));
        }
        let too_many = format!("h{}", " 1".repeat(Steps::MAX + 1));
        assert_eq!(which(&too_many), "a sequence has 1 to 32 steps");
    }

    #[test]
    fn a_delay_is_whole_milliseconds() {
        assert_eq!(delay("250"), Ok(Duration::from_millis(250)));
        assert_eq!(delay("0"), Ok(Duration::ZERO));
        for bad in ["", "-1", "1s", "0.5", "3600001", "99999999999999999999"] {
            assert!(delay(bad).is_err(), "{bad}");
        }
    }
}
