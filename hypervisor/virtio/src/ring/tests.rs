use alloc::vec;
use alloc::vec::Vec;

use caisson_types::SliceMemory;
use proptest::prelude::*;

use super::*;

const RAM: usize = 64 << 10;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const DATA: u64 = 0x8000;
const SIZE: u16 = 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn queue() -> QueueState {
    QueueState { descriptors: DESCRIPTORS, driver: DRIVER, device: DEVICE, size: SIZE, ready: 1, reserved: 0 }
}

/// A driver's end of the ring.
struct Driver<'a> {
    memory: SliceMemory<'a>,
    available: u16,
    seen: u16,
}

impl<'a> Driver<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { memory: SliceMemory::new(bytes), available: 0, seen: 0 }
    }

    fn descriptor(&self, table: u64, index: u16, gpa: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = Vec::from(gpa.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(Gpa::new(table + 16 * u64::from(index)), &bytes).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % SIZE);
        self.memory.write_u16(Gpa::new(DRIVER + 4 + 2 * slot), head).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    fn set_available(&self, index: u16) {
        self.memory.write_u16(Gpa::new(DRIVER + 2), index).unwrap();
    }

    fn used(&mut self) -> Option<(u32, u32)> {
        if self.memory.read_u16(Gpa::new(DEVICE + 2)).unwrap() == self.seen {
            return None;
        }
        let at = DEVICE + 4 + 8 * u64::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        let word = self.memory.read_u64(Gpa::new(at)).unwrap();
        Some((word as u32, (word >> 32) as u32))
    }

    fn ring(&self, features: u64) -> Ring {
        Ring::new(&queue(), features, &self.memory).unwrap()
    }
}

fn buffers(chain: &mut Chain, memory: &SliceMemory<'_>) -> Result<Vec<Buffer>, RingError> {
    let mut found = Vec::new();
    while let Some(buffer) = chain.next(memory)? {
        found.push(buffer);
        assert!(found.len() <= usize::from(MAX_INDIRECT));
    }
    Ok(found)
}

