//! A file or block device whose bytes are the disk's.
//!
//! Transfers are `O_DIRECT` where the file can do that: between the medium and the guest's memory, without a copy and without the
//! driver domain's page cache. Buffers that are not aligned as the medium needs it go through pages of the daemon's own, a bounded
//! number at a time.
//!
//! A transfer that the medium's driver would have to split goes to the kernel in parts that it takes whole ([`Limits`]): the kernel
//! refuses to split one that must not wait, after all its pages have been looked up, and has a thread of its own do it once more.
//!
//! A write that the guest has been told of must outlive the driver domain, whose crash the guest does not notice: its next flush
//! would come to a file system that has forgotten. A device's own cache outlives it, and a file's data that are in the page cache,
//! or the places of which its file system has only noted in memory, do not. So each write to a file ends when it is on the medium
//! (`RWF_DSYNC`), and one to a block device when the device has it. Disks that have to be fast are partitions or volumes.
//!
//! The file is claimed for as long as it is open (`O_EXCL` of a block device, `flock(2)` of a file). A claim goes away with the last
//! use of the open file, work of the kernel's included: so a daemon that follows one that was killed cannot open the file before
//! what that one had under way has ended, and no old write comes behind a new one. Files that are only read are shared; what was under
//! way there may still write to the guest's memory. So each disk that is only read has a claim of its own, by its channel, which is kept
//! with the work ([`Uring::keep`]).

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::limits::{Limits, Parts, block_size};
use super::{Done, Geometry, Storage, Transfer};
use crate::claims;
use crate::sys::{Buffers, Completion, Pages, Uring, Work};

/// The most bytes of a transfer that go through the daemon's own pages at a time, and the most such transfers.
const BOUNCE_BYTES: usize = 256 << 10;
const MAX_BOUNCES: usize = 8;
/// Zeroes are written so many bytes at a time, where the file cannot do it by itself, by so many transfers.
const ZERO_BYTES: usize = 1 << 20;
const MAX_ZEROINGS: usize = 4;
/// How often a transfer is tried that the kernel has no room for.
const RETRIES: u32 = 1000;
/// The least alignment of memory for direct transfers.
const MEMORY_ALIGN: u32 = 512;

/// The file.
pub struct Raw {
    ring: Uring,
    geometry: Geometry,
    /// Transfers go past the page cache.
    direct: bool,
    /// Every change has to be on the medium before the guest is told.
    durable: bool,
    limits: Limits,
    /// By the number that the kernel gives back, and the next such number.
    jobs: HashMap<u64, Job>,
    next: u64,
    /// Transfers in parts, and the parts that wait for a place.
    parts: Parts,
    waiting: VecDeque<(Job, Buffers)>,
    bounces: usize,
    /// Transfers that write zeroes, and those that wait for their turn to.
    zeroings: usize,
    unzeroed: VecDeque<Job>,
    completions: Vec<Completion>,
    /// Ended without the kernel.
    ended: Vec<Done>,
}

/// A transfer on its way, or a part of one.
#[derive(Debug)]
struct Job {
    /// Of the transfer, as it was given.
    token: u64,
    kind: Kind,
    /// Where the piece that is under way begins, in bytes.
    offset: u64,
    /// What is left from there on.
    left: u64,
    durable: bool,
    retries: u32,
    /// It ends with the piece that is under way.
    given_up: bool,
}

#[derive(Debug)]
enum Kind {
    Read,
    Write,
    /// Through the daemon's own pages, from and to what is left of the guest's.
    BounceRead(Buffers),
    BounceWrite(Buffers),
    Flush,
    Discard,
    Zero {
        unmap: bool,
    },
    /// By writing them.
    ZeroByWriting,
}

impl Raw {
    /// Opens and claims the file, for `depth` transfers at a time; one that is only read by a file of its own at `claim`.
    ///
    /// # Errors
    /// The kernel's; `ResourceBusy` while somebody else, perhaps a daemon that is about to end, uses it.
    pub fn open(path: &Path, read_only: bool, depth: usize, claim: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        // First: what was under way has ended then.
        let claim = read_only.then(|| claims::take(claim)).transpose()?;
        let new = |(file, direct)| Self::new(file, direct, read_only, depth);
        let raw = open(path, read_only).and_then(new).map_err(named)?;
        claim.map_or(Ok(()), |claim| raw.ring.keep(claim))?;
        Ok(raw)
    }

