//! eBPF: maps, socket filters, and how they get onto a socket (bpf(2)).
//!
//! A map's key and value have one size for ever, which its type says here, so that the kernel reads and writes as many
//! bytes as stand behind each pointer. Making maps and loading programs takes `CAP_BPF`; what is held can be changed
//! without.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long};

/// Commands of bpf(2) (`enum bpf_cmd` in `linux/bpf.h`).
const MAP_CREATE: c_int = 0;
const MAP_LOOKUP: c_int = 1;
const MAP_UPDATE: c_int = 2;
const PROG_LOAD: c_int = 5;
#[cfg(test)]
const PROG_TEST_RUN: c_int = 10;
const MAP_UPDATE_BATCH: c_int = 26;
const MAP_DELETE_BATCH: c_int = 27;

/// What a process does with the maps that it holds.
pub(crate) const HELD: [c_int; 4] = [MAP_LOOKUP, MAP_UPDATE, MAP_UPDATE_BATCH, MAP_DELETE_BATCH];

/// Kinds of maps (`enum bpf_map_type`).
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
/// Memory for an element only when there is one (`BPF_F_NO_PREALLOC`).
const NO_PREALLOC: u32 = 1;
/// The kind of program that a socket takes for a filter (`BPF_PROG_TYPE_SOCKET_FILTER`).
const SOCKET_FILTER: u32 = 1;
/// More processors than any Linux is built for: the kernel writes a value for each that there may be.
const PROCESSORS: usize = 8192;
/// What the kernel says of a program that it refuses is read up to here.
const LOG_LEN: usize = 64 * 1024;

/// One instruction, as the kernel has it.
pub(crate) type Instruction = [u8; 8];

/// A map.
struct Map(OwnedFd);

/// A set of keys of eight bytes.
pub(crate) struct Set(Map);

/// So many numbers.
pub(crate) struct Numbers(Map);

/// One number for each processor.
pub(crate) struct Count(Map);

/// A socket filter that the kernel has taken.
pub(crate) struct Filter(OwnedFd);

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

