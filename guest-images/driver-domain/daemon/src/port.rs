//! virtio-console (VIRTIO 1.2, section 5.3) with one port: a console of the guest's (`/dev/hvc0`) at a socket.
//!
//! Who connects to the socket has the console, one at a time; others wait. What the guest writes while nobody is there is kept, the
//! last [`KEPT`] bytes of it, for who comes next. A client that does not read makes the guest wait, and nobody else.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use caisson_protocol::PORTS;
use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::{Description, Device, Fault, Progress};
use crate::kinds::OpenError;
use crate::parameters::Parameters;
use crate::ring::{QueueSetup, Ring, RingError};
use crate::statistics::Counters;
use crate::sys::Buffers;

/// Entries of a queue.
const QUEUE: u16 = 64;
/// Bytes of the guest's that are kept for a client.
pub const KEPT: usize = 64 << 10;
/// Bytes that are taken from the guest at a time.
const PIECE: usize = 4096;
/// Turns of the loop, so that other things have theirs.
const BATCH: usize = 64;
/// Bytes of the configuration, all 0: neither a size nor more ports are offered.
const CONFIG: usize = 12;

/// A console port.
pub struct Port {
    listener: UnixListener,
    path: PathBuf,
    client: Option<UnixStream>,
    receive: Option<Ring>,
    /// A chain that waits for input: its head.
    prepared: Option<(u16, Buffers)>,
    transmit: Option<Ring>,
    /// A chain that is being taken: its head, and what is left of it.
    current: Option<(u16, Buffers)>,
    kept: VecDeque<u8>,
}