    /// The same of a file that is open.
    pub(super) fn new(mut file: File, direct: bool, read_only: bool, depth: usize) -> io::Result<Self> {
        let block = block_size(&file)?;
        let durable = !direct || !file.metadata()?.file_type().is_block_device();
        let bytes = file.seek(SeekFrom::End(0))?;
        let bytes = bytes - bytes % u64::from(block);
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is too small for a disk"));
        }
        let limits = if direct { Limits::of(&file)? } else { Limits::NONE };
        let ring = Uring::new(file, depth as u16)?;
        let geometry = Geometry { bytes, block, read_only };
        Ok(Self {
            ring,
            geometry,
            direct,
            durable,
            limits,
            jobs: HashMap::new(),
            next: 0,
            parts: Parts::default(),
            waiting: VecDeque::new(),
            bounces: 0,
            zeroings: 0,
            unzeroed: VecDeque::new(),
            completions: Vec::new(),
            ended: Vec::new(),
        })
    }

    /// Begins the next piece of a job. `whole` are the guest's buffers of one that goes straight.
    fn go(&mut self, mut job: Job, whole: Option<Buffers>) {
        let Job { offset, left, durable, .. } = job;
        let bounce =
            || Buffers::own(Pages::new(BOUNCE_BYTES.min(left as usize)), BOUNCE_BYTES.min(left as usize));
        let write = Work::Write { offset, durable };
        let allocate = |mode| Work::Allocate { mode, offset, bytes: left };
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (work, buffers) = match &mut job.kind {
            Kind::Read => (Work::Read { offset }, whole),
            Kind::Write => (write, whole),
            Kind::BounceRead(_) => (Work::Read { offset }, Some(bounce())),
            Kind::BounceWrite(guest) => {
                let own = bounce();
                own.copy_from(guest, own.bytes());
                (write, Some(own))
            }
            Kind::Flush => (Work::Flush, None),
            Kind::Discard => (allocate(hole), None),
            Kind::Zero { unmap: true } => (allocate(hole), None),
            Kind::Zero { unmap: false } => {
                (allocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE), None)
            }
            Kind::ZeroByWriting => {
                let bytes = ZERO_BYTES.min(left as usize);
                (write, Some(Buffers::own(Pages::new(bytes), bytes)))
            }
        };
        let number = self.next;
        self.next = number.wrapping_add(1);
        match self.ring.start(number, work, buffers) {
            Ok(()) => {
                self.jobs.insert(number, job);
            }
            Err(error) => self.end(&job, Err(error)),
        }
    }

    /// Begins a transfer straight from and to the guest's memory, in parts where it is too much for one.
    fn go_straight(&mut self, mut job: Job, mut rest: Buffers) {
        let Limits { bytes, pieces } = self.limits;
        let mut count = 1;
        while let Some(first) = rest.split_first(bytes, pieces) {
            // Always the one behind as well, so that none of these is the last one.
            self.parts.add(job.token, if count == 1 { 2 } else { 1 });
            count += 1;
            let left = first.bytes() as u64;
            let kind = if matches!(job.kind, Kind::Write) { Kind::Write } else { Kind::Read };
            self.go_or_wait(Job { kind, left, ..job }, first);
            job.offset += left;
            job.left -= left;
        }
        self.go_or_wait(job, rest);
    }

    /// Begins a part, when there is a place.
    fn go_or_wait(&mut self, part: Job, buffers: Buffers) {
        if self.ring.has_room() {
            self.go(part, Some(buffers));
        } else {
            self.waiting.push_back((part, buffers));
        }
    }

    fn end(&mut self, job: &Job, result: io::Result<()>) {
        let token = job.token;
        self.ended.extend(self.parts.end(token, result).map(|result| Done { token, result }));
        match &job.kind {
            Kind::BounceRead(_) | Kind::BounceWrite(_) => self.bounces -= 1,
            Kind::ZeroByWriting => {
                self.zeroings -= 1;
                if let Some(job) = self.unzeroed.pop_front() {
                    self.zero(job);
                }
            }
            _ => {}
        }
    }

    /// Begins to write zeroes, when fewer do than may: each has pages of the daemon's own.
    fn zero(&mut self, job: Job) {
        if self.zeroings == MAX_ZEROINGS {
            return self.unzeroed.push_back(job);
        }
        self.zeroings += 1;
        self.go(Job { kind: Kind::ZeroByWriting, ..job }, None);
    }

    /// Work of the kernel's has ended: the job ends, or goes on.
    fn proceed(&mut self, completion: Completion) {
        let Completion { token: number, result, buffers } = completion;
        let Some(mut job) = self.jobs.remove(&number) else { return };
        if job.given_up {
            return self.end(&job, Err(io::ErrorKind::Interrupted.into()));
        }
        let count = match result {
            Ok(count) => count,
            Err(error) => return self.fail(job, buffers, error),
        };
        job.retries = 0;
        match &mut job.kind {
            Kind::Zero { .. } if job.durable => {
                job.kind = Kind::Flush;
                return self.go(job, None);
            }
            Kind::Flush | Kind::Discard | Kind::Zero { .. } => return self.end(&job, Ok(())),
            Kind::BounceRead(guest) => {
                if let Some(own) = &buffers {
                    guest.copy_from(own, count);
                }
                guest.skip(count);
            }
            Kind::BounceWrite(guest) => guest.skip(count),
            Kind::Read | Kind::Write | Kind::ZeroByWriting => {}
        }
        job.left = job.left.saturating_sub(count as u64);
        job.offset += count as u64;
        if job.left == 0 {
            return self.end(&job, Ok(()));
        }
        // The end of a file that has become shorter; or a part of a block, behind which nothing direct can go on.
        if count == 0 || !job.offset.is_multiple_of(u64::from(self.geometry.block)) {
            return self.end(&job, Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let rest = buffers.map(|mut buffers| {
            buffers.skip(count);
            buffers
        });
        self.go(job, rest);
    }

    fn fail(&mut self, mut job: Job, buffers: Option<Buffers>, error: io::Error) {
        let code = error.raw_os_error();
        if matches!(code, Some(libc::EAGAIN | libc::EINTR)) && job.retries < RETRIES {
            job.retries += 1;
            return self.go(job, buffers);
        }
        let unsupported = matches!(code, Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EINVAL));
        match job.kind {
            // To discard is a hint.
            Kind::Discard if unsupported => self.end(&job, Ok(())),
            Kind::Zero { .. } if unsupported => self.zero(job),
            _ => self.end(&job, Err(error)),
        }
    }
}