/// What a device finds in the chain from descriptor 0.
fn first(features: u64, fill: impl FnOnce(&Driver<'_>)) -> Result<Vec<Buffer>, RingError> {
    let mut bytes = vec![0; RAM];
    let mut driver = Driver::new(&mut bytes);
    fill(&driver);
    driver.offer(0);
    let mut ring = driver.ring(features);
    let mut chain = ring.pop(&driver.memory)?.unwrap();
    buffers(&mut chain, &driver.memory)
}

fn buffer(gpa: u64, length: u32, writable: bool) -> Buffer {
    Buffer { gpa: Gpa::new(gpa), length, writable }
}

#[test]
fn a_chain_is_walked_and_given_back() {
    let mut bytes = vec![0; RAM];
    let mut driver = Driver::new(&mut bytes);
    let mut ring = driver.ring(0);
    assert!(ring.pop(&driver.memory).unwrap().is_none());
    driver.descriptor(DESCRIPTORS, 5, DATA, 16, NEXT, 2);
    driver.descriptor(DESCRIPTORS, 2, DATA + 0x100, 512, WRITE | NEXT, 7);
    driver.descriptor(DESCRIPTORS, 7, DATA + 0x1000, 1, WRITE, 3);
    driver.offer(5);
    let mut chain = ring.pop(&driver.memory).unwrap().unwrap();
    assert_eq!(chain.head(), 5);
    let found = buffers(&mut chain, &driver.memory).unwrap();
    let expected = [buffer(DATA, 16, false), buffer(DATA + 0x100, 512, true), buffer(DATA + 0x1000, 1, true)];
    assert_eq!(found, expected);
    assert!(chain.next(&driver.memory).unwrap().is_none(), "its end stays its end");
    assert_eq!(driver.used(), None);
    ring.push(&driver.memory, chain, 513).unwrap();
    assert_eq!((driver.used(), driver.used()), (Some((5, 513)), None));
}

#[test]
fn a_table_of_its_own_is_walked() {
    let found = first(INDIRECT_DESC, |driver| {
        driver.descriptor(DESCRIPTORS, 0, TABLE, 48, INDIRECT, 0);
        driver.descriptor(TABLE, 0, DATA, 1, NEXT, 2);
        driver.descriptor(TABLE, 2, DATA + 1, 2, WRITE | NEXT, 1);
        driver.descriptor(TABLE, 1, DATA + 3, 3, WRITE, 0);
    });
    assert_eq!(
        found.unwrap(),
        [buffer(DATA, 1, false), buffer(DATA + 1, 2, true), buffer(DATA + 3, 3, true)]
    );
    // Behind descriptors of the ring's own, and longer than the ring.
    let found = first(INDIRECT_DESC, |driver| {
        driver.descriptor(DESCRIPTORS, 0, DATA, 1, NEXT, 1);
        driver.descriptor(DESCRIPTORS, 1, TABLE, 16 * 20, INDIRECT, 0);
        for index in 0..20 {
            driver.descriptor(TABLE, index, DATA, 1, if index < 19 { NEXT } else { 0 }, index + 1);
        }
    });
    assert_eq!(found.unwrap().len(), 21);
}

#[test]
fn each_thing_that_a_driver_must_not_do_has_its_error() {
    type Fill = fn(&Driver<'_>);
    let indirect = |gpa, length| RingError::Indirect { gpa: Gpa::new(gpa), length };
    let cases: [(u64, Fill, RingError); 15] = [
        (0, |d| d.descriptor(DESCRIPTORS, 0, DATA, 1, NEXT, 0), RingError::Endless { head: 0 }),
        (0, |d| d.descriptor(DESCRIPTORS, 0, DATA, 1, NEXT, 8), RingError::Descriptor(8)),
        (0, |d| d.descriptor(DESCRIPTORS, 0, DATA, 0, 0, 0), RingError::Empty { gpa: Gpa::new(DATA) }),
        (
            0,
            |d| d.descriptor(DESCRIPTORS, 0, 0xfff0, 17, 0, 0),
            RingError::NotRam { gpa: Gpa::new(0xfff0), length: 17 },
        ),
        (
            0,
            |d| d.descriptor(DESCRIPTORS, 0, u64::MAX, u32::MAX, 0, 0),
            RingError::NotRam { gpa: Gpa::new(u64::MAX), length: u32::MAX },
        ),
        (
            0,
            |d| {
                d.descriptor(DESCRIPTORS, 0, DATA, 1, WRITE | NEXT, 1);
                d.descriptor(DESCRIPTORS, 1, DATA, 1, 0, 1);
            },
            RingError::Order { head: 0 },
        ),
        (0, |d| d.descriptor(DESCRIPTORS, 0, TABLE, 16, INDIRECT, 0), indirect(TABLE, 16)),
        (INDIRECT_DESC, |d| d.descriptor(DESCRIPTORS, 0, TABLE, 0, INDIRECT, 0), indirect(TABLE, 0)),
        (INDIRECT_DESC, |d| d.descriptor(DESCRIPTORS, 0, TABLE, 17, INDIRECT, 0), indirect(TABLE, 17)),
        (INDIRECT_DESC, |d| d.descriptor(DESCRIPTORS, 0, TABLE, 16400, INDIRECT, 0), indirect(TABLE, 16400)),
        (
            INDIRECT_DESC,
            |d| d.descriptor(DESCRIPTORS, 0, TABLE, u32::MAX - 15, INDIRECT, 0),
            indirect(TABLE, u32::MAX - 15),
        ),
        (INDIRECT_DESC, |d| d.descriptor(DESCRIPTORS, 0, 0xfff0, 32, INDIRECT, 0), indirect(0xfff0, 32)),
        (INDIRECT_DESC, |d| d.descriptor(DESCRIPTORS, 0, TABLE, 16, INDIRECT | NEXT, 1), indirect(TABLE, 16)),
        (
            INDIRECT_DESC,
            |d| {
                d.descriptor(DESCRIPTORS, 0, TABLE, 32, INDIRECT, 0);
                d.descriptor(TABLE, 0, TABLE, 32, INDIRECT, 0);
            },
            indirect(TABLE, 32),
        ),
        (
            INDIRECT_DESC,
            |d| {
                d.descriptor(DESCRIPTORS, 0, TABLE, 32, INDIRECT, 0);
                d.descriptor(TABLE, 0, DATA, 1, NEXT, 1);
                d.descriptor(TABLE, 1, DATA, 1, NEXT, 0);
            },
            RingError::Endless { head: 0 },
        ),
    ];
    for (features, fill, error) in cases {
        assert_eq!(first(features, fill), Err(error));
        assert!(!alloc::format!("{error}").is_empty());
    }
}

#[test]
fn a_chain_of_over_four_gibibytes_is_refused() {
    /// Memory of whose RAM there is as much as anybody asks for.
    struct Vast<'a>(SliceMemory<'a>);
    impl GuestMemory for Vast<'_> {
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            self.0.read(gpa, buf)
        }
        fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
            self.0.write(gpa, data)
        }
        fn is_ram(&self, _: Gpa, _: u64) -> bool {
            true
        }
        fn compare_exchange_u32(&self, gpa: Gpa, _: u32, _: u32) -> Result<bool, MemoryError> {
            Err(MemoryError { gpa })
        }
        fn compare_exchange_u64(&self, gpa: Gpa, _: u64, _: u64) -> Result<bool, MemoryError> {
            Err(MemoryError { gpa })
        }
        fn swap_u8(&self, gpa: Gpa, _: u8) -> Result<u8, MemoryError> {
            Err(MemoryError { gpa })
        }
    }
    let mut bytes = vec![0; RAM];
    let mut driver = Driver::new(&mut bytes);
    driver.descriptor(DESCRIPTORS, 0, DATA, u32::MAX, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, DATA, 1, NEXT, 2);
    driver.descriptor(DESCRIPTORS, 2, DATA, 1, 0, 0);
    driver.offer(0);
    let mut ring = driver.ring(0);
    let memory = Vast(driver.memory);
    let mut chain = ring.pop(&memory).unwrap().unwrap();
    assert!(chain.next(&memory).unwrap().is_some() && chain.next(&memory).unwrap().is_some());
    assert_eq!(chain.next(&memory), Err(RingError::TooLong { head: 0 }));
}

