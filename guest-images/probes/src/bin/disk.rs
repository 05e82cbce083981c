//! A disk by hand that another domain serves (VIRTIO 1.2, section 5.2): what is beyond its end is out of reach however it is
//! asked for, and a broken ring ends this device alone, until its reset. So does what lies in the guest's private memory.

#![no_std]
#![no_main]

use caisson_probes::paging::Page;
use caisson_probes::virtio::{self, PAGE, SIZE, read, register, write};
use caisson_probes::{Shared, check, check_eq, cpu, probe, time};

probe!("disk", run);

const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
/// What becomes of them.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What the device has not written yet.
const NOTHING_YET: u8 = 0xaa;
/// Bytes of a sector.
const SECTOR: u32 = 512;
/// Where there is no RAM.
const NOWHERE: usize = 0x6000_0000;
/// Where private memory begins, of 2 MiB: what its configuration says.
const PRIVATE: usize = 0x60_0000;
/// In ms. The domain that serves the disk may have much else to do.
const PATIENCE: u64 = 20_000;

static HEADER: Shared<Page> = Shared::new(Page([0; 4096]));
static DATA: Shared<Page> = Shared::new(Page([0; 4096]));
const STATUS: usize = 2048;

fn run() {
    check_eq!(read(register::DEVICE), 2, "a disk");
    let capacity = cpu::read64(PAGE + register::CONFIG);
    check!(capacity > 64, "{} sectors", capacity);
    extents(capacity);
    requests();
    private_memory();
    broken_rings();
}

/// Makes a request and waits for it; the status that it got.
fn request(turn: u16, kind: u32, sector: u64, bytes: u32) -> u8 {
    let header = HEADER.address();
    cpu::write64(header, u64::from(kind));
    cpu::write64(header + 8, sector);
    cpu::write8(header + STATUS, NOTHING_YET);
    virtio::describe(0, header, 16, NEXT, 1);
    let direction = if kind == IN { WRITE } else { 0 };
    virtio::describe(1, DATA.address(), bytes, NEXT | direction, 2);
    virtio::describe(2, header + STATUS, 1, WRITE, 0);
    virtio::offer(turn, 0);
    virtio::notify();
    let expected = turn.wrapping_add(1);
    check!(time::wait(PATIENCE, || virtio::used() == expected), "no answer to request {}", turn);
    cpu::read8(header + STATUS)
}

fn fill(pattern: u8) {
    DATA.set(Page([pattern; 4096]));
}

fn extents(capacity: u64) {
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    let mut turn = 0;
    let mut ask = |kind, sector, bytes| {
        let status = request(turn, kind, sector, bytes);
        turn += 1;
        status
    };
    fill(0x5a);
    check_eq!(ask(OUT, capacity - 1, SECTOR), OK, "a write of the last sector");
    fill(0);
    check_eq!(ask(IN, capacity - 1, SECTOR), OK, "a read of the last sector");
    check_eq!(cpu::read64(DATA.address()), 0x5a5a_5a5a_5a5a_5a5a, "what was written");
    for kind in [IN, OUT] {
        for (sector, bytes) in [
            (capacity, SECTOR),
            (capacity - 1, 2 * SECTOR),
            (capacity + 1, SECTOR),
            (1 << 40, SECTOR),
            (u64::MAX, SECTOR),
            (u64::MAX / 512, SECTOR),
            (u64::MAX / 512 + 1, SECTOR),
            (0, 100),
        ] {
            fill(0x77);
            check_eq!(
                ask(kind, sector, bytes),
                IO_ERROR,
                "request {} of {} bytes at {}",
                kind,
                bytes,
                sector
            );
        }
    }
    fill(0);
    check_eq!(ask(IN, capacity - 1, SECTOR), OK, "a read after all that");
    check_eq!(cpu::read64(DATA.address()), 0x5a5a_5a5a_5a5a_5a5a, "what was there before");
}

fn requests() {
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    check_eq!(request(0, 77, 0, SECTOR), UNSUPPORTED, "a request that there is not");
    check_eq!(request(1, OUT, 0, SECTOR), OK, "a write after it");
}

/// The device's end, until its reset.
fn ends(what: &str) {
    virtio::notify();
    let ended = || read(register::STATUS) & 64 != 0 || virtio::used() == 1;
    check!(time::wait(PATIENCE, ended), "nothing became of {}", what);
    check_eq!(read(register::STATUS), 79, "{}", what);
}

/// Private memory is the guest's alone: a ring or a buffer there is none, and nothing is written to it.
fn private_memory() {
    let secret = 0x5ec2_e75e_c2e7_5ec2;
    let places = || (PRIVATE..PRIVATE + (2 << 20)).step_by(4096);
    places().for_each(|at| cpu::write64(at, secret));
    let (header, data) = (HEADER.address(), DATA.address());
    for area in 0..3 {
        let mut areas = virtio::areas();
        areas[area] = PRIVATE + 0x1000 * area;
        check_eq!(virtio::start_at(areas), 15, "DRIVER_OK");
        virtio::offer(0, 0);
        ends("a private ring");
    }
    // Each part of a request, and one that begins in granted memory and goes on in private.
    let requests: [(&str, [usize; 3]); 4] = [
        ("a private header", [PRIVATE, data, header + STATUS]),
        ("private data", [header, PRIVATE + 4096, header + STATUS]),
        ("data that go on in private memory", [header, PRIVATE - SECTOR as usize / 2, header + STATUS]),
        ("a private status", [header, data, PRIVATE + (2 << 20) - 1]),
    ];
    for (what, [header, data, status]) in requests {
        check_eq!(virtio::start(), 15, "DRIVER_OK");
        cpu::write64(HEADER.address(), u64::from(IN));
        cpu::write64(HEADER.address() + 8, 0);
        virtio::describe(0, header, 16, NEXT, 1);
        virtio::describe(1, data, SECTOR, NEXT | WRITE, 2);
        virtio::describe(2, status, 1, WRITE, 0);
        virtio::offer(0, 0);
        ends(what);
    }
    let kept = places().all(|at| cpu::read64(at) == secret);
    check!(kept, "private memory that nobody wrote to");
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    check_eq!(request(0, IN, 0, SECTOR), OK, "a request after all that");
    write(register::STATUS, 0);
}

/// Whatever is in the ring, the device says that it needs a reset, and works after one.
fn broken_rings() {
    type Fill = fn(usize);
    let data = DATA.address();
    let breaks: [(&str, Fill); 6] = [
        ("a circle", |data| virtio::describe(0, data, 16, NEXT, 0)),
        ("no RAM", |_| virtio::describe(0, NOWHERE, 16, NEXT, 1)),
        ("the end of all addresses", |_| virtio::describe(0, usize::MAX - 8, u32::MAX, NEXT, 1)),
        ("past the table", |data| virtio::describe(0, data, 16, NEXT, SIZE as u16)),
        ("a table that was not agreed upon", |data| virtio::describe(0, data, 16, 4, 0)),
        ("nowhere to write the status", |data| virtio::describe(0, data, 16, 0, 0)),
    ];
    for (what, fill) in breaks {
        check_eq!(virtio::start(), 15, "DRIVER_OK");
        fill(data);
        virtio::offer(0, 0);
        ends(what);
    }
    check_eq!(virtio::start(), 15, "DRIVER_OK");
    check_eq!(request(0, IN, 0, SECTOR), OK, "a request after all that");
    write(register::STATUS, 0);
    check_eq!(read(register::STATUS), 0, "reset");
}
