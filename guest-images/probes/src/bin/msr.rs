//! Model-specific and control registers: what is not there or not allowed raises #GP(0) and changes nothing; what is
//! kept reads as it was written; the clocks are sane (SDM vol. 4; AMD APM vol. 2, appendix A; Linux
//! `Documentation/virt/kvm/x86/msr.rst`).

#![no_std]
#![no_main]

use caisson_probes::trap::vector::{GP, UD};
use caisson_probes::{
    Regs, Shared, Trap, check, check_eq, check_in, cpu, kvm_clock, probe, random::Random, run, say, time,
};

probe!("msr", run_probe);

const PHYSICAL_BITS: u32 = 0x8000_0008;

fn run_probe() {
    unknown();
    efer();
    pat_and_mtrrs();
    system_calls();
    tsc();
    kvm_time();
    counters();
    extended_state();
    control_registers();
}

fn gp<T: core::fmt::LowerHex + PartialEq + core::fmt::Debug>(what: &str, result: Result<T, Trap>) {
    match result {
        Err(trap) => {
            check_eq!((trap.vector, trap.error), (GP, 0), "{}: vector and error code", what);
            check_eq!(trap.rip as usize, run::code_base(), "{}: RIP", what);
        }
        Ok(value) => check!(false, "{}: #GP instead of {:x?}", what, value),
    }
}

fn gp_write(what: &str, number: u32, value: u64) {
    gp(what, cpu::try_wrmsr(number, value).map(|()| 0u64));
}

/// Whether something may be at a number: then it is not for this check.
fn may_be_there(number: u32) -> bool {
    matches!(number, 0..=0x6ff | 0x800..=0x8ff | 0x4b56_4d00..=0x4b56_4d0f | 0xc000_0080..=0xc000_0104)
        || (0xc001_0000..=0xc001_ffff).contains(&number)
}

/// Numbers that nothing has, all over the space; and some that a CPU has, and this machine hides.
fn unknown() {
    let mut random = Random::new(8);
    let mut edges = [0x700, 0x7ff, 0x900, 0x1fff, 0x2000, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xbfff_ffff]
        .into_iter()
        .chain([0xc000_007f, 0xc000_1fff, 0xc000_2000, 0xc001_2000, 0xdead_beef, u32::MAX]);
    for index in 0..400 {
        let number = match edges.next() {
            Some(edge) => edge,
            None if index % 2 == 0 => random.any() as u32,
            None => 0xc000_0000 | random.below(0x2000) as u32,
        };
        if may_be_there(number) {
            continue;
        }
        let mut regs = Regs { rcx: number.into(), rax: 0x1122_3344, rdx: 0x5566_7788, ..Regs::default() };
        let before = regs;
        gp("RDMSR of nothing", run(&[0x0f, 0x32], &mut regs).map(|()| number));
        check_eq!((regs.rax, regs.rdx), (before.rax, before.rdx), "RAX and RDX after RDMSR of {:#x}", number);
        gp_write("WRMSR of nothing", number, random.any());
    }
    // VMX, SVM, performance counters, SMM, microcode, power, SYSCFG's neighbours.
    for number in [0x480, 0x4c1, 0x186, 0x309, 0x38f, 0x9e, 0x79, 0x19a, 0x610, 0xc001_0114, 0xc001_0117] {
        gp("RDMSR of what is hidden", cpu::try_rdmsr(number));
        gp_write("WRMSR of what is hidden", number, 0);
    }
    // VM_HSAVE_PA's write, and SMM's base.
    gp_write("VM_HSAVE_PA", 0xc001_0117, 0x20_0000);
    gp_write("SMBASE", 0xc001_0111, 0x3_0000);
}

fn efer() {
    const EFER: u32 = 0xc000_0080;
    let value = cpu::rdmsr(EFER);
    check_eq!(value & 0x500, 0x500, "EFER: LME and LMA");
    check_eq!(value & 1 << 12, 0, "EFER: SVME reads as zero");
    for bit in (1..8).chain([9, 12]).chain(22..64) {
        gp_write("EFER with a reserved bit", EFER, value | 1 << bit);
    }
    gp_write("EFER: LME off in long mode", EFER, value & !(1 << 8));
    for toggled in [1, 1 << 11] {
        cpu::wrmsr(EFER, value ^ toggled);
        check_eq!(cpu::rdmsr(EFER), value ^ toggled, "EFER toggled");
    }
    cpu::wrmsr(EFER, value);
}

