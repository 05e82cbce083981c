//! A share with a backend of the tests' own at the other end of its socket: it speaks vhost-user, and knows no file system.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::*;
use crate::sys::Mapping;
use crate::testing::{Driver, memory};

/// Requests (vhost-user.rst).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_VRING_ENABLE: u32 = 18;
const OFFERED: u64 = 1 << 32 | 1 << 30 | RINGS;

/// What a backend has been told: each request with its payload; and the descriptors that came.
#[derive(Default)]
struct Heard {
    requests: Vec<(u32, Vec<u8>)>,
    descriptors: Vec<(u32, OwnedFd)>,
    launched: usize,
}

struct Backend(Arc<Mutex<Heard>>);

impl Launcher for Backend {
    fn launch(&self, queues: usize) -> io::Result<Session> {
        let (here, there) = UnixStream::pair()?;
        let heard = Arc::clone(&self.0);
        heard.lock().unwrap().launched += 1;
        thread::spawn(move || speak(&there, &heard));
        Session::new(here, None, queues)
    }
}

/// Answers requests until the other end closes.
fn speak(stream: &UnixStream, heard: &Mutex<Heard>) {
    loop {
        let mut header = [0; 12];
        let Some(descriptors) = receive(stream, &mut header) else { return };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        if !payload.is_empty() && receive(stream, &mut payload).is_none() {
            return;
        }
        let request = word(0);
        let mut heard = heard.lock().unwrap();
        heard.descriptors.extend(descriptors.into_iter().map(|fd| (request, fd)));
        heard.requests.push((request, payload.clone()));
        let answer = match request {
            GET_FEATURES => OFFERED.to_le_bytes().to_vec(),
            GET_PROTOCOL_FEATURES => 0_u64.to_le_bytes().to_vec(),
            GET_VRING_BASE => payload,
            _ => continue,
        };
        let mut message = [request, 5, answer.len() as u32].map(u32::to_le_bytes).concat();
        message.extend(answer);
        (&mut &*stream).write_all(&message).unwrap();
    }
}

fn receive(stream: &UnixStream, into: &mut [u8]) -> Option<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let bytes = into.len();
    let count = recvmsg(stream, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::WAITALL).ok()?.bytes;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (count == bytes).then_some(descriptors)
}

struct Bench {
    share: Share,
    heard: Arc<Mutex<Heard>>,
    queues: Vec<Driver>,
    counters: Counters,
}

impl Bench {
    fn new() -> Self {
        let heard = Arc::default();
        let share = Share::new("home", Box::new(Backend(Arc::clone(&heard)))).unwrap();
        let memory = memory(&[(0, 0x10_0000), (0x100_0000, 0x20_0000)]);
        let queues = (0..2).map(|queue| Driver::new(&memory, 0x100_0000 + queue * 0x3000, 64)).collect();
        Self { share, heard, queues, counters: Counters::default() }
    }

    fn start(&mut self) {
        for (index, queue) in (0..).zip(&self.queues) {
            self.share.start(&queue.setup(index, 1 << 32 | RINGS)).unwrap();
        }
    }

