//! Makes knocks and sends them.
//!
//! Every datagram is sealed anew, with its own time and nonce: a gate lets each knock in once, so that a copy would be
//! refused as replayed, and two copies on the wire could be told to be the same knock. Every datagram leaves from its
//! own socket too: no common port links them, and no ICMP error that an earlier one drew is reported for a later one.
//! The socket stays with the knock, for the answer comes to it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

use postern_proto::datagram::NONCE_LEN;
use postern_proto::{
    ClientId, ClientKeys, Datagram, GateKeys, KNOCK_LEN, Nonce, Payload, Profile, Proof, Request, Source,
    UsedNonce, WallTime, seal, to_sign,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::Instant;

use crate::clock::{Clock, host_time};
use crate::error::Error;
use crate::identity::{Identity, Signer};
use crate::source::SourceChoice;

/// Knocks at one gate, for one client.
pub(crate) struct Knocker {
    keys: Arc<Keys>,
    client: ClientId,
    identity: Identity,
    pub(crate) clock: Clock,
    random: SystemRandom,
}

/// What a knock is sealed with, and its answer opened.
pub(crate) struct Keys {
    pub(crate) gate: GateKeys,
    pub(crate) client: ClientKeys,
}

/// A knock that left this host.
pub(crate) struct Knock {
    pub(crate) to: SocketAddr,
    /// Where it left from, and where its answer comes to.
    pub(crate) from: SocketAddr,
    /// Whom it asks to let in.
    pub(crate) source: Source,
    pub(crate) nonce: UsedNonce,
    /// When it was sent, by this host's clock.
    pub(crate) sent_at: WallTime,
    pub(crate) sent: Instant,
    /// Connected: what anybody else sends does not arrive.
    pub(crate) socket: UdpSocket,
}

impl Knocker {
    /// Derives the profile's keys; the secret itself is not kept.
    pub(crate) fn new(profile: &Profile) -> Self {
        let gate = GateKeys::derive(&profile.gate);
        let client = ClientKeys::derive(&profile.gate, &profile.secret);
        let (clock, random) = (Clock::default(), SystemRandom::new());
        let identity = Identity::new(profile.identities.clone());
        Self { keys: Arc::new(Keys { gate, client }), client: profile.client, identity, clock, random }
    }

    /// Signs with the key of this file.
    pub(crate) fn with_identity(self, file: PathBuf) -> Self {
        Self { identity: self.identity.with_file(file), ..self }
    }

    /// The key that signs; `None` where none needs to.
    ///
    /// # Errors
    /// [`Error::Signing`] where there is none, [`Error`] where its file cannot be read.
    pub(crate) fn signer(&self) -> Result<Option<Arc<Signer>>, Error> {
        self.identity.signer()
    }

    /// Whether each knock takes somebody's touch.
    ///
    /// # Errors
    /// As with [`Knocker::signer`].
    pub(crate) fn needs_touch(&self) -> Result<bool, Error> {
        Ok(self.signer()?.is_some_and(|signer| signer.needs_touch()))
    }

    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    /// Sends one knock; `from_port` is the local port to send it from, where that is free.
    ///
    /// The socket is connected first, so that the kernel's route says which local address the knock leaves from.
    ///
    /// # Errors
    /// [`Error::NoRandom`], [`Error::Signing`]; and within, why it did not leave.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        request: &Request,
        source: SourceChoice,
        from_port: Option<NonZeroU16>,
    ) -> Result<io::Result<Knock>, Error> {
        self.send_dated(self.clock.now(), to, request, source, from_port)
    }

    /// The same, dated `at`.
    ///
    /// # Errors
    /// As with [`Knocker::send`].
    pub(crate) fn send_dated(
        &self,
        at: WallTime,
        to: SocketAddr,
        request: &Request,
        source: SourceChoice,
        from_port: Option<NonZeroU16>,
    ) -> Result<io::Result<Knock>, Error> {
        let socket = match connected_from(to, from_port) {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(error)),
        };
        let from = match socket.local_addr() {
            Ok(from) => from,
            Err(error) => return Ok(Err(error)),
        };
        let source = source.source(from.ip());
        let datagram = self.seal(request, source, at)?;
        let nonce = *Datagram::from(&datagram).nonce();
        let (sent_at, sent) = (host_time(), Instant::now());
        let sending = socket.send(&datagram);
        Ok(sending.map(|_| Knock { to, from, source, nonce, sent_at, sent, socket }))
    }

    /// A new knock, dated `at`.
    ///
    /// # Errors
    /// [`Error::NoRandom`]; [`Error::Signing`] where no signature is to be had.
    pub(crate) fn seal(
        &self,
        request: &Request,
        source: Source,
        at: WallTime,
    ) -> Result<[u8; KNOCK_LEN], Error> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Error::NoRandom)?;
        let nonce = Nonce::from_random(nonce);
        let mut payload = Payload { at, source, request: request.clone(), proof: Proof::None };
        let Keys { gate, client } = &*self.keys;
        if let Some(signer) = self.signer()? {
            let hint = client.hint.hint(at.epoch());
            payload.proof = signer.sign(&to_sign(gate.id(), self.client, hint, nonce.bytes(), &payload))?;
        }
        Ok(seal(gate, client, &payload, nonce))
    }
}

/// The address from which this host sends there, by the kernel's route. Nothing is sent.
pub(crate) fn routed(to: SocketAddr) -> io::Result<IpAddr> {
    Ok(connected(to)?.local_addr()?.ip())
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

/// The same at this local port, or at any where that is taken.
fn connected_from(to: SocketAddr, port: Option<NonZeroU16>) -> io::Result<UdpSocket> {
    let socket = connected(to)?;
    let Some(port) = port else { return Ok(socket) };
    // At the routed address alone: an earlier knock may hold the port at that of the other family.
    match UdpSocket::bind((socket.local_addr()?.ip(), port.get())) {
        Ok(exact) => exact.connect(to).map(|()| exact),
        Err(_) => Ok(socket),
    }
}