impl Storage for Raw {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn has_room(&self) -> bool {
        // Those that wait for their turn have a place each.
        self.ring.has_room()
            && self.bounces < MAX_BOUNCES
            && self.unzeroed.is_empty()
            && self.waiting.is_empty()
    }

    fn start(&mut self, token: u64, transfer: Transfer, durable: bool) {
        let align = self.geometry.block.max(MEMORY_ALIGN) as usize;
        let straight =
            |buffers: &Buffers| !self.direct || buffers.is_aligned(align, self.geometry.block as usize);
        let (kind, offset, left, whole) = match transfer {
            Transfer::Read { offset, into } => {
                let left = into.bytes() as u64;
                if straight(&into) {
                    (Kind::Read, offset, left, Some(into))
                } else {
                    (Kind::BounceRead(into), offset, left, None)
                }
            }
            Transfer::Write { offset, from } => {
                let left = from.bytes() as u64;
                if straight(&from) {
                    (Kind::Write, offset, left, Some(from))
                } else {
                    (Kind::BounceWrite(from), offset, left, None)
                }
            }
            Transfer::Flush => (Kind::Flush, 0, 0, None),
            Transfer::Discard { offset, bytes } => (Kind::Discard, offset, bytes, None),
            Transfer::Zero { offset, bytes, unmap } => (Kind::Zero { unmap }, offset, bytes, None),
        };
        if matches!(kind, Kind::BounceRead(_) | Kind::BounceWrite(_)) {
            self.bounces += 1;
        }
        let durable = durable || self.durable;
        let job = Job { token, kind, offset, left, durable, retries: 0, given_up: false };
        match whole {
            Some(buffers) => self.go_straight(job, buffers),
            None => self.go(job, None),
        }
    }

    fn submit(&mut self) {
        self.ring.submit();
    }

