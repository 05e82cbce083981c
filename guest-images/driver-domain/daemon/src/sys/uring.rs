//! Asynchronous work on one file, by `io_uring(7)`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{IoUring, opcode, types};

use super::Buffers;

/// What is to be done with the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Fills the buffers from the file at `offset`.
    Read {
        /// In bytes.
        offset: u64,
    },
    /// Writes the buffers to the file at `offset`.
    Write {
        /// In bytes.
        offset: u64,
        /// Done only when the data is on the medium (`RWF_DSYNC`).
        durable: bool,
    },
    /// All that was written before is on the medium.
    Flush,
    /// `fallocate(2)`.
    Allocate {
        /// Its mode.
        mode: i32,
        /// From where, in bytes.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
}

/// Work that has ended.
#[derive(Debug)]
pub struct Completion {
    /// As given with the work.
    pub token: u64,
    /// How many bytes were transferred.
    pub result: io::Result<usize>,
    /// As given with the work.
    pub buffers: Option<Buffers>,
}

struct Pending {
    token: u64,
    buffers: Option<Buffers>,
}

/// A file, and work under way on it. Dropping it waits for the work's end.
pub struct Uring {
    ring: IoUring,
    file: File,
    /// By the number that the kernel gives back.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Handed to the ring, not yet to the kernel.
    unsubmitted: bool,
}

impl Uring {
    /// For up to `depth` pieces of work at a time.
    ///
    /// # Errors
    /// The kernel's, where it has no room or does not allow it.
    pub fn new(file: File, depth: u16) -> io::Result<Self> {
        let depth = depth.max(1).next_power_of_two();
        let ring = IoUring::new(u32::from(depth))?;
        let slots = usize::from(depth);
        Ok(Self {
            ring,
            file,
            pending: std::iter::repeat_with(|| None).take(slots).collect(),
            free: (0..slots).collect(),
            unsubmitted: false,
        })
    }

    /// Keeps `claim` open until all work has ended, also that which outlives this process for a moment when it is killed: the kernel
    /// keeps it with the work, and lets it go afterwards.
    ///
    /// # Errors
    /// The kernel's.
    #[expect(clippy::needless_pass_by_value, reason = "it is the kernel's from now on")]
    pub fn keep(&self, claim: OwnedFd) -> io::Result<()> {
        self.ring.submitter().register_files(&[claim.as_raw_fd()])
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether there is room for more work.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// How many pieces of work are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    /// What becomes readable when work has ended.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps the descriptor open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Begins work. It may be held back until [`Uring::submit`].
    ///
    /// # Errors
    /// `WouldBlock` where there is no room.
    pub fn start(&mut self, token: u64, work: Work, buffers: Option<Buffers>) -> io::Result<()> {
        let slot = self.free.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let file = types::Fd(self.file.as_raw_fd());
        let pieces = buffers.as_ref().map(Buffers::raw).unwrap_or_default();
        let entry = match work {
            Work::Read { offset } => {
                opcode::Readv::new(file, pieces.as_ptr(), pieces.len() as u32).offset(offset).build()
            }
            Work::Write { offset, durable } => {
                opcode::Writev::new(file, pieces.as_ptr(), pieces.len() as u32)
                    .offset(offset)
                    .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            Work::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Allocate { mode, offset, bytes } => {
                opcode::Fallocate::new(file, bytes).offset(offset).mode(mode).build()
            }
        };
        let entry = entry.user_data(slot as u64);
        // Moving the buffers does not move the pieces' list nor what they point to.
        if let Some(pending) = self.pending.get_mut(slot) {
            *pending = Some(Pending { token, buffers });
        }
        // SAFETY: the file and the buffers, with their list of pieces, are kept until the work has ended: only `collect` takes
        // them out, and dropping waits.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // As many entries as slots: there is room once the kernel has taken what it was given.
            self.submit();
        }
        self.unsubmitted = true;
        Ok(())
    }

    /// Hands the work over to the kernel.
    pub fn submit(&mut self) {
        if !self.unsubmitted {
            return;
        }
        // It fails only for a while, as when the kernel is short of memory; what was not taken is handed over the next time.
        if self.ring.submit().is_ok() {
            self.unsubmitted = !self.ring.submission().is_empty();
        }
    }

    /// Puts the work that has ended at the end of `into`.
    pub fn collect(&mut self, into: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            let Some(pending) = self.pending.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let result =
                usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            into.push(Completion { token: pending.token, result, buffers: pending.buffers });
        }
    }