fn pat_and_mtrrs() {
    const PAT: u32 = 0x277;
    let pat = cpu::rdmsr(PAT);
    check_eq!(pat, 0x0007_0406_0007_0406, "PAT after reset");
    cpu::wrmsr(PAT, 0x0706_0504_0100_0706);
    check_eq!(cpu::rdmsr(PAT), 0x0706_0504_0100_0706, "PAT");
    for bad in [2, 3, 8, 0xff] {
        gp_write("PAT with a type that is none", PAT, pat & !0xff00 | bad << 8);
    }
    check_eq!(cpu::rdmsr(PAT), 0x0706_0504_0100_0706, "PAT after refused writes");
    cpu::wrmsr(PAT, pat);
    if cpu::cpuid(1, 0)[3] & 1 << 12 == 0 {
        return;
    }
    let top = 1u64 << (cpu::cpuid(PHYSICAL_BITS, 0)[0] & 0xff);
    check_eq!(cpu::rdmsr(0xfe), 0x508, "MTRRcap");
    gp_write("MTRRcap", 0xfe, 0);
    for (number, value) in [
        (0x200, 0xc000_0000),
        (0x201, (top - 1) & !0x3fff_ffff | 0x800),
        (0x20f, 0xf_f000),
        (0x250, 0x0606_0505_0404_0100),
        (0x258, 0x0101_0101_0101_0101),
        (0x26f, 0),
        (0x2ff, 0xc06),
    ] {
        let before = cpu::rdmsr(number);
        cpu::wrmsr(number, value);
        check_eq!(cpu::rdmsr(number), value, "MTRR {:#x}", number);
        cpu::wrmsr(number, before);
    }
    gp_write("MTRR base beyond the address bits", 0x200, top);
    gp_write("MTRR base with a bad type", 0x200, 2);
    gp_write("MTRR mask with a reserved bit", 0x201, 0x400);
    gp_write("fixed MTRR with a bad type", 0x250, 0x0600_0000_0000_0003);
    gp_write("default type that is none", 0x2ff, 0x807);
}

/// Registers that a guest may write without an exit: each keeps what was written.
fn system_calls() {
    for (number, value) in [
        (0x174, 0x5678),
        (0x175, 0xffff_8000_1234_5678),
        (0x176, 0x0000_7fff_8765_4321),
        (0xc000_0081, 0x0123_4567_89ab_cdef),
        (0xc000_0082, 0xffff_ffff_8123_4567),
        (0xc000_0083, 0x0000_1234_5678_9abc),
        (0xc000_0084, 0x0004_7700),
        (0xc000_0100, 0xffff_9000_0000_1000),
        (0xc000_0101, 0x0000_6000_0000_2000),
        (0xc000_0102, 0xffff_a000_0000_3000u64),
    ] {
        let before = cpu::rdmsr(number);
        cpu::wrmsr(number, value);
        check_eq!(cpu::rdmsr(number), value, "MSR {:#x}", number);
        cpu::wrmsr(number, before);
    }
}

