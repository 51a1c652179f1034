//! The ports of a sequence, in their order, written the way knockd writes them: `7000,8000:udp,9000:tcp`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::port::{Port, Protocol};

/// The ports of a sequence: one at least, [`Steps::MAX`] at most. The same port may come more than once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Steps(Vec<Port>);

/// Why a sequence was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepsError {
    /// One of its steps is no port.
    #[error("{0:?} is no step: {A_STEP}")]
    Step(String),
    /// None, or too many.
    #[error("a sequence has 1 to {max} steps", max = Steps::MAX)]
    Count,
}

const A_STEP: &str = "a step is a port from 1 to 65535, and \":udp\" behind it if it is not TCP";

impl StepsError {
    /// What is wrong, without what stood there: for files, whose errors may end in a log.
    #[must_use]
    pub fn without_text(&self) -> String {
        match self {
            Self::Step(_) => A_STEP.to_owned(),
            Self::Count => self.to_string(),
        }
    }
}

impl Steps {
    /// Most steps of a sequence; knockd takes as many.
    pub const MAX: usize = 32;

    /// The steps of a sequence.
    ///
    /// # Errors
    /// [`StepsError::Count`] when there are none, or too many.
    pub fn new(steps: impl Into<Vec<Port>>) -> Result<Self, StepsError> {
        let steps = steps.into();
        if steps.is_empty() || steps.len() > Self::MAX { Err(StepsError::Count) } else { Ok(Self(steps)) }
    }

    /// Each step, in the order in which they are to come.
    #[must_use]
    pub fn as_slice(&self) -> &[Port] {
        &self.0
    }
}

/// One step: `7000`, `7000:udp`, or a port as services have it, `7000/udp`.
///
/// # Errors
/// [`StepsError::Step`] when it is no port.
pub fn step(text: &str) -> Result<Port, StepsError> {
    let (number, protocol) = text.split_once([':', '/']).unwrap_or((text, Protocol::Tcp.as_str()));
    format!("{number}/{protocol}").parse().map_err(|_| StepsError::Step(text.to_owned()))
}

impl FromStr for Steps {
    type Err = StepsError;

    /// Steps with commas between them, and blanks around them if need be.
    fn from_str(text: &str) -> Result<Self, StepsError> {
        let steps: Vec<_> = text.split(',').map(|text| step(text.trim())).collect::<Result<_, _>>()?;
        Self::new(steps)
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Port { protocol, number }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{number}:{}", protocol.as_str())?;
        }
        Ok(())
    }
}

/// As a list of texts, one for each step.
impl Serialize for Steps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let steps = texts.iter().map(|text| step(text)).collect::<Result<Vec<_>, _>>().and_then(Self::new);
        steps.map_err(|error| de::Error::custom(error.without_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_and_print() {
        let steps: Steps = "7000, 8000:udp,9000/tcp,7000".parse().unwrap();
        assert_eq!(steps.to_string(), "7000:tcp,8000:udp,9000:tcp,7000:tcp");
        assert_eq!(steps.to_string().parse(), Ok(steps));
        for wrong in ["", "7000,", "0", "65536", "7000:sctp", "7000:", ":tcp", "7000:tcp:udp", "+1", "http"] {
            assert!(matches!(wrong.parse::<Steps>(), Err(StepsError::Step(_))), "{wrong}");
        }
        let many = |count| vec!["1"; count].join(",").parse::<Steps>();
        assert_eq!(many(Steps::MAX).unwrap().as_slice().len(), Steps::MAX);
        assert_eq!(many(Steps::MAX + 1), Err(StepsError::Count));
        assert_eq!(Steps::new([]), Err(StepsError::Count));
    }
}
