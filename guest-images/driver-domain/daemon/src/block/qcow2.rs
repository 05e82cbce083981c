//! A disk in a qcow2 image, by `imago`.
//!
//! That library's calls wait, so a few threads make them. Data goes through pages of the threads' own. The image's tables are
//! cached by the library, in this process: a write is given back only when they and the data are on the medium, so that nothing
//! that a guest has been told of goes with the daemon or the driver domain. Writes that end at about the same time share one
//! trip to the medium. A discard is a hint, and not taken.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;

use super::{Done, Geometry, SECTOR, Storage, Transfer};
use crate::bell::Bell;
use crate::claims;
use crate::sys::Buffers;

/// How many transfers are worked on at a time.
const THREADS: usize = 4;
/// Bytes that a thread moves at a time.
const PIECE: usize = 256 << 10;

/// The image.
pub struct Image {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    geometry: Geometry,
    /// Holds the lock on the image.
    _claim: OwnedFd,
}

struct Shared {
    image: FormatAccess<File>,
    tasks: Mutex<Tasks>,
    /// There is a task, or the end.
    more: Condvar,
    /// Writes that are not on the medium yet.
    unsynced: Mutex<Vec<u64>>,
    /// Held by the thread that brings them there.
    syncing: Mutex<()>,
    done: Mutex<Vec<Done>>,
    bell: Bell,
}

#[derive(Default)]
struct Tasks {
    waiting: VecDeque<(u64, Transfer)>,
    end: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Image {
    /// Opens and claims the image at `path`.
    ///
    /// # Errors
    /// The kernel's or the library's; `ResourceBusy` while somebody else uses it.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Self::claim_and_open(path, read_only).map_err(named)
    }

    fn claim_and_open(path: &Path, read_only: bool) -> io::Result<Self> {
        let claim: OwnedFd = OpenOptions::new().read(true).open(path)?.into();
        let kind = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        claims::lock(claim.as_fd(), kind)?;
        let with = |direct| {
            let options = StorageOpenOptions::new().direct(direct);
            let builder = Qcow2::<File>::builder_path(path).write(!read_only).storage_open_options(options);
            builder.open(PermissiveImplicitOpenGate::default())
        };
        // Not every file system transfers past the page cache.
        let image = FormatAccess::new(with(true).or_else(|_| with(false))?);
        let bytes = image.size() - image.size() % SECTOR;
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is too small for a disk"));
        }
        let shared = Arc::new(Shared {
            image,
            tasks: Mutex::default(),
            more: Condvar::new(),
            unsynced: Mutex::default(),
            syncing: Mutex::new(()),
            done: Mutex::default(),
            bell: Bell::new()?,
        });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("qcow2".into()).spawn(move || shared.run())
        };
        let threads = (0..THREADS).map(spawn).collect::<io::Result<_>>()?;
        let geometry = Geometry { bytes, block: SECTOR as u32, read_only };
        Ok(Self { shared, threads, geometry, _claim: claim })
    }
}

impl Shared {
    /// What a thread does.
    fn run(&self) {
        loop {
            let mut tasks = lock(&self.tasks);
            let (token, transfer) = loop {
                if let Some(task) = tasks.waiting.pop_front() {
                    break task;
                }
                if tasks.end {
                    return;
                }
                tasks = self.more.wait(tasks).unwrap_or_else(PoisonError::into_inner);
            };
            drop(tasks);
            match self.perform(&transfer) {
                Ok(false) => self.end([Done { token, result: Ok(()) }]),
                Ok(true) => self.sync(token),
                Err(error) => self.end([Done { token, result: Err(error) }]),
            }
        }
    }

    /// Does the transfer. Whether it has to be brought to the medium.
    fn perform(&self, transfer: &Transfer) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let moved = |buffers: &Buffers, done: usize| PIECE.min(buffers.bytes() - done);
        let mut done = 0;
        match transfer {
            Transfer::Read { offset, into } => {
                while done < into.bytes() {
                    let part = piece.get_mut(..moved(into, done)).unwrap_or_default();
                    self.image.read(&mut *part, offset + done as u64)?;
                    into.write(done, part);
                    done += part.len();
                }
                Ok(false)
            }
            Transfer::Write { offset, from } => {
                while done < from.bytes() {
                    let part = piece.get_mut(..moved(from, done)).unwrap_or_default();
                    from.read(done, part);
                    self.image.write(&*part, offset + done as u64)?;
                    done += part.len();
                }
                Ok(true)
            }
            Transfer::Zero { offset, bytes, .. } => self.image.write_zeroes(*offset, *bytes).map(|()| true),
            Transfer::Flush => Ok(true),
            Transfer::Discard { .. } => Ok(false),
        }
    }

    /// Brings a write to the medium, with all that have ended meanwhile.
    fn sync(&self, token: u64) {
        lock(&self.unsynced).push(token);
        let _one = lock(&self.syncing);
        let tokens = std::mem::take(&mut *lock(&self.unsynced));
        if tokens.is_empty() {
            // The thread before this one has taken it along.
            return;
        }
        let result = self.image.flush().and_then(|()| self.image.sync());
        let of = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
        let ended =
            tokens.into_iter().map(|token| Done { token, result: result.as_ref().map(|_| ()).map_err(of) });
        self.end(ended);
    }

    fn end(&self, ended: impl IntoIterator<Item = Done>) {
        lock(&self.done).extend(ended);
        self.bell.ring(1);
    }
}

impl Storage for Image {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn has_room(&self) -> bool {
        // As many as the queue has.
        true
    }

