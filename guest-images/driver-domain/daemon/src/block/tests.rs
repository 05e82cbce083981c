//! A disk under a driver that does what it should, and one that does not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::*;
use crate::sys::Memory;
use crate::testing::{Descriptor, Driver, INDIRECT, NEXT, WRITE, file, memory};

const RAM: (u64, usize) = (0x10_0000, 1 << 20);
const RINGS: u64 = RAM.0;
/// Headers are here, statuses a page behind, data behind those.
const HEADERS: u64 = RAM.0 + 0x4000;
const STATUSES: u64 = RAM.0 + 0x6000;
const DATA: u64 = RAM.0 + 0x1_0000;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const FLUSHES: u64 = 1 << VIRTIO_BLK_F_FLUSH;

struct Bench {
    block: Block,
    driver: Driver,
    disk: File,
    counters: Counters,
    requests: u64,
}

impl Bench {
    fn new(sectors: u64, read_only: bool, features: u64) -> Self {
        let disk = file(sectors * SECTOR);
        let storage = Raw::new(disk.try_clone().unwrap(), false, read_only, 256).unwrap();
        Self::with(Box::new(storage), disk, features)
    }

    fn with(storage: Box<dyn Storage>, disk: File, features: u64) -> Self {
        let memory: Arc<Memory> = memory(&[RAM]);
        let driver = Driver::new(&memory, RINGS, 128);
        let mut block = Block::new(storage, "SN-1");
        block.start(&driver.setup(0, features)).unwrap();
        Self { block, driver, disk, counters: Counters::default(), requests: 0 }
    }

    /// Puts a request into the ring: the address of its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u64 {
        let header = HEADERS + self.requests % 256 * 16;
        let status = STATUSES + self.requests % 256;
        self.requests += 1;
        self.driver.put(header, kind);
        self.driver.put(header + 8, sector);
        self.driver.put(status, 0xff_u8);
        let write = matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
        let mut buffers = vec![(header, 16, false)];
        buffers.extend(data.iter().map(|&(at, bytes)| (at, bytes, write)));
        buffers.push((status, 1, true));
        self.driver.add(&buffers);
        status
    }

    /// Works until `count` chains have been given back.
    fn until(&mut self, count: u16) -> Result<Vec<(u16, u32)>, Fault> {
        let mut used = Vec::new();
        while used.len() < usize::from(count) {
            let progress = self.block.work(0, &self.counters)?;
            used.extend(std::iter::from_fn(|| self.driver.used()));
            if !progress.any {
                self.block.storage.wait();
            }
        }
        Ok(used)
    }

    fn status_of(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u8 {
        let status = self.request(kind, sector, data);
        self.until(1).unwrap();
        self.driver.get(status)
    }
}

#[test]
fn what_is_written_is_read() {
    let mut bench = Bench::new(64, false, EVENT_IDX | FLUSHES);
    bench.driver.fill(DATA, &[7; 1024]);
    bench.driver.fill(DATA + 0x1000, &[9; 512]);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_OUT, 3, &[(DATA, 1024), (DATA + 0x1000, 512)]), 0);
    let mut there = [0; 2048];
    bench.disk.read_exact_at(&mut there, 3 * 512).unwrap();
    assert!(there[..1024] == [7; 1024] && there[1024..1536] == [9; 512] && there[1536..] == [0; 512]);
    let status = bench.request(VIRTIO_BLK_T_IN, 4, &[(DATA + 0x2001, 511), (DATA + 0x3000, 513)]);
    assert_eq!(bench.until(1).unwrap()[0].1, 1025);
    assert_eq!(bench.driver.get::<u8>(status), 0);
    assert_eq!(bench.driver.bytes(DATA + 0x2001, 511), [7; 511]);
    assert_eq!(bench.driver.bytes(DATA + 0x3000, 514), [&[7][..], &[9; 512], &[0]].concat());
    assert_eq!(bench.status_of(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)]), 0);
    assert_eq!(bench.driver.bytes(DATA, 20), *b"SN-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn nothing_beyond_the_extent() {
    let mut bench = Bench::new(64, false, FLUSHES);
    let bad = VIRTIO_BLK_S_IOERR as u8;
    for (sector, bytes) in [(64, 512), (63, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 513), (0, 100)] {
        assert_eq!(bench.status_of(VIRTIO_BLK_T_OUT, sector, &[(DATA, bytes)]), bad, "{sector}");
        assert_eq!(bench.status_of(VIRTIO_BLK_T_IN, sector, &[(DATA, bytes)]), bad, "{sector}");
    }
    assert_eq!(bench.status_of(VIRTIO_BLK_T_IN, 0, &[]), bad);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_OUT, 63, &[(DATA, 512)]), 0);
    assert_eq!(bench.disk.metadata().unwrap().len(), 64 * 512);
    assert_eq!(bench.status_of(99, 0, &[(DATA, 512)]), VIRTIO_BLK_S_UNSUPP as u8);
    assert_eq!(bench.counters.errors.get(), 14);
}

