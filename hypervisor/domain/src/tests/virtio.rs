//! Virtio devices as a guest reaches them: nine entropy devices, of which the first and the last share a pin.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use caisson_types::{Gpa, GuestMemory};
use caisson_virtio::{PageRef, RegisterPage, register};

use super::{vectors, with};
use crate::Domain;
use crate::testing::{Machine, Resumes, setup};

const FIRST: u32 = 0xfeb0_0000;
const DESCRIPTORS: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const VECTOR: u8 = 0x60;

/// The first page of device `index`.
fn page(index: u32) -> u32 {
    FIRST + 0x1000 * index
}

fn areas(index: u32) -> [u64; 3] {
    [0, 0x200, 0x400].map(|offset| DESCRIPTORS + offset + 0x1000 * u64::from(index))
}

/// A driver's way to DRIVER_OK.
fn start(m: &mut Machine<'_>, index: u32) {
    let [descriptors, driver, device] = areas(index);
    let writes = [
        (register::STATUS, 3),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, 1),
        (register::STATUS, 11),
        (register::QUEUE_DESC_LOW, descriptors as u32),
        (register::QUEUE_DRIVER_LOW, driver as u32),
        (register::QUEUE_DEVICE_LOW, device as u32),
        (register::QUEUE_READY, 1),
        (register::STATUS, 15),
    ];
    for (offset, value) in writes {
        m.store(0, page(index) + offset as u32, value).resumes();
    }
    assert_eq!(m.load(0, page(index) + register::STATUS as u32), 15);
}

/// Asks for 16 bytes, for the `turn`-th time.
fn ask(m: &mut Machine<'_>, index: u32, turn: u16) {
    let [descriptors, driver, _] = areas(index);
    m.domain.memory.write_u64(Gpa::new(descriptors), DATA).unwrap();
    m.domain.memory.write_u64(Gpa::new(descriptors + 8), 16 | 2 << 32).unwrap();
    m.domain.memory.write_u16(Gpa::new(driver + 2), turn).unwrap();
    m.store(0, page(index) + register::QUEUE_NOTIFY as u32, 0).resumes();
}

/// Routes pin 16 to vCPU 0, edge-triggered.
fn route(m: &mut Machine<'_>) {
    m.x2apic(0);
    m.interrupts(0, true);
    for (register, value) in [(0x31, 0), (0x30, u32::from(VECTOR))] {
        m.store(0, 0xfec0_0000, register).resumes();
        m.store(0, 0xfec0_0010, value).resumes();
    }
}

/// The end of an interrupt handler.
fn finish(m: &mut Machine<'_>) {
    m.eoi(0);
    m.interrupts(0, true);
}

#[test]
fn they_are_where_the_firmware_says() {
    with(1, |m| {
        for index in 0..9 {
            assert_eq!(m.load(0, page(index)), 0x7472_6976);
            assert_eq!(m.load(0, page(index) + 8), 4, "entropy");
        }
        assert_eq!(m.load(0, page(9)), u32::MAX, "there are nine");
        assert_eq!(m.load(0, FIRST - 4), u32::MAX);
        m.store(0, page(9) + 0x70, 1).resumes();
    });
}

#[test]
fn bytes_come_with_an_interrupt() {
    with(1, |m| {
        route(m);
        start(m, 0);
        ask(m, 0, 1);
        assert_eq!(m.domain.memory.read_u64(Gpa::new(DATA + 8)), Ok(0x5a5a_5a5a_5a5a_5a5a));
        assert_eq!(m.domain.memory.read_u64(Gpa::new(DATA + 16)), Ok(0));
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
        // One edge: before it is acknowledged there is no other, and after that there is.
        assert_eq!(m.load(0, FIRST + register::INTERRUPT_STATUS as u32), 1);
        ask(m, 0, 2);
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
        m.store(0, FIRST + register::INTERRUPT_ACK as u32, 1).resumes();
        ask(m, 0, 3);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
    });
}

#[test]
fn each_device_of_a_pin_has_its_edge() {
    with(1, |m| {
        route(m);
        for index in [0, 8] {
            start(m, index);
            ask(m, index, 1);
            assert!(m.settle(0));
            assert_eq!(vectors(&m.delivered(0)), [VECTOR], "device {index}'s");
            finish(m);
        }
        // A reset takes it away.
        m.store(0, page(8) + register::STATUS as u32, 0).resumes();
        assert_eq!(m.load(0, page(8) + register::INTERRUPT_STATUS as u32), 0);
        assert_eq!(m.load(0, page(0) + register::INTERRUPT_STATUS as u32), 1);
    });
}

#[test]
fn a_broken_ring_breaks_one_device() {
    with(1, |m| {
        for index in [0, 1] {
            start(m, index);
        }
        let [_, driver, _] = areas(0);
        m.domain.memory.write_u16(Gpa::new(driver + 2), 100).unwrap();
        m.store(0, page(0) + register::QUEUE_NOTIFY as u32, 0).resumes();
        assert_eq!(m.load(0, page(0) + register::STATUS as u32), 79);
        ask(m, 1, 1);
        assert_eq!(m.domain.memory.read_u64(Gpa::new(DATA)), Ok(0x5a5a_5a5a_5a5a_5a5a));
        m.store(0, page(0) + register::STATUS as u32, 0).resumes();
        m.domain.memory.write_u16(Gpa::new(driver + 2), 0).unwrap();
        start(m, 0);
    });
}

/// A domain that is thrown away whole gives its devices' pages back before all the rest.
#[test]
fn memory_outlives_the_devices_pages() {
    struct Memory(Arc<AtomicBool>);
    impl Drop for Memory {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    struct Page(PageRef, Arc<AtomicBool>, Arc<AtomicUsize>);
    impl Deref for Page {
        type Target = RegisterPage;
        fn deref(&self) -> &RegisterPage {
            &self.0
        }
    }
    impl Drop for Page {
        fn drop(&mut self) {
            assert!(!self.1.load(Ordering::Relaxed), "the memory is gone, and the page with it");
            self.2.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (gone, pages) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut setup = setup(Memory(gone.clone()), 1);
    for (_, page) in &mut setup.virtio {
        *page = Box::new(Page(RegisterPage::boxed(), gone.clone(), pages.clone()));
    }
    drop(Domain::new(setup));
    assert_eq!((gone.load(Ordering::Relaxed), pages.load(Ordering::Relaxed)), (true, 9));
}
