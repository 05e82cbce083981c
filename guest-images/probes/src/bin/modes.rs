//! Every mode of the CPU, back and forth (SDM vol. 3, chapters 10, 21 and 22): real, virtual-8086, protected with 16 and
//! 32 bits, paging with 4 KiB and 4 MiB pages, PAE, compatibility with 16 and 32 bits, long. In each of them instructions
//! that end in the hypervisor, bare, with prefixes, and at every place across the border of two pages, in segments whose
//! base is not zero; then exceptions, interrupts by the vector table of real mode, and string I/O.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

use caisson_probes::ports::{pic_mask, pic_start};
use caisson_probes::trap::vector::{GP, UD};
use caisson_probes::{Regs, apic, check, check_eq, cpu, gdt, probe, run, say, trap};

global_asm!(include_str!("../modes.S"), options(att_syntax));

probe!("modes", run_probe);

unsafe extern "C" {
    fn modes_base();
    fn modes_end();
    fn modes_stubs();
    fn modes_ret32();
    fn modes_real_ret();
    fn modes_real_stubs();
    fn modes_real_count();
    fn modes_real_irq();
}

/// Where the code of `modes.S` runs, and what lies behind it.
const LOW: usize = 0x3_0000;
const BLOCK: usize = LOW + 0xe00;
/// Snippets: the first page, and the second as segments based here see it.
const CODE: usize = LOW + 0x1000;
const IDT: usize = LOW + 0x4000;
const TASK: usize = LOW + 0x5000;
const DIRECTORY: usize = LOW + 0xd000;
const PAE_POINTERS: usize = LOW + 0xf000;
/// The second page of snippets where paging moves it.
const ELSEWHERE: usize = LOW + 0x3000;
const NO_VECTOR: u32 = u32::MAX;
const CPUID_LEAF: u32 = 0x4000_0000;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;
const PG: u32 = 1 << 31;
/// The UART's scratch register, and the page register that user-level I/O may reach.
const SCRATCH: u32 = 0x3ff;
const PAGES: u32 = 0x84;

/// A mode, and how snippets get there.
struct Mode {
    name: &'static str,
    /// 0: protected, 1: real, 2: virtual-8086.
    kind: u32,
    selector: u32,
    /// Its code has 16 bits.
    short: bool,
    cr3: usize,
    cr4: u32,
    cr0: u32,
    /// Where the second page of snippets is in memory.
    second: usize,
}

const MODES: &[Mode] = &[
    mode("real", 1, 0x3100, true),
    mode("protected, 16 bits", 0, 0x30, true),
    mode("protected, 32 bits", 0, 0x38, false),
    mode("virtual-8086", 2, 0x3100, true),
    Mode { cr3: DIRECTORY, cr4: CR4_PSE, cr0: PG, second: ELSEWHERE, ..mode("4 KiB pages", 0, 0x48, false) },
    Mode {
        cr3: DIRECTORY,
        cr4: CR4_PSE,
        cr0: PG,
        second: ELSEWHERE,
        ..mode("16 bits, paged", 0, 0x50, true)
    },
    Mode { cr3: DIRECTORY + 0x4000, cr4: CR4_PSE, cr0: PG, ..mode("4 MiB pages", 0, 0x58, false) },
    Mode { cr3: PAE_POINTERS, cr4: CR4_PAE, cr0: PG, second: ELSEWHERE, ..mode("PAE", 0, 0x48, false) },
    Mode { cr3: DIRECTORY, cr4: CR4_PSE, cr0: PG, ..mode("virtual-8086, paged", 2, 0x3100, true) },
];

const fn mode(name: &'static str, kind: u32, selector: u32, short: bool) -> Mode {
    Mode { name, kind, selector, short, cr3: 0, cr4: 0, cr0: 0, second: CODE + 0x1000 }
}

/// EAX, ECX, EDX, EBX, ESI, EDI, EBP, EFLAGS.
type Words = [u32; 8];

/// How a snippet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    words: Words,
    vector: u32,
    error: u32,
    ip: u32,
    interrupts: u32,
}

fn run_probe() {
    prepare();
    let baseline = cpu::cpuid(CPUID_LEAF, 0);
    for round in 0..2 {
        for mode in MODES {
            instructions(mode, baseline);
            faults(mode);
            if mode.kind == 0 {
                devices(mode);
            }
            if mode.cr3 == PAE_POINTERS {
                pointers(mode);
            }
        }
        compatibility(baseline);
        say!("round {} through all modes", round);
    }
    real_interrupts();
    string_io();
}

