//! Makes knocks and sends them.
//!
//! Every datagram is sealed anew, with its own time and nonce: a gate lets each knock in once, so that a copy would be
//! refused as replayed, and two copies on the wire could be told to be the same knock. Every datagram leaves from its
//! own socket too: no common port links them, and no ICMP error that an earlier one drew is reported for a later one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime};

use postern_proto::datagram::NONCE_LEN;
use postern_proto::{
    ClientKeys, GateKeys, Nonce, Payload, Profile, Proof, Request, Services, Source, Window, seal,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::sleep;

use crate::error::Error;
use crate::source::SourceChoice;

/// Time between repeated knocks: longer than a burst of loss on most links.
const REPEAT_GAP: Duration = Duration::from_millis(100);

/// Knocks at one gate, always for the same thing.
pub(crate) struct Knocker {
    gate: GateKeys,
    client: ClientKeys,
    source: SourceChoice,
    request: Request,
    random: SystemRandom,
}

/// What to ask a gate for.
pub(crate) struct Ask {
    pub(crate) services: Services,
    /// The service's own window when absent.
    pub(crate) window: Option<Window>,
    /// Any source port when absent.
    pub(crate) from_port: Option<NonZeroU16>,
    pub(crate) source: SourceChoice,
}

/// One address and port of a gate, and what became of the knocks there.
pub(crate) struct Destination {
    pub(crate) to: SocketAddr,
    /// How many knocks left this host.
    pub(crate) sent: u8,
    /// Whom they asked to let in; absent while none left.
    pub(crate) source: Option<Source>,
    /// Why the last that did not leave did not.
    error: Option<io::Error>,
}

impl Knocker {
    /// Derives the profile's keys; the secret itself is not kept.
    pub(crate) fn new(profile: &Profile, ask: Ask) -> Self {
        let Ask { services, window, from_port, source } = ask;
        Self {
            gate: GateKeys::derive(&profile.gate),
            client: ClientKeys::derive(&profile.gate, &profile.secret),
            source,
            request: Request::Open { services, window, from_port },
            random: SystemRandom::new(),
        }
    }

    /// Sends one knock to every port of every address.
    ///
    /// # Errors
    /// [`Error::Unsent`] when not one of them left this host; [`Error::NoRandom`].
    pub(crate) fn knock(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
        ports: &[NonZeroU16],
    ) -> Result<Vec<Destination>, Error> {
        let mut destinations = Vec::new();
        for address in addresses {
            for port in ports {
                let to = SocketAddr::new(address, port.get());
                let mut destination = Destination { to, sent: 0, source: None, error: None };
                self.knock_once(&mut destination)?;
                destinations.push(destination);
            }
        }
        if destinations.iter().any(|destination| destination.sent > 0) {
            return Ok(destinations);
        }
        let failures = destinations.iter().filter_map(Destination::failure);
        Err(Error::Unsent(failures.map(|(to, error)| format!("{to}: {error}")).collect()))
    }

    /// Sends so many more knocks to each destination, each time after a pause.
    ///
    /// # Errors
    /// [`Error::NoRandom`]; a destination that cannot be reached only says so in itself.
    pub(crate) async fn repeat(&self, destinations: &mut [Destination], times: u8) -> Result<(), Error> {
        for _ in 0..times {
            sleep(REPEAT_GAP).await;
            for destination in &mut *destinations {
                self.knock_once(destination)?;
            }
        }
        Ok(())
    }

    fn knock_once(&self, destination: &mut Destination) -> Result<(), Error> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Error::NoRandom)?;
        match self.send(destination.to, Nonce::from_random(nonce)) {
            Ok(source) => {
                destination.sent += 1;
                destination.source = Some(source);
            }
            Err(error) => destination.error = Some(error),
        }
        Ok(())
    }

    /// The socket is connected first, so that the kernel's route says which local address the knock leaves from.
    fn send(&self, to: SocketAddr, nonce: Nonce) -> io::Result<Source> {
        let socket = connected(to)?;
        let source = self.source.source(socket.local_addr()?.ip());
        let at = SystemTime::now().into();
        let payload = Payload { at, source, request: self.request.clone(), proof: Proof::None };
        socket.send(&seal(&self.gate, &self.client, &payload, nonce))?;
        Ok(source)
    }
}

impl Destination {
    /// Why no knock left for here; `None` when one did.
    pub(crate) fn failure(&self) -> Option<(SocketAddr, &io::Error)> {
        let error = self.error.as_ref().filter(|_| self.sent == 0)?;
        Some((self.to, error))
    }
}

/// The addresses that at least one knock left for.
pub(crate) fn knocked(destinations: &[Destination]) -> Vec<IpAddr> {
    let sent = destinations.iter().filter(|destination| destination.sent > 0);
    let mut addresses: Vec<_> = sent.map(|destination| destination.to.ip()).collect();
    // Those of one address with several ports stand side by side.
    addresses.dedup();
    addresses
}

/// A UDP socket of its own, connected: the kernel has looked up the way there.
pub(crate) fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}
