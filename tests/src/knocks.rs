//! Clients whose knocks a test seals itself: with any time, any content, and to be sent as often as it likes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use postern_proto::answer;
use postern_proto::datagram::{NONCE_LEN, PAYLOAD_LEN};
use postern_proto::knock::seal_bytes;
use postern_proto::{
    Answer, ClientEntry, ClientId, ClientKeys, ClientSecret, Datagram, Epoch, GateId, GateKeys, IdentityKey,
    KNOCK_LEN, Nonce, Payload, Port, Profile, Proof, Request, ServiceName, Services, Signature, Source,
    WallTime, Window, seal, to_sign,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ssh_key::PublicKey;
use ssh_key::public::Ed25519PublicKey;

/// A knock as it goes over the wire.
pub type Knock = [u8; KNOCK_LEN];

/// Random bytes.
///
/// # Panics
/// When the system gives none.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes to whoever asks");
    bytes
}

/// Now, as the wall clock has it.
#[must_use]
pub fn now() -> WallTime {
    SystemTime::now().into()
}

/// A client with everything that both sides know of it.
#[derive(Clone)]
pub struct Client {
    /// Its entry in the gate's key file.
    pub entry: ClientEntry,
    gate: GateId,
    keys: (GateKeys, ClientKeys),
    /// What signs its knocks, if anything does.
    signer: Option<Arc<Ed25519KeyPair>>,
}

impl Client {
    /// A new client of a gate, with random keys.
    ///
    /// # Errors
    /// When a name is none.
    pub fn new(gate: &GateId, name: &str, services: &[&str]) -> Result<Self> {
        let secret = ClientSecret::from_bytes(random());
        let services = services.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        Ok(Self::at(gate, ClientEntry::new(name.parse()?, ClientId::from_bytes(random()), secret, services)))
    }

    /// A client, by its entry, at a gate.
    #[must_use]
    pub fn at(gate: &GateId, entry: ClientEntry) -> Self {
        let keys = (GateKeys::derive(gate), ClientKeys::derive(gate, &entry.secret));
        Self { entry, gate: gate.clone(), keys, signer: None }
    }

    /// Gives it an identity key: from now on its knocks are signed, and its entry says that they must be.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn take_identity(&mut self) -> Result<()> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&random::<32>()).ok().context("a seed of 32 bytes")?;
        let public = Ed25519PublicKey::try_from(pair.public_key().as_ref())
            .ok()
            .context("a public key of 32 bytes")?;
        self.entry.identity = Some(IdentityKey::try_from(&PublicKey::from(public))?);
        self.signer = Some(Arc::new(pair));
        Ok(())
    }

    /// The same client with another secret, as after a rotation; the entry keeps the one before until then.
    #[must_use]
    pub fn rotated(&self, until: WallTime) -> Self {
        let entry = ClientEntry {
            secret: ClientSecret::from_bytes(random()),
            previous_secret: Some(self.entry.secret.clone()),
            previous_until: Some(until),
            ..self.entry.clone()
        };
        Self { signer: self.signer.clone(), ..Self::at(&self.gate, entry) }
    }

    /// The profile line with which `postern` knocks as this client, at a gate that answers or does not.
    ///
    /// # Errors
    /// When a knock port is zero, or an address is none.
    pub fn profile(
        &self,
        addresses: &[IpAddr],
        ports: &[u16],
        services: &[(&str, u16)],
        answers: bool,
    ) -> Result<String> {
        let mut named = BTreeMap::new();
        for (name, port) in services {
            let name: ServiceName = name.parse()?;
            if self.entry.services.contains(&name) {
                named.insert(name, vec![format!("{port}/tcp").parse::<Port>()?]);
            }
        }
        let profile = Profile {
            gate: self.gate.clone(),
            client: self.entry.id,
            secret: self.entry.secret.clone(),
            addresses: addresses
                .iter()
                .map(|address| address.to_string().parse())
                .collect::<Result<_, _>>()?,
            ports: ports
                .iter()
                .map(|&port| NonZeroU16::new(port))
                .collect::<Option<_>>()
                .context("port 0")?,
            services: named,
            answers,
            identities: self.entry.identity.iter().cloned().collect(),
        };
        Ok(profile.to_line().to_string())
    }

    /// Asks now, from the observed source, for one service, with the service's own window.
    ///
    /// # Errors
    /// When the name of the service is none.
    pub fn asks_for(&self, service: &str) -> Result<Payload> {
        Ok(Payload { at: now(), source: Source::Observed, request: open(service, None)?, proof: Proof::None })
    }

    /// A new knock, signed where the client has an identity key.
    ///
    /// # Panics
    /// When a signature is not one of Ed25519.
    #[must_use]
    pub fn seal(&self, payload: &Payload) -> Knock {
        let ((gate, client), nonce) = (&self.keys, Nonce::from_random(random()));
        let Some(pair) = &self.signer else { return seal(gate, client, payload, nonce) };
        let hint = client.hint.hint(payload.at.epoch());
        let signature = pair.sign(&to_sign(&self.gate, self.entry.id, hint, nonce.bytes(), payload));
        let signature = signature.as_ref().try_into().expect("Ed25519 signs with 64 bytes");
        let proof = Proof::Ed25519(Signature::from_bytes(signature));
        seal(gate, client, &Payload { proof, ..payload.clone() }, nonce)
    }

    /// A new knock with a payload and its proof as they are: what whoever knows the secret alone can send.
    #[must_use]
    pub fn seal_as_it_is(&self, payload: &Payload) -> Knock {
        seal(&self.keys.0, &self.keys.1, payload, Nonce::from_random(random()))
    }

    /// What was sealed in a knock of this client: what whoever knows the secret can read.
    ///
    /// # Errors
    /// When it is none of this client's in that epoch.
    pub fn reads(&self, knock: &Knock, epoch: Epoch) -> Result<Payload> {
        let opened = postern_proto::open(&self.keys.0, &self.keys.1.seal, epoch, Datagram::from(knock))?;
        Ok(opened.payload().clone())
    }

    /// What an answer says that came back for a knock of this client.
    ///
    /// # Errors
    /// When it is no answer to that knock.
    pub fn read_answer(&self, knock: &Knock, answer: &[u8]) -> Result<Answer> {
        let nonce = Datagram::from(knock).nonce();
        Ok(answer::open(&self.gate, &self.keys.1.answer, nonce, answer)?)
    }

    /// A new knock with a payload that no client makes.
    #[must_use]
    pub fn seal_bytes(&self, epoch: Epoch, padded: &[u8; PAYLOAD_LEN]) -> Knock {
        let nonce: [u8; NONCE_LEN] = random();
        seal_bytes(&self.keys.0, &self.keys.1, epoch, padded, Nonce::from_random(nonce))
    }
}

/// The request to open one service.
///
/// # Errors
/// When the name of the service is none.
pub fn open(service: &str, window: Option<Window>) -> Result<Request> {
    Ok(Request::Open { services: Services::new(vec![service.parse()?])?, window, from_port: None })
}
