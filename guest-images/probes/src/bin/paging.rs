//! Page tables (SDM vol. 3, chapter 5): rights and their error codes, accessed and dirty bits, large pages, changes of a
//! mapping; SMEP, SMAP and PCID where they are announced; a table that lies in no memory.

#![no_std]
#![no_main]

use caisson_probes::paging::{A, D, NX, P, PS, Page, U, W, entry, map, root};
use caisson_probes::trap::vector::{PF, UD};
use caisson_probes::{Regs, Shared, check, check_eq, cpu, gdt, probe, run, say};

probe!("paging", run_probe);

/// A page in a part of the address space that nothing else uses: PML4 entry 1.
const PAGE: usize = 0x80_1234_5000;
/// Error-code bits.
const WRITE: u64 = 2;
const USER: u64 = 4;
const RESERVED: u64 = 8;
const FETCH: u64 = 16;

static ONE: Shared<Page> = Shared::new(Page([1; 4096]));
static TWO: Shared<Page> = Shared::new(Page([2; 4096]));

fn run_probe() {
    accessed_and_dirty();
    rights();
    user_rights();
    large_pages();
    changes();
    supervisor_protection();
    pcid();
    wild_tables();
}

fn one() -> u64 {
    ONE.address() as u64
}

fn at(address: usize) -> Regs {
    Regs { rdi: address as u64, ..Regs::default() }
}

/// `MOV EAX,[RDI]; MOV [RDI],EAX; CALL RDI`.
const READ: &[u8] = &[0x8b, 0x07];
const STORE: &[u8] = &[0x89, 0x07];
const CALL: &[u8] = &[0xff, 0xd7];

fn good(what: &str, code: &[u8], address: usize) {
    let result = run(code, &mut at(address));
    check!(result.is_ok(), "{} at {:#x}: {:x?}", what, address, result);
}

fn fault(what: &str, code: &[u8], address: usize, error: u64) {
    match run(code, &mut at(address)) {
        Ok(()) => check!(false, "{}: a page fault", what),
        Err(trap) => {
            // QEMU leaves the present bit out of reserved-bit faults.
            let got = trap.error | trap.error >> 3 & 1;
            check_eq!((trap.vector, got, trap.cr2), (PF, error, address as u64), "{}", what);
        }
    }
}

/// Section 5.8: set by the first use and the first write, on each level on the way, and not otherwise.
fn accessed_and_dirty() {
    map(PAGE, one() | P | W);
    let bits = |level: u32| cpu::read64(entry(PAGE, level)) & (A | D);
    for level in 2..=4 {
        let slot = entry(PAGE, level);
        cpu::write64(slot, cpu::read64(slot) & !(A | D));
    }
    cpu::set_cr3(cpu::cr3());
    check_eq!([1, 2, 3, 4].map(bits), [0; 4], "A and D before any use");
    good("read", READ, PAGE);
    check_eq!([1, 2, 3, 4].map(bits), [A; 4], "A and D after a read");
    good("write", STORE, PAGE);
    check_eq!([1, 2, 3, 4].map(bits), [A | D, A, A, A], "A and D after a write");
    // A refused write leaves no trace.
    map(PAGE, one() | P);
    fault("write to a read-only page", STORE, PAGE, P | WRITE);
    check_eq!(bits(1) & D, 0, "D after a refused write");
    // Set bits stay, and a cleared one is set again after INVLPG.
    map(PAGE, one() | P | W);
    good("write", STORE, PAGE);
    check_eq!(bits(1), A | D, "A and D after a write to a new mapping");
}

