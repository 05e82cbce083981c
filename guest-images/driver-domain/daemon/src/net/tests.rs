//! A card under a driver, with a socket in the place of its interface.

use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::*;
use crate::testing::{Descriptor, Driver, NEXT, WRITE, memory};

const RAM: (u64, usize) = (0x10_0000, 4 << 20);
const RINGS: u64 = RAM.0;
const DATA: u64 = RAM.0 + 0x2_0000;
const MAC: Mac = [2, 0, 0, 0, 0, 9];
const MERGES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const SEGMENTS: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

struct Bench {
    net: Net,
    /// Where what the guest sends comes out.
    wires: Vec<UnixDatagram>,
    queues: Vec<Driver>,
    counters: Counters,
}

fn settings(queues: usize) -> Settings {
    Settings { bridge: "br0".into(), mac: MAC, anti_spoofing: true, rate: None, vlan: None, queues }
}

impl Bench {
    fn new(pairs: usize, features: u64) -> Self {
        let (mut taps, mut wires) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (one, other) = UnixDatagram::pair().unwrap();
            one.set_nonblocking(true).unwrap();
            other.set_nonblocking(true).unwrap();
            taps.push(Tap::like(one.into()));
            wires.push(other);
        }
        let mut net = Net::new(taps, &settings(pairs), 1500, None);
        let memory = memory(&[RAM]);
        let count = net.description().queues.len() as u16;
        let queues: Vec<_> =
            (0..count).map(|index| Driver::new(&memory, RINGS + u64::from(index) * 0x3000, 64)).collect();
        for (index, queue) in (0..).zip(&queues) {
            net.start(&queue.setup(index, features)).unwrap();
        }
        Self { net, wires, queues, counters: Counters::default() }
    }

    fn work(&mut self) -> Progress {
        let mut all = Progress::default();
        loop {
            let progress = self.net.work(0, &self.counters).unwrap();
            all.interrupt |= progress.interrupt;
            if !progress.any {
                return all;
            }
            all.any = true;
        }
    }

    /// Sends a frame from the guest, in pieces of `piece` bytes, with its header.
    fn send(&mut self, frame: &[u8], piece: usize) {
        let all = [&[0; HEADER][..], frame].concat();
        self.queues[1].fill(DATA, &all);
        let pieces: Vec<_> = all
            .chunks(piece)
            .scan(DATA, |at, chunk| {
                let here = *at;
                *at += chunk.len() as u64;
                Some((here, chunk.len() as u32, false))
            })
            .collect();
        self.queues[1].add(&pieces);
        self.work();
    }

    fn wire(&self, pair: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        let count = self.wires[pair].recv(&mut bytes).ok()?;
        bytes.truncate(count);
        Some(bytes)
    }

    /// Chains for frames: each of one buffer of `bytes` at a place of its own.
    fn offer(&mut self, count: u64, bytes: u32) {
        for index in 0..count {
            let at = DATA + 0x10_0000 + index * 0x1_1000;
            self.queues[0].add(&[(at, bytes, true)]);
        }
    }
}

fn frame(source: Mac, bytes: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &source, &[8, 0]].concat();
    frame.extend((frame.len()..bytes).map(|at| (at * 7) as u8));
    frame
}

#[test]
fn frames_of_the_guest_go_out_as_they_are() {
    let mut bench = Bench::new(1, EVENT_IDX | MERGES);
    for (bytes, piece) in [(60, 1000), (1514, 1526), (1514, 100), (60, 1), (14, 12), (65_000, 4096)] {
        let frame = frame(MAC, bytes);
        if piece == 1 {
            // As many pieces as the ring has.
            bench.send(&frame[..20], 1);
            assert_eq!(bench.wire(0).unwrap()[HEADER..], frame[..20]);
            continue;
        }
        bench.send(&frame, piece);
        assert_eq!(bench.wire(0).unwrap(), [&[0; HEADER][..], &frame].concat(), "{bytes} {piece}");
    }
    assert_eq!(bench.queues[1].used_index(), 6);
    assert_eq!(bench.counters.dropped.get() + bench.counters.refused.get(), 0);
}

