//! INS and OUTS (SDM vol. 2), forward and backward, in every size and with every prefix, across pages and into page
//! faults, which they are resumed after; string instructions on devices in memory space.
//!
//! The 16550 in loopback mode is a queue of 16 bytes; the page registers at 0x80 are plain memory.

#![no_std]
#![no_main]

use caisson_probes::paging::{P, Page, W, map};
use caisson_probes::trap::vector::PF;
use caisson_probes::{Regs, Shared, apic, check, check_eq, cpu, gdt, probe, run};

probe!("string-io", run_probe);

const UART: u16 = 0x3f8;
const PAGES: u64 = 0x84;
/// Two pages in a row, of which the second comes and goes.
const WINDOW: usize = 0x80_0000_0000;
const NOTHING: u64 = 0x6000_0000;
const BACKWARD: u64 = 1 << 10 | 2;

static BUFFER: Shared<Page> = Shared::new(Page::ZERO);
static SECOND: Shared<Page> = Shared::new(Page::ZERO);

fn run_probe() {
    order();
    sizes();
    prefixes();
    faults();
    many();
    devices();
}

fn base() -> u64 {
    BUFFER.address() as u64
}

fn go(what: &str, code: &[u8], mut regs: Regs) -> Regs {
    let result = run(code, &mut regs);
    check!(result.is_ok(), "{}: {:x?}", what, result);
    regs
}

/// In loopback mode while `body` runs; nothing is printed meanwhile.
fn loopback(body: impl FnOnce()) {
    cpu::outb(UART + 4, 0x1b);
    cpu::outb(UART + 2, 7);
    body();
    cpu::outb(UART + 2, 7);
    cpu::outb(UART + 4, 0x0b);
}

fn received() -> u8 {
    cpu::inb(UART)
}

/// Elements go in the order of their addresses, or against it.
fn order() {
    let mut page = Page::ZERO;
    (0..16).for_each(|index| page.0[index] = index as u8 + 1);
    BUFFER.set(page);
    for (what, rflags, start, step) in [("forward", 2, 0, 1i64), ("backward", BACKWARD, 15, -1)] {
        let (mut got, mut outs, mut ins) = ([0; 16], Regs::default(), Regs::default());
        let regs = Regs { rdx: UART.into(), rcx: 16, rsi: base() + start, rflags, ..Regs::default() };
        loopback(|| {
            outs = go("REP OUTSB", &[0xf3, 0x6e], regs);
            got.fill_with(received);
        });
        for (index, byte) in got.into_iter().enumerate() {
            let expected = start as i64 + 1 + index as i64 * step;
            check_eq!(i64::from(byte), expected, "REP OUTSB {}: byte {}", what, index);
        }
        check_eq!(
            (outs.rcx, outs.rsi),
            (0, base().wrapping_add_signed(start as i64 + 16 * step)),
            "{}",
            what
        );
        let to = base() + 0x100 + start;
        let regs = Regs { rdx: UART.into(), rcx: 16, rdi: to, rflags, ..Regs::default() };
        loopback(|| {
            (0..16).for_each(|byte| cpu::outb(UART, 0x40 + byte));
            ins = go("REP INSB", &[0xf3, 0x6c], regs);
        });
        for index in 0..16u64 {
            let at = to.wrapping_add_signed(index as i64 * step) as usize;
            check_eq!(cpu::read8(at), 0x40 + index as u8, "REP INSB {}: byte {}", what, index);
        }
        check_eq!((ins.rcx, ins.rdi), (0, to.wrapping_add_signed(16 * step)), "{}", what);
    }
}

/// Words and doublewords, single and repeated; nothing for a count of zero.
fn sizes() {
    cpu::write64(base() as usize, 0x8877_6655_4433_2211);
    let start = Regs { rdx: PAGES, rcx: 2, rsi: base(), rdi: base() + 0x200, ..Regs::default() };
    for (what, out, inp, bytes) in [
        ("byte", &[0xf3, 0x6e][..], &[0xf3, 0x6c][..], 1),
        ("word", &[0xf3, 0x66, 0x6f], &[0x66, 0xf3, 0x6d], 2),
        ("doubleword", &[0xf3, 0x6f], &[0xf3, 0x6d], 4usize),
    ] {
        let outs = go(what, out, start);
        check_eq!((outs.rcx, outs.rsi - base()), (0, 2 * bytes as u64), "OUTS of a {}", what);
        let last = 0x8877_6655_4433_2211u64 >> (8 * bytes) & ((1 << (8 * bytes)) - 1);
        let port = PAGES as u16;
        let got = match bytes {
            1 => cpu::inb(port).into(),
            2 => cpu::inw(port).into(),
            _ => u64::from(cpu::inl(port)),
        };
        check_eq!(got, last, "what OUTS of a {} leaves", what);
        cpu::write64(start.rdi as usize, 0);
        let ins = go(what, inp, start);
        check_eq!((ins.rcx, ins.rdi - start.rdi), (0, 2 * bytes as u64), "INS of a {}", what);
        let want = last | last << (8 * bytes);
        check_eq!(cpu::read64(start.rdi as usize), want, "what INS of a {} reads", what);
        // Without REP: one element, and the count is no count.
        let one = go(what, &out[out.len() - 1 - usize::from(bytes == 2)..], start);
        check_eq!((one.rcx, one.rsi - base()), (2, bytes as u64), "one OUTS of a {}", what);
        let none = go(what, out, Regs { rcx: 0, ..start });
        check_eq!((none.rcx, none.rsi), (0, base()), "no OUTS of a {}", what);
    }
}