#[test]
fn what_is_awaited_follows_what_is_under_way() {
    let mut bench = Bench::new(64, false, EVENT_IDX | FLUSHES);
    assert_eq!(bench.block.awaits(), Awaits::Guest);
    for (requests, awaited) in [(1, Awaits::End), (BUSY - 1, Awaits::Ends)] {
        for sector in 0..requests as u64 {
            bench.request(VIRTIO_BLK_T_IN, sector, &[(DATA, 512)]);
        }
        // Taken alone: no end is noticed meanwhile.
        bench.block.take(&bench.counters).unwrap();
        assert_eq!(bench.block.awaits(), awaited);
    }
    bench.until(BUSY as u16).unwrap();
    assert_eq!(bench.block.awaits(), Awaits::Guest);
}

#[test]
fn a_disk_that_is_read_only_is_not_written() {
    let mut bench = Bench::new(8, true, FLUSHES);
    let features = bench.block.description().features;
    assert!(features >> VIRTIO_BLK_F_RO & 1 != 0 && features >> VIRTIO_BLK_F_DISCARD & 1 == 0);
    bench.driver.fill(DATA, &[7; 512]);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]), VIRTIO_BLK_S_IOERR as u8);
    for kind in [11, 13] {
        bench.driver.put(DATA, 0_u64);
        bench.driver.put(DATA + 8, 1_u64);
        assert_eq!(bench.status_of(kind, 0, &[(DATA, 16)]), VIRTIO_BLK_S_IOERR as u8);
    }
    assert_eq!(bench.status_of(VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    let mut all = [1; 4096];
    bench.disk.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all, [0; 4096]);
}

#[test]
fn zeroes_are_written_and_discards_stay_inside() {
    let mut bench = Bench::new(64, false, FLUSHES);
    bench.disk.write_all_at(&[5; 64 * 512], 0).unwrap();
    let mut ranges = |kind, sector: u64, sectors: u32, flags: u32| {
        bench.driver.put(DATA, sector);
        bench.driver.put(DATA + 8, sectors);
        bench.driver.put(DATA + 12, flags);
        bench.status_of(kind, 0, &[(DATA, 16)])
    };
    assert_eq!((ranges(13, 2, 3, 0), ranges(13, 8, 8, 1), ranges(11, 32, 8, 0)), (0, 0, 0));
    assert_eq!((ranges(13, 63, 2, 0), ranges(11, 64, 1, 0), ranges(11, u64::MAX, 1, 0)), (1, 1, 1));
    assert_eq!((ranges(13, 0, 0, 0), ranges(11, 0, u32::MAX, 0)), (1, 1));
    assert_eq!((ranges(13, 0, 1, 2), ranges(11, 0, 1, 1)), (2, 2));
    let mut all = [0; 64 * 512];
    bench.disk.read_exact_at(&mut all, 0).unwrap();
    for (sector, bytes) in all.chunks_exact(512).enumerate() {
        let zero = matches!(sector, 2..5 | 8..16 | 32..40);
        assert!(bytes.iter().all(|&byte| byte == if zero { 0 } else { 5 }), "sector {sector}");
    }
    assert_eq!(all.len() as u64, bench.disk.metadata().unwrap().len());
}

/// Storage whose transfers end when the test says, in any order.
struct Slow {
    pending: Vec<u64>,
    ended: Vec<Done>,
    order: Vec<&'static str>,
    shared: Arc<std::sync::Mutex<Vec<&'static str>>>,
    bell: crate::bell::Bell,
}

