//! A vhost-user backend, for one life of a device (the protocol: QEMU's `docs/interop/vhost-user.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::words;
use crate::claims;
use crate::ring::QueueSetup;
use crate::sys::{Memory, event_fd};

/// How long the backend may take to listen, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the program may be.
const PROGRAMS: [&str; 4] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/sbin/virtiofsd"];

/// Makes sessions.
pub(super) trait Launcher: Send {
    /// A backend for `queues` queues, connected.
    fn launch(&self, queues: usize) -> io::Result<Session>;
}

/// `virtiofsd`, for a directory.
pub(super) struct Virtiofsd {
    pub(super) directory: PathBuf,
    pub(super) socket: PathBuf,
    /// The process has it: one whose daemon was killed has ended before the next begins.
    pub(super) claim: PathBuf,
}

impl Launcher for Virtiofsd {
    fn launch(&self, queues: usize) -> io::Result<Session> {
        let program = PROGRAMS.iter().map(Path::new).find(|program| program.exists());
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, "there is no virtiofsd in this driver domain");
        self.run(program.ok_or_else(missing)?, queues)
    }
}

impl Virtiofsd {
    /// Starts the program. Errors are the same as long as what is wrong is the same, so that it is told once.
    pub(super) fn run(&self, program: &Path, queues: usize) -> io::Result<Session> {
        let claim = take_patiently(&self.claim)?;
        let _ = std::fs::remove_file(&self.socket);
        if let Some(folder) = self.socket.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let option = |key: &str, value: &Path| {
            let mut option = std::ffi::OsString::from(key);
            option.push(value);
            option
        };
        // The words that both the old program, QEMU's, and the new one understand. A RAM disk has no root to pivot from.
        let mut process = Command::new(program)
            .arg(option("--socket-path=", &self.socket))
            .arg("-o")
            .arg(option("source=", &self.directory))
            .args(["-o", "sandbox=chroot"])
            .stdin(Stdio::from(claim))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let said = words::listen(process.stderr.take(), &self.directory);
        let start = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&self.socket) {
                break stream;
            }
            let ended = process.try_wait()?.is_some();
            if ended || start.elapsed() > PATIENCE {
                let _ = process.kill();
                let _ = process.wait();
                let what = if ended { "virtiofsd has ended" } else { "virtiofsd does not listen" };
                return Err(io::Error::other(match words::last(&said) {
                    Some(line) => format!("{what}: {line}"),
                    None => what.to_owned(),
                }));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let _ = std::fs::remove_file(&self.socket);
        Session::new(stream, Some(process), queues)
    }
}

/// A backend of a daemon before this one ends soon, when it finds its socket closed.
fn take_patiently(claim: &Path) -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        match claims::take(claim) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// A queue of the backend's.
struct Vring {
    kick: EventFd,
    call: EventFd,
}