    fn give_up(&mut self) {
        self.jobs.values_mut().for_each(|job| job.given_up = true);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|(job, _)| job);
        for job in std::mem::take(&mut self.unzeroed).into_iter().chain(waiting) {
            let result = self.parts.end(job.token, Err(io::ErrorKind::Interrupted.into()));
            self.ended.extend(result.map(|result| Done { token: job.token, result }));
        }
    }

    fn collect(&mut self, into: &mut Vec<Done>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.collect(&mut completions);
        for completion in completions.drain(..) {
            self.proceed(completion);
        }
        self.completions = completions;
        while self.ring.has_room()
            && let Some((part, buffers)) = self.waiting.pop_front()
        {
            self.go(part, Some(buffers));
        }
        into.append(&mut self.ended);
        self.ring.submit();
    }

    fn wait(&mut self) {
        if self.ended.is_empty() {
            self.ring.wait();
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }
}

/// Opens and claims the file: whether transfers go past the page cache.
fn open(path: &Path, read_only: bool) -> io::Result<(File, bool)> {
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"));
    }
    // Two that only read may share a block device; a file's lock says the same of files.
    let claim = if kind.is_block_device() && !read_only { libc::O_EXCL } else { 0 };
    let with = |flags: i32| OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
    let (file, direct) = match with(claim | libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (with(claim)?, false),
        other => (other?, true),
    };
    if kind.is_file() {
        let kind = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        claims::lock(file.as_fd(), kind)?;
    }
    Ok((file, direct))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::SECTOR;
    use super::*;
    use crate::sys::Memory;
    use crate::testing::{file, memory};

    /// Works until so many transfers have ended.
    fn finish(raw: &mut Raw, done: &mut Vec<Done>, count: usize) {
        while done.len() < count {
            raw.submit();
            raw.wait();
            raw.collect(done);
        }
    }

    /// All of a guest's memory, in ranges of `bytes`.
    fn buffers(memory: &Arc<Memory>, bytes: usize) -> Buffers {
        let ranges: Vec<_> =
            (0..memory.mapped() / bytes).map(|at| (GuestAddress((at * bytes) as u64), bytes)).collect();
        Buffers::guest(memory, &ranges).unwrap()
    }

    #[test]
    fn what_is_too_much_for_one_transfer_goes_in_parts() {
        const BYTES: usize = 64 << 10;
        let (from, to) = (memory(&[(0, BYTES)]), memory(&[(0, BYTES)]));
        let data: Vec<u8> = (0..BYTES).map(|at| (at / 7 % 251) as u8).collect();
        from.regions().write_slice(&data, GuestAddress(0)).unwrap();
        let limits = [(4096, usize::MAX), (usize::MAX, 3), (12 << 10, 2), (usize::MAX, usize::MAX)];
        for ((bytes, pieces), most) in limits.into_iter().zip([16, 43, 64, 2]) {
            let disk = file(2 * BYTES as u64);
            // Fewer places than parts.
            let mut raw = Raw::new(disk.try_clone().unwrap(), false, false, 4).unwrap();
            raw.limits = Limits { bytes, pieces };
            let mut done = Vec::new();
            raw.start(7, Transfer::Write { offset: 512, from: buffers(&from, 512) }, false);
            raw.start(8, Transfer::Write { offset: 512 + BYTES as u64, from: buffers(&from, 512) }, true);
            assert_eq!(raw.has_room(), most == 2);
            finish(&mut raw, &mut done, 2);
            raw.start(9, Transfer::Read { offset: 512, into: buffers(&to, 1024) }, false);
            finish(&mut raw, &mut done, 3);
            assert!(done.iter().all(|done| done.result.is_ok()) && raw.has_room());
            assert!(raw.next >= most, "{} parts", raw.next);
            let mut back = vec![0; BYTES];
            to.regions().read_slice(&mut back, GuestAddress(0)).unwrap();
            assert!(back == data);
            disk.read_exact_at(&mut back, 512 + BYTES as u64).unwrap();
            assert!(back == data);
        }
    }

    #[test]
    fn a_transfer_fails_with_any_of_its_parts() {
        let disk = file(64 << 10);
        let mut raw = Raw::new(disk.try_clone().unwrap(), false, false, 4).unwrap();
        raw.limits = Limits { bytes: 4096, pieces: 1 };
        // The second half is gone.
        disk.set_len(32 << 10).unwrap();
        let memory = memory(&[(0, 64 << 10)]);
        let mut done = Vec::new();
        raw.start(1, Transfer::Read { offset: 0, into: buffers(&memory, 64 << 10) }, false);
        raw.start(2, Transfer::Read { offset: 0, into: buffers(&memory, 4096) }, false);
        // What is given up with parts that have not begun ends once.
        raw.give_up();
        finish(&mut raw, &mut done, 2);
        assert!(done.iter().all(|done| done.result.is_err()));
        done.clear();
        raw.start(3, Transfer::Read { offset: 0, into: buffers(&memory, 64 << 10) }, false);
        finish(&mut raw, &mut done, 1);
        raw.collect(&mut done);
        let [Done { token: 3, result: Err(error) }] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!(
            (error.kind(), raw.ring.under_way(), raw.jobs.len()),
            (io::ErrorKind::UnexpectedEof, 0, 0)
        );
    }

    /// A file in memory does not become zero by itself where it is not to become a hole.
    #[test]
    fn few_write_zeroes_at_a_time() {
        const COUNT: u64 = 30;
        const BYTES: u64 = (ZERO_BYTES + 4096) as u64;
        let disk = file(COUNT * BYTES + 512);
        disk.write_all_at(&vec![5; (COUNT * BYTES) as usize + 512], 0).unwrap();
        let mut raw = Raw::new(disk.try_clone().unwrap(), false, false, 32).unwrap();
        for token in 0..COUNT {
            assert!(raw.has_room());
            let zero = Transfer::Zero { offset: token * BYTES, bytes: BYTES, unmap: false };
            raw.start(token, zero, false);
        }
        let (mut done, mut most) = (Vec::new(), 0);
        while done.len() < COUNT as usize {
            raw.submit();
            raw.wait();
            raw.collect(&mut done);
            most = most.max(raw.zeroings);
            assert!(raw.zeroings <= raw.ring.under_way());
            assert!(raw.has_room() == raw.unzeroed.is_empty());
        }
        assert_eq!((most, raw.zeroings, raw.ring.under_way()), (MAX_ZEROINGS, 0, 0));
        assert!(done.iter().all(|done| done.result.is_ok()));
        let mut all = vec![1; (COUNT * BYTES) as usize + 512];
        disk.read_exact_at(&mut all, 0).unwrap();
        let (zeroes, rest) = all.split_at((COUNT * BYTES) as usize);
        assert!(zeroes.iter().all(|&byte| byte == 0) && rest.iter().all(|&byte| byte == 5));
    }

    #[test]
    fn a_disk_that_is_only_read_has_a_claim_of_its_own() {
        let folder = std::env::temp_dir().join(format!("caisson-raw-claims-{}", std::process::id()));
        let (disk, claim) =
            (folder.join("disk"), |channel: u16| folder.join("claims").join(channel.to_string()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&disk, [7; 4096]).unwrap();
        let one = Raw::open(&disk, true, 4, &claim(33)).unwrap();
        let other = Raw::open(&disk, true, 4, &claim(65));
        assert!(other.is_ok(), "another disk, of the same file");
        let again = Raw::open(&disk, true, 4, &claim(33)).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::ResourceBusy);
        drop(one);
        let mut next = Raw::open(&disk, true, 4, &claim(33));
        while next.is_err() {
            next = Raw::open(&disk, true, 4, &claim(33));
        }
        drop((next, other));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_given_up_ends_with_its_piece() {
        const SECTORS: u64 = 64 << 11;
        let mut raw = Raw::new(file(SECTORS * SECTOR), false, false, 16).unwrap();
        for token in 0..10 {
            raw.start(token, Transfer::Zero { offset: 0, bytes: SECTORS * SECTOR, unmap: false }, false);
        }
        let mut done = Vec::new();
        // Until the kernel has said of each that it cannot do it.
        while raw.zeroings + raw.unzeroed.len() + done.len() < 10 {
            raw.submit();
            raw.wait();
            raw.collect(&mut done);
        }
        raw.give_up();
        let (before, left) = (done.len(), raw.ring.under_way());
        // What was about to go on does not: no more ends than was under way. Those that had not begun end without the kernel.
        for _ in 0..=left {
            raw.wait();
            raw.collect(&mut done);
        }
        assert_eq!((done.len(), raw.zeroings, raw.ring.under_way()), (10, 0, 0));
        assert!(done.iter().skip(before).all(|done| done.result.is_err()));
        raw.start(10, Transfer::Zero { offset: 0, bytes: SECTOR, unmap: false }, false);
        while done.len() < 11 {
            raw.submit();
            raw.wait();
            raw.collect(&mut done);
        }
        assert!(done[10].result.is_ok());
    }
}