#[test]
fn an_index_that_runs_ahead_and_a_head_past_the_table_are_errors() {
    let mut bytes = vec![0; RAM];
    let driver = Driver::new(&mut bytes);
    let mut ring = driver.ring(0);
    driver.set_available(SIZE + 1);
    let error = RingError::AvailableIndex { index: 9, seen: 0 };
    assert_eq!(ring.pop(&driver.memory).unwrap_err(), error);
    assert_eq!(Ring::new(&queue(), 0, &driver.memory).unwrap_err(), error);
    driver.set_available(u16::MAX);
    assert!(ring.pop(&driver.memory).is_err(), "it went back");
    driver.set_available(1);
    driver.memory.write_u16(Gpa::new(DRIVER + 4), SIZE).unwrap();
    assert_eq!(ring.pop(&driver.memory).unwrap_err(), RingError::Descriptor(SIZE));
}

#[test]
fn a_queue_that_is_none_has_no_ring() {
    let mut bytes = vec![0; RAM];
    let memory = SliceMemory::new(&mut bytes);
    for size in [0, 3, 7, 12, 0x8001, u16::MAX] {
        let queue = QueueState { size, ..queue() };
        assert_eq!(Ring::new(&queue, 0, &memory).unwrap_err(), RingError::NotReady);
    }
    let unready = QueueState { ready: 0, ..queue() };
    assert_eq!(Ring::new(&unready, 0, &memory).unwrap_err(), RingError::NotReady);
    let outside = QueueState { device: RAM as u64, ..queue() };
    assert!(matches!(Ring::new(&outside, 0, &memory), Err(RingError::Memory(_))));
}

#[test]
fn another_backend_goes_on_behind_what_is_used() {
    let mut bytes = vec![0; RAM];
    let mut driver = Driver::new(&mut bytes);
    let mut ring = driver.ring(0);
    for head in 0..3 {
        driver.descriptor(DESCRIPTORS, head, DATA, 1, 0, 0);
        driver.offer(head);
    }
    let done = ring.pop(&driver.memory).unwrap().unwrap();
    ring.push(&driver.memory, done, 0).unwrap();
    let _lost = ring.pop(&driver.memory).unwrap().unwrap();
    let mut next = driver.ring(0);
    for head in [1, 2] {
        assert_eq!(next.pop(&driver.memory).unwrap().unwrap().head(), head);
    }
    assert!(next.pop(&driver.memory).unwrap().is_none());
}