/// A backend that is connected.
pub(super) struct Session {
    frontend: Frontend,
    stream: UnixStream,
    process: Option<Child>,
    features: u64,
    vrings: Vec<Vring>,
    /// Mapped as long as the backend may use it.
    memory: Option<Arc<Memory>>,
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn other(error: vhost::Error) -> io::Error {
    io::Error::other(format!("vhost-user: {error}"))
}

impl Session {
    /// Greets the backend at the other end.
    pub(super) fn new(stream: UnixStream, process: Option<Child>, queues: usize) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut frontend = Frontend::from_stream(stream.try_clone()?, queues as u64);
        let mut session = Self {
            frontend: frontend.clone(),
            stream,
            process,
            features: 0,
            vrings: Vec::new(),
            memory: None,
        };
        frontend.set_owner().map_err(other)?;
        session.features = frontend.get_features().map_err(other)?;
        if session.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
            let there = frontend.get_protocol_features().map_err(other)?;
            frontend.set_protocol_features(there & wanted).map_err(other)?;
        }
        let vring = |_| {
            let fd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
            Ok(Vring { kick: fd()?, call: fd()? })
        };
        session.vrings = (0..queues).map(vring).collect::<io::Result<_>>()?;
        Ok(session)
    }

    /// What the backend offers.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    fn has_protocol(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// The driver has taken `features`; the backend gets the guest's memory.
    pub(super) fn begin(&mut self, features: u64, memory: &Arc<Memory>) -> io::Result<()> {
        let protocol = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(features & self.features | protocol).map_err(other)?;
        let region = |piece: crate::sys::Shared<'_>| VhostUserMemoryRegionInfo {
            guest_phys_addr: piece.guest,
            memory_size: piece.bytes,
            userspace_addr: piece.address,
            mmap_offset: piece.offset,
            mmap_handle: piece.file.as_raw_fd(),
        };
        let regions: Vec<_> = memory.shared().map(region).collect();
        self.frontend.set_mem_table(&regions).map_err(|error| {
            let count = regions.len();
            io::Error::other(format!("the backend does not take memory of {count} pieces: {error}"))
        })?;
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    /// A queue starts, behind what its used ring says is done.
    pub(super) fn start(&mut self, setup: &QueueSetup) -> io::Result<()> {
        let nowhere =
            || io::Error::new(io::ErrorKind::InvalidInput, "a ring does not lie in the guest's memory");
        let state = &setup.state;
        let address = |guest| setup.memory.address_of(guest).ok_or_else(nowhere);
        let places = VringConfigData {
            queue_max_size: state.size,
            queue_size: state.size,
            flags: 0,
            desc_table_addr: address(state.descriptors)?,
            used_ring_addr: address(state.device)?,
            avail_ring_addr: address(state.driver)?,
            log_addr: None,
        };
        let used = used_index(setup).ok_or_else(nowhere)?;
        let index = usize::from(setup.index);
        let vring = self.vrings.get(index).ok_or_else(nowhere)?;
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, state.size).map_err(other)?;
        frontend.set_vring_base(index, used).map_err(other)?;
        frontend.set_vring_addr(index, &places).map_err(other)?;
        frontend.set_vring_call(index, &vring.call).map_err(other)?;
        frontend.set_vring_kick(index, &vring.kick).map_err(other)?;
        // What the guest has asked for before.
        vring.kick.write(1)?;
        if self.has_protocol() {
            self.frontend.set_vring_enable(index, true).map_err(other)?;
        }
        Ok(())
    }

    /// A queue ends: the backend answers when it is at the ring no more.
    pub(super) fn stop(&mut self, queue: u16) -> io::Result<()> {
        if usize::from(queue) >= self.vrings.len() {
            return Ok(());
        }
        self.frontend.get_vring_base(queue.into()).map(drop).map_err(other)
    }

    /// Whether the backend is still there.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "its backend has ended");
        if let Some(process) = &mut self.process
            && process.try_wait()?.is_some()
        {
            return Err(gone());
        }
        match rustix::net::recv(
            &self.stream,
            &mut [0; 1],
            rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT,
        ) {
            Ok((_, 0)) => Err(gone()),
            // Between requests it has nothing to say.
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "its backend speaks unasked")),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The guest has notified a queue.
    pub(super) fn kick(&self, queue: u16) -> io::Result<()> {
        match self.vrings.get(usize::from(queue)) {
            Some(vring) => vring.kick.write(1),
            None => Ok(()),
        }
    }

    /// Whether the backend has asked for an interrupt since the last time.
    pub(super) fn called(&self) -> bool {
        self.vrings.iter().fold(false, |called, vring| vring.call.read().is_ok() | called)
    }

    /// What is readable when it does.
    pub(super) fn calls(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vrings.iter().map(|vring| event_fd(&vring.call))
    }

    /// What is readable when it ends.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It ends by itself when the socket closes; but it has the guest's memory mapped, and that has to be over now.
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// How far a queue's used ring says that it is done.
fn used_index(setup: &QueueSetup) -> Option<u16> {
    let mut queue = Queue::new(setup.state.size).ok()?;
    queue.set_used_ring_address(Some(setup.state.device as u32), Some((setup.state.device >> 32) as u32));
    let index = queue.used_idx(setup.memory.regions(), std::sync::atomic::Ordering::Acquire);
    index.ok().map(|index| index.0)
}