fn rights() {
    cpu::write8(ONE.address(), 0xc3);
    for (what, bits) in [("writable", W), ("read-only", 0), ("writable, no execution", W | NX)] {
        map(PAGE, one() | P | bits);
        good(what, READ, PAGE);
        if bits & W != 0 {
            good(what, &[0x80, 0x0f, 0x00], PAGE);
        } else {
            fault(what, STORE, PAGE, P | WRITE);
        }
        if bits & NX == 0 {
            good(what, CALL, PAGE);
        } else {
            fault(what, CALL, PAGE, P | FETCH);
        }
    }
    // NX and W count on every level.
    map(PAGE, one() | P | W);
    for level in 2..=4 {
        let slot = entry(PAGE, level);
        let value = cpu::read64(slot);
        cpu::write64(slot, value | NX);
        cpu::set_cr3(cpu::cr3());
        fault("NX above", CALL, PAGE, P | FETCH);
        cpu::write64(slot, value & !W);
        cpu::set_cr3(cpu::cr3());
        fault("read-only above", STORE, PAGE, P | WRITE);
        cpu::write64(slot, value & !P);
        cpu::set_cr3(cpu::cr3());
        fault("not present above", READ, PAGE, 0);
        cpu::write64(slot, value);
        cpu::set_cr3(cpu::cr3());
        good("as before", READ, PAGE);
    }
    // Without CR0.WP a supervisor writes everywhere.
    map(PAGE, one() | P);
    cpu::set_cr0(cpu::cr0() & !(1 << 16));
    good("write without WP", &[0x80, 0x0f, 0x00], PAGE);
    check_eq!(cpu::read64(entry(PAGE, 1)) & D, D, "D after a write without WP");
    cpu::set_cr0(cpu::cr0() | 1 << 16);
    fault("write with WP", STORE, PAGE, P | WRITE);
}

fn user_rights() {
    let user = |what: &str, code: &[u8], want: (u8, u64)| {
        let trap = run::try_user(code, &mut at(PAGE), gdt::USER_CODE64);
        check_eq!((trap.vector, trap.error), want, "user mode: {}", what);
    };
    // The instruction, then UD2.
    let (read, store, call) = ([0x8b, 0x07, 0x0f, 0x0b], [0x89, 0x07, 0x0f, 0x0b], [0xff, 0xe7, 0x0f, 0x0b]);
    map(PAGE, one() | P | W | U);
    user("read", &read, (UD, 0));
    user("write", &store, (UD, 0));
    map(PAGE, one() | P | U | NX);
    user("write to a read-only page", &store, (PF, P | WRITE | USER));
    user("fetch", &call, (PF, P | FETCH | USER));
    map(PAGE, one() | P | W);
    user("read of a supervisor page", &read, (PF, P | USER));
    user("write to a supervisor page", &store, (PF, P | WRITE | USER));
    map(PAGE, 0);
    user("read of nothing", &read, (PF, USER));
}

fn large_pages() {
    // The same memory by 4 KiB and by 2 MiB.
    let base = one() & !0x1f_ffff;
    let window = 0x80_8000_0000usize;
    let directory = entry(window, 2);
    cpu::write64(directory, base | PS | P | W);
    let same = window + (one() & 0x1f_ffff) as usize;
    cpu::write64(ONE.address(), 0x1234_5678_9abc_def0);
    check_eq!(cpu::read64(same), 0x1234_5678_9abc_def0, "2 MiB page");
    cpu::write64(same, 5);
    check_eq!(cpu::read64(ONE.address()), 5, "write through a 2 MiB page");
    check_eq!(cpu::read64(directory) & (A | D), A | D, "A and D of a 2 MiB page");
    cpu::write64(directory, base | 1 << 13 | PS | P | W);
    cpu::invlpg(same);
    fault("reserved bit of a 2 MiB page", READ, same, P | RESERVED);
    cpu::write64(directory, 0);
    if cpu::cpuid(0x8000_0001, 0)[3] & 1 << 26 == 0 {
        return say!("skipped: there are no 1 GiB pages");
    }
    let pointer = entry(window, 3);
    cpu::write64(pointer, PS | P | W);
    cpu::set_cr3(cpu::cr3());
    check_eq!(cpu::read64(window + ONE.address()), 5, "1 GiB page");
    cpu::write64(window + ONE.address(), 6);
    check_eq!(cpu::read64(ONE.address()), 6, "write through a 1 GiB page");
    check_eq!(cpu::read64(pointer) & (A | D), A | D, "A and D of a 1 GiB page");
    cpu::write64(pointer, 0);
    cpu::set_cr3(cpu::cr3());
    fault("after the 1 GiB page", READ, window, 0);
}