fn label(function: unsafe extern "C" fn()) -> usize {
    LOW + function as usize - modes_base as *const () as usize
}

fn prepare() {
    let (start, end) = (modes_base as *const () as usize, modes_end as *const () as usize);
    check!(end - start < 0xe00, "the code fits below the block: {:#x}", end - start);
    (0..end - start).for_each(|at| cpu::write8(LOW + at, cpu::read8(start + at)));
    for vector in 0..0x41 {
        let stub = (label(modes_stubs) + 16 * vector) as u64;
        // 32-bit interrupt gate, DPL 3, CS 18H.
        cpu::write64(IDT + 8 * vector, stub & 0xffff | 0x18 << 16 | 0xee << 40 | stub >> 16 << 48);
        if vector < 32 {
            real_vector(vector, label(modes_real_stubs) + 8 * vector);
        }
    }
    real_vector(0x40, label(modes_real_count));
    real_vector(0x50, label(modes_real_irq));
    // The task: ESP0, SS0, I/O bitmap behind it with ports 84H to 87H allowed.
    (0..0x2104).step_by(4).for_each(|at| cpu::write32(TASK + at, if at < 104 { 0 } else { u32::MAX }));
    cpu::write32(TASK + 4, (LOW + 0xc000) as u32);
    cpu::write32(TASK + 8, 0x10);
    cpu::write32(TASK + 100, 104 << 16);
    cpu::write8(TASK + 104 + PAGES as usize / 8, 0x0f);
    page_tables();
}

fn real_vector(vector: usize, address: usize) {
    cpu::write32(4 * vector, (address - LOW) as u32 | 0x3000 << 16);
}

/// 4 KiB: the first 4 MiB as they are, snippets at 8 MiB in two pages that are not neighbours, the APIC by a 4 MiB page.
/// 4 MiB: the first again at 8 MiB. PAE: as 4 KiB, with 2 MiB pages beside them.
fn page_tables() {
    let (table, large) = (DIRECTORY + 0x3000, DIRECTORY + 0x4000);
    let (pae, pae_table, pae_last) = (DIRECTORY + 0x5000, DIRECTORY + 0x6000, DIRECTORY + 0x7000);
    for page in [DIRECTORY, PAE_POINTERS, table, large, pae, pae_table, pae_last] {
        (0..4096).step_by(8).for_each(|at| cpu::write64(page + at, 0));
    }
    let pages = [(0, CODE), (1, ELSEWHERE)];
    cpu::write32(DIRECTORY, 0x87);
    cpu::write32(DIRECTORY + 4 * 2, table as u32 | 7);
    cpu::write32(DIRECTORY + 4 * 0x3fb, 0xfec0_0083);
    pages.iter().for_each(|&(slot, page)| cpu::write32(table + 4 * slot, page as u32 | 7));
    cpu::write32(large, 0x87);
    cpu::write32(large + 4 * 2, 0x87);
    cpu::write32(large + 4 * 0x3fb, 0xfec0_0083);
    cpu::write64(PAE_POINTERS, pae as u64 | 1);
    cpu::write64(PAE_POINTERS + 24, pae_last as u64 | 1);
    cpu::write64(pae, 0x87);
    cpu::write64(pae + 8 * 4, pae_table as u64 | 7);
    pages.iter().for_each(|&(slot, page)| cpu::write64(pae_table + 8 * slot, page as u64 | 7));
    cpu::write64(pae_last + 8 * 0x1f7, 0xfee0_0083);
}

