//! Where packets come in: a live capture on one interface (or on `any`), and capture files.
//!
//! A live capture is passive: no socket is bound to a knock port, promiscuous mode stays off, and what this host sends
//! is not looked at. The kernel's filter is set as soon as libpcap lets it be; what was queued before that is filtered
//! by libpcap itself. Packets can be read the moment they arrive (immediate mode) and come in batches, so that
//! one flood costs few system calls and others still have their turn.
//!
//! With `any`, a packet that passes two interfaces on its way in (a bridge and its port, a VLAN and its carrier)
//! is captured at both.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use pcap::{Active, Direction};
use postern_proto::WallTime;
use rustix::event::PollFlags;

use super::filter::{self, Sought};
use super::frame::{self, Frame, Link, Unfit, UnsupportedLink};

#[cfg(test)]
mod tests;

/// Bytes kept of each packet: link 20, two VLAN tags 8, IPv4 with all its options 60, UDP 8, knock 256 make 352; the
/// rest leaves IPv6 (40 bytes) 180 for extension headers. The kernel's ring has slots of about this size.
pub(super) const SNAPLEN: i32 = 512;

/// Size of the kernel's ring in bytes: room for about 14,000 packets, a tenth of a second of a flood of 100,000 a second.
const RING_LEN: i32 = 8 << 20;

/// The most packets handed over at once, before others have their turn.
pub(super) const BATCH: usize = 512;

/// Why there is no capture, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CaptureError {
    /// The kernel knows no such interface (any more).
    #[error("no interface {interface:?}: `ip link` lists those there are, and \"any\" means all of them")]
    NoSuchInterface {
        /// Its name.
        interface: String,
    },
    /// Capturing needs root or a capability.
    #[error("not allowed to capture on {interface:?}: run as root or with CAP_NET_RAW")]
    NotPermitted {
        /// The interface's name.
        interface: String,
    },
    /// The interface is down, or went down.
    #[error("interface {interface:?} is down: `ip link set {interface} up`")]
    Down {
        /// The interface's name.
        interface: String,
    },
    /// The interface's frames are not understood.
    #[error("cannot read the frames of {interface:?}: {link} is not supported")]
    UnsupportedInterface {
        /// The interface's name.
        interface: String,
        /// What its frames are.
        link: UnsupportedLink,
    },
    /// Anything else that libpcap reports of a live capture.
    #[error("cannot capture on {interface:?}")]
    Live {
        /// The interface's name.
        interface: String,
        /// libpcap's own words.
        source: pcap::Error,
    },
    /// Not a capture file, or one that is cut short.
    #[error("cannot read the capture file {}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// libpcap's own words.
        source: pcap::Error,
    },
    /// The file's frames are not understood.
    #[error("cannot read the frames in {}: {link} is not supported", path.display())]
    UnsupportedFile {
        /// Its path.
        path: PathBuf,
        /// What its frames are.
        link: UnsupportedLink,
    },
}

impl CaptureError {
    /// Whether it may be worth opening the capture again later: interfaces come and go, and come up again.
    #[must_use]
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::NoSuchInterface { .. } | Self::Down { .. })
    }

    /// libpcap tells its errors apart, but the binding hands on the text alone.
    fn live(interface: &str, source: pcap::Error) -> Self {
        let interface = interface.to_owned();
        match source {
            pcap::Error::PcapError(text)
                if text.contains("No such device") || text.contains("disappeared") =>
            {
                Self::NoSuchInterface { interface }
            }
            pcap::Error::PcapError(text)
                if ["not permitted", "permission", "CAP_NET_RAW"].iter().any(|hint| text.contains(hint)) =>
            {
                Self::NotPermitted { interface }
            }
            pcap::Error::PcapError(text) if text.contains("is not up") || text.contains("is down") => {
                Self::Down { interface }
            }
            source => Self::Live { interface, source },
        }
    }
}

/// What the kernel counted for a capture since it was opened: both wrap around at 2^32, and what came in the moment
/// before the filter was set is counted with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Packets that passed the kernel's filter, those dropped included.
    pub(crate) received: u32,
    /// Packets dropped because the ring was full.
    pub(crate) dropped: u32,
}

/// A live capture. To open it takes a privilege; to read what it collects takes none.
pub(crate) struct Capture {
    interface: String,
    link: Link,
    pcap: pcap::Capture<Active>,
}

