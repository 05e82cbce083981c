//! A virtio device behind virtio-mmio, driven by hand (VIRTIO 1.2, sections 4.2.2 and 2.7).

use crate::paging::Page;
use crate::{Shared, cpu};

/// The first device's page, as the firmware's tables tell.
pub const PAGE: usize = 0xfeb0_0000;
/// Its pin of the I/O APIC.
pub const PIN: u32 = 16;
/// Entries of the queue that [`start`] sets up.
pub const SIZE: u32 = 8;

/// Registers, by their offset in the page.
#[allow(missing_docs)]
pub mod register {
    pub const MAGIC: usize = 0x000;
    pub const VERSION: usize = 0x004;
    pub const DEVICE: usize = 0x008;
    pub const DEVICE_FEATURES: usize = 0x010;
    pub const DEVICE_FEATURES_SEL: usize = 0x014;
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_MAX: usize = 0x034;
    pub const QUEUE_SIZE: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const NOTIFY: usize = 0x050;
    pub const INTERRUPT: usize = 0x060;
    pub const ACKNOWLEDGE: usize = 0x064;
    pub const STATUS: usize = 0x070;
    pub const DESCRIPTORS: usize = 0x080;
    pub const DRIVER: usize = 0x090;
    pub const DEVICE_AREA: usize = 0x0a0;
    pub const SHM_LENGTH: usize = 0x0b0;
    pub const CONFIG: usize = 0x100;
}
use register::{
    DESCRIPTORS, DEVICE_AREA, DRIVER, DRIVER_FEATURES, DRIVER_FEATURES_SEL, NOTIFY, QUEUE_READY, QUEUE_SEL,
    QUEUE_SIZE, STATUS,
};

/// Descriptors, then the available ring, then the used ring.
static RING: Shared<Page> = Shared::new(Page([0; 4096]));
const AVAILABLE: usize = 0x400;
const USED: usize = 0x800;

/// Reads a register.
#[must_use]
pub fn read(register: usize) -> u32 {
    cpu::read32(PAGE + register)
}

/// Writes a register.
pub fn write(register: usize, value: u32) {
    cpu::write32(PAGE + register, value);
}

/// Up to FEATURES_OK with these features beside VERSION_1; the status that it leads to.
pub fn agree(features: u32) -> u32 {
    write(STATUS, 0);
    write(STATUS, 1);
    write(STATUS, 3);
    for (word, value) in [(0, features), (1, 1)] {
        write(DRIVER_FEATURES_SEL, word);
        write(DRIVER_FEATURES, value);
    }
    write(STATUS, 11);
    read(STATUS)
}

/// Sets the selected queue's size and areas.
pub fn place(size: u32, areas: [usize; 3]) {
    write(QUEUE_SIZE, size);
    for (register, area) in [DESCRIPTORS, DRIVER, DEVICE_AREA].into_iter().zip(areas) {
        write(register, area as u32);
        write(register + 4, (area as u64 >> 32) as u32);
    }
}

/// Where the queue's areas are.
#[must_use]
pub fn areas() -> [usize; 3] {
    [RING.address(), RING.address() + AVAILABLE, RING.address() + USED]
}

/// From a reset to DRIVER_OK, with an empty queue 0; the status.
pub fn start() -> u32 {
    start_at(areas())
}

/// The same with the queue's areas elsewhere.
pub fn start_at(areas: [usize; 3]) -> u32 {
    RING.set(Page([0; 4096]));
    agree(0);
    write(QUEUE_SEL, 0);
    place(SIZE, areas);
    write(QUEUE_READY, 1);
    write(STATUS, 15);
    read(STATUS)
}

/// Makes descriptor `index`.
pub fn describe(index: usize, address: usize, length: u32, flags: u16, next: u16) {
    let at = RING.address() + 16 * index;
    cpu::write64(at, address as u64);
    cpu::write64(at + 8, u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48);
}

/// Makes the chain from descriptor `head` available as the `turn`-th, from 0.
pub fn offer(turn: u16, head: u16) {
    let ring = RING.address() + AVAILABLE;
    cpu::write16(ring + 4 + 2 * usize::from(turn % SIZE as u16), head);
    set_available(turn.wrapping_add(1));
}

/// Sets the available ring's index.
pub fn set_available(index: u16) {
    cpu::write16(RING.address() + AVAILABLE + 2, index);
}

/// Tells the device of queue 0.
pub fn notify() {
    write(NOTIFY, 0);
}

/// How many chains the device has used.
#[must_use]
pub fn used() -> u16 {
    cpu::read16(RING.address() + USED + 2)
}

/// The head and the length of what was used as the `turn`-th.
#[must_use]
pub fn used_entry(turn: u16) -> (u32, u32) {
    let at = RING.address() + USED + 4 + 8 * usize::from(turn % SIZE as u16);
    (cpu::read32(at), cpu::read32(at + 4))
}
