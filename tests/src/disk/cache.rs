//! The disk below the loop device: what is durable, and in a cache above it what was written since the last sync.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// What a disk writes whole or not at all, in bytes.
pub(super) const BLOCK: usize = 4096;

/// How long it takes to sync, as on a real disk: long enough for a cut to come in between.
const SYNC: Duration = Duration::from_millis(2);

/// A disk with its cache.
pub(super) struct Cache(Mutex<State>);

struct State {
    durable: Vec<u8>,
    /// Of each block that was written since the last sync, by number: all that it was, oldest first.
    unsynced: BTreeMap<usize, Vec<[u8; BLOCK]>>,
    has_power: bool,
    lies: bool,
}

impl Cache {
    /// A disk with this on it, of whole blocks.
    pub(super) fn new(durable: Vec<u8>) -> Self {
        Self(Mutex::new(State { durable, unsynced: BTreeMap::new(), has_power: true, lies: false }))
    }

    pub(super) fn cut(&self) {
        self.lock().has_power = false;
    }

    pub(super) fn lie(&self) {
        self.lock().lies = true;
    }

    /// What a cut leaves, how many blocks were not synced, and of how many of them something was kept.
    pub(super) fn remains(&self, rng: Option<&mut Rng>) -> (Vec<u8>, usize, usize) {
        let state = self.lock();
        let (mut image, mut kept) = (state.durable.clone(), 0);
        if let Some(rng) = rng {
            for (number, written) in &state.unsynced {
                if let Some(last) = rng.usize(..=written.len()).checked_sub(1) {
                    image[number * BLOCK..][..BLOCK].copy_from_slice(&written[last]);
                    kept += 1;
                }
            }
        }
        (image, state.unsynced.len(), kept)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, while there is power.
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.lock();
        if state.has_power { Ok(state) } else { Err(Errno::EIO) }
    }
}

impl State {
    /// A block as it was written last.
    fn block(&self, number: usize) -> &[u8] {
        match self.unsynced.get(&number).and_then(|written| written.last()) {
            Some(block) => block,
            None => &self.durable[number * BLOCK..][..BLOCK],
        }
    }

    fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
        let (offset, len) = (to_usize(offset)?, to_usize(len)?);
        let end = self.durable.len().min(offset + len);
        let blocks = (offset / BLOCK..end.div_ceil(BLOCK)).flat_map(|number| self.block(number));
        Ok(blocks.skip(offset % BLOCK).take(end.saturating_sub(offset)).copied().collect())
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) -> Result<u32, Errno> {
        let (mut at, len) = (to_usize(offset)?, data.len());
        if at + len > self.durable.len() {
            return Err(Errno::ENOSPC);
        }
        while !data.is_empty() {
            let (number, within) = (at / BLOCK, at % BLOCK);
            let (now, later) = data.split_at(data.len().min(BLOCK - within));
            let mut block = [0; BLOCK];
            block.copy_from_slice(self.block(number));
            block[within..][..now.len()].copy_from_slice(now);
            self.unsynced.entry(number).or_default().push(block);
            (at, data) = (at + now.len(), later);
        }
        u32::try_from(len).map_err(|_| Errno::EINVAL)
    }

    fn sync(&mut self) {
        if self.lies {
            return;
        }
        for (number, written) in std::mem::take(&mut self.unsynced) {
            if let Some(last) = written.last() {
                self.durable[number * BLOCK..][..BLOCK].copy_from_slice(last);
            }
        }
    }
}

fn to_usize(number: impl TryInto<usize>) -> Result<usize, Errno> {
    number.try_into().map_err(|_| Errno::EINVAL)
}

/// Serves a disk as the one file of a FUSE.
pub(super) struct Server(pub(super) Arc<Cache>);

impl Filesystem for Server {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let size = self.0.lock().durable.len() as u64;
        let attributes = FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::MAX, &attributes);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Not through the page cache: a read sees what is in here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.powered().and_then(|state| state.read(offset, size)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.powered().and_then(|mut state| state.write(offset, data)) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    /// A close, which syncs nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        thread::sleep(SYNC);
        match self.0.powered() {
            Ok(mut state) => {
                state.sync();
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }
}