    fn start(&mut self, token: u64, transfer: Transfer, _durable: bool) {
        lock(&self.shared.tasks).waiting.push_back((token, transfer));
        self.shared.more.notify_one();
    }

    fn submit(&mut self) {}

    fn give_up(&mut self) {
        let waiting = std::mem::take(&mut lock(&self.shared.tasks).waiting);
        let given_up = || Err(io::ErrorKind::Interrupted.into());
        self.shared.end(waiting.into_iter().map(|(token, _)| Done { token, result: given_up() }));
    }

    fn collect(&mut self, into: &mut Vec<Done>) {
        self.shared.bell.drain();
        self.shared.bell.take();
        into.append(&mut lock(&self.shared.done));
    }

    fn wait(&mut self) {
        // Interrupted: then it is looked at once more.
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.shared.bell.fd(), PollFlags::IN)], None);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.fd()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        lock(&self.shared.tasks).end = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // One that has failed has nothing to say any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use imago::{FormatCreateBuilder, Storage as _, StorageCreateOptions};
    use proptest::prelude::*;

    use super::*;
    use crate::sys::Pages;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("caisson-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn image(&self, bytes: u64) -> PathBuf {
            let path = self.0.join("disk.qcow2");
            let _ = std::fs::remove_file(&path);
            let file = File::create_open(StorageCreateOptions::new().filename(&path).size(0)).unwrap();
            Qcow2::<File>::create_builder(file).size(bytes).create().unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn buffers(value: u8, bytes: usize) -> Buffers {
        let buffers = Buffers::own(Pages::new(bytes), bytes);
        buffers.write(0, &vec![value; bytes]);
        buffers
    }

    fn finish(image: &mut Image, count: usize) -> Vec<Done> {
        let mut done = Vec::new();
        while done.len() < count {
            image.wait();
            image.collect(&mut done);
        }
        done.sort_unstable_by_key(|done| done.token);
        done
    }

    #[test]
    fn what_was_given_back_outlives_the_daemon() {
        let folder = Folder::new("qcow2-dies");
        let path = folder.image(64 << 20);
        let mut image = Image::open(&path, false).unwrap();
        assert_eq!(image.geometry(), Geometry { bytes: 64 << 20, block: 512, read_only: false });
        for token in 0..8 {
            let from = buffers(token as u8 + 1, 300 << 10);
            image.start(token, Transfer::Write { offset: token * (4 << 20) + 512, from }, false);
        }
        assert!(finish(&mut image, 8).iter().all(|done| done.result.is_ok()));
        // A copy of what is on the medium: what the next one finds if this one never ends well.
        let copy = folder.0.join("copy.qcow2");
        std::fs::copy(&path, &copy).unwrap();
        let other = Image::open(&copy, true).unwrap();
        for token in 0..8_u64 {
            let mut there = vec![0; 300 << 10];
            other.shared.image.read(&mut there[..], token * (4 << 20) + 512).unwrap();
            assert!(there.iter().all(|&byte| byte == token as u8 + 1), "{token}");
        }
        let error = Image::open(&path, false).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn what_is_given_up_ends_without_its_work() {
        let folder = Folder::new("qcow2-gives-up");
        let path = folder.image(64 << 20);
        let mut image = Image::open(&path, false).unwrap();
        for token in 0..64 {
            let from = buffers(7, 256 << 10);
            image.start(token, Transfer::Write { offset: token << 20, from }, false);
        }
        image.give_up();
        let done = finish(&mut image, 64);
        assert!(lock(&image.shared.tasks).waiting.is_empty());
        let wrong = done.iter().enumerate().find(|(index, done)| done.token != *index as u64);
        assert!(done.len() == 64 && wrong.is_none(), "each ends once: {wrong:?}");
        // And it goes on with what comes after.
        image.start(64, Transfer::Write { offset: 0, from: buffers(9, 4096) }, false);
        assert!(finish(&mut image, 1)[0].result.is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let folder = Folder::new("qcow2-none");
        let path = folder.0.join("none");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let error = Image::open(&path, false).err().unwrap().to_string();
        assert!(error.contains("none: "), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn an_image_is_what_was_written(
            operations in prop::collection::vec((0..3_u8, 0..2000_u64, 1..300_u64, any::<u8>()), 1..30),
        ) {
            const SECTORS: u64 = 2048;
            let folder = Folder::new("qcow2-any");
            let path = folder.image(SECTORS * SECTOR);
            let mut model = vec![0; (SECTORS * SECTOR) as usize];
            let mut image = Image::open(&path, false).unwrap();
            for (kind, sector, sectors, value) in operations {
                let sectors = sectors.min(SECTORS - sector);
                let (offset, bytes) = (sector * SECTOR, sectors * SECTOR);
                let place = &mut model[offset as usize..(offset + bytes) as usize];
                let transfer = match kind {
                    0 => {
                        place.fill(value);
                        Transfer::Write { offset, from: buffers(value, bytes as usize) }
                    }
                    1 => {
                        place.fill(0);
                        Transfer::Zero { offset, bytes, unmap: value & 1 != 0 }
                    }
                    _ => Transfer::Discard { offset, bytes },
                };
                image.start(0, transfer, false);
                prop_assert!(finish(&mut image, 1)[0].result.is_ok());
            }
            drop(image);
            let image = Image::open(&path, true).unwrap();
            let mut there = vec![1; model.len()];
            image.shared.image.read(&mut there[..], 0).unwrap();
            prop_assert!(there == model);
        }
    }
}