impl Slow {
    fn new(shared: &Arc<std::sync::Mutex<Vec<&'static str>>>) -> Self {
        let bell = crate::bell::Bell::new().unwrap();
        Self { pending: Vec::new(), ended: Vec::new(), order: Vec::new(), shared: Arc::clone(shared), bell }
    }

    /// Ends all that is under way, the last one first.
    fn finish(&mut self) {
        self.ended.extend(self.pending.drain(..).rev().map(|token| Done { token, result: Ok(()) }));
    }
}

impl Storage for Slow {
    fn geometry(&self) -> Geometry {
        Geometry { bytes: 1 << 20, block: 512, read_only: false }
    }

    fn has_room(&self) -> bool {
        true
    }

    fn start(&mut self, token: u64, transfer: Transfer, durable: bool) {
        self.pending.push(token);
        self.order.push(match transfer {
            Transfer::Flush => "flush",
            Transfer::Write { .. } if durable => "durable",
            _ => "other",
        });
        self.shared.lock().unwrap().clone_from(&self.order);
    }

    fn submit(&mut self) {}

    fn give_up(&mut self) {}

    fn collect(&mut self, into: &mut Vec<Done>) {
        into.append(&mut self.ended);
    }

    fn wait(&mut self) {
        self.finish();
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bell.fd()
    }
}

#[test]
fn buffers_come_back_in_their_order_and_flushes_wait() {
    let begun = Arc::default();
    let mut bench = Bench::with(Box::new(Slow::new(&begun)), file(512), FLUSHES);
    bench.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    bench.request(VIRTIO_BLK_T_OUT, 1, &[(DATA, 512)]);
    bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    bench.request(VIRTIO_BLK_T_OUT, 2, &[(DATA, 512)]);
    bench.block.work(0, &bench.counters).unwrap();
    // Those behind a flush do not wait for it.
    assert_eq!(*begun.lock().unwrap(), ["other"; 3]);
    assert_eq!(bench.driver.used_index(), 0);
    bench.block.storage.wait();
    bench.block.work(0, &bench.counters).unwrap();
    assert_eq!(*begun.lock().unwrap(), ["other", "other", "other", "flush"]);
    // The last write has ended before the flush, and waits for it.
    assert_eq!(bench.driver.used_index(), 2);
    let heads: Vec<_> = bench.until(4).unwrap().into_iter().map(|(head, _)| head).collect();
    assert_eq!(heads, [0, 3, 6, 8]);
}

#[test]
fn without_flushes_each_write_is_durable() {
    let begun = Arc::default();
    let mut bench = Bench::with(Box::new(Slow::new(&begun)), file(512), 0);
    bench.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    bench.until(1).unwrap();
    assert_eq!(*begun.lock().unwrap(), ["durable"]);
}

#[test]
fn the_next_backend_does_what_was_not_given_back() {
    let begun = Arc::default();
    let mut bench = Bench::with(Box::new(Slow::new(&begun)), file(512), FLUSHES);
    for sector in 0..3 {
        bench.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512)]);
    }
    bench.until(3).unwrap();
    bench.driver.fill(DATA, &[3; 1024]);
    bench.request(VIRTIO_BLK_T_OUT, 5, &[(DATA, 512)]);
    bench.request(VIRTIO_BLK_T_OUT, 6, &[(DATA, 512)]);
    bench.block.work(0, &bench.counters).unwrap();
    assert_eq!(bench.driver.used_index(), 3);
    // It dies with two under way.
    let disk = file(64 * 512);
    let storage = Raw::new(disk.try_clone().unwrap(), false, false, 8).unwrap();
    bench.block = Block::new(Box::new(storage), "");
    bench.block.start(&bench.driver.setup(0, FLUSHES)).unwrap();
    assert_eq!(bench.until(2).unwrap().len(), 2);
    let mut all = [0; 8 * 512];
    disk.read_exact_at(&mut all, 0).unwrap();
    assert!(
        all[..5 * 512] == [0; 5 * 512] && all[5 * 512..7 * 512] == [3; 1024] && all[7 * 512..] == [0; 512]
    );
}

