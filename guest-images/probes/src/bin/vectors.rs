//! State that belongs to one guest: x87, SSE and AVX registers, XCR0, debug registers with a breakpoint, segment bases,
//! system-call MSRs, CR2, CR8. All of it is filled with a pattern that the command line seeds (`seed=N`), and has to be
//! there again after each of many rounds of computing and sleeping. Meant to run twice in one machine, with two seeds.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use caisson_probes::apic::{self, DEADLINE, TSC_DEADLINE, register::LVT_TIMER};
use caisson_probes::trap::vector::DB;
use caisson_probes::{
    Regs, Shared, check, check_eq, cpu, number, probe, random::Random, run, say, time, trap,
};

probe!("vectors", run_probe);

const VECTOR: u8 = 0x40;
const ROUNDS: u64 = 40;
/// The legacy area, the header, and AVX's upper halves where all CPUs have them (SDM vol. 1, section 13.4).
const AREA: usize = 832;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Area([u8; AREA]);

static PATTERN: Shared<Area> = Shared::new(Area([0; AREA]));
static SAVED: Shared<Area> = Shared::new(Area([0; AREA]));

/// What is kept in registers that are read one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Registers {
    debug: [u64; 4],
    dr7: u64,
    cr2: u64,
    cr8: u64,
    msrs: [u64; 10],
    tsc_aux: u32,
}

/// FS_BASE, GS_BASE, KERNEL_GS_BASE, STAR, LSTAR, CSTAR, SFMASK, SYSENTER_CS, _ESP, _EIP.
const MSRS: [u32; 10] = [
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0x174,
    0x175,
    0x176,
];

/// How the vector state is saved and restored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    /// FXSAVE.
    Legacy,
    /// XSAVE with these components.
    Extended(u64),
}

fn run_probe() {
    let seed = number("seed", 1);
    let method = method();
    trap::handle(VECTOR, apic::count_and_eoi as trap::Handler);
    apic::enable_x2();
    apic::write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    let mut random = Random::new(seed);
    for _ in 0..2 {
        fill(&mut random, method);
        let registers = registers(&mut random);
        set(&registers);
        restore(method, PATTERN.address());
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                time::spin(random.below(10_000));
            } else {
                sleep(random.below(10_000));
            }
            compare(method, round);
            let now = get();
            check_eq!(now, registers, "registers in round {}", round);
        }
        if armed() {
            breakpoint();
        }
    }
    say!("seed {}: {} rounds", seed, 2 * ROUNDS);
}

/// x87, SSE, and AVX where it is there; XCR0 says so.
fn method() -> Method {
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 {
        say!("skipped: there is no XSAVE");
        return Method::Legacy;
    }
    cpu::set_cr4(cpu::cr4() | 1 << 18);
    let components = u64::from(cpu::cpuid(0xd, 0)[0]) & 7;
    let xsetbv = run(&[0x0f, 0x01, 0xd1], &mut Regs { rax: components, ..Regs::default() });
    check!(xsetbv.is_ok(), "XSETBV");
    Method::Extended(components)
}

/// A pattern that XRSTOR takes: control words with all exceptions masked, any registers.
fn fill(random: &mut Random, method: Method) {
    let mut area = Area([0; AREA]);
    area.0.fill_with(|| random.any() as u8);
    // FCW, FSW with a top of stack, FTW; FOP and pointers of no instruction.
    area.0[..24].fill(0);
    area.0[..5].copy_from_slice(&[0x7f, 0x03, 0x00, (random.any() as u8 & 7) << 3, 0xff]);
    let control = 0x1f80 | (random.any() as u32 & 3) << 13;
    area.0[24..28].copy_from_slice(&control.to_le_bytes());
    area.0[28..32].fill(0);
    for register in 0..8 {
        // The upper 6 bytes of each x87 slot are reserved; an exponent in range makes every value a number.
        let at = 32 + 16 * register;
        area.0[at + 7] |= 0x80;
        area.0[at + 9] &= 0x3f;
        area.0[at + 10..at + 16].fill(0);
    }
    area.0[416..576].fill(0);
    if let Method::Extended(components) = method {
        area.0[512] = components as u8;
    }
    PATTERN.set(area);
}

fn restore(method: Method, from: usize) {
    // SAFETY: compiled code uses none of these registers; the area is aligned and its control words are valid.
    unsafe {
        match method {
            Method::Legacy => asm!("fxrstor64 [{}]", in(reg) from),
            Method::Extended(mask) => asm!("xrstor64 [{}]", in(reg) from, in("eax") mask as u32, in("edx") 0),
        }
    }
}