impl Capture {
    /// Opens a capture of what is sought on the interface, or on all of them for `any`.
    ///
    /// # Errors
    ///
    /// When there is no such interface, it is down or of an unknown kind, or capturing is not permitted.
    pub(crate) fn open(interface: &str, sought: &Sought) -> Result<Self, CaptureError> {
        let (link, pcap) = activate(interface, sought)?;
        Ok(Self { interface: interface.to_owned(), link, pcap })
    }

    /// What comes before the IP header in its frames.
    pub(crate) fn link(&self) -> Link {
        self.link
    }

    /// Hands over each datagram and segment that is there, [`BATCH`] packets at the most. `ready` is what poll(2) says of
    /// it. Returns how many packets were read: those that were neither after all are in this number only.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Down`] or [`CaptureError::NoSuchInterface`] when the interface went down or away, after what had
    /// come in was handed over. After any error the capture is to be opened anew.
    pub(crate) fn read(
        &mut self,
        ready: PollFlags,
        mut each: impl FnMut(Frame<'_>),
    ) -> Result<usize, CaptureError> {
        let link = self.link;
        let read = self
            .pcap
            .dispatch(Some(BATCH), |packet| {
                if let Ok(frame) = frame::parse(link, packet.data) {
                    each(frame);
                }
            })
            .map_err(|source| CaptureError::live(&self.interface, source))?;
        // The kernel reports an interface that goes down as an error, and nothing else.
        if read < BATCH && ready.contains(PollFlags::ERR) {
            return Err(CaptureError::Down { interface: self.interface.clone() });
        }
        Ok(read)
    }

    /// Its interface, or `any`.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// What the kernel counted so far.
    ///
    /// # Errors
    ///
    /// When libpcap cannot ask the kernel.
    pub(crate) fn stats(&mut self) -> Result<Stats, CaptureError> {
        let stats = self.pcap.stats().map_err(|source| CaptureError::live(&self.interface, source))?;
        Ok(Stats { received: stats.received, dropped: stats.dropped })
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pcap.as_fd()
    }
}

impl AsRawFd for Capture {
    fn as_raw_fd(&self) -> RawFd {
        self.pcap.as_raw_fd()
    }
}

/// Starts the capture, with the filter on it.
fn activate(interface: &str, sought: &Sought) -> Result<(Link, pcap::Capture<Active>), CaptureError> {
    let live = |source| CaptureError::live(interface, source);
    let mut pcap = pcap::Capture::from_device(interface)
        .map_err(live)?
        .promisc(false)
        .immediate_mode(true)
        .snaplen(SNAPLEN)
        .buffer_size(RING_LEN)
        .open()
        .map_err(live)?;
    let link = Link::try_from(pcap.get_datalink())
        .map_err(|link| CaptureError::UnsupportedInterface { interface: interface.to_owned(), link })?;
    pcap.filter(&filter::expression(link, sought), true).map_err(live)?;
    pcap.direction(Direction::In).map_err(live)?;
    let pcap = pcap.setnonblock().map_err(live)?;
    Ok((link, pcap))
}

/// Reads a capture file and hands over each packet in it: when it was captured, and its datagram or why it has none.
/// Nothing is filtered: all ports and lengths come.
///
/// # Errors
///
/// When the file cannot be read, is no capture file, is cut short (after what came before the cut was handed over), or its
/// link type is not supported.
pub(crate) fn read_file(
    path: &Path,
    mut each: impl FnMut(WallTime, Result<Frame<'_>, Unfit>),
) -> Result<(), CaptureError> {
    let unreadable = |source| CaptureError::File { path: path.to_owned(), source };
    let mut pcap = pcap::Capture::from_file(path).map_err(unreadable)?;
    let link = Link::try_from(pcap.get_datalink())
        .map_err(|link| CaptureError::UnsupportedFile { path: path.to_owned(), link })?;
    loop {
        match pcap.next_packet() {
            Ok(packet) => each(captured_at(packet.header), frame::parse(link, packet.data)),
            Err(pcap::Error::NoMorePackets) => return Ok(()),
            Err(source) => return Err(unreadable(source)),
        }
    }
}

/// A packet's time stamp. A file may hold any; what lies before 1970 reads as 1970.
fn captured_at(header: &pcap::PacketHeader) -> WallTime {
    let seconds = u64::try_from(header.ts.tv_sec).unwrap_or(0);
    let micros = u64::try_from(header.ts.tv_usec).unwrap_or(0);
    WallTime::from_micros(WallTime::from_secs(seconds).as_micros().saturating_add(micros))
}