impl Map {
    fn create(kind: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> io::Result<Self> {
        let mut create = MapCreate { kind, key_size, value_size, max_entries, flags };
        // SAFETY: the command reads its attributes, which hold no pointer.
        unsafe { call_for_descriptor(MAP_CREATE, &mut create) }.map(Self)
    }

    fn number(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}

impl Set {
    /// An empty set, with room for so many.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(crate) fn create(room: u32) -> io::Result<Self> {
        Map::create(HASH, 8, 1, room, NO_PREALLOC).map(Self)
    }

    /// Has these as well; those that it has already stay.
    ///
    /// # Errors
    /// When there is no room, or no memory; some of them may be in.
    pub(crate) fn insert(&self, keys: &[[u8; 8]]) -> io::Result<()> {
        let values = vec![0u8; keys.len()];
        // Nothing is an error to the kernel.
        if keys.is_empty() { Ok(()) } else { self.batch(MAP_UPDATE_BATCH, keys, &values).1 }
    }

    /// Has these no more; one that is not there is none.
    ///
    /// # Errors
    /// When the kernel says so.
    pub(crate) fn remove(&self, keys: &[[u8; 8]]) -> io::Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            match self.batch(MAP_DELETE_BATCH, rest, &[]) {
                (_, Ok(())) => break,
                // It stops at the first that is not there.
                (done, Err(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                    rest = rest.get(done + 1..).unwrap_or_default();
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many are done, and what came of the next one.
    fn batch(&self, command: c_int, keys: &[[u8; 8]], values: &[u8]) -> (usize, io::Result<()>) {
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let mut batch = Batch {
            from: 0,
            to: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            map: self.0.number(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `count` keys of eight bytes, which the slice holds, and when it updates as many
        // values of one byte: `insert` gives as many, and a removal reads none. It writes to `batch` alone.
        let result = unsafe { call(command, &mut batch) };
        (batch.count as usize, result.map(drop))
    }
}

impl Numbers {
    /// So many zeros.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(crate) fn create(count: u32) -> io::Result<Self> {
        Map::create(ARRAY, 4, 8, count, 0).map(Self)
    }

    /// Sets one of them.
    ///
    /// # Errors
    /// When there is none at `index`.
    pub(crate) fn set(&self, index: u32, number: u64) -> io::Result<()> {
        let mut element = element(&self.0, &raw const index as u64, &raw const number as u64);
        // SAFETY: the kernel reads a key of four bytes and a value of eight, and both live through the call.
        unsafe { call(MAP_UPDATE, &mut element) }.map(drop)
    }
}

impl Count {
    /// Nothing is counted yet.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(crate) fn create() -> io::Result<Self> {
        Map::create(PER_CPU_ARRAY, 4, 8, 1, 0).map(Self)
    }

    /// What all processors have counted.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn sum(&self) -> io::Result<u64> {
        let (key, mut values) = (0u32, vec![0u64; PROCESSORS]);
        let mut element = element(&self.0, &raw const key as u64, values.as_mut_ptr() as u64);
        // SAFETY: the kernel reads a key of four bytes and writes eight for each processor that there may be, of which no
        // kernel has more than `PROCESSORS`; both live through the call.
        unsafe { call(MAP_LOOKUP, &mut element) }?;
        Ok(values.iter().sum())
    }
}

/// Descriptors of maps, as a program names them.
macro_rules! as_raw_fd {
    ($($name:ident),*) => {$(
        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.0.0.as_raw_fd()
            }
        }
    )*};
}
as_raw_fd!(Set, Numbers, Count);

impl Filter {
    /// Has the kernel check a program and take it.
    ///
    /// # Errors
    /// What the kernel says, with the end of its verifier's words where it has any.
    pub(crate) fn load(program: &[Instruction]) -> io::Result<Self> {
        let attempt = |log: &mut [u8]| {
            let mut load = ProgLoad {
                kind: SOCKET_FILTER,
                count: u32::try_from(program.len()).map_err(io::Error::other)?,
                instructions: program.as_ptr() as u64,
                license: c"MIT".as_ptr() as u64,
                log_level: u32::from(!log.is_empty()),
                log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
                log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            };
            // SAFETY: the kernel reads `count` instructions of eight bytes and a string that ends with a zero, and writes
            // at most `log_size` bytes into the log; all of them live through the call. What the program does, the
            // kernel's verifier allows or not.
            unsafe { call_for_descriptor(PROG_LOAD, &mut load) }
        };
        let error = match attempt(&mut []) {
            Ok(program) => return Ok(Self(program)),
            Err(error) => error,
        };
        let is_forbidden = matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
        let mut log = vec![0; LOG_LEN];
        // Once more, for the verifier's words.
        if is_forbidden || attempt(&mut log).is_ok() {
            return Err(error);
        }
        let text = String::from_utf8_lossy(&log);
        let words = text.trim_end_matches('\0').lines().rev().find(|line| !line.starts_with("processed"));
        Err(io::Error::new(error.kind(), format!("{error}: {}", words.unwrap_or_default())))
    }

    /// Puts it in the place of whatever filter the socket has.
    ///
    /// # Errors
    /// When it is no socket, or its filter is locked.
    pub(crate) fn attach(&self, socket: RawFd) -> io::Result<()> {
        let program = self.0.as_raw_fd();
        let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
        // SAFETY: the kernel reads one `int`, which lives through the call; a descriptor that is none is an error.
        let result = unsafe {
            libc::setsockopt(
                socket,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                (&raw const program).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What it says of a packet: 14 bytes of Ethernet's header, which tell of the protocol, and then what it is shown.
    ///
    /// # Errors
    /// When the kernel does not run it.
    #[cfg(test)]
    pub(crate) fn test(&self, packet: &[u8]) -> io::Result<u32> {
        #[repr(C)]
        struct TestRun {
            program: u32,
            returned: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
        }
        let mut run = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            returned: 0,
            size_in: u32::try_from(packet.len()).map_err(io::Error::other)?,
            size_out: 0,
            data_in: packet.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
            context_size_in: 0,
            context_size_out: 0,
            context_in: 0,
            context_out: 0,
        };
        // SAFETY: the kernel reads `size_in` bytes of the packet, and writes to `run` alone.
        unsafe { call(PROG_TEST_RUN, &mut run) }?;
        Ok(run.returned)
    }
}

fn element(map: &Map, key: u64, value: u64) -> Element {
    Element { map: map.number(), _pad: 0, key, value, flags: 0 }
}

/// # Safety
/// What pointers in the attributes lead to must be as long as the command reads or writes it.
unsafe fn call<A>(command: c_int, attributes: &mut A) -> io::Result<c_long> {
    // SAFETY: the kernel reads and writes as many bytes of the attributes as they have; the rest is the caller's care.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As for [`call`], and the command must answer with a new descriptor.
unsafe fn call_for_descriptor<A>(command: c_int, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's care.
    let descriptor = unsafe { call(command, attributes) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for nobody else. It closes on exec.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