fn compare(method: Method, round: u64) {
    SAVED.set(Area([0; AREA]));
    let to = SAVED.address();
    // SAFETY: the area is aligned and long enough.
    unsafe {
        match method {
            Method::Legacy => asm!("fxsave64 [{}]", in(reg) to),
            Method::Extended(mask) => asm!("xsave64 [{}]", in(reg) to, in("eax") mask as u32, in("edx") 0),
        }
    }
    let (want, got) = (PATTERN.get().0, SAVED.get().0);
    let check = |what: &str, first: usize, last: usize| {
        for at in first..last {
            check_eq!(got[at], want[at], "{} in round {}: byte {} of the area", what, round, at);
        }
    };
    check("x87 control words", 0, 5);
    check("MXCSR", 24, 28);
    check("x87 registers", 32, 160);
    check("XMM registers", 160, 416);
    if let Method::Extended(components) = method {
        let mut regs = Regs::default();
        check!(run(&[0x0f, 0x01, 0xd0], &mut regs).is_ok(), "XGETBV");
        check_eq!(regs.rax, components, "XCR0 in round {}", round);
        if components & 4 != 0 {
            check("upper halves of YMM registers", 576, 832);
        }
    }
}

/// A canonical address.
fn canonical(random: &mut Random) -> u64 {
    (random.any() as i64 >> 17) as u64
}

fn registers(random: &mut Random) -> Registers {
    let mut msrs = [0; 10];
    for (number, value) in MSRS.iter().zip(&mut msrs) {
        *value = match number {
            0xc000_0081 => random.any(),
            0xc000_0084 => random.any() & 0xffff_ffff,
            0x174 => random.any() & 0xffff,
            _ => canonical(random),
        };
    }
    Registers {
        // Breakpoints 0, 2 and 3 stay off; breakpoint 1 is for execution, at the snippet's first byte.
        debug: [canonical(random), run::code_base() as u64 + 0x900, canonical(random), canonical(random)],
        // Two guests with breakpoints at the same time are too much for QEMU's emulated SVM, which keeps one list for all.
        dr7: if armed() { 0x404 } else { 0x400 },
        cr2: canonical(random),
        // Low enough for the timer's vector.
        cr8: random.below(4),
        msrs,
        tsc_aux: if has_tsc_aux() { random.any() as u32 } else { 0 },
    }
}

const TSC_AUX: u32 = 0xc000_0103;

fn has_tsc_aux() -> bool {
    cpu::cpuid(0x8000_0001, 0)[3] & 1 << 27 != 0
}

fn set(registers: &Registers) {
    let [a, b, c, d] = registers.debug;
    cpu::set_dr0(a);
    cpu::set_dr1(b);
    cpu::set_dr2(c);
    cpu::set_dr3(d);
    cpu::set_dr7(registers.dr7);
    cpu::set_cr2(registers.cr2);
    cpu::set_cr8(registers.cr8);
    MSRS.iter().zip(registers.msrs).for_each(|(&number, value)| cpu::wrmsr(number, value));
    if has_tsc_aux() {
        cpu::wrmsr(TSC_AUX, registers.tsc_aux.into());
    }
}

fn get() -> Registers {
    // RDTSCP: ECX is TSC_AUX.
    let mut regs = Regs::default();
    let tsc_aux = match has_tsc_aux() {
        true if run(&[0x0f, 0x01, 0xf9], &mut regs).is_ok() => regs.rcx as u32,
        _ => 0,
    };
    Registers {
        debug: [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()],
        dr7: cpu::dr7(),
        cr2: cpu::cr2(),
        cr8: cpu::cr8(),
        msrs: MSRS.map(cpu::rdmsr),
        tsc_aux,
    }
}

/// Sleeps until the timer's interrupt.
fn sleep(microseconds: u64) {
    let before = trap::count(VECTOR);
    cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + time::tsc_hz() / 1_000_000 * microseconds);
    while trap::count(VECTOR) == before {
        cpu::sti_hlt();
        cpu::cli();
    }
}

/// Whether this copy sets a breakpoint.
fn armed() -> bool {
    number("armed", 1) != 0
}

/// After all that, the breakpoint still hits.
///
/// QEMU's emulated SVM loads DR7 at VMRUN without arming the breakpoints that it names: what is armed is what the last
/// MOV to DR7 left, of whichever guest. Where the breakpoint does not hit, DR7, whose value has been checked, is written
/// again before another try.
fn breakpoint() {
    const TRIES: u32 = 10;
    let step = || caisson_probes::run_at(0x900, &[0x90], &mut Regs::default()).err();
    let again = || {
        let dr7 = cpu::dr7();
        cpu::set_dr7(0x400);
        cpu::set_dr7(dr7);
        step()
    };
    let Some(trap) = step().or_else(|| (1..TRIES).find_map(|_| again())) else {
        return check!(false, "the breakpoint hits");
    };
    check_eq!((trap.vector, trap.rip as usize), (DB, run::code_base() + 0x900), "the breakpoint");
    check_eq!(cpu::dr6() & 0xf, 2, "DR6 at the breakpoint");
    cpu::set_dr6(0);
    cpu::set_dr7(0x400);
}
