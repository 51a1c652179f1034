//! A gate for the client to knock at: it opens knocks, and answers them where a test tells it to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU16;
use std::time::{Duration, Instant, SystemTime};

use postern_proto::{
    ANSWER_LEN, Answer, Authentic, ClientId, ClientKeys, ClientSecret, Datagram, Epoch, GateId, GateKeys,
    IdentityKey, KNOCK_LEN, Nonce, Outcome, Profile, Request, WallTime, answer, open,
};
use tokio::net::TcpSocket;

use crate::home::Running;

/// UDP sockets with the keys of the profile.
pub(crate) struct Gate {
    sockets: Vec<UdpSocket>,
    keys: GateKeys,
    client: ClientKeys,
    pub(crate) profile: Profile,
    /// How far its clock is ahead of this host's, in seconds.
    pub(crate) ahead: i64,
}

/// A knock that arrived and opened.
pub(crate) struct Arrived {
    pub(crate) knock: Authentic,
    pub(crate) bytes: [u8; KNOCK_LEN],
    pub(crate) from: SocketAddr,
    /// The number of the socket where it arrived.
    pub(crate) at: usize,
}

impl Gate {
    /// The same as [`Gate::listen`], and its profile says that it answers.
    pub(crate) fn answering(addresses: &[&str], ports: usize, tcp: u16) -> Self {
        let mut gate = Self::listen(addresses, ports, tcp);
        gate.profile.answers = true;
        gate
    }

    /// Listens at each address on each of so many ports. Its service `ssh` is at `tcp`; `vpn` is UDP only.
    pub(crate) fn listen(addresses: &[&str], ports: usize, tcp: u16) -> Self {
        let mut profile = profile(tcp);
        profile.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        profile.ports.clear();
        let mut sockets = Vec::new();
        while profile.ports.len() < ports {
            // One port at all the addresses; another when it is taken at one of them.
            let first = UdpSocket::bind((addresses[0], 0)).unwrap();
            let port = first.local_addr().unwrap().port();
            let others = addresses[1..].iter().map(|&address| UdpSocket::bind((address, port)));
            if let Ok(others) = others.collect::<Result<Vec<_>, _>>() {
                sockets.push(first);
                sockets.extend(others);
                profile.ports.push(NonZeroU16::new(port).unwrap());
            }
        }
        let (keys, client) =
            (GateKeys::derive(&profile.gate), ClientKeys::derive(&profile.gate, &profile.secret));
        Self { sockets, keys, client, profile, ahead: 0 }
    }

    /// The same sockets, with the keys of what its profile says now.
    pub(crate) fn with_keys_of_profile(self) -> Self {
        let keys = GateKeys::derive(&self.profile.gate);
        let client = ClientKeys::derive(&self.profile.gate, &self.profile.secret);
        Self { keys, client, ..self }
    }

    /// The next knock at a socket, numbered port by port and within it address by address.
    pub(crate) fn knock_at(&self, at: usize) -> Arrived {
        let socket = &self.sockets[at];
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = [0; 2048];
        let (len, from) = socket.recv_from(&mut bytes).expect("a knock arrives in time");
        assert_eq!(len, KNOCK_LEN);
        let bytes: [u8; KNOCK_LEN] = bytes[..len].try_into().unwrap();
        Arrived { knock: self.open(&bytes), bytes, from, at }
    }

    /// What a client of the gate has just made.
    pub(crate) fn open(&self, bytes: &[u8; KNOCK_LEN]) -> Authentic {
        let knock = self.try_open(bytes, 3).expect("the knock opens, and was made about now");
        let apart = self.now().since(knock.at()).max(knock.at().since(self.now()));
        assert!(apart < Duration::from_mins(1), "it is {apart:?} off");
        knock
    }

    /// Of an epoch that is so far off at the most.
    fn try_open(&self, bytes: &[u8; KNOCK_LEN], far: u64) -> Option<Authentic> {
        let now = self.now().epoch().number();
        let mut epochs = (now - far..=now + far).map(Epoch::new);
        epochs.find_map(|epoch| open(&self.keys, &self.client.seal, epoch, Datagram::from(bytes)).ok())
    }

    pub(crate) fn knock(&self) -> Arrived {
        self.knock_at(0)
    }

    /// Whether one of these keys signed a knock, for this gate and its client.
    pub(crate) fn is_signed_by(&self, arrived: &Arrived, keys: &[IdentityKey]) -> bool {
        let hint = self.client.hint.hint(arrived.knock.at().epoch());
        arrived.knock.is_signed_by(keys, self.keys.id(), self.profile.client, hint)
    }

    /// The gate's time.
    pub(crate) fn now(&self) -> WallTime {
        let now = WallTime::from(SystemTime::now());
        WallTime::from_micros(now.as_micros().saturating_add_signed(self.ahead * 1_000_000))
    }

    /// Opened for half a minute from now.
    pub(crate) fn opened(&self) -> Outcome {
        Outcome::Opened { until: self.now().after(Duration::from_secs(30)) }
    }

