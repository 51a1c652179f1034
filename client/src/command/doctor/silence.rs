//! Why no address of the gate answers: what the network says, a clock that is far off, answers that are turned off, UDP that
//! does not get through, or a gate that is down or does not know the key. The last two look the same from outside, and are
//! meant to.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postern_proto::{KNOCK_LEN, Request, Services, WallTime};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::SET_CLOCK;
use super::answers_off::{self, Tried};
use super::findings::Findings;
use super::probe::Echo;
use crate::error::Error;
use crate::gate::{Gate, Options};
use crate::knock::connected;
use crate::reply::{Heard, Kind, Reply, listen};
use crate::report::{CLOCK_WARNING_SECONDS, Off};
use crate::rounds::plain;

/// From one date of a probe to the next: a tolerance of 60 s each way leaves no gap.
const CLOCK_STEP: Duration = Duration::from_secs(100);
/// How many dates are tried each way: up to a quarter of an hour.
const CLOCK_STEPS: u32 = 9;
/// How many places are probed with other dates. They are of one gate, which has one clock.
const CLOCK_PLACES: usize = 4;
/// Where traceroute sends to, because nothing listens there.
const CLOSED_PORTS: [u16; 3] = [33_434, 33_435, 33_436];
/// How long a host may take to say that a port is closed.
const CLOSED_TIMEOUT: Duration = Duration::from_secs(1);

/// Says why nothing answers. Whether it does with other dates, and is heard from then on.
pub(super) async fn explain(
    gate: &Gate,
    services: &Services,
    echo: &Echo,
    options: &Options,
    findings: &mut Findings,
) -> Result<bool, Error> {
    let silent: Vec<_> = echo.sent.iter().copied().filter(|to| !echo.errors.contains_key(to)).collect();
    for to in &echo.not_understood {
        findings.fault(
            "not-understood",
            format_args!("{} answers in words that this version does not know", to.ip()),
            "update this program",
        );
    }
    for (to, error) in &echo.errors {
        let (address, port) = (to.ip(), to.port());
        if error.kind() == ErrorKind::ConnectionRefused {
            findings.fault(
                "gate-down",
                format_args!(
                    "{address} is up, and says that nothing is at UDP port {port}: no gate runs there"
                ),
                "start it there (systemctl start posternd), or correct `addresses` and `ports` here",
            );
        } else {
            findings.fault(
                "unreachable",
                format_args!("{address} is not reached: {}", plain(error)),
                "look at the network on the way: ping, traceroute",
            );
        }
    }
    let silent: Vec<_> = silent.into_iter().filter(|to| !echo.not_understood.contains(to)).collect();
    let addresses: BTreeSet<_> = silent.iter().map(SocketAddr::ip).collect();
    if addresses.is_empty() {
        return Ok(false);
    }
    if !echo.one_by_one
        && let Some(reply) = with_other_dates(gate, &silent, options).await?
    {
        answered_late(gate, &reply, findings);
        return Ok(true);
    }
    match answers_off::knock(gate, services, &addresses, options, findings).await {
        Ok(Tried::Answered(reply)) => {
            answered_late(gate, &reply, findings);
            return Ok(true);
        }
        Ok(Tried::Told) => return Ok(false),
        Ok(Tried::Shut) | Err(Error::Unsent(_) | Error::Unresolved(_)) => {}
        Err(error) => return Err(error),
    }
    let mut tries: JoinSet<_> =
        addresses.into_iter().map(|to| async move { (to, gets_udp(to).await) }).collect();
    while let Some(tried) = tries.join_next().await {
        if let Ok((address, gets_udp)) = tried {
            filtered_or_down(address, gets_udp, findings);
        }
    }
    Ok(false)
}