#[test]
fn frames_of_others_are_refused_and_counted() {
    let mut bench = Bench::new(1, MERGES);
    bench.send(&frame([2, 0, 0, 0, 0, 8], 60), 1000);
    bench.send(&frame([2, 0, 0, 0, 0, 8], 60), 16);
    assert_eq!(bench.wire(0), None);
    assert_eq!((bench.counters.refused.get(), bench.queues[1].used_index()), (2, 2));
    bench.send(&[0; 5], 1000);
    bench.send(&frame(MAC, 60), 1000);
    assert!(bench.wire(0).is_some());
    assert_eq!(bench.counters.refused.get(), 3);
    // A checksum that the kernel would write over the source.
    let all = [&[1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0][..], &frame(MAC, 60)].concat();
    bench.queues[1].fill(DATA, &all);
    bench.queues[1].add(&[(DATA, all.len() as u32, false)]);
    bench.work();
    assert_eq!((bench.wire(0), bench.counters.refused.get()), (None, 4));
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(1, EVENT_IDX | MERGES);
    bench.offer(4, 600);
    bench.queues[0].want_interrupt(2);
    let sent = [&[0; HEADER][..], &frame([7; 6], 1488)].concat();
    bench.wires[0].send(&sent).unwrap();
    let progress = bench.work();
    assert!(progress.any && progress.interrupt);
    // All of them at once, each with what is in it.
    assert_eq!(bench.queues[0].used_index(), 3);
    let used: Vec<_> = std::iter::from_fn(|| bench.queues[0].used()).collect();
    assert_eq!(used, [(0, 600), (1, 600), (2, 300)]);
    let mut there: Vec<u8> =
        (0..3).flat_map(|index| bench.queues[0].bytes(DATA + 0x10_0000 + index * 0x1_1000, 600)).collect();
    there.truncate(sent.len());
    assert_eq!(there[NUM_BUFFERS_AT..HEADER], [3, 0]);
    there[NUM_BUFFERS_AT] = 0;
    assert!(there == sent);
}

const NUM_BUFFERS_AT: usize = 10;

#[test]
fn a_frame_waits_for_room() {
    let mut bench = Bench::new(1, MERGES | SEGMENTS);
    let sent = [&[0; HEADER][..], &frame([7; 6], 3000)].concat();
    bench.wires[0].send(&sent).unwrap();
    bench.wires[0].send(&sent).unwrap();
    // Without buffers the interface is not looked at.
    assert!(!bench.work().any);
    assert!(!bench.net.pairs[0].receiver.wants_frames());
    bench.offer(1, 2000);
    assert!(bench.work().any);
    assert_eq!(bench.queues[0].used_index(), 0);
    assert!(!bench.net.arm().unwrap());
    bench.queues[0].add(&[(DATA + 0x20_0000, 3000, true)]);
    assert!(bench.net.arm().unwrap());
    bench.work();
    assert_eq!(bench.queues[0].used_index(), 2);
    assert_eq!((bench.queues[0].used(), bench.queues[0].used()), (Some((0, 2000)), Some((1, 1012))));
    assert_eq!(bench.counters.dropped.get(), 0);
    // The other one came with the room that was left; there was none.
    bench.offer(3, 3012);
    bench.work();
    assert_eq!(bench.queues[0].used_index(), 3);
}

#[test]
fn without_merging_a_frame_has_one_chain_or_is_lost() {
    let mut bench = Bench::new(1, 0);
    bench.offer(2, 1530);
    let small = [&[0; HEADER][..], &frame([7; 6], 1514)].concat();
    bench.wires[0].send(&small).unwrap();
    bench.work();
    assert_eq!(bench.queues[0].used(), Some((0, 1526)));
    assert_eq!(bench.queues[0].bytes(DATA + 0x10_0000 + 10, 2), [1, 0]);
    // Too small for any frame, but not for this one.
    let mut bench = Bench::new(1, 0);
    bench.offer(2, 100);
    bench.wires[0].send(&small).unwrap();
    bench.wires[0].send(&small[..80]).unwrap();
    bench.work();
    assert_eq!((bench.queues[0].used(), bench.queues[0].used()), (Some((0, 80)), None));
    assert_eq!(bench.counters.dropped.get(), 1);
    assert!(!bench.net.arm().unwrap());
}

#[test]
fn the_driver_chooses_how_many_pairs() {
    let features = MERGES | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
    let mut bench = Bench::new(2, features);
    assert_eq!(bench.net.description().queues, [256, 256, 256, 256, 16]);
    assert_eq!(bench.net.description().config, [2, 0, 0, 0, 0, 9, 1, 0, 2, 0, 0xdc, 5]);
    let mut command = |bytes: &[u8]| {
        bench.queues[4].fill(DATA, bytes);
        bench.queues[4].put(DATA + 0x100, 0xff_u8);
        bench.queues[4].add(&[(DATA, bytes.len() as u32, false), (DATA + 0x100, 1, true)]);
        bench.work();
        bench.queues[4].get::<u8>(DATA + 0x100)
    };
    assert_eq!((command(&[4, 0, 2, 0]), command(&[4, 0, 1, 0])), (0, 0));
    assert_eq!((command(&[4, 0, 0, 0]), command(&[4, 0, 3, 0]), command(&[4, 0, 2])), (1, 1, 1));
    assert_eq!((command(&[0, 0, 1]), command(&[4])), (1, 1));
    // The second pair works as the first.
    bench.queues[3].fill(DATA, &[&[0; HEADER][..], &frame(MAC, 60)].concat());
    bench.queues[3].add(&[(DATA, 72, false)]);
    bench.work();
    assert!(bench.wire(1).is_some() && bench.wire(0).is_none());
}

