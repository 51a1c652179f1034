//! Asks a time server how far this host's clock is off: one plain SNTP packet (RFC 4330), for a diagnosis, not to set
//! anything by it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use postern_proto::WallTime;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::clock::{ClockOffset, host_time};
use crate::knock::connected;

/// The port of time servers.
pub(crate) const PORT: u16 = 123;

const PACKET_LEN: usize = 48;
/// No warning of leap seconds, version 4, client.
const ASK: u8 = 0x23;
/// The mode in the lowest bits of the first byte: a server's.
const SERVER: u8 = 4;
/// Where the reply repeats what the request had at [`TRANSMIT_AT`].
const ORIGINATE_AT: usize = 24;
const RECEIVE_AT: usize = 32;
const TRANSMIT_AT: usize = 40;
const TIME_LEN: usize = 8;
/// From 1900, where NTP counts from, to 1970: 70 years, 17 of them leap years.
const FROM_1900: u64 = (70 * 365 + 17) * 86_400;

/// How far that server's clock is ahead of this host's.
///
/// # Errors
/// When it does not answer in time, or what it answers is no time.
pub(crate) async fn ask(server: SocketAddr, limit: Duration) -> io::Result<ClockOffset> {
    let socket = connected(server)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    // Not the time: random bytes that the reply repeats, so that nobody can forge one without seeing this packet.
    let mut cookie = [0; TIME_LEN];
    let random = SystemRandom::new().fill(&mut cookie);
    random.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let mut request = [0; PACKET_LEN];
    request[0] = ASK;
    request[TRANSMIT_AT..].copy_from_slice(&cookie);
    let (asked_at, asked) = (host_time(), Instant::now());
    socket.send(&request).await?;
    let mut reply = [0; PACKET_LEN];
    let offset = async {
        loop {
            let len = socket.recv(&mut reply).await?;
            let middle = asked_at.after(asked.elapsed() / 2);
            if len == PACKET_LEN && reply[ORIGINATE_AT..][..TIME_LEN] == cookie {
                let time = time(&reply, middle);
                return time.map(|time| ClockOffset::between(time, middle));
            }
        }
    };
    timeout(limit, offset).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The middle of receiving and sending, by the server's clock; `near` tells which era of 136 years it is.
fn time(reply: &[u8; PACKET_LEN], near: WallTime) -> io::Result<WallTime> {
    let [first, stratum, ..] = *reply;
    // A server that knows no time itself says so by its stratum.
    if first & 7 != SERVER || !(1..=15).contains(&stratum) {
        return Err(io::Error::other("it is no time server, or knows no time itself"));
    }
    let at = |place: usize| {
        let bytes = *reply[place..].first_chunk::<TIME_LEN>().expect("the places lie within the packet");
        let (seconds, fraction) =
            ((u64::from_be_bytes(bytes) >> 32), u64::from_be_bytes(bytes) & 0xffff_ffff);
        let low = (near.as_secs() + FROM_1900) & 0xffff_ffff;
        // The one of that number that is nearest.
        let ahead = u32::try_from(seconds.wrapping_sub(low) & 0xffff_ffff).expect("it is masked");
        let seconds = near.as_secs().saturating_add_signed(i64::from(ahead.cast_signed()));
        seconds.saturating_mul(1_000_000).saturating_add((fraction * 1_000_000) >> 32)
    };
    let (received, sent) = (at(RECEIVE_AT), at(TRANSMIT_AT));
    Ok(WallTime::from_micros(received.midpoint(sent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NTP's form of a time.
    fn stamp(time: WallTime) -> [u8; TIME_LEN] {
        let seconds = (time.as_secs() + FROM_1900) << 32;
        let fraction = ((time.as_micros() % 1_000_000) << 32) / 1_000_000;
        (seconds | fraction).to_be_bytes()
    }

    fn reply(first: u8, stratum: u8, received: WallTime, sent: WallTime) -> [u8; PACKET_LEN] {
        let mut reply = [0; PACKET_LEN];
        (reply[0], reply[1]) = (first, stratum);
        reply[RECEIVE_AT..][..TIME_LEN].copy_from_slice(&stamp(received));
        reply[TRANSMIT_AT..].copy_from_slice(&stamp(sent));
        reply
    }

    #[test]
    fn times_read_in_every_era() {
        // 2026, and 2040, when the 32 bits have begun anew.
        for secs in [1_790_000_000, 2_208_988_800_u64] {
            let near = WallTime::from_secs(secs);
            for apart in [0, 1, 86_400] {
                let (before, after) =
                    (near.before(Duration::from_secs(apart)), near.after(Duration::from_secs(apart)));
                let read = |at| time(&reply(0x24, 2, at, at), near).unwrap();
                assert_eq!((read(before), read(after)), (before, after));
            }
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let now = WallTime::from_secs(1_790_000_000);
        for (first, stratum) in [(0x23, 2), (0x24, 0), (0x24, 16)] {
            assert!(time(&reply(first, stratum, now, now), now).is_err(), "{first:#x}, stratum {stratum}");
        }
    }

    #[tokio::test]
    async fn only_the_reply_to_the_request_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let serve = async {
            let mut request = [0; PACKET_LEN + 1];
            let (len, from) = server.recv_from(&mut request).await.unwrap();
            assert_eq!((len, request[0]), (PACKET_LEN, ASK));
            let (wrong, right) =
                (WallTime::from_secs(1_000_000_000), host_time().after(Duration::from_mins(5)));
            server.send_to(&reply(0x24, 1, wrong, wrong), from).await.unwrap();
            let mut good = reply(0x24, 1, right, right);
            good[ORIGINATE_AT..][..TIME_LEN].copy_from_slice(&request[TRANSMIT_AT..PACKET_LEN]);
            server.send_to(&good[..40], from).await.unwrap();
            server.send_to(&good, from).await.unwrap();
        };
        let (offset, ()) = tokio::join!(ask(to, Duration::from_secs(20)), serve);
        let offset = offset.unwrap();
        assert!(offset.host_is_behind() && (295_000..=300_000).contains(&offset.as_millis()), "{offset:?}");
        let silent = ask(to, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }
}