    /// Waits until `find` finds something in what the backend has heard.
    fn wait<T>(&self, find: impl Fn(&Heard) -> Option<T>) -> T {
        for _ in 0..20_000 {
            if let Some(found) = find(&self.heard.lock().unwrap()) {
                return found;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the backend does not hear of it");
    }

    /// The payloads of all requests of a kind, when there are `count`.
    fn heard(&self, request: u32, count: usize) -> Vec<Vec<u8>> {
        self.wait(|heard| {
            let these = heard.requests.iter().filter(|(other, _)| *other == request);
            let these: Vec<_> = these.map(|(_, payload)| payload.clone()).collect();
            (these.len() >= count).then_some(these)
        })
    }

    /// The descriptor with this index among those that came with requests of a kind.
    fn descriptor(&self, request: u32, index: usize) -> OwnedFd {
        self.wait(|heard| {
            let mut these = heard.descriptors.iter().filter(|(other, _)| *other == request);
            these.nth(index).map(|(_, fd)| fd.try_clone().unwrap())
        })
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn the_backend_gets_memory_and_queues() {
    let mut bench = Bench::new();
    let description = bench.share.description();
    assert_eq!((description.kind, description.features, description.queues), (26, RINGS, vec![1024, 1024]));
    assert_eq!(description.config[..8], *b"home\0\0\0\0");
    assert_eq!(description.config[36..], [1, 0, 0, 0]);
    // The next one goes on where the used ring is.
    bench.queues[1].put(bench.queues[1].state.device + 2, 7_u16);
    bench.start();
    assert_eq!(bench.heard(SET_VRING_ENABLE, 2), [[0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]]);
    assert_eq!(words(&bench.heard(SET_FEATURES, 1)[0]), [OFFERED]);
    assert_eq!(bench.heard(SET_VRING_BASE, 2), [[0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 7, 0, 0, 0]]);
    // Two regions: guest, bytes, address, offset.
    let table = bench.heard(SET_MEM_TABLE, 1)[0].clone();
    assert_eq!(table[..4], [2, 0, 0, 0]);
    let regions = words(&table[8..]);
    assert_eq!((regions[0], regions[1], regions[4], regions[5]), (0, 0x10_0000, 0x100_0000, 0x20_0000));
    // A ring's address lies in its region, and what is mapped there is the guest's.
    let place = words(&bench.heard(SET_VRING_ADDR, 2)[1]);
    let offset = place[1] - regions[6];
    assert_eq!(offset, bench.queues[1].state.descriptors - 0x100_0000);
    bench.queues[1].put(bench.queues[1].state.descriptors, 0x1122_3344_5566_7788_u64);
    let file = File::from(bench.descriptor(SET_MEM_TABLE, 1));
    let mapping = Mapping::new(&file, regions[7], 0x20_0000).unwrap();
    let word = mapping.words(offset as usize, 1).unwrap()[0].load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(word, 0x1122_3344_5566_7788);
}

#[test]
fn notifications_are_kicks_and_calls_are_interrupts() {
    let mut bench = Bench::new();
    bench.start();
    let (kick, call) = (bench.descriptor(SET_VRING_KICK, 1), bench.descriptor(SET_VRING_CALL, 1));
    let mut count = [0; 8];
    rustix::io::read(&kick, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "for what was there before");
    let progress = bench.share.work(queue_bit(1), &bench.counters).unwrap();
    assert_eq!(progress, Progress { any: true, interrupt: false });
    rustix::io::read(&kick, &mut count).unwrap();
    assert!(rustix::io::read(&kick, &mut count).is_err());
    rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(bench.share.work(0, &bench.counters).unwrap(), Progress { any: false, interrupt: true });
    assert_eq!(bench.share.work(0, &bench.counters).unwrap(), Progress::default());
    let mut sources = Vec::new();
    bench.share.sources(&mut sources);
    assert_eq!(sources.len(), 3);
}

#[test]
fn a_life_has_a_backend_of_its_own() {
    let mut bench = Bench::new();
    bench.start();
    bench.share.stop(0);
    assert!(bench.share.session.is_some());
    bench.share.stop(1);
    assert_eq!(bench.heard(GET_VRING_BASE, 2).len(), 2);
    assert!(bench.share.session.is_none());
    bench.start();
    assert_eq!(bench.heard.lock().unwrap().launched, 2);
}

#[test]
fn a_backend_that_ends_ends_the_device() {
    let mut bench = Bench::new();
    bench.start();
    rustix::net::shutdown(
        bench.share.session.as_ref().unwrap().socket().as_fd(),
        rustix::net::Shutdown::Both,
    )
    .unwrap();
    let fault = bench.share.work(0, &bench.counters).unwrap_err();
    assert!(fault.to_string().contains("its backend has ended"), "{fault}");
    bench.share.stop(0);
    bench.share.stop(1);
    bench.start();
    bench.share.work(0, &bench.counters).unwrap();
}

#[test]
fn tags_are_checked() {
    let new = |tag: &str| Share::new(tag, Box::new(Backend(Arc::default())));
    assert!(new(&"t".repeat(36)).is_ok());
    assert!(new(&"t".repeat(37)).is_err() && new("").is_err());
    let parameters = Parameters::parse("tag=a\npath=/dev/null\n").unwrap();
    assert!(Share::open(33, &parameters).err().unwrap().to_string().contains("not a directory"));
}

/// A program that cannot start says so each time in other words, of which the daemon is to make the same.
#[test]
fn why_a_program_ends_is_told_alike() {
    use std::os::unix::fs::PermissionsExt;

    let folder = std::env::temp_dir().join(format!("caisson-virtiofsd-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (program, directory) = (folder.join("virtiofsd"), folder.clone());
    std::fs::write(&program, "#!/bin/sh\necho \"[$$ ERROR virtiofsd] no room\" >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let virtiofsd = Virtiofsd { directory, socket: folder.join("socket"), claim: folder.join("claims/33") };
    for _ in 0..2 {
        let error = virtiofsd.run(&program, QUEUES).err().unwrap();
        assert_eq!(error.to_string(), "virtiofsd has ended: no room");
    }
    let _ = std::fs::remove_dir_all(folder);
}