#[test]
fn stopping_waits_for_what_is_under_way() {
    let mut bench = Bench::new(256, false, FLUSHES);
    bench.driver.fill(DATA, &[1; 4096]);
    for sector in 0..8 {
        bench.request(VIRTIO_BLK_T_OUT, sector * 8, &[(DATA, 4096)]);
    }
    let _ = bench.block.take(&bench.counters).unwrap();
    bench.block.stop(0);
    assert_eq!((bench.block.slots.len(), bench.driver.used_index()), (0, 0));
    // A new life begins at the front.
    bench.driver = Driver::new(&Arc::clone(&bench.driver.memory), RINGS, 16);
    bench.block.start(&bench.driver.setup(0, FLUSHES)).unwrap();
    assert_eq!(bench.status_of(VIRTIO_BLK_T_IN, 63, &[(DATA + 4096, 512)]), 0);
    assert_eq!(bench.driver.bytes(DATA + 4096, 512), [1; 512]);
}

#[test]
fn what_one_request_moves_has_a_bound() {
    let mut bench = Bench::new((MAX_BYTES as u64 + 4096) / SECTOR, false, FLUSHES);
    // The same memory again and again: by an indirect table.
    let table = DATA + 0x8_0000;
    let mut status = |kind: u32, extra: u32| {
        bench.driver.put(HEADERS, kind);
        bench.driver.put(HEADERS + 8, 0_u64);
        let piece = 0x2_0000;
        let count = (MAX_BYTES as u32 / piece) as u16;
        let write = if kind == VIRTIO_BLK_T_IN { WRITE } else { 0 };
        let add = |index: u16, address: u64, bytes: u32, flags: u16| {
            let descriptor = Descriptor { address, bytes, flags, next: index + 1 };
            bench.driver.descriptor(table, index, descriptor);
        };
        add(0, HEADERS, 16, NEXT);
        (0..count).for_each(|index| add(index + 1, DATA, piece, NEXT | write));
        let last = count + 1 + u16::from(extra > 0);
        if extra > 0 {
            add(count + 1, DATA, extra, NEXT | write);
        }
        add(last, STATUSES, 1, WRITE);
        let all = Descriptor { address: table, bytes: u32::from(last + 1) * 16, flags: INDIRECT, next: 0 };
        bench.driver.descriptor(bench.driver.state.descriptors, 0, all);
        bench.driver.offer(0);
        bench.until(1).unwrap();
        bench.driver.get::<u8>(STATUSES)
    };
    assert_eq!((status(VIRTIO_BLK_T_OUT, 0), status(VIRTIO_BLK_T_IN, 0)), (0, 0));
    assert_eq!((status(VIRTIO_BLK_T_OUT, 512), status(VIRTIO_BLK_T_IN, 512)), (1, 1));
}

#[test]
fn interrupts_and_notifications_are_as_the_rings_ask() {
    let mut bench = Bench::new(64, false, EVENT_IDX | FLUSHES);
    bench.driver.want_interrupt(1);
    bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    let mut interrupts = 0;
    for given in 1..=3_u16 {
        while bench.driver.used_index() < given {
            interrupts += u32::from(bench.block.work(0, &bench.counters).unwrap().interrupt);
        }
        bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    }
    assert_eq!(interrupts, 1);
    assert!(bench.block.arm().unwrap());
    assert_eq!(bench.driver.notification_words().1, 3);
    // Without event indices, by flags.
    let mut bench = Bench::new(64, false, FLUSHES);
    bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    bench.block.work(0, &bench.counters).unwrap();
    assert_eq!(bench.driver.notification_words().0, 1);
    assert!(!bench.block.arm().unwrap());
    assert_eq!(bench.driver.notification_words().0, 0);
    bench.driver.put(bench.driver.state.driver, 1_u16);
    while bench.driver.used_index() < 1 {
        assert!(!bench.block.work(0, &bench.counters).unwrap().interrupt);
    }
}