fn filtered_or_down(address: IpAddr, gets_udp: bool, findings: &mut Findings) {
    if gets_udp {
        findings.fault(
            "wrong-key-or-gate-down",
            format_args!("{address} gets UDP, and answers none of these probes"),
            "its gate is down, or does not know this key: there, `posternd status` says what it receives and refuses, \
             and `posternd explain` of a capture says why; a new profile helps where the key is wrong",
        );
    } else {
        findings.fault(
            "udp-blocked",
            format_args!("nothing comes back from {address}, not even that a UDP port is closed"),
            "UDP is dropped on the way, or the host drops all that is unknown to it: try another knock port (53, 443); \
             where that changes nothing, its gate is down or does not know this key: `posternd status` there",
        );
    }
}

/// The answer to a probe that is dated earlier or later, and so made by another clock.
///
/// Those of the past come first, and that of now once more. A gate never takes them again when they are held back; one that
/// is dated ahead draws an answer later, once, for whoever has kept it: it opens nothing, and shows that a gate is there. So
/// these are sent only where nothing else is answered.
async fn with_other_dates(
    gate: &Gate,
    silent: &[SocketAddr],
    options: &Options,
) -> Result<Option<Reply>, Error> {
    let now = gate.knocker.clock.now();
    let past = (0..=CLOCK_STEPS).map(|step| now.before(CLOCK_STEP * step)).collect();
    if let Some(reply) = with_dates(gate, past, silent, options).await? {
        return Ok(Some(reply));
    }
    let now = gate.knocker.clock.now();
    let ahead = (1..=CLOCK_STEPS).map(|step| now.after(CLOCK_STEP * step)).collect();
    with_dates(gate, ahead, silent, options).await
}

async fn with_dates(
    gate: &Gate,
    dates: Vec<WallTime>,
    silent: &[SocketAddr],
    options: &Options,
) -> Result<Option<Reply>, Error> {
    let (tell, mut heard) = unbounded_channel();
    let mut listeners = JoinSet::new();
    let knocker = &gate.knocker;
    for at in dates {
        for &to in silent.iter().take(CLOCK_PLACES) {
            // One that does not leave is as silent as one that gets no answer.
            if let Ok(knock) = knocker.send_dated(at, to, &Request::Probe, options.source, None)? {
                listeners.spawn(listen(knock, knocker.keys(), Kind::Probe, tell.clone()));
            }
        }
    }
    drop(tell);
    let deadline = Instant::now() + options.timeout;
    while let Ok(Some(heard)) = timeout_at(deadline, heard.recv()).await {
        if let Heard::Reply(reply) = heard {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

/// An answer after all: this host's clock is off, or, where it is not, what was sent before is lost.
fn answered_late(gate: &Gate, reply: &Reply, findings: &mut Findings) {
    let message = format!("this host's clock is {}", Off(reply.offset, "the gate's"));
    if reply.offset.abs().as_secs() < CLOCK_WARNING_SECONDS {
        findings.warning(
            "packets-lost",
            format_args!(
                "the first probes were lost, or their answers: a later one is answered, and {message}"
            ),
            "look at the network on the way: ping; --repeat helps where packets are lost",
        );
    } else {
        gate.knocker.clock.correct(reply.offset);
        findings.fault("clock-off", message, SET_CLOCK);
    }
}

/// Whether a host says that a UDP port is closed: then UDP gets there, and an answer back. What is sent looks like a
/// knock, and is random.
async fn gets_udp(to: IpAddr) -> bool {
    let random = SystemRandom::new();
    let mut tries = JoinSet::new();
    for port in CLOSED_PORTS {
        let mut junk = [0; KNOCK_LEN];
        let socket = connected((to, port).into()).and_then(|socket| {
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        });
        if let (Ok(socket), Ok(())) = (socket, random.fill(&mut junk)) {
            tries.spawn(async move {
                // An error of sending is one of this host.
                if socket.send(&junk).await.is_err() {
                    return false;
                }
                let closed = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
                // Whatever answers there: UDP gets through.
                socket.recv(&mut junk).await.map_or_else(closed, |_| true)
            });
        }
    }
    let any = async {
        while let Some(tried) = tries.join_next().await {
            if tried.unwrap_or(false) {
                return true;
            }
        }
        false
    };
    timeout(CLOSED_TIMEOUT, any).await.unwrap_or(false)
}