/// 67H takes ESI, EDI and ECX; a segment's base counts for OUTS, never for INS.
fn prefixes() {
    const FS_BASE: u32 = 0xc000_0100;
    let high = 0x55 << 32;
    cpu::write64(base() as usize, 0xa3a2_a1a0);
    let regs =
        Regs { rdx: PAGES, rcx: 3 | high, rsi: base() | high, rdi: (base() + 8) | high, ..Regs::default() };
    let outs = go("address size", &[0x67, 0xf3, 0x6e], regs);
    check_eq!((outs.rcx, outs.rsi, cpu::inb(0x84)), (0, base() + 3, 0xa2), "OUTSB with 32-bit addresses");
    let ins = go("address size", &[0xf3, 0x67, 0x6c], regs);
    check_eq!((ins.rcx, ins.rdi), (0, base() + 11), "INSB with 32-bit addresses");
    check_eq!(cpu::read32(base() as usize + 8) & 0xff_ffff, 0x00a2_a2a2, "what INSB reads");
    cpu::wrmsr(FS_BASE, 0x1000);
    let fs = Regs { rsi: base() - 0x1000 + 1, rdi: base() + 0x10, rdx: PAGES, ..Regs::default() };
    let _ = go("FS", &[0x64, 0x6e], fs);
    check_eq!(cpu::inb(0x84), 0xa1, "OUTSB from FS");
    let _ = go("FS", &[0x64, 0x6c], fs);
    check_eq!(cpu::read8(base() as usize + 0x10), 0xa1, "INSB ignores FS");
    cpu::wrmsr(FS_BASE, 0);
    // In user mode without the right to the port: #GP before anything.
    let mut user = regs;
    let trap = run::try_user(&[0xf3, 0x6e], &mut user, gdt::USER_CODE64);
    check_eq!((trap.vector, user.rsi, user.rcx), (13, regs.rsi, regs.rcx), "OUTSB in user mode");
}

/// Into a page that is not there: elements before it are done, none is lost or done twice, and it goes on afterwards.
fn faults() {
    map(WINDOW, base() | P | W);
    let edge = WINDOW as u64 + 4096;
    for split in [8, 15] {
        map(WINDOW + 4096, 0);
        let mut regs = Regs { rdx: UART.into(), rcx: 16, rdi: edge - split, ..Regs::default() };
        let (mut first, mut second) = (Ok(()), Ok(()));
        let mut stopped = regs;
        loopback(|| {
            (0..16).for_each(|byte| cpu::outb(UART, 0x60 + byte));
            first = run(&[0xf3, 0x6c], &mut regs);
            stopped = regs;
            map(WINDOW + 4096, SECOND.address() as u64 | P | W);
            second = run(&[0xf3, 0x6c], &mut regs);
        });
        let Err(trap) = first else { return check!(false, "INSB into no page") };
        check_eq!((trap.vector, trap.error, trap.cr2), (PF, 2, edge), "INSB into no page");
        check_eq!(trap.rip as usize, run::code_base(), "RIP of INSB into no page");
        check_eq!((stopped.rcx, stopped.rdi), (16 - split, edge), "count and RDI at the fault");
        check!(second.is_ok(), "INSB goes on: {:x?}", second);
        for index in 0..16 {
            let at = (edge - split) as usize + index;
            check_eq!(cpu::read8(at), 0x60 + index as u8, "byte {} of INSB", index);
        }
        // The same for OUTSB.
        map(WINDOW + 4096, 0);
        let mut regs = Regs { rdx: UART.into(), rcx: 16, rsi: edge - split, ..Regs::default() };
        let mut got = [0; 16];
        loopback(|| {
            first = run(&[0xf3, 0x6e], &mut regs);
            stopped = regs;
            map(WINDOW + 4096, SECOND.address() as u64 | P | W);
            second = run(&[0xf3, 0x6e], &mut regs);
            got.fill_with(received);
        });
        let Err(trap) = first else { return check!(false, "OUTSB from no page") };
        check_eq!((trap.vector, trap.error, trap.cr2), (PF, 0, edge), "OUTSB from no page");
        check_eq!((stopped.rcx, stopped.rsi), (16 - split, edge), "count and RSI at the fault");
        check!(second.is_ok(), "OUTSB goes on: {:x?}", second);
        check!((0x60..0x70).eq(got), "bytes of OUTSB: {:x?}", got);
    }
    // One element across the border: nothing of it is written.
    map(WINDOW + 4096, 0);
    cpu::write16(WINDOW + 4094, 0x5a5a);
    let mut regs = Regs { rdx: PAGES, rdi: edge - 2, ..Regs::default() };
    let trap = run(&[0x6d], &mut regs).map_err(|trap| (trap.vector, trap.error, trap.cr2));
    check_eq!(trap, Err((PF, 2, edge)), "INSD across a border");
    check_eq!(cpu::read16(WINDOW + 4094), 0x5a5a, "memory before the border");
    // A read-only page: #PF with the present bit.
    map(WINDOW, base() | P);
    let trap = run(&[0x6c], &mut Regs { rdx: PAGES, rdi: WINDOW as u64, ..Regs::default() });
    check_eq!(trap.map_err(|trap| (trap.vector, trap.error)), Err((PF, 3)), "INSB into a read-only page");
}