    /// The sealed answer to a knock.
    pub(crate) fn sealed(&self, arrived: &Arrived, outcome: Outcome) -> [u8; ANSWER_LEN] {
        self.sealed_as_seen(arrived, outcome, arrived.from)
    }

    /// The same, from behind an address translation.
    pub(crate) fn sealed_as_seen(
        &self,
        arrived: &Arrived,
        outcome: Outcome,
        seen: SocketAddr,
    ) -> [u8; ANSWER_LEN] {
        let nonce = Datagram::from(&arrived.bytes).nonce();
        let answer = Answer { at: self.now(), seen, outcome };
        let random = Nonce::from_random(*arrived.bytes[..24].first_chunk().unwrap());
        answer::seal(self.keys.id(), &self.client.answer, nonce, &answer, random)
    }

    /// Sends anything to where a knock came from, from where it went.
    pub(crate) fn send(&self, arrived: &Arrived, bytes: &[u8]) {
        // A client that has ended draws an error for the next of these.
        let _ = self.sockets[arrived.at].send_to(bytes, arrived.from);
    }

    pub(crate) fn answer(&self, arrived: &Arrived, outcome: Outcome) {
        self.send(arrived, &self.sealed(arrived, outcome));
    }

    /// Answers every knock that is fresh by the gate's clock, and that `outcome` has something to say about, while the
    /// client runs.
    pub(crate) fn serve(
        &self,
        client: &mut Running,
        answer: impl Fn(&Self, &Arrived) -> Option<[u8; ANSWER_LEN]>,
    ) {
        self.serve_all(client, |gate, arrived| {
            let (at, now) = (arrived.knock.at(), gate.now());
            let apart = now.since(at).max(at.since(now));
            (apart <= Duration::from_mins(1)).then(|| answer(gate, arrived)).flatten()
        });
    }

    /// The same for knocks of any date.
    pub(crate) fn serve_all(
        &self,
        client: &mut Running,
        answer: impl Fn(&Self, &Arrived) -> Option<[u8; ANSWER_LEN]>,
    ) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !client.has_ended() {
            assert!(Instant::now() < deadline, "the client did not end in time");
            for (at, socket) in self.sockets.iter().enumerate() {
                socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
                let mut bytes = [0; 2048];
                let Ok((KNOCK_LEN, from)) = socket.recv_from(&mut bytes) else { continue };
                let bytes = *bytes.first_chunk().unwrap();
                let Some(knock) = self.try_open(&bytes, 65) else { continue };
                let arrived = Arrived { knock, bytes, from, at };
                if let Some(sealed) = answer(self, &arrived) {
                    self.send(&arrived, &sealed);
                }
            }
        }
    }

    /// What a gate that allows everything says of a knock.
    pub(crate) fn granted(&self, arrived: &Arrived) -> Outcome {
        match arrived.knock.request() {
            Request::Open { .. } => self.opened(),
            Request::Close { .. } => Outcome::Closed,
            Request::Probe => Outcome::Heard,
        }
    }

    /// Asserts that no further knock is waiting anywhere. To be asked when the client has ended: on loopback, what was
    /// sent has arrived.
    pub(crate) fn assert_no_more(&self) {
        for socket in &self.sockets {
            socket.set_nonblocking(true).unwrap();
            let error = socket.recv_from(&mut [0; 2048]).expect_err("one knock more than expected");
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            socket.set_nonblocking(false).unwrap();
        }
    }
}

impl Arrived {
    /// The names of the services it asks to open.
    pub(crate) fn services(&self) -> Vec<String> {
        self.knock.request().services().iter().map(ToString::to_string).collect()
    }

    /// The window and the source port it asks for.
    pub(crate) fn limits(&self) -> (Option<u32>, Option<u16>) {
        let Request::Open { window, from_port, .. } = self.knock.request() else { panic!("not an open") };
        (window.map(postern_proto::Window::as_secs), from_port.map(NonZeroU16::get))
    }

    /// The address it states.
    pub(crate) fn stated(&self) -> Option<IpAddr> {
        self.knock.states_source().then(|| self.knock.source(self.from.ip()))
    }
}

/// A profile whose service `ssh` is at `tcp`.
pub(crate) fn profile(tcp: u16) -> Profile {
    let services = [("ssh", format!("{tcp}/tcp")), ("vpn", "51820/udp".to_owned())];
    Profile {
        gate: GateId::from_bytes([0x11; 16]),
        client: ClientId::from_bytes([0x22; 8]),
        secret: ClientSecret::from_bytes([0x33; 32]),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ports: vec![NonZeroU16::MAX],
        services: services
            .map(|(name, port)| (name.parse().unwrap(), vec![port.parse().unwrap()]))
            .into_iter()
            .collect(),
        answers: false,
        identities: vec![],
    }
}

/// A TCP port of loopback at which nobody listens yet, and which nobody else can take.
pub(crate) struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    pub(crate) fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub(crate) fn open(self) -> TcpListener {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        let listener = self.0.listen(16).unwrap().into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        listener
    }
}