#[test]
fn many_requests_are_announced_together() {
    let begun = Arc::default();
    let mut bench = Bench::with(Box::new(Slow::new(&begun)), file(512), FLUSHES);
    for sector in 0..20 {
        bench.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512)]);
    }
    bench.block.work(0, &bench.counters).unwrap();
    bench.request(VIRTIO_BLK_T_OUT, 20, &[(DATA, 512)]);
    assert!(!bench.block.arm().unwrap(), "what is under way makes the ring looked at");
    let end = |block: &mut Block, token: u64| {
        block.done.push(Done { token, result: Ok(()) });
        let progress = block.work(0, &bench.counters).unwrap();
        (bench.driver.used_index(), progress.interrupt)
    };
    // Each is seen at once; the interrupt comes with the fourth, or later.
    assert_eq!(end(&mut bench.block, 0), (1, false));
    let deadline = bench.block.deadline().unwrap();
    assert_eq!((end(&mut bench.block, 1), end(&mut bench.block, 2)), ((2, false), (3, false)));
    assert_eq!(bench.block.deadline(), Some(deadline));
    assert_eq!(end(&mut bench.block, 3), (4, true));
    assert_eq!(end(&mut bench.block, 4), (5, false));
    bench.block.announce = Some(Instant::now());
    assert!(bench.block.work(0, &bench.counters).unwrap().interrupt);
    assert_eq!(bench.block.deadline(), None);
    // With few under way each one is told.
    for token in 5..14 {
        end(&mut bench.block, token);
    }
    assert_eq!(bench.block.under_way, 7);
    assert_eq!(end(&mut bench.block, 14), (15, true));
    assert!(!bench.block.arm().unwrap());
}

#[test]
fn buffers_that_are_not_aligned_go_through_pages_of_our_own() {
    let disk = file(4 << 20);
    let storage = Raw::new(disk.try_clone().unwrap(), true, false, 256).unwrap();
    let mut bench = Bench::with(Box::new(storage), disk, FLUSHES);
    let bytes: Vec<u8> = (0..600 << 10).map(|at: u32| (at / 3) as u8).collect();
    bench.driver.fill(DATA + 1, &bytes);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_OUT, 2, &[(DATA + 1, bytes.len() as u32)]), 0);
    let mut there = vec![0; bytes.len()];
    bench.disk.read_exact_at(&mut there, 1024).unwrap();
    assert!(there == bytes);
    bench.driver.fill(DATA, &vec![0; bytes.len()]);
    assert_eq!(bench.status_of(VIRTIO_BLK_T_IN, 2, &[(DATA + 3, 512 * 1200 - 1), (DATA + 0xa_0001, 1)]), 0);
    assert!(bench.driver.bytes(DATA + 3, 512 * 1200 - 1) == bytes[..512 * 1200 - 1]);
    // More at a time than are let through at once.
    for at in 0..20 {
        bench.request(VIRTIO_BLK_T_OUT, at, &[(DATA + 1, 512)]);
    }
    assert_eq!(bench.until(20).unwrap().len(), 20);
}