/// Runs `code` at an offset of the two pages of snippets.
fn go(mode: &Mode, offset: usize, code: &[u8], words: Words) -> End {
    let mut at = offset;
    let mut put = |byte: u8| {
        cpu::write8(if at < 0x1000 { CODE + at } else { mode.second + at - 0x1000 }, byte);
        at += 1;
    };
    code.iter().for_each(|&byte| put(byte));
    // Back: INT 40H, JMP 3000H:…, or JMP 18H:… with its operand size.
    let target = label(if mode.kind == 1 { modes_real_ret } else { modes_ret32 });
    match mode.kind {
        2 => [0xcd, 0x40].into_iter().for_each(&mut put),
        1 => {
            put(0xea);
            (target as u16 - LOW as u16).to_le_bytes().into_iter().for_each(&mut put);
            0x3000u16.to_le_bytes().into_iter().for_each(&mut put);
        }
        _ => {
            if mode.short {
                put(0x66);
            }
            put(0xea);
            (target as u32).to_le_bytes().into_iter().for_each(&mut put);
            0x18u16.to_le_bytes().into_iter().for_each(&mut put);
        }
    }
    words.iter().enumerate().for_each(|(index, &word)| cpu::write32(BLOCK + 4 * index, word));
    if mode.kind == 2 {
        // INT n takes IOPL 3, which is what snippets get unless they ask for it: then they get 0.
        cpu::write32(BLOCK + 28, words[7] ^ 3 << 12);
    }
    let block = [offset as u32, mode.selector, mode.kind, mode.cr3 as u32, mode.cr4, mode.cr0, NO_VECTOR];
    block.iter().enumerate().for_each(|(index, &word)| cpu::write32(BLOCK + 32 + 4 * index, word));
    cpu::write32(BLOCK + 112, 0);
    cpu::write32(BLOCK + 124, offset as u32 | mode.selector << 16);
    // SAFETY: the code keeps the registers that the calling convention names, and comes back in long mode.
    let enter: extern "C" fn() = unsafe { core::mem::transmute(LOW) };
    enter();
    gdt::reload();
    trap::load_idt();
    let read = |index: usize| cpu::read32(BLOCK + 4 * index);
    let vector = if mode.kind == 2 && read(14) == 0x40 { NO_VECTOR } else { read(14) };
    let words = [0, 1, 2, 3, 4, 5, 6, 7].map(read);
    End { words, vector, error: read(15), ip: read(16) & 0xffff, interrupts: read(28) }
}

/// Runs `code` at the start, and so that each of its bytes is the first of the second page.
fn everywhere(mode: &Mode, what: &str, code: &[u8], words: Words, check: &dyn Fn(&Words)) {
    for offset in core::iter::once(0x10).chain((1..code.len()).map(|before| 0x1000 - before)) {
        let end = go(mode, offset, code, words);
        check_eq!(end.vector, NO_VECTOR, "{}: {} at {:#x}: {:x?}", mode.name, what, offset, end);
        check(&end.words);
    }
}

const CPUID: [&[u8]; 5] = [
    &[0x0f, 0xa2],
    &[0x66, 0x0f, 0xa2],
    &[0x2e, 0x67, 0x0f, 0xa2],
    &[0x66, 0x67, 0x64, 0x0f, 0xa2],
    &[0xf3, 0xf2, 0x66, 0x67, 0x65, 0x36, 0x0f, 0xa2],
];

/// Instructions that end in the hypervisor, which has to find where they end.
fn instructions(mode: &Mode, baseline: [u32; 4]) {
    let start = [0, 0, 0, 0, 0x5555_1111, 0x2222_3333, 0x4444_7777, 2];
    for code in CPUID {
        let words = [CPUID_LEAF, 0, 0, 0, start[4], start[5], start[6], 2];
        everywhere(mode, "CPUID", code, words, &|got| {
            check_eq!([got[0], got[3], got[1], got[2]], baseline, "{}: CPUID", mode.name);
            check_eq!(&got[4..7], &start[4..7], "{}: other registers after CPUID", mode.name);
        });
    }
    let wide = |plain: &'static [u8], prefixed: &'static [u8]| if mode.short { prefixed } else { plain };
    let words = [0x1234_5678, 0, PAGES, 0, 0, 0, 0, 2];
    everywhere(mode, "OUT DX, EAX", wide(&[0xef], &[0x66, 0xef]), words, &|_| {});
    everywhere(mode, "IN EAX, DX", wide(&[0xed], &[0x66, 0xed]), [0, 0, PAGES, 0, 0, 0, 0, 2], &|got| {
        check_eq!(got[0], 0x1234_5678, "{}: IN EAX, DX", mode.name);
    });
    everywhere(mode, "IN AX, 84H", wide(&[0x66, 0xe5, 0x84], &[0xe5, 0x84]), [!0; 8].map(|_| 2), &|got| {
        check_eq!(got[0], 0x5678, "{}: IN AX, imm8", mode.name);
    });
    everywhere(mode, "OUT 84H, AL", &[0xe6, 0x84], words, &|_| {});
    if mode.kind == 2 {
        return;
    }
    let base = cpu::rdmsr(apic::BASE_MSR);
    for code in [&[0x0f, 0x32][..], &[0x66, 0x0f, 0x32], &[0x26, 0x67, 0x0f, 0x32]] {
        everywhere(mode, "RDMSR", code, [0, apic::BASE_MSR, !0, 0, 0, 0, 0, 2], &|got| {
            check_eq!(u64::from(got[2]) << 32 | u64::from(got[0]), base, "{}: RDMSR", mode.name);
        });
    }
    // WRMSR to PAT's own value, and the hypercall that nobody has (VMMCALL; VMCALL elsewhere is #UD).
    let pat = cpu::rdmsr(0x277);
    everywhere(mode, "WRMSR", &[0x0f, 0x30], [pat as u32, 0x277, (pat >> 32) as u32, 0, 0, 0, 0, 2], &|_| {});
    let call: &[u8] = if run(&[0x0f, 0x01, 0xd9], &mut Regs { rax: 99, ..Regs::default() }).is_ok() {
        &[0x0f, 0x01, 0xd9]
    } else {
        &[0x0f, 0x01, 0xc1]
    };
    everywhere(mode, "hypercall", call, [0x7fff_ffff, 0, 0, 0, 0, 0, 0, 2], &|got| {
        check_eq!(got[0] as i32, -1000, "{}: the answer of a hypercall", mode.name);
    });
}