/// More than fits into one exit.
fn many() {
    map(WINDOW, base() | P | W);
    map(WINDOW + 4096, SECOND.address() as u64 | P | W);
    cpu::outb(0x84, 0x77);
    let start = Regs { rdx: PAGES, rcx: 8000, rdi: WINDOW as u64 + 100, ..Regs::default() };
    let end = go("INSB of 8000", &[0xf3, 0x6c], start);
    check_eq!((end.rcx, end.rdi - start.rdi), (0, 8000), "INSB of 8000 bytes");
    check!((100..8100).all(|at| cpu::read8(WINDOW + at) == 0x77), "8000 bytes of INSB");
    let out = go("OUTSW of 4000", &[0xf3, 0x66, 0x6f], Regs { rsi: start.rdi, rcx: 4000, ..start });
    check_eq!((out.rcx, out.rsi - start.rdi), (0, 8000), "OUTSW of 4000 words");
}

/// String instructions between RAM, the local APIC and nothing.
fn devices() {
    let version = apic::PAGE as u64 + 0x30;
    let value = cpu::read32(version as usize);
    let ram = base();
    let lods = go("LODSD", &[0xad], Regs { rsi: version, ..Regs::default() });
    check_eq!((lods.rax, lods.rsi), (value.into(), version + 4), "LODSD of a device");
    let movs = go("MOVSD", &[0xa5], Regs { rsi: version, rdi: ram, ..Regs::default() });
    check_eq!((cpu::read32(ram as usize), movs.rdi), (value, ram + 4), "MOVSD from a device");
    let task_priority = apic::PAGE as u64 + 0x80;
    let _ = go("STOSD", &[0xab], Regs { rax: 0x30, rdi: task_priority, ..Regs::default() });
    check_eq!(apic::read(0x80), 0x30, "STOSD to a device");
    cpu::write32(ram as usize, 0x50);
    let _ = go("MOVSD", &[0xa5], Regs { rsi: ram, rdi: task_priority, ..Regs::default() });
    check_eq!(cpu::cr8(), 5, "MOVSD to a device");
    cpu::set_cr8(0);
    // 1500 bytes from nothing, and to it.
    let movs = go("REP MOVSB", &[0xf3, 0xa4], Regs { rcx: 1500, rsi: NOTHING, rdi: ram, ..Regs::default() });
    check_eq!((movs.rcx, movs.rsi, movs.rdi), (0, NOTHING + 1500, ram + 1500), "REP MOVSB from nothing");
    check!((0..1500).all(|at| cpu::read8(ram as usize + at) == 0xff), "bytes from nothing");
    let stos = go("REP STOSQ", &[0xf3, 0x48, 0xab], Regs { rcx: 700, rdi: NOTHING, ..Regs::default() });
    check_eq!((stos.rcx, stos.rdi), (0, NOTHING + 5600), "REP STOSQ to nothing");
    // REPNE SCASB finds the first byte; REPE stops at the first that differs.
    let scan = go("REPNE SCASB", &[0xf2, 0xae], Regs { rax: 0xff, rcx: 9, rdi: NOTHING, ..Regs::default() });
    check_eq!((scan.rcx, scan.rdi, scan.rflags & 0x40), (8, NOTHING + 1, 0x40), "REPNE SCASB");
    let scan = go("REPE SCASB", &[0xf3, 0xae], Regs { rax: 0xff, rcx: 9, rdi: NOTHING, ..Regs::default() });
    check_eq!((scan.rcx, scan.rdi, scan.rflags & 0x40), (0, NOTHING + 9, 0x40), "REPE SCASB");
    cpu::write8(ram as usize + 5, 1);
    let compare = Regs { rcx: 9, rsi: ram, rdi: NOTHING, ..Regs::default() };
    let compared = go("REPE CMPSB", &[0xf3, 0xa6], compare);
    check_eq!((compared.rcx, compared.rsi - ram, compared.rflags & 0x41), (3, 6, 1), "REPE CMPSB");
    // Ports and devices in memory at once.
    let ins =
        go("INSB to nothing", &[0xf3, 0x6c], Regs { rdx: PAGES, rcx: 5, rdi: NOTHING, ..Regs::default() });
    check_eq!((ins.rcx, ins.rdi), (0, NOTHING + 5), "INSB to nothing");
    let _ = go("OUTSB from nothing", &[0x6e], Regs { rdx: PAGES, rsi: NOTHING, ..Regs::default() });
    check_eq!(cpu::inb(0x84), 0xff, "OUTSB from nothing");
}
