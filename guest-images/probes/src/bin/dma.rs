//! A hostile owner of a device that moves memory about (QEMU's `edu`): first within its own memory, then out of `read=ADDRESS`,
//! then, with `write=END`, over all of the machine's memory up to there that is not its own. It tells what came of it; what
//! should, is for whoever started it to say.

#![no_std]
#![no_main]

use caisson_probes::{Shared, argument, check, check_eq, cpu, paging::Page, probe, say, time};

probe!("dma", run_probe);

/// Vendor and device id of the device, and what its first register reads.
const EDU: u32 = 0x11e8_1234;
const EDU_VERSION: u32 = 0x0100_00ed;
/// Its registers (QEMU, docs/specs/edu.txt): source, destination, count, command; and where its own memory is.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
const START: u64 = 1;
const FROM_DEVICE: u64 = 2;
const BUFFER: u64 = 0x4_0000;

/// What PVH's information begins with.
const PVH: u32 = 0x336e_c578;

/// How much is moved: the device is not to be told of its memory's last byte.
const BYTES: u64 = 2048;
const PAGE: u64 = 4096;
/// Places that are written to.
const WRITES: u64 = 24;

static LOW: [Shared<Page>; 2] = [const { Shared::new(Page::ZERO) }; 2];

/// A register of PCI configuration space, on bus 0.
fn select(device: u32, offset: u32) {
    cpu::outl(0xcf8, 1 << 31 | device << 11 | offset);
}

/// The device's registers, once it decodes them and may use memory.
fn find() -> usize {
    const BUS_MASTER_AND_MEMORY: u32 = 6;
    let read = |device, offset| {
        select(device, offset);
        cpu::inl(0xcfc)
    };
    let found = (0..32).find(|device| read(*device, 0) == EDU);
    check!(found.is_some(), "there is an `edu`");
    let device = found.unwrap_or(0);
    let registers = (read(device, 0x10) & !0xf) as usize;
    let command = read(device, 4) & 0xffff;
    select(device, 4);
    cpu::outl(0xcfc, command | BUS_MASTER_AND_MEMORY);
    check_eq!(cpu::read32(registers), EDU_VERSION, "the device's version");
    registers
}

/// Has the device move part of a page, and waits.
fn transfer(registers: usize, from: u64, to: u64, direction: u64) {
    cpu::write64(registers + SOURCE, from);
    cpu::write64(registers + DESTINATION, to);
    cpu::write64(registers + COUNT, BYTES);
    cpu::write64(registers + COMMAND, START | direction);
    let done = time::wait(10_000, || cpu::read32(registers + COMMAND) & 1 == 0);
    check!(done, "the device moves half a page within ten seconds");
}

/// Words that say where they are.
fn fill(page: usize) {
    for at in (0..BYTES as usize).step_by(8) {
        cpu::write64(page + at, pattern(at));
    }
}

fn pattern(at: usize) -> u64 {
    0xca15_50ed_0000_0000 | at as u64
}

/// Goes through the device and back, from one page to another.
fn round_trip(registers: usize, pages: [usize; 2]) {
    fill(pages[0]);
    transfer(registers, pages[0] as u64, BUFFER, 0);
    transfer(registers, BUFFER, pages[1] as u64, FROM_DEVICE);
    for at in (0..BYTES as usize).step_by(8) {
        check_eq!(cpu::read64(pages[1] + at), pattern(at), "byte {at:#x} at {:#x}", pages[1]);
    }
}

/// RAM from 1 MiB on, by the map that PVH hands over (`struct hvm_memmap_table_entry`): start and end of each piece.
fn ram() -> impl Iterator<Item = (u64, u64)> + Clone {
    const ENTRY: usize = 24;
    const RAM: u32 = 1;
    let info = caisson_probes::boot_info();
    let (map, count) = (cpu::read64(info + 40) as usize, cpu::read32(info + 48) as usize);
    let entries = (0..count).map(move |index| map + index * ENTRY);
    let pieces = entries.filter(|entry| cpu::read32(entry + 16) == RAM).map(|entry| {
        let start = cpu::read64(entry);
        (start, start + cpu::read64(entry + 8))
    });
    pieces.filter(|(start, _)| *start >= 1 << 20)
}

fn hexadecimal(key: &str) -> Option<u64> {
    u64::from_str_radix(argument(key)?.trim_start_matches("0x"), 16).ok()
}

fn run_probe() {
    check_eq!(cpu::read32(caisson_probes::boot_info()), PVH, "the loader's magic number");
    let registers = find();
    let own = ram().next().unwrap_or((0, 0));
    check!(own.0 + 3 * PAGE < own.1, "memory from 1 MiB on");
    let high = [own.0 as usize, (own.0 + PAGE) as usize];
    round_trip(registers, high);
    say!("its own memory from {:#x} on is moved", own.0);
    if argument("low").is_some() {
        // That is at other addresses of the machine.
        round_trip(registers, [LOW[0].address(), LOW[1].address()]);
        say!("its own memory below 1 MiB is moved");
    }
    if let Some(at) = hexadecimal("read") {
        transfer(registers, at, BUFFER, 0);
        transfer(registers, BUFFER, high[1] as u64, FROM_DEVICE);
        let words = (0..BYTES as usize).step_by(8);
        let foreign = words.filter(|&word| {
            let found = cpu::read64(high[1] + word);
            found != 0 && found != pattern(word)
        });
        say!("{} words of {:#x} are read", foreign.count(), at);
    }
    if let Some(end) = hexadecimal("write") {
        transfer(registers, high[0] as u64, BUFFER, 0);
        let step = ((end - (1 << 20)) / WRITES) & !(PAGE - 1);
        let is_own = |at: u64| ram().any(|(start, end)| start < at + BYTES && at < end);
        let places = (0..WRITES).map(|index| (1 << 20) + index * step).filter(|at| !is_own(*at));
        let count = places.map(|at| transfer(registers, BUFFER, at, FROM_DEVICE)).count();
        say!("{count} pages of others are written to");
        // It goes on as before.
        round_trip(registers, high);
    }
}