/// Exceptions by the hypervisor point to their instruction.
fn faults(mode: &Mode) {
    let words = [0, 0xdead_0000, 0, 0, 0, 0, 0, 2];
    for (what, code, vector) in [
        ("RDMSR of nothing", &[0x90, 0x0f, 0x32][..], GP),
        ("WRMSR of nothing", &[0x90, 0x0f, 0x30], GP),
        ("UD2", &[0x90, 0x0f, 0x0b], UD),
    ] {
        let end = go(mode, 0x20, code, words);
        check_eq!((end.vector, end.ip), (vector.into(), 0x21), "{}: {}", mode.name, what);
        if mode.kind != 1 {
            check_eq!(end.error, 0, "{}: {}: error code", mode.name, what);
        }
    }
    if mode.kind == 2 {
        // CLI by IOPL, and a port that the task does not allow whatever the IOPL is.
        let flags = |flags: u32| [0, 0, SCRATCH, 0, 0, 0, 0, flags];
        for (what, code, flags, vector) in [
            ("CLI with IOPL 3", &[0xfa][..], flags(2), NO_VECTOR),
            ("CLI with IOPL 0", &[0xfa], flags(3 << 12 | 2), GP.into()),
            ("IN from a port of others", &[0xec], flags(2), GP.into()),
            ("MOV EAX, CR0", &[0x0f, 0x20, 0xc0], flags(2), GP.into()),
        ] {
            check_eq!(go(mode, 0x20, code, flags).vector, vector, "{}: {}", mode.name, what);
        }
    }
}

/// The local APIC's version by its address, and a write to its task priority.
fn devices(mode: &Mode) {
    let version = cpu::read32(apic::PAGE + 0x30);
    let read: &[u8] = &[0x67, 0x66, 0xa1, 0x30, 0x00, 0xe0, 0xfe];
    let read = if mode.short { read } else { &read[2..] };
    everywhere(mode, "MOV EAX, moffs", read, [0, 0, 0, 0, 0, 0, 0, 2], &|got| {
        check_eq!(got[0], version, "{}: a device", mode.name);
    });
    let write: &[u8] = &[0x67, 0x66, 0xc7, 0x03, 0x20, 0, 0, 0];
    let write = if mode.short { write } else { &write[2..] };
    everywhere(mode, "MOV [EBX], imm", write, [0, 0, 0, apic::PAGE as u32 + 0x80, 0, 0, 0, 2], &|_| {});
    check_eq!(apic::read(0x80), 0x20, "{}: TPR", mode.name);
    cpu::set_cr8(0);
}

