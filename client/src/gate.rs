//! A gate, as a program has to do with it: load it, knock, and be told what came of it. The commands stand on the same
//! ground.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_proto::{
    GateName, Outcome, Port, Profile, Protocol, Refusal, Request, ServiceName, Services, Window,
};

use crate::config::{Config, lacks, locate};
use crate::error::{Advice, Error};
use crate::knock::Knocker;
use crate::refused::Refused;
use crate::reply::Reply;
use crate::resolve::{Family, Resolved, resolve};
use crate::rounds::{Destination, Manner, Rounds};
use crate::source::SourceChoice;

/// How long an answer is waited for unless something else is said.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// A gate, and what this client may ask it for.
///
/// It can be shared: all that it keeps of its knocks is the date of the last, and dates each later than those before it.
///
/// ```
/// use postern_client::Gate;
/// use postern_client::proto::{ClientId, ClientSecret, GateId, Profile};
///
/// // As in a profile line, which Profile::from_line reads.
/// let profile = Profile {
///     gate: GateId::from_bytes([1; 16]),
///     client: ClientId::from_bytes([2; 8]),
///     secret: ClientSecret::from_bytes([3; 32]),
///     addresses: vec!["gate.example.org".parse()?],
///     ports: vec![62201.try_into()?],
///     services: [("ssh".parse()?, vec!["22/tcp".parse()?])].into(),
///     answers: true,
///     identities: vec![],
/// };
/// let gate = Gate::from_profile(profile)?;
/// assert!(gate.answers() && gate.services().contains_key(&"ssh".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Gate {
    name: String,
    profile: Profile,
    pub(crate) knocker: Knocker,
}

/// How to knock.
///
/// ```
/// use std::time::Duration;
///
/// let mut options = postern_client::Options::default();
/// options.window = Some("10m".parse()?);
/// options.timeout = Duration::from_secs(2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// For how long to open; the service's own window when absent.
    pub window: Option<Window>,
    /// Only to connections from this source port.
    pub from_port: Option<NonZeroU16>,
    /// Whom to let in.
    pub source: SourceChoice,
    /// The one family of addresses to knock at.
    pub family: Option<Family>,
    /// How many knocks are sent 100 ms apart, as long as no answer has come.
    pub repeat: u8,
    /// How long to wait for an answer, and to send new knocks meanwhile.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: None,
            from_port: None,
            source: SourceChoice::Auto,
            family: None,
            repeat: 1,
            timeout: ANSWER_TIMEOUT,
        }
    }
}

impl Options {
    pub(crate) const fn manner(&self, answers: bool) -> Manner {
        Manner { source: self.source, repeat: self.repeat, answers, from_port: None }
    }
}

impl Gate {
    /// The gate of a profile.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when nobody can knock with it.
    pub fn from_profile(profile: Profile) -> Result<Self, Error> {
        match lacks(&profile) {
            Some(lack) => Err(Error::Incomplete {
                origin: "the profile".to_owned(),
                message: format!("the profile has {lack}"),
            }),
            None => Ok(Self::new("-".to_owned(), profile)),
        }
    }

    /// The gate of that name in the configuration: in this file, or in the one that the commands read.
    ///
    /// # Errors
    /// [`Error`] with exit code 3: what is wrong with the configuration, or with the gate.
    pub fn load(name: &GateName, config: Option<&Path>) -> Result<Self, Error> {
        let path = locate(config)?;
        let gate = Config::load(&path)?.into_gate(name, &path)?;
        let known = gate.sequences.keys().map(ToString::to_string).collect();
        let profile = gate.profile.ok_or_else(|| Error::NoKnock { gate: name.clone(), known })?;
        let loaded = Self::new(name.to_string(), profile);
        Ok(match gate.identity_file {
            Some(file) => loaded.with_identity(file),
            None => loaded,
        })
    }

    /// The same gate, whose knocks are signed with the key of this file: its private half, or its public half where an
    /// ssh-agent has the private one.
    ///
    /// Without it, and where the profile wants a signature, the key is looked for as ssh does: in the agent, then in
    /// `~/.ssh/id_ed25519`. It is looked for with the first knock. Signing blocks: an agent may have somebody asked, and a
    /// passphrase is asked for on the terminal.
    #[must_use]
    pub fn with_identity(mut self, file: impl Into<PathBuf>) -> Self {
        self.knocker = self.knocker.with_identity(file.into());
        self
    }

    /// A profile that was found to be whole.
    pub(crate) fn new(name: String, profile: Profile) -> Self {
        let knocker = Knocker::new(&profile);
        Self { name, profile, knocker }
    }

    /// Its name; `-` where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What this client may open there, with the ports.
    #[must_use]
    pub const fn services(&self) -> &BTreeMap<ServiceName, Vec<Port>> {
        &self.profile.services
    }

