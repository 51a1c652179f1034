//! Rulesets that open a door to a sequence of knocks without any daemon: the kernel itself remembers who has sent which
//! step. Text out of values: nothing here touches a firewall.
//!
//! An address may have taken several steps at a time. It takes step N with a packet to that step's port, if it took step
//! N - 1 within the timeout; after the last one it is let in to the door for the window. What else it sends:
//!
//! ```text
//!  the first step's port       another attempt begins beside the one that is under way
//!  a step's that it has taken  nothing: a SYN that was sent twice, or came late
//!  another step's              all its attempts end
//!  the door                    nothing
//!  any other                   a stray: the sixth since the first step ends all its attempts, so that a scan opens nothing
//! ```
//! What the kernel remembers has room for so many addresses and no more. Wherever it forgets or has no room, an attempt
//! ends; never does a door open, or a stray go uncounted.

mod nft;
mod words;
mod xtables;

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use postern_proto::sequence::Steps;
use postern_proto::{Port, Window};

/// Strays that an attempt outlives, as at a gate that says nothing else.
const STRAYS: u32 = 5;
/// More steps make no sequence harder to guess, and the rules harder to read.
const MOST_STEPS: usize = 16;
/// So that what is known of an attempt outlasts the attempt.
const LONGEST_TIMEOUT: u32 = 600;
/// Longer than anybody needs to connect.
const LONGEST_WINDOW: u32 = 24 * 60 * 60;

/// What reads the ruleset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// iptables-restore, for IPv4
    #[default]
    Iptables,
    /// ip6tables-restore, for IPv6
    Ip6tables,
    /// nft, for both
    Nft,
}

/// A sequence that opens a door, fit to be told to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Ruleset {
    name: Name,
    steps: Vec<Port>,
    door: Port,
    window: Window,
    timeout: Window,
}

/// Why a sequence cannot be told to the kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// Too many steps.
    #[error("rules take 1 to {MOST_STEPS} steps, these are {0}")]
    Count(usize),
    /// A step of the sequence is the door.
    #[error("the door's own port, {0}, cannot be a step")]
    Door(Port),
    /// Two equal steps in a row.
    #[error("step {0} comes twice in a row: rules cannot tell that from a packet that was sent twice")]
    Twice(Port),
    /// The timeout is too long.
    #[error("a timeout is {} at the most", seconds(LONGEST_TIMEOUT))]
    Timeout,
    /// The window is too long.
    #[error("a window is {} at the most", seconds(LONGEST_WINDOW))]
    Window,
}

impl Ruleset {
    /// The ruleset that opens `door` for `window` to whoever takes the steps, each within `timeout` of the one before.
    ///
    /// # Errors
    /// When the kernel could not tell the steps apart, or would be told too much.
    pub(crate) fn new(
        name: Option<Name>,
        steps: &Steps,
        door: Port,
        window: Window,
        timeout: Window,
    ) -> Result<Self, Unfit> {
        let steps = steps.as_slice().to_vec();
        if steps.len() > MOST_STEPS {
            return Err(Unfit::Count(steps.len()));
        }
        if steps.contains(&door) {
            return Err(Unfit::Door(door));
        }
        if let Some(pair) = steps.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Unfit::Twice(pair[0]));
        }
        if timeout.as_secs() > LONGEST_TIMEOUT {
            return Err(Unfit::Timeout);
        }
        if window.as_secs() > LONGEST_WINDOW {
            return Err(Unfit::Window);
        }
        let name = name.unwrap_or_else(|| Name(format!("{}{}", door.protocol.as_str(), door.number)));
        Ok(Self { name, steps, door, window, timeout })
    }

    /// The ruleset as text, with comments.
    pub(crate) fn print(&self, output: Output) -> String {
        match output {
            Output::Iptables => xtables::print(self, xtables::Family::V4),
            Output::Ip6tables => xtables::print(self, xtables::Family::V6),
            Output::Nft => nft::print(self),
        }
    }

    /// The number of the last step, which is what opens.
    fn last(&self) -> usize {
        self.steps.len()
    }

    /// Each port of the sequence once, with the numbers of its steps.
    fn ports(&self) -> Vec<Knocked> {
        let mut ports: Vec<Knocked> = Vec::new();
        for (step, &port) in (1..).zip(&self.steps) {
            match ports.iter_mut().find(|known| known.port == port) {
                Some(known) => known.steps.push(step),
                None => ports.push(Knocked { port, steps: vec![step] }),
            }
        }
        ports
    }

    /// Whether a scan that takes the ports in order, upwards or downwards, meets the steps in theirs, with too few other
    /// ports in between to be told by its strays.
    fn opens_to_a_scan(&self) -> bool {
        let numbers = |down: bool| {
            let numbers = self.steps.iter().map(|step| i64::from(step.number.get()));
            numbers.map(|number| if down { -number } else { number }).collect::<Vec<_>>()
        };
        let same_protocol = self.steps.iter().all(|step| step.protocol == self.steps[0].protocol);
        same_protocol
            && [numbers(false), numbers(true)].iter().any(|numbers| {
                let between: i64 = numbers.windows(2).map(|pair| pair[1] - pair[0] - 1).sum();
                numbers.is_sorted() && between <= i64::from(STRAYS)
            })
    }
}

/// A port of the sequence, with the numbers of its steps, in their order: 1 is the first.
struct Knocked {
    port: Port,
    steps: Vec<usize>,
}

impl Knocked {
    /// What its chain is called by.
    fn number(&self) -> usize {
        self.steps[0]
    }
}

/// The name of a ruleset: what its chains and lists begin with, so that two rulesets on a host do not mix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

/// Why a name was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {} letters and digits, and begins with a letter", Name::MAX)]
pub(crate) struct NameError;

impl Name {
    /// The longest chain of iptables has 28 characters, and ours is `KNOCK-NAME-FORGET`.
    const MAX: usize = 15;
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if fits { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seconds, the way the options take them.
fn seconds(secs: u32) -> String {
    Window::from_secs(secs).map(|window| window.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