/// A MOV to CR0 that changes the caches alone loads the page-directory pointers, on CPUs that keep them (SDM vol. 3, section
/// 4.4.1): Intel's. A reserved bit in one is #GP, and nothing has changed.
fn pointers(mode: &Mode) {
    let intel = cpu::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu");
    // MOV [EBX], EDX; MOV EAX, CR0; MOV ECX, EAX; XOR ECX, CD; MOV CR0, ECX; MOV CR0, EAX.
    let code = [
        0x89, 0x13, 0x0f, 0x20, 0xc0, 0x89, 0xc1, 0x81, 0xf1, 0, 0, 0, 0x40, 0x0f, 0x22, 0xc1, 0x0f, 0x22,
        0xc0,
    ];
    let slot = PAE_POINTERS + 8;
    for (pointer, bad) in [(0, false), (3, true), (2, false), (0x21, true)] {
        let end = go(mode, 0x20, &code, [0, 0, pointer, slot as u32, 0, 0, 0, 2]);
        cpu::write64(slot, 0);
        let expected = if bad && intel { (GP.into(), 0x2d) } else { (NO_VECTOR, end.ip) };
        check_eq!((end.vector, end.ip), expected, "{}: pointer {:#x}: {:x?}", mode.name, pointer, end);
        check_eq!(cpu::cr0() & 1 << 30, 0, "{}: CD after pointer {:#x}", mode.name, pointer);
    }
}

/// 16- and 32-bit code of long mode, in ring 0, in segments with a base.
fn compatibility(baseline: [u32; 4]) {
    let base = run::code_base() as u32;
    for (short, flags) in [(true, 0u8), (false, 4)] {
        gdt::set(gdt::FREE, gdt::descriptor(base, 0xffff, 0x9b, flags));
        for code in CPUID {
            for offset in core::iter::once(0x10).chain((1..code.len()).map(|before| 0x1000 - before)) {
                let at = base as usize + offset;
                cpu::copy_to(at, code);
                cpu::copy_to(at + code.len(), &[0x0f, 0x0b]);
                let mut regs = Regs { rax: CPUID_LEAF.into(), ..Regs::default() };
                let stack = gdt::stack_top(2) as u64;
                let trap = run::enter(offset, &mut regs, gdt::FREE, gdt::DATA, stack);
                check_eq!((trap.vector, trap.rip as usize), (UD, offset + code.len()), "16 bits: {}", short);
                let got = [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|value| value as u32);
                check_eq!(got, baseline, "compatibility mode, 16 bits: {}", short);
            }
        }
    }
}

/// INT n and IRQ 0 by real mode's vector table; HLT.
fn real_interrupts() {
    let real = &MODES[0];
    let end = go(real, 0x30, &[0xcd, 0x40, 0xcd, 0x40], [7; 8].map(|_| 2));
    check_eq!((end.vector, end.interrupts), (NO_VECTOR, 2), "INT 40H twice in real mode");
    // The 8254 of 1 kHz through the 8259 as vector 50H; STI; HLT three times; CLI.
    apic::write(apic::register::LVT_LINT0, 0x700);
    apic::enable();
    pic_start(0x50);
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        cpu::outb(port, value);
    }
    pic_mask(!1);
    let end = go(real, 0x30, &[0xfb, 0xf4, 0xf4, 0xf4, 0xfa], [0, 0, 0, 0, 0, 0, 0, 2]);
    check_eq!(end.vector, NO_VECTOR, "interrupts in real mode: {:x?}", end);
    check!(end.interrupts >= 3, "interrupts that ended three HLTs in real mode: {}", end.interrupts);
    pic_mask(0xffff);
}

/// REP OUTSB and INSB with 16-bit registers: SI and DI wrap at 64 KiB.
fn string_io() {
    for mode in [&MODES[0], &MODES[3]] {
        // ES is 3000H in both; DS in virtual-8086 mode only.
        let words = [0, 0xaaaa_0004, PAGES, 0, 0, 0xbbbb_fffe, 0, 2];
        cpu::outb(PAGES as u16, 0x5c);
        let first = [LOW + 0xfffe, LOW + 0xffff, LOW, LOW + 1].map(cpu::read8);
        let end = go(mode, 0x40, &[0xf3, 0x6c], words);
        let got = [LOW + 0xfffe, LOW + 0xffff, LOW, LOW + 1].map(cpu::read8);
        [LOW + 0xfffe, LOW + 0xffff, LOW, LOW + 1]
            .iter()
            .zip(first)
            .for_each(|(&at, byte)| cpu::write8(at, byte));
        check_eq!(end.vector, NO_VECTOR, "{}: REP INSB", mode.name);
        check_eq!(got, [0x5c; 4], "{}: bytes around the end of the segment", mode.name);
        check_eq!((end.words[1], end.words[5]), (0xaaaa_0000, 0xbbbb_0002), "{}: ECX and EDI", mode.name);
    }
}