    /// The TCP port by which it can be tried whether a service is open: its first, if it has one.
    pub(crate) fn first_tcp_port(&self, service: &ServiceName) -> Option<NonZeroU16> {
        let mut ports = self.profile.services.get(service)?.iter();
        ports.find(|port| port.protocol == Protocol::Tcp).map(|port| port.number)
    }

    /// Whether it answers knocks.
    #[must_use]
    pub const fn answers(&self) -> bool {
        self.profile.answers
    }

    pub(crate) const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Asks it to open services, all of the profile where none are named.
    ///
    /// The answer is absent where the gate gives none: then the knock was sent, and no more is known.
    ///
    /// ```no_run
    /// # async fn example(gate: postern_client::Gate) -> Result<(), postern_client::Error> {
    /// // All services of the profile, for their own windows.
    /// if let Some(reply) = gate.knock(&[], &postern_client::Options::default()).await? {
    ///     println!("{} opened within {:?}", reply.to, reply.round_trip);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] when the gate said no; [`Error::InVain`] when it should have answered and did not;
    /// [`Error::Signing`] when it wants a signature and there is none; [`Error`] when nothing could be sent.
    pub async fn knock(&self, services: &[ServiceName], options: &Options) -> Result<Option<Reply>, Error> {
        let services = self.wanted(services)?;
        let Options { window, from_port, .. } = *options;
        self.send(Request::Open { services, window, from_port }, options).await?.decision().await
    }

    /// Asks it to close services again that it has open for this host, all of the profile where none are named.
    ///
    /// ```no_run
    /// # async fn example(gate: postern_client::Gate) -> Result<(), postern_client::Error> {
    /// gate.close(&[], &postern_client::Options::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As with [`Gate::knock`].
    pub async fn close(&self, services: &[ServiceName], options: &Options) -> Result<Option<Reply>, Error> {
        let services = self.wanted(services)?;
        self.send(Request::Close { services }, options).await?.decision().await
    }

    /// The services to ask for: all of the profile unless some are named.
    pub(crate) fn wanted(&self, named: &[ServiceName]) -> Result<Services, Error> {
        let mine = &self.profile.services;
        if let Some(service) = named.iter().find(|service| !mine.contains_key(service)) {
            let known = mine.keys().map(ToString::to_string).collect();
            return Err(Error::UnknownService { gate: self.name.clone(), service: service.clone(), known });
        }
        let all = || mine.keys().cloned().collect();
        Ok(Services::new(if named.is_empty() { all() } else { named.to_vec() })?)
    }

    /// Sends the first knocks.
    pub(crate) async fn send(&self, request: Request, options: &Options) -> Result<Sending<'_>, Error> {
        let resolved = resolve(&self.profile.addresses, options.family).await;
        resolved.require_one()?;
        let (addresses, ports) = (resolved.addresses.iter().copied(), &self.profile.ports);
        let manner = options.manner(self.profile.answers);
        let rounds = Rounds::begin(&self.knocker, request, addresses, ports, manner)?;
        Ok(Sending { gate: self, resolved, rounds, timeout: options.timeout })
    }

    /// What the gate decided, unless it refused.
    pub(crate) fn judge(&self, reply: Reply) -> Result<Reply, Error> {
        match reply.answer.outcome {
            Outcome::Refused(refusal) => Err(self.refused(refusal, reply)),
            _ => Ok(reply),
        }
    }

    /// That it refused.
    pub(crate) fn refused(&self, refusal: Refusal, reply: Reply) -> Error {
        Error::Refused(Box::new(Refused { gate: self.name.clone(), refusal, reply }))
    }
}

/// A knock on its way.
pub(crate) struct Sending<'a> {
    gate: &'a Gate,
    resolved: Resolved,
    rounds: Rounds<'a>,
    timeout: Duration,
}

impl Sending<'_> {
    /// The gate's decision, and new knocks until it comes. Without answers, until the last knock has left.
    pub(crate) async fn decision(&mut self) -> Result<Option<Reply>, Error> {
        if !self.gate.answers() {
            self.rounds.repeat().await?;
            return Ok(None);
        }
        match self.rounds.decision_within(self.timeout).await? {
            Some(reply) => self.gate.judge(reply).map(Some),
            None => Err(Error::InVain {
                waited: self.timeout,
                what: format!("no answer from {}", self.rounds.silent().join(", ")),
                advice: Advice::Unanswered,
            }),
        }
    }

    pub(crate) fn destinations(&self) -> &[Destination] {
        &self.rounds.destinations
    }

    /// Names and addresses that no knock could be sent to, and why.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (String, String)> {
        let names = self.resolved.failed.iter().map(|(host, message)| (host.to_string(), message.clone()));
        let sends = self.rounds.destinations.iter().filter_map(Destination::failure);
        names.chain(sends.map(|(to, error)| (to.to_string(), error.to_string())))
    }

    /// The addresses that at least one knock left for.
    pub(crate) fn knocked(&self) -> Vec<IpAddr> {
        crate::rounds::knocked(&self.rounds.destinations)
    }
}