#[test]
fn a_card_of_one_pair_has_no_control_queue() {
    let bench = Bench::new(1, MERGES);
    let description = bench.net.description();
    assert_eq!((description.queues.len(), description.features >> VIRTIO_NET_F_CTRL_VQ & 1), (2, 0));
}

#[test]
fn a_queue_that_starts_again_begins_empty() {
    let mut bench = Bench::new(1, MERGES);
    bench.offer(4, 2000);
    bench.work();
    bench.net.stop(0);
    bench.net.stop(1);
    let memory = std::sync::Arc::clone(&bench.queues[0].memory);
    bench.queues[0] = Driver::new(&memory, RINGS, 64);
    bench.net.start(&bench.queues[0].setup(0, MERGES)).unwrap();
    bench.wires[0].send(&[&[0; HEADER][..], &frame([7; 6], 60)].concat()).unwrap();
    assert!(!bench.work().any);
    bench.queues[0].add(&[(DATA, 2000, true)]);
    bench.work();
    assert_eq!(bench.queues[0].used(), Some((0, 72)));
}

#[test]
fn settings_are_those_of_the_configuration() {
    let text = "bridge=br0\nmac=02:00:00:00:00:09\nanti_spoofing=true\nqueues=1\n";
    assert_eq!(Settings::read(&Parameters::parse(text).unwrap()), Ok(settings(1)));
    let more = format!("{text}rate=100000000\nvlan=7\n");
    let read = Settings::read(&Parameters::parse(&more).unwrap()).unwrap();
    assert_eq!((read.rate, read.vlan), (Some(100_000_000), Some(7)));
    for (key, bad) in
        [("mac", "02:00"), ("queues", "9"), ("queues", "0"), ("vlan", "4095"), ("anti_spoofing", "no")]
    {
        let lines: String =
            text.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect();
        let error =
            Settings::read(&Parameters::parse(&format!("{lines}{key}={bad}\n")).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("parameter {key}: ")), "{error}");
    }
    assert_eq!(show_mac(MAC), "02:00:00:00:00:09");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Frames of any size into chains of any sizes: all of each frame, in order, or nothing of it.
    #[test]
    fn frames_arrive_whole(
        frames in prop::collection::vec(15..5000_usize, 1..12),
        chains in prop::collection::vec(12..4000_u32, 1..40),
        segments in any::<bool>(),
    ) {
        let features = MERGES | if segments { SEGMENTS } else { 0 };
        let mut bench = Bench::new(1, features);
        let frames: Vec<_> = frames.into_iter().map(|bytes| frame([7; 6], bytes.min(if segments { 5000 } else { 1514 }))).collect();
        let mut places = Vec::new();
        let mut sent = frames.iter();
        for (index, bytes) in (0..).zip(chains) {
            if let Some(frame) = sent.next() {
                bench.wires[0].send(&[&[0; HEADER][..], frame].concat()).unwrap();
            }
            places.push((DATA + 0x10_0000 + index * 0x1000, bytes));
            bench.queues[0].add(&[(DATA + 0x10_0000 + index * 0x1000, bytes, true)]);
            bench.work();
        }
        let mut expected = frames.iter();
        while let Some((head, bytes)) = bench.queues[0].used() {
            let mut there = bench.queues[0].bytes(places[usize::from(head)].0, bytes as usize);
            for _ in 1..u16::from_le_bytes([there[10], there[11]]) {
                let (head, bytes) = bench.queues[0].used().expect("the rest of the frame");
                there.extend(bench.queues[0].bytes(places[usize::from(head)].0, bytes as usize));
            }
            prop_assert_eq!(&there[HEADER..], &expected.next().unwrap()[..]);
        }
    }

    /// Rings full of anything: no panic, no end that does not come, nothing out of the guest's memory.
    #[test]
    fn any_ring_is_served_or_refused(
        descriptors in prop::collection::vec((0..5_u64, 0..0x2000_u32, any::<bool>(), any::<bool>(), 0..70_u16), 1..64),
        heads in prop::collection::vec((0..2_usize, 0..70_u16), 1..32),
    ) {
        let mut bench = Bench::new(1, MERGES | EVENT_IDX);
        for queue in 0..2 {
            for (index, &(place, bytes, write, more, next)) in (0..).zip(&descriptors) {
                let address = [DATA, DATA + 0x1000, RINGS, RAM.0 + RAM.1 as u64 - 0x100, 0][place as usize];
                let flags = if write { WRITE } else { 0 } | if more { NEXT } else { 0 };
                let descriptor = Descriptor { address, bytes, flags, next };
                bench.queues[queue].descriptor(bench.queues[queue].state.descriptors, index, descriptor);
            }
        }
        for (queue, head) in heads {
            bench.queues[queue].offer(head);
        }
        for _ in 0..8 {
            let _ = bench.wires[0].send(&[1; 600]);
            if bench.net.work(0, &bench.counters).is_err() || bench.net.arm().is_err() {
                break;
            }
        }
        bench.net.stop(0);
        bench.net.stop(1);
    }
}