impl Port {
    /// The port that the parameters describe, of the guest with this name: at `/run/caisson/console/GUEST/NAME`.
    ///
    /// # Errors
    /// What is wrong with the parameters, or why the socket cannot be made.
    pub fn open(guest: &str, parameters: &Parameters) -> Result<Self, OpenError> {
        let name = parameters.text("name")?;
        let plain = |text: &str| !text.is_empty() && !text.contains('/') && text != "." && text != "..";
        if !plain(name) || !plain(guest) {
            return Err(format!("{guest:?} and {name:?} cannot be the names of a folder and a socket").into());
        }
        let path = Path::new(PORTS).join(guest).join(name);
        Ok(Self::at(path.clone()).map_err(|error| format!("{}: {error}", path.display()))?)
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // One of a daemon before this one.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path,
            client: None,
            receive: None,
            prepared: None,
            transmit: None,
            current: None,
            kept: VecDeque::new(),
        })
    }

    /// Looks for a client, if there is none: whether one has come.
    fn accept(&mut self) -> bool {
        if self.client.is_none()
            && let Ok((client, _)) = self.listener.accept()
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
            return true;
        }
        false
    }

    /// Gives the client what is kept for it: whether it took anything.
    fn hand_on(&mut self) -> bool {
        let Some(client) = &mut self.client else { return false };
        let (first, _) = self.kept.as_slices();
        if first.is_empty() {
            return false;
        }
        match client.write(first) {
            Ok(count) => {
                self.kept.drain(..count);
                count > 0
            }
            Err(error) if is_later(&error) => false,
            Err(_) => {
                self.client = None;
                false
            }
        }
    }

    /// Takes a piece of what the guest writes: whether there was any.
    fn take(&mut self, counters: &Counters) -> Result<bool, Fault> {
        let Some(ring) = &mut self.transmit else { return Ok(false) };
        if self.client.is_some() && self.kept.len() >= KEPT {
            return Ok(false);
        }
        if self.current.is_none() {
            let Some(chain) = ring.pop()? else { return Ok(false) };
            counters.requests.add(1);
            let buffers = Buffers::guest(ring.memory(), &chain.readable).ok_or(RingError::NotRam)?;
            self.current = Some((chain.head, buffers));
        }
        let Some((head, buffers)) = &mut self.current else { return Ok(false) };
        let mut piece = [0; PIECE];
        let count = buffers.read(0, &mut piece);
        buffers.skip(count);
        counters.bytes_from_guest.add(count as u64);
        self.kept.extend(piece.iter().take(count));
        let over = self.kept.len().saturating_sub(KEPT);
        if self.client.is_none() && over > 0 {
            self.kept.drain(..over);
            counters.dropped.add(over as u64);
        }
        if buffers.bytes() == 0 {
            ring.give(*head, 0)?;
            self.current = None;
        }
        Ok(true)
    }

    /// Gives the guest what the client types: whether it did.
    fn input(&mut self, counters: &Counters) -> Result<bool, Fault> {
        let (Some(ring), Some(client)) = (&mut self.receive, &self.client) else { return Ok(false) };
        if self.prepared.is_none() {
            let Some(chain) = ring.pop()? else { return Ok(false) };
            let buffers = Buffers::guest(ring.memory(), &chain.writable).ok_or(RingError::NotRam)?;
            if buffers.bytes() == 0 {
                return Err(Fault::Request("a buffer for input cannot be written"));
            }
            self.prepared = Some((chain.head, buffers));
        }
        let Some((head, buffers)) = &self.prepared else { return Ok(false) };
        match Buffers::fill([buffers], client.as_fd()) {
            Ok(0) => {
                self.client = None;
                Ok(true)
            }
            Ok(count) => {
                counters.bytes_to_guest.add(count as u64);
                ring.give(*head, count as u32)?;
                self.prepared = None;
                Ok(true)
            }
            Err(error) if is_later(&error) => Ok(false),
            Err(_) => {
                self.client = None;
                Ok(true)
            }
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Device for Port {
    fn description(&self) -> Description {
        let features = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
        Description { kind: VIRTIO_ID_CONSOLE, features, queues: vec![QUEUE; 2], config: vec![0; CONFIG] }
    }

    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault> {
        let ring = Ring::new(setup)?;
        match setup.index {
            0 => self.receive = Some(ring),
            _ => self.transmit = Some(ring),
        }
        Ok(())
    }

    fn stop(&mut self, queue: u16) {
        match queue {
            0 => (self.receive, self.prepared) = (None, None),
            _ => (self.transmit, self.current) = (None, None),
        }
    }

    fn work(&mut self, _told: u64, counters: &Counters) -> Result<Progress, Fault> {
        let mut progress = Progress { any: self.accept(), interrupt: false };
        for _ in 0..BATCH {
            let taken = self.take(counters)?;
            let handed = self.hand_on();
            if !taken && !handed {
                break;
            }
            progress.any = true;
        }
        for _ in 0..BATCH {
            if !self.input(counters)? {
                break;
            }
            progress.any = true;
        }
        for ring in [&mut self.transmit, &mut self.receive].into_iter().flatten() {
            progress.interrupt |= ring.wants_interrupt()?;
        }
        Ok(progress)
    }

    fn arm(&mut self) -> Result<bool, Fault> {
        let mut any = false;
        if let Some(ring) = &mut self.transmit
            && (self.client.is_none() || self.kept.len() < KEPT)
        {
            any |= ring.arm()?;
        }
        if let Some(ring) = &mut self.receive
            && self.client.is_some()
            && self.prepared.is_none()
        {
            any |= ring.arm()?;
        }
        Ok(any)
    }

    fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        let Some(client) = &self.client else {
            into.push(PollFd::new(&self.listener, PollFlags::IN));
            return;
        };
        let input = if self.prepared.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let output = if self.kept.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        // A client for whom there is nothing to do is not asked whether it is still there.
        if !(input | output).is_empty() {
            into.push(PollFd::new(client, input | output));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::testing::{Driver, memory};

    const RAM: u64 = 0x10_0000;
    const DATA: u64 = RAM + 0x1_0000;

    struct Bench {
        port: Port,
        receive: Driver,
        transmit: Driver,
        counters: Counters,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("caisson-port-{name}-{}", std::process::id()));
            let mut port = Port::at(path).unwrap();
            let memory = memory(&[(RAM, 1 << 20)]);
            let (receive, transmit) = (Driver::new(&memory, RAM, 16), Driver::new(&memory, RAM + 0x3000, 16));
            port.start(&receive.setup(0, 0)).unwrap();
            port.start(&transmit.setup(1, 0)).unwrap();
            Self { port, receive, transmit, counters: Counters::default() }
        }

        fn connect(&self) -> UnixStream {
            let client = UnixStream::connect(&self.port.path).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        fn work(&mut self) {
            while self.port.work(0, &self.counters).unwrap().any {}
        }

        fn write(&mut self, bytes: &[u8]) {
            self.transmit.fill(DATA, bytes);
            self.transmit.add(&[(DATA, bytes.len() as u32, false)]);
            self.work();
        }
    }

    fn read(mut client: &UnixStream) -> Vec<u8> {
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        all
    }

    #[test]
    fn a_client_has_the_console() {
        let mut bench = Bench::new("client");
        bench.write(b"before\n");
        let mut client = bench.connect();
        bench.write(b"after\n");
        assert_eq!(read(&client), b"before\nafter\n");
        client.write_all(b"typed").unwrap();
        bench.work();
        assert!(!bench.port.arm().unwrap());
        bench.receive.add(&[(DATA + 0x1000, 3, true)]);
        bench.receive.add(&[(DATA + 0x2000, 100, true)]);
        bench.work();
        assert_eq!((bench.receive.used(), bench.receive.used()), (Some((0, 3)), Some((1, 2))));
        assert_eq!(
            [bench.receive.bytes(DATA + 0x1000, 3), bench.receive.bytes(DATA + 0x2000, 2)].concat(),
            b"typed"
        );
        // One that goes makes room for the next.
        let next = bench.connect();
        drop(client);
        bench.receive.add(&[(DATA + 0x1000, 3, true)]);
        bench.work();
        bench.write(b"x");
        assert_eq!(read(&next), b"x");
    }

    #[test]
    fn the_last_is_kept_for_who_comes() {
        let mut bench = Bench::new("kept");
        let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        bench.write(&bytes);
        assert_eq!((bench.transmit.used_index(), bench.counters.dropped.get()), (1, 100_000 - KEPT as u64));
        let client = bench.connect();
        let mut all = Vec::new();
        while all.len() < KEPT {
            bench.work();
            all.extend(read(&client));
        }
        assert!(all == bytes[100_000 - KEPT..]);
    }

    #[test]
    fn a_client_that_does_not_read_makes_the_guest_wait() {
        let mut bench = Bench::new("slow");
        let client = bench.connect();
        bench.work();
        let mut written = 0_u32;
        while bench.transmit.used_index() == written as u16 {
            bench.write(&[written as u8; 60_000]);
            written += 1;
            assert!(written < 15);
        }
        assert!(bench.port.kept.len() < KEPT + PIECE);
        assert!(!bench.port.arm().unwrap());
        let mut all = 0;
        while all < 60_000 * written as usize {
            let bytes = read(&client);
            assert!(bytes.iter().all(|&byte| u32::from(byte) < written));
            all += bytes.len();
            bench.work();
        }
        assert_eq!(u32::from(bench.transmit.used_index()), written);
        assert_eq!(bench.counters.dropped.get(), 0);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut bench = Bench::new("nonsense");
        let _client = bench.connect();
        bench.receive.add(&[(DATA, 3, false)]);
        assert!(bench.port.work(0, &bench.counters).is_err());
        let mut bench = Bench::new("nonsense");
        bench.transmit.set_available(17);
        assert!(bench.port.work(0, &bench.counters).is_err());
        let parameters = Parameters::parse("name=../x\n").unwrap();
        assert!(Port::open("web", &parameters).is_err());
    }
}