#[test]
fn interrupts_and_notifications_are_suppressed_as_the_rings_ask() {
    for features in [0, EVENT_IDX] {
        let mut bytes = vec![0; RAM];
        let mut driver = Driver::new(&mut bytes);
        let mut ring = driver.ring(features);
        let mut turn = |driver: &mut Driver<'_>| {
            driver.descriptor(DESCRIPTORS, 0, DATA, 1, 0, 0);
            driver.offer(0);
            let chain = ring.pop(&driver.memory).unwrap().unwrap();
            ring.push(&driver.memory, chain, 0).unwrap();
            let wanted = ring.needs_interrupt(&driver.memory).unwrap();
            assert!(!ring.needs_interrupt(&driver.memory).unwrap(), "nothing is new");
            wanted
        };
        assert!(turn(&mut driver), "the first is always wanted");
        if features == 0 {
            driver.memory.write_u16(Gpa::new(DRIVER), 1).unwrap();
            assert!(!turn(&mut driver));
            driver.memory.write_u16(Gpa::new(DRIVER), 0).unwrap();
            assert!(turn(&mut driver));
        } else {
            // The driver wants to hear of the third one.
            driver.memory.write_u16(Gpa::new(DRIVER + 4 + 16), 2).unwrap();
            assert_eq!([turn(&mut driver), turn(&mut driver), turn(&mut driver)], [false, true, false]);
        }
        ring.disable_notifications(&driver.memory).unwrap();
        let flags = driver.memory.read_u16(Gpa::new(DEVICE)).unwrap();
        assert_eq!(flags, u16::from(features == 0));
        assert!(!ring.enable_notifications(&driver.memory).unwrap());
        assert_eq!(driver.memory.read_u16(Gpa::new(DEVICE)).unwrap(), 0);
        if features != 0 {
            let event = driver.memory.read_u16(Gpa::new(DEVICE + 4 + 64)).unwrap();
            assert_eq!(event, driver.available);
        }
        driver.offer(0);
        assert!(ring.enable_notifications(&driver.memory).unwrap(), "one has come meanwhile");
    }
}

/// Half a descriptor: an address, or a length with flags and the next one's index.
fn words() -> impl Strategy<Value = u64> {
    let rest = (prop_oneof![0u64..64, Just(0xffff_fff0)], 0u64..8, 0u64..10)
        .prop_map(|(length, flags, next)| length | flags << 32 | next << 48);
    prop_oneof![1 => any::<u64>(), 2 => 0u64..0x1_0000, 2 => Just(TABLE), 6 => rest]
}

/// A chain as a model driver makes it: where its buffers are, and how it lays them out.
#[derive(Clone, Debug)]
struct Plan {
    read: Vec<u32>,
    write: Vec<u32>,
    indirect: bool,
}

fn plans() -> impl Strategy<Value = Plan> {
    let lengths = || proptest::collection::vec(1u32..200, 0..4);
    (lengths(), lengths(), any::<bool>())
        .prop_filter("empty", |(read, write, _)| !(read.is_empty() && write.is_empty()))
        .prop_map(|(read, write, indirect)| Plan { read, write, indirect })
}

impl Driver<'_> {
    /// Lays a chain out in free descriptors; what the device should find.
    fn lay(&mut self, plan: &Plan, free: &mut Vec<u16>) -> Option<(u16, Vec<u16>, Vec<Buffer>)> {
        let lengths = plan.read.iter().map(|&l| (l, false)).chain(plan.write.iter().map(|&l| (l, true)));
        let found: Vec<Buffer> = (0..)
            .zip(lengths)
            .map(|(index, (length, writable))| buffer(DATA + 256 * index, length, writable))
            .collect();
        let need = if plan.indirect { 1 } else { found.len() };
        if free.len() < need {
            return None;
        }
        let taken: Vec<u16> = free.drain(..need).collect();
        let inner: Vec<u16> = if plan.indirect { (0..found.len() as u16).collect() } else { taken.clone() };
        let table = if plan.indirect {
            let table = TABLE + 256 * u64::from(taken[0]);
            self.descriptor(DESCRIPTORS, taken[0], table, 16 * found.len() as u32, INDIRECT, 0);
            table
        } else {
            DESCRIPTORS
        };
        for (place, buffer) in found.iter().enumerate() {
            let next = inner.get(place + 1);
            let flag = |is: bool, flag: u16| if is { flag } else { 0 };
            let flags = flag(next.is_some(), NEXT) | flag(buffer.writable, WRITE);
            let (gpa, length) = (buffer.gpa.as_u64(), buffer.length);
            self.descriptor(table, inner[place], gpa, length, flags, next.copied().unwrap_or(0));
        }
        Some((taken[0], taken, found))
    }
}

