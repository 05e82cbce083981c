//! An entropy device by hand: what a driver may do to its transport and its ring, what it may not, and its interrupt. The device is
//! Caisson's, which answers before the notification returns, or with `served=1` another domain's, which takes its time; when that one
//! interrupts is not asked here.

#![no_std]
#![no_main]

use caisson_probes::paging::Page;
use caisson_probes::virtio::{self, PAGE, PIN, SIZE, read, register, write};
use caisson_probes::{Frame, Shared, apic, check, check_eq, cpu, number, probe, time, trap};

probe!("virtio", run);

const VECTOR: u8 = 0x50;
const MASKED: u32 = 1 << 16;
/// Where there is no RAM.
const NOTHING: usize = 0x6000_0000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// In ms. Another domain may have much else to do.
const PATIENCE: u64 = 20_000;

static DATA: Shared<Page> = Shared::new(Page([0; 4096]));
/// Whether the handler acknowledges the interrupt at the device.
static ACKNOWLEDGES: Shared<bool> = Shared::new(true);

fn run() {
    trap::handle(VECTOR, handler as trap::Handler);
    apic::enable();
    identity();
    widths();
    status();
    queues();
    let is_served = number("served", 0) != 0;
    requests(if is_served { 256 } else { 64 });
    if !is_served {
        interrupts();
    }
    broken_rings(is_served);
}

fn handler(_: &mut Frame) {
    if ACKNOWLEDGES.get() {
        write(register::ACKNOWLEDGE, read(register::INTERRUPT));
    }
    apic::eoi();
}

fn identity() {
    let known = [read(register::MAGIC), read(register::VERSION), read(register::DEVICE)];
    check_eq!(known, [0x7472_6976, 2, 4], "magic, version, device");
    write(register::DEVICE_FEATURES_SEL, 1);
    check_eq!(read(register::DEVICE_FEATURES) & 1, 1, "VERSION_1");
    for word in [2, 3, u32::MAX] {
        write(register::DEVICE_FEATURES_SEL, word);
        check_eq!(read(register::DEVICE_FEATURES), 0, "features of word {}", word);
    }
    check_eq!(
        (read(register::SHM_LENGTH), read(register::SHM_LENGTH + 4)),
        (u32::MAX, u32::MAX),
        "no memory"
    );
    check_eq!((read(register::CONFIG), read(0xffc)), (0, 0), "no configuration");
    check_eq!(cpu::read32(PAGE + 0x1000), u32::MAX, "no second device");
}

/// Control registers take 32 bits. What reads of other widths find is left open, as no driver makes them; it is the page's.
fn widths() {
    write(register::STATUS, 0);
    cpu::write8(PAGE + register::STATUS, 1);
    cpu::write16(PAGE + register::STATUS, 1);
    cpu::write64(PAGE + register::STATUS, 1);
    check_eq!(read(register::STATUS), 0, "status after writes of other widths");
    cpu::write32(PAGE + register::STATUS + 2, u32::MAX);
    check_eq!(read(register::STATUS), 0, "status after a write that is not aligned");
    for offset in (0x0d0..0x0fc).step_by(4) {
        write(offset, u32::MAX);
        check_eq!(read(offset), 0, "register {:#x}", offset);
    }
}

fn status() {
    for value in [2, 4, 8, 14, 16, 64] {
        write(register::STATUS, value);
        check_eq!(read(register::STATUS), 0, "status after {}", value);
    }
    write(register::STATUS, 1);
    write(register::STATUS, 2);
    check_eq!(read(register::STATUS), 3, "no bit is cleared");
    write(register::STATUS, 11);
    check_eq!(read(register::STATUS), 3, "FEATURES_OK without VERSION_1");
    check_eq!(virtio::agree(1 << 5), 3, "FEATURES_OK with what was not offered");
    check_eq!(virtio::agree(0), 11, "FEATURES_OK");
    write(register::STATUS, 128);
    write(register::STATUS, 15);
    check_eq!(read(register::STATUS), 128 | 11, "DRIVER_OK after FAILED");
    write(register::STATUS, 0);
    check_eq!(read(register::STATUS), 0, "reset");
}

fn queues() {
    write(register::QUEUE_SEL, 0);
    check_eq!(read(register::QUEUE_MAX), SIZE, "the queue's most entries");
    for queue in [1, 63, 64, u32::MAX] {
        write(register::QUEUE_SEL, queue);
        check_eq!((read(register::QUEUE_MAX), read(register::QUEUE_READY)), (0, 0), "queue {}", queue);
        write(register::QUEUE_READY, 1);
        write(register::NOTIFY, queue);
    }
    let [descriptors, driver, device] = virtio::areas();
    let good = virtio::areas();
    for (size, areas) in [
        (0, good),
        (3, good),
        (2 * SIZE, good),
        (u32::MAX, good),
        (SIZE, [descriptors + 8, driver, device]),
        (SIZE, [descriptors, driver + 1, device]),
        (SIZE, [descriptors, driver, device + 2]),
        (SIZE, [NOTHING, driver, device]),
        (SIZE, [descriptors, PAGE, device]),
        (SIZE, [descriptors, driver, usize::MAX - 3]),
    ] {
        check_eq!(virtio::agree(0), 11, "FEATURES_OK");
        write(register::QUEUE_SEL, 0);
        virtio::place(size, areas);
        write(register::QUEUE_READY, 1);
        let found = (read(register::QUEUE_READY), read(register::STATUS));
        check_eq!(found, (0, 64 | 11), "a queue of {} entries at {:x?}", size, areas);
    }
}