/// Section 5.10: INVLPG, a load of CR3, and a change of CR4.PGE each make a change seen.
fn changes() {
    ONE.set(Page([1; 4096]));
    let flushes: [(&str, fn()); 3] = [
        ("INVLPG", || cpu::invlpg(PAGE)),
        ("CR3", || cpu::set_cr3(cpu::cr3())),
        ("CR4.PGE", || {
            cpu::set_cr4(cpu::cr4() ^ 1 << 7);
            cpu::set_cr4(cpu::cr4() ^ 1 << 7);
        }),
    ];
    for (what, flush) in flushes {
        for _ in 0..50 {
            for (page, want) in [(one(), 1), (TWO.address() as u64, 2)] {
                cpu::write64(entry(PAGE, 1), page | P | W);
                flush();
                check_eq!(cpu::read8(PAGE), want, "a page that moved, after {}", what);
            }
        }
        cpu::write64(entry(PAGE, 1), 0);
        flush();
        fault("a page that is gone", READ, PAGE, 0);
    }
}

/// SMEP and SMAP, with the probe itself on supervisor pages.
fn supervisor_protection() {
    let features = cpu::cpuid(7, 0)[1];
    let own = root();
    let value = cpu::read64(own);
    cpu::write64(own, value & !U);
    cpu::set_cr3(cpu::cr3());
    cpu::write8(ONE.address(), 0xc3);
    map(PAGE, one() | P | W | U);
    let cr4 = cpu::cr4();
    if features & 1 << 7 != 0 {
        cpu::set_cr4(cr4 | 1 << 20);
        fault("SMEP", CALL, PAGE, P | FETCH);
        good("read with SMEP", READ, PAGE);
        cpu::set_cr4(cr4);
        good("call without SMEP", CALL, PAGE);
    } else {
        say!("skipped: there is no SMEP");
    }
    if features & 1 << 20 != 0 {
        cpu::set_cr4(cr4 | 1 << 21);
        fault("SMAP, read", READ, PAGE, P);
        fault("SMAP, write", STORE, PAGE, P | WRITE);
        // STAC; MOV EAX,[RDI]; CLAC
        good("read after STAC", &[0x0f, 0x01, 0xcb, 0x8b, 0x07, 0x0f, 0x01, 0xca], PAGE);
        cpu::set_cr4(cr4);
        good("read without SMAP", READ, PAGE);
    } else {
        say!("skipped: there is no SMAP");
    }
    cpu::write64(own, value);
    cpu::set_cr3(cpu::cr3());
}

fn pcid() {
    if cpu::cpuid(1, 0)[2] & 1 << 17 == 0 {
        return say!("skipped: there is no PCID");
    }
    let cr3 = cpu::cr3();
    cpu::set_cr4(cpu::cr4() | 1 << 17);
    map(PAGE, one() | P | W);
    for pcid in [0, 1, 2, 0xfff] {
        cpu::set_cr3(cr3 | pcid);
        check_eq!(cpu::cr3(), cr3 | pcid, "CR3 with a PCID");
        good("read with a PCID", READ, PAGE);
        cpu::set_cr3(cr3 | 1 << 63 | pcid);
        check_eq!(cpu::cr3(), cr3 | pcid, "CR3 without a flush");
    }
    cpu::set_cr3(cr3);
    cpu::set_cr4(cpu::cr4() & !(1 << 17));
}

/// Tables where there is no memory read as all ones: a reserved bit is set in each entry.
fn wild_tables() {
    for level in 2..=4 {
        let slot = entry(PAGE, level);
        let value = cpu::read64(slot);
        cpu::write64(slot, 0xd000_0000 | P | W | U);
        cpu::set_cr3(cpu::cr3());
        match run(READ, &mut at(PAGE)) {
            Err(trap) => check_eq!((trap.vector, trap.cr2), (PF, PAGE as u64), "a table in no memory"),
            Ok(()) => check!(false, "a table in no memory raises a page fault"),
        }
        cpu::write64(slot, value);
        cpu::set_cr3(cpu::cr3());
    }
}