#[test]
fn each_broken_chain_has_its_name() {
    let table = DATA + 0x8000;
    type Case = (&'static str, fn(&mut Driver, u64));
    fn set(driver: &Driver, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        driver.descriptor(driver.state.descriptors, index, Descriptor { address, bytes, flags, next });
    }
    let cases: [Case; 12] = [
        ("does not end", |driver, _| {
            set(driver, 0, DATA, 16, NEXT, 1);
            set(driver, 1, DATA, 16, NEXT, 0);
        }),
        ("does not end", |driver, _| set(driver, 0, DATA, 16, NEXT, 128)),
        ("does not end", |driver, table| set(driver, 0, table, 15, INDIRECT, 0)),
        ("does not end", |driver, _| set(driver, 0, u64::MAX - 15, 32, INDIRECT, 0)),
        ("does not end", |driver, table| {
            driver.descriptor(table, 0, Descriptor { address: table, bytes: 16, flags: INDIRECT, next: 0 });
            set(driver, 0, table, 16, INDIRECT, 0);
        }),
        ("no bytes", |driver, _| set(driver, 0, DATA, 0, 0, 0)),
        ("behind one to write", |driver, _| {
            set(driver, 0, DATA, 16, NEXT | WRITE, 1);
            set(driver, 1, DATA, 16, 0, 0);
        }),
        ("no header", |driver, _| set(driver, 0, DATA, 15, 0, 0)),
        ("no place for a status", |driver, _| set(driver, 0, DATA, 16, 0, 0)),
        ("not in the memory that it grants", |driver, _| {
            set(driver, 0, RAM.0 + RAM.1 as u64 - 8, 16, NEXT, 1);
            set(driver, 1, DATA, 1, WRITE, 0);
        }),
        ("not in the memory that it grants", |driver, _| {
            set(driver, 0, DATA, 16, NEXT, 1);
            set(driver, 1, 0, u32::MAX - 64, WRITE, 0);
        }),
        ("over 1024", |driver, table| {
            for index in 0..1100 {
                let next = index + 1;
                driver.descriptor(table, index, Descriptor { address: DATA, bytes: 1, flags: NEXT, next });
            }
            set(driver, 0, table, 1100 * 16, INDIRECT, 0);
        }),
    ];
    for (index, (wanted, prepare)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new(64, false, FLUSHES);
        prepare(&mut bench.driver, table);
        bench.driver.offer(0);
        let fault = bench.block.work(0, &bench.counters).unwrap_err().to_string();
        assert!(fault.contains(wanted), "case {index}: {fault}");
        bench.block.stop(0);
    }
    let mut bench = Bench::new(64, false, FLUSHES);
    bench.driver.set_available(129);
    assert!(bench.block.work(0, &bench.counters).unwrap_err().to_string().contains("available index"));
    bench.driver.set_available(1);
    bench.driver.put(bench.driver.state.driver + 4, 128_u16);
    assert!(bench.block.work(0, &bench.counters).is_err(), "a head that is no descriptor's");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Writes and reads of any shape against a copy of the disk.
    #[test]
    fn a_disk_is_what_was_written(
        operations in prop::collection::vec((any::<bool>(), 0..70_u64, 1..9_u32, 0..4_u64, any::<u8>()), 1..40),
        direct in any::<bool>(),
    ) {
        let disk = file(64 * SECTOR);
        let storage = Raw::new(disk.try_clone().unwrap(), direct, false, 64).unwrap();
        let mut bench = Bench::with(Box::new(storage), disk, FLUSHES);
        let mut model = vec![0_u8; 64 * 512];
        for (write, sector, sectors, skew, value) in operations {
            let (bytes, at) = (sectors as usize * 512, DATA + skew);
            let place = sector as usize * 512..sector as usize * 512 + bytes;
            let cut = bytes as u32 / 3;
            let data = [(at, cut), (at + u64::from(cut), bytes as u32 - cut)];
            let kind = if write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
            bench.driver.fill(at, &vec![value; bytes]);
            let status = bench.status_of(kind, sector, &data);
            match model.get_mut(place) {
                None => prop_assert_eq!(status, VIRTIO_BLK_S_IOERR as u8),
                Some(there) if write => {
                    prop_assert_eq!(status, 0);
                    there.fill(value);
                }
                Some(there) => {
                    prop_assert_eq!(status, 0);
                    prop_assert_eq!(&*there, &bench.driver.bytes(at, bytes)[..]);
                }
            }
        }
    }

    /// A ring full of anything: no panic, no end that does not come.
    #[test]
    fn any_ring_is_served_or_refused(
        descriptors in prop::collection::vec((0..6_u64, 0..0x3000_u32, 0..8_u16, 0..140_u16), 0..64),
        heads in prop::collection::vec(0..140_u16, 1..32),
        header in any::<[u8; 16]>(),
        kind in 0..14_u32,
    ) {
        let mut bench = Bench::new(64, false, EVENT_IDX);
        bench.driver.fill(DATA, &header);
        bench.driver.put(DATA, kind);
        for (index, (place, bytes, flags, next)) in (0..).zip(descriptors) {
            let address = [DATA, DATA + 0x100, RINGS, RAM.0 + RAM.1 as u64 - 0x100, 0, u64::MAX - 0x80][place as usize];
            bench.driver.descriptor(RINGS, index, Descriptor { address, bytes, flags, next });
        }
        for head in heads {
            bench.driver.offer(head);
        }
        for _ in 0..64 {
            if bench.block.work(0, &bench.counters).is_err() {
                break;
            }
        }
        bench.block.stop(0);
        prop_assert_eq!(bench.disk.metadata().unwrap().len(), 64 * 512);
    }
}