fn tsc() {
    const TSC: u32 = 0x10;
    const ADJUST: u32 = 0x3b;
    let (read, after) = (cpu::rdmsr(TSC), cpu::tsc());
    check_in!(after - read, 0..=time::tsc_hz(), "ticks from RDMSR of the TSC to RDTSC");
    let adjust = cpu::cpuid(7, 0)[1] & 1 << 1 != 0;
    cpu::wrmsr(TSC, 1 << 50);
    check_in!(cpu::tsc(), 1 << 50..=(1 << 50) + 5 * time::tsc_hz(), "TSC after it was written");
    if adjust {
        let value = cpu::rdmsr(ADJUST);
        check!(value > 1 << 49, "TSC_ADJUST follows the TSC: {:#x}", value);
        cpu::wrmsr(ADJUST, value - (1 << 49));
        check_in!(cpu::tsc(), 1 << 49..=(1 << 49) + 5 * time::tsc_hz(), "TSC after TSC_ADJUST was written");
        cpu::wrmsr(ADJUST, 0);
        check_in!(cpu::tsc() - after, 0..=5 * time::tsc_hz(), "TSC after TSC_ADJUST of zero");
    }
    cpu::wrmsr(TSC, after);
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Clock([u32; 8]);

static WALL: Shared<Clock> = Shared::new(Clock([0; 8]));

fn kvm_time() {
    const WALL_CLOCK: u32 = 0x4b56_4d00;
    const SYSTEM_TIME: u32 = kvm_clock::SYSTEM_TIME;
    let named = kvm_clock::start();
    check_eq!(cpu::rdmsr(SYSTEM_TIME), named, "KVM system time");
    check!(kvm_clock::version() > 0, "the KVM clock has been written");
    check!(kvm_clock::is_stable(), "the KVM clock says that it is stable");
    let mut last = 0;
    for _ in 0..10_000 {
        let now = kvm_clock::at(cpu::tsc());
        check!(now >= last, "the KVM clock is monotone");
        last = now;
    }
    let (start, pm) = time::both();
    time::spin(50_000);
    let (end, pm_end) = time::both();
    let elapsed = kvm_clock::at(end) - kvm_clock::at(start);
    let expected = u64::from(pm_end.wrapping_sub(pm)) * 1_000_000_000 / time::PM_HZ;
    check_in!(elapsed, expected * 99 / 100..=expected * 101 / 100, "nanoseconds by the KVM clock");
    cpu::wrmsr(WALL_CLOCK, WALL.address() as u64);
    let Clock([version, seconds, nanoseconds, ..]) = WALL.get();
    check_eq!(version & 1, 0, "version of the KVM wall clock");
    check!(seconds > 1_500_000_000 && nanoseconds < 1_000_000_000, "the wall clock is after 2017");
    cpu::wrmsr(SYSTEM_TIME, 0);
    // A structure outside of RAM, and the old numbers of the same clock.
    check!(cpu::try_wrmsr(SYSTEM_TIME, 0xd000_0001).is_ok(), "a KVM clock in no memory does no harm");
    cpu::wrmsr(SYSTEM_TIME, 0);
    gp_write("the old number of the KVM wall clock", 0x11, 0);
    gp_write("the old number of the KVM system time", 0x12, 0);
}

fn counters() {
    for number in [0, 1, 0x4000_0000] {
        gp("RDPMC", run(&[0x0f, 0x33], &mut Regs { rcx: number, ..Regs::default() }).map(|()| number));
    }
}

/// XSETBV (SDM vol. 2).
fn extended_state() {
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 {
        return say!("skipped: there is no XSAVE");
    }
    let xsetbv = |register: u64, value: u64| {
        let (rax, rdx) = (value & 0xffff_ffff, value >> 32);
        run(&[0x0f, 0x01, 0xd1], &mut Regs { rcx: register, rax, rdx, ..Regs::default() })
    };
    cpu::set_cr4(cpu::cr4() & !(1 << 18));
    check_eq!(xsetbv(0, 1).map_err(|trap| trap.vector), Err(UD), "XSETBV without OSXSAVE");
    cpu::set_cr4(cpu::cr4() | 1 << 18);
    check!(cpu::cpuid(1, 0)[2] & 1 << 27 != 0, "CPUID shows OSXSAVE");
    for (register, value) in [(0, 0), (0, 2), (0, 5), (0, 1 << 62), (0, 1 << 63 | 1), (1, 1), (7, 1)] {
        gp("XSETBV", xsetbv(register, value).map(|()| value));
    }
    for value in [1, 3] {
        check!(xsetbv(0, value).is_ok(), "XSETBV of {}", value);
        let mut regs = Regs::default();
        check!(run(&[0x0f, 0x01, 0xd0], &mut regs).is_ok(), "XGETBV");
        check_eq!(regs.rdx << 32 | regs.rax, value, "XCR0");
    }
}

fn control_registers() {
    let cr4 = cpu::cr4();
    // VMXE, SMXE, and bits that nothing has.
    for bit in [13, 14, 15, 19, 25, 26, 27, 30, 31, 32, 40, 63] {
        gp("CR4 with a reserved bit", cpu::try_set_cr4(cr4 | 1 << bit).map(|()| bit));
    }
    gp("CR4: PAE off in long mode", cpu::try_set_cr4(cr4 & !(1 << 5)).map(|()| 5));
    gp("CR4: LA57 in long mode", cpu::try_set_cr4(cr4 ^ 1 << 12).map(|()| 12));
    check_eq!(cpu::cr4(), cr4, "CR4 after refused writes");
    // Bits that the CPU has can be set and cleared.
    for bit in [2, 3, 7, 8, 9] {
        cpu::set_cr4(cr4 ^ 1 << bit);
        check_eq!(cpu::cr4(), cr4 ^ 1 << bit, "CR4 with bit {} toggled", bit);
        cpu::set_cr4(cr4);
    }
    let cr0 = cpu::cr0();
    let bad = cpu::try_set_cr0(cr0 | 1 << 29);
    cpu::set_cr0(cr0);
    match bad {
        Err(_) => gp("CR0: NW without CD", bad.map(|()| 0)),
        Ok(()) => say!("skipped: this CPU takes NW without CD"),
    }
    cpu::set_cr0(cr0 | 3 << 29);
    check_eq!(cpu::cr0(), cr0 | 3 << 29, "CR0 with CD and NW");
    cpu::set_cr0(cr0);
}