    /// Waits until something has ended, if anything is under way.
    pub fn wait(&mut self) {
        if self.under_way() > 0 && self.ring.submit_and_wait(1).is_ok() {
            self.unsubmitted = false;
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.under_way() > 0 {
            self.wait();
            self.collect(&mut ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;
    use crate::sys::Pages;

    fn finish(ring: &mut Uring) -> Vec<Completion> {
        let mut ended = Vec::new();
        while ring.under_way() > 0 {
            ring.wait();
            ring.collect(&mut ended);
        }
        ended
    }

    #[test]
    fn work_is_done_and_gives_its_buffers_back() {
        let file = crate::testing::file(16384);
        let mut check = file.try_clone().unwrap();
        let mut ring = Uring::new(file, 4).unwrap();
        for at in 0..4_u64 {
            let buffers = Buffers::own(Pages::new(4096), 4096);
            assert_eq!(buffers.write(0, &[at as u8 + 1; 4096]), 4096);
            ring.start(at, Work::Write { offset: at * 4096, durable: at == 2 }, Some(buffers)).unwrap();
        }
        assert!(!ring.has_room());
        let refused = ring.start(9, Work::Flush, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        ring.submit();
        let mut tokens: Vec<_> =
            finish(&mut ring).into_iter().map(|done| (done.token, done.result.unwrap())).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [(0, 4096), (1, 4096), (2, 4096), (3, 4096)]);
        ring.start(5, Work::Flush, None).unwrap();
        ring.start(6, Work::Read { offset: 4096 }, Some(Buffers::own(Pages::new(8192), 8192))).unwrap();
        let read = finish(&mut ring).into_iter().find(|done| done.token == 6).unwrap();
        assert_eq!(read.result.unwrap(), 8192);
        let mut bytes = [0; 8192];
        read.buffers.unwrap().read(0, &mut bytes);
        assert!(bytes[..4096].iter().all(|&byte| byte == 2) && bytes[4096..].iter().all(|&byte| byte == 3));
        let mut all = Vec::new();
        check.rewind().unwrap();
        check.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 16384);
        assert_eq!(all[12288], 4);
    }

    #[test]
    fn a_claim_lasts_as_long_as_the_ring() {
        use rustix::fs::{FlockOperation, flock};
        let path = std::env::temp_dir().join(format!("caisson-uring-claim-{}", std::process::id()));
        let open = || OwnedFd::from(File::create(&path).unwrap());
        let (claim, other) = (open(), open());
        let lock = |file: &OwnedFd| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
        assert!(lock(&claim));
        let mut ring = Uring::new(crate::testing::file(4096), 2).unwrap();
        ring.keep(claim).unwrap();
        assert!(!lock(&other));
        ring.start(1, Work::Flush, None).unwrap();
        assert!(finish(&mut ring)[0].result.is_ok());
        assert!(!lock(&other));
        drop(ring);
        // The kernel takes a ring apart by itself, soon.
        while !lock(&other) {
            std::thread::yield_now();
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn errors_are_told() {
        let mut ring = Uring::new(File::open("/dev/null").unwrap(), 2).unwrap();
        ring.start(1, Work::Allocate { mode: 0, offset: 0, bytes: 4096 }, None).unwrap();
        assert!(finish(&mut ring)[0].result.is_err());
    }
}