/// Waits until so many chains have been used, or the device needs a reset.
fn answered(used: u16, what: &str) {
    let has = || virtio::used() == used || read(register::STATUS) & 64 != 0;
    check!(time::wait(PATIENCE, has), "nothing became of {}", what);
}

/// Chains by one and by two, more of them than the ring has entries; `most` bytes for each.
fn requests(most: u32) {
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    check_eq!(virtio::used(), 0, "used before any was offered");
    let data = DATA.address();
    let mut last = [0; 2];
    for turn in 0..3 * SIZE as u16 {
        DATA.set(Page([0; 4096]));
        virtio::describe(3, data, 16, WRITE | NEXT, 5);
        virtio::describe(5, data + 64, 8, WRITE, 0);
        virtio::offer(turn, 3);
        virtio::notify();
        answered(turn + 1, "a request");
        check_eq!(virtio::used(), turn + 1, "used");
        check_eq!(virtio::used_entry(turn), (3, 24), "the chain that was used");
        let words = [cpu::read64(data), cpu::read64(data + 64)];
        check!(words != last && words != [0; 2], "random words {:x?} after {:x?}", words, last);
        check_eq!((cpu::read64(data + 16), cpu::read64(data + 72)), (0, 0), "behind the buffers");
        last = words;
    }
    // A large buffer gets as much as the device likes; a queue that has been stopped gets nothing.
    virtio::describe(0, data, 4096, WRITE, 0);
    virtio::offer(3 * SIZE as u16, 0);
    virtio::notify();
    answered(3 * SIZE as u16 + 1, "a large request");
    check_eq!(virtio::used_entry(3 * SIZE as u16), (0, most), "the most at once");
    write(register::QUEUE_READY, 0);
    check_eq!(read(register::QUEUE_READY), 0, "the end of the queue");
    let used = virtio::used();
    virtio::offer(used, 0);
    virtio::notify();
    check_eq!(virtio::used(), used, "used after the end");
}

fn request(turn: u16) {
    virtio::describe(0, DATA.address(), 8, WRITE, 0);
    virtio::offer(turn, 0);
    virtio::notify();
}

fn interrupts() {
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    apic::io_route(PIN, 0, u32::from(VECTOR));
    let before = trap::count(VECTOR);
    let came = |more: u64| {
        cpu::sti();
        let came = time::wait(100, || trap::count(VECTOR) >= before + more);
        cpu::cli();
        came && trap::count(VECTOR) == before + more
    };
    request(0);
    check_eq!(read(register::INTERRUPT), 1, "InterruptStatus");
    check!(came(1), "an interrupt");
    check_eq!(read(register::INTERRUPT), 0, "InterruptStatus after it");
    // One for two, while nobody looks.
    request(1);
    request(2);
    check!(came(2), "one interrupt for two");
    // Before it is acknowledged at the device there is no other; then there is.
    ACKNOWLEDGES.set(false);
    request(3);
    check!(came(3), "an interrupt");
    request(4);
    cpu::sti();
    time::spin(1000);
    cpu::cli();
    check_eq!(trap::count(VECTOR), before + 3, "interrupts before the acknowledgement");
    ACKNOWLEDGES.set(true);
    write(register::ACKNOWLEDGE, 1);
    request(5);
    check!(came(4), "the next one");
    // A reset takes it away.
    apic::io_route(PIN, 0, MASKED | u32::from(VECTOR));
    request(6);
    write(register::STATUS, 0);
    check_eq!(read(register::INTERRUPT), 0, "InterruptStatus after a reset");
    apic::io_route(PIN, 0, u32::from(VECTOR));
    cpu::sti();
    time::spin(1000);
    cpu::cli();
    check_eq!(trap::count(VECTOR), before + 4, "interrupts after a reset");
}

/// Whatever is in the ring, the device says that it needs a reset, tells so by an interrupt, and works after one.
fn broken_rings(is_served: bool) {
    type Fill = fn(usize);
    apic::io_route(PIN, 0, MASKED | u32::from(VECTOR));
    let data = DATA.address();
    let breaks: [(&str, Fill); 6] = [
        ("a circle", |data| virtio::describe(0, data, 1, NEXT, 0)),
        ("no bytes", |data| virtio::describe(0, data, 0, WRITE, 0)),
        ("no RAM", |_| virtio::describe(0, NOTHING, 8, WRITE, 0)),
        ("the end of all addresses", |_| virtio::describe(0, usize::MAX, u32::MAX, WRITE, 0)),
        ("past the table", |data| virtio::describe(0, data, 8, NEXT, SIZE as u16)),
        ("a table that was not agreed upon", |data| virtio::describe(0, data, 16, 4, 0)),
    ];
    for (what, fill) in breaks {
        check_eq!(virtio::start(), 15, "DRIVER_OK");
        fill(data);
        virtio::offer(0, 0);
        virtio::notify();
        answered(1, what);
        // Another domain may have said that it has come, too.
        let reasons = read(register::INTERRUPT) & if is_served { 2 } else { u32::MAX };
        check_eq!((read(register::STATUS), reasons), (79, 2), "{}", what);
        virtio::notify();
        check_eq!(virtio::used(), 0, "used after {}", what);
    }
    for index in [SIZE as u16 + 1, u16::MAX] {
        check_eq!(virtio::start(), 15, "DRIVER_OK");
        virtio::set_available(index);
        virtio::notify();
        answered(1, "an available index that cannot be");
        check_eq!(read(register::STATUS), 79, "an available index of {}", index);
    }
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    request(0);
    answered(1, "a request after all that");
    check_eq!(virtio::used_entry(0), (0, 8), "a request after all that");
    write(register::STATUS, 0);
}