proptest! {
    /// A good driver and the device agree on every chain, over many turns of the ring, and with event indices nobody waits
    /// for an interrupt that was not sent.
    #[test]
    fn a_driver_gets_back_what_it_gave(
        plans in proptest::collection::vec((plans(), 0u8..4), 1..200),
        event_idx: bool,
    ) {
        let mut bytes = vec![0; RAM];
        let mut driver = Driver::new(&mut bytes);
        let features = INDIRECT_DESC | if event_idx { EVENT_IDX } else { 0 };
        let mut ring = driver.ring(features);
        let mut free: Vec<u16> = (0..SIZE).collect();
        let (mut offered, mut held) = (Vec::new(), Vec::new());
        for (plan, turns) in plans {
            if let Some((head, taken, found)) = driver.lay(&plan, &mut free) {
                driver.offer(head);
                offered.push((head, taken, found));
            }
            for turn in 0..turns {
                if let Some(mut chain) = ring.pop(&driver.memory).unwrap() {
                    let (head, taken, found) = offered.remove(0);
                    prop_assert_eq!(chain.head(), head);
                    prop_assert_eq!(buffers(&mut chain, &driver.memory).unwrap(), found);
                    held.push((chain, taken));
                } else {
                    prop_assert!(offered.is_empty());
                }
                // Not always in their order.
                if turn % 2 == 0 && !held.is_empty() {
                    let (chain, taken) = held.swap_remove(0);
                    let head = chain.head();
                    if event_idx {
                        driver.memory.write_u16(Gpa::new(DRIVER + 4 + 16), driver.seen).unwrap();
                    }
                    ring.push(&driver.memory, chain, 7).unwrap();
                    prop_assert!(ring.needs_interrupt(&driver.memory).unwrap());
                    prop_assert_eq!(driver.used(), Some((u32::from(head), 7)));
                    free.extend(taken);
                }
            }
        }
    }

    /// Whatever is in its memory, a device's turn ends, and the ring stays within its bounds.
    #[test]
    fn any_memory_is_walked_without_harm(
        descriptors in proptest::collection::vec(words(), 16..=16),
        heads in proptest::collection::vec(0..SIZE + 1, 8..=8),
        table in proptest::collection::vec(words(), 0..=16),
        features in prop_oneof![Just(0), Just(INDIRECT_DESC), Just(EVENT_IDX), Just(INDIRECT_DESC | EVENT_IDX)],
        start in 0u16..4,
    ) {
        let mut bytes = vec![0; RAM];
        let driver = Driver::new(&mut bytes);
        for (start, found) in [(DESCRIPTORS, &descriptors), (TABLE, &table)] {
            for (place, &word) in (0..).zip(found) {
                driver.memory.write_u64(Gpa::new(start + 8 * place), word).unwrap();
            }
        }
        for (place, &head) in (0..).zip(&heads) {
            driver.memory.write_u16(Gpa::new(DRIVER + 4 + 2 * place), head).unwrap();
        }
        driver.memory.write_u16(Gpa::new(DEVICE + 2), start).unwrap();
        driver.set_available(start + 6);
        let mut ring = driver.ring(features);
        let mut turns = 0;
        while let Ok(Some(mut chain)) = ring.pop(&driver.memory) {
            turns += 1;
            prop_assert!(turns <= SIZE);
            let _ = buffers(&mut chain, &driver.memory);
            ring.push(&driver.memory, chain, 0).unwrap();
        }
        let _ = ring.needs_interrupt(&driver.memory).unwrap();
    }

    /// The rule of section 2.7.10, against counting.
    #[test]
    fn an_event_is_needed_when_it_is_passed(old: u16, steps in 0u16..300, ahead in 0u16..400) {
        let event = old.wrapping_add(ahead);
        let passed = (0..steps).any(|step| old.wrapping_add(step) == event);
        prop_assert_eq!(need_event(event, old.wrapping_add(steps), old), passed);
    }
}
