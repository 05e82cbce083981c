//! The local APIC (SDM vol. 3, chapter 12): registers by MMIO and by MSR, IPIs to itself in every way, priorities, errors,
//! NMIs, and IA32_APIC_BASE, which relocates and disables it.

#![no_std]
#![no_main]

use caisson_probes::apic::register::{
    APR, DFR, ESR, ICR, ID, ISR, LDR, LVT_ERROR, LVT_LINT0, LVT_TIMER, PPR, SVR, TPR, VERSION,
};
use caisson_probes::apic::{self, BASE_MSR, ENABLE, MASKED, PAGE, X2APIC};
use caisson_probes::trap::vector::{DB, GP, NMI};
use caisson_probes::{Frame, Regs, Shared, check, check_eq, cpu, number, probe, run, say, time, trap};

probe!("apic", run_probe);

const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const ASSERT: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI_MODE: u32 = 4 << 8;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// Nothing is here.
const ONES: u32 = u32::MAX;

static NMIS: Shared<u64> = Shared::new(0);
/// The order in which handlers began and ended: four bits each, the vector's class; 0xf for an end.
static TRACE: Shared<u64> = Shared::new(0);

fn run_probe() {
    for class in 3..=7 {
        trap::handle(class << 4 | 1, note as trap::Handler);
    }
    reset_state();
    apic::enable();
    registers();
    destinations();
    common();
    errors();
    relocated();
    disabled();
    x2apic();
    destinations();
    common();
    x2apic_faults();
}

fn trace(what: u64) {
    TRACE.set(TRACE.get() << 4 | what);
}

fn note(frame: &mut Frame) {
    let class = frame.vector >> 4;
    trace(class);
    check!(apic::in_service(frame.vector as u8), "vector {:#x} is in service", frame.vector);
    check_eq!(apic::read(PPR) & 0xf0, (class as u32) << 4, "PPR in the handler");
    trace(0xf);
    apic::eoi();
    check!(!apic::in_service(frame.vector as u8), "vector {:#x} after EOI", frame.vector);
}

/// Takes pending interrupts; gives the trace of the handlers.
fn taken() -> u64 {
    TRACE.set(0);
    cpu::take_interrupts();
    TRACE.get()
}

/// Sections 12.4.7.1 and 12.4.8. The loader has set up a virtual wire, which leaves LINT0 and SVR as firmware would.
fn reset_state() {
    check_eq!(apic::read(VERSION) & 0xff, 0x14, "version");
    check!(apic::read(VERSION) >> 16 & 0xff >= 5, "LVT entries");
    check_eq!(apic::read(ID) >> 24, cpu::cpuid(1, 0)[1] >> 24, "APIC id");
    check_eq!(apic::read(DFR), ONES, "DFR");
    check_eq!((apic::read(TPR), apic::read(PPR), apic::read(LDR)), (0, 0, 0), "TPR, PPR, LDR");
    check_eq!(apic::read(LVT_TIMER), MASKED, "LVT timer");
    check_eq!(cpu::rdmsr(BASE_MSR), PAGE as u64 | ENABLE | 1 << 8, "IA32_APIC_BASE");
}

fn registers() {
    apic::write(TPR, 0x45);
    check_eq!((apic::read(TPR), cpu::cr8()), (0x45, 4), "TPR and CR8 after a write to TPR");
    cpu::set_cr8(9);
    check_eq!((apic::read(TPR), apic::read(PPR), cpu::cr8()), (0x90, 0x90, 9), "TPR, PPR, CR8 after CR8");
    match cpu::try_set_cr8(16) {
        Err(trap) => check_eq!((trap.vector, trap.error), (GP, 0), "CR8 of 16"),
        Ok(()) => say!("skipped: this CPU takes reserved bits of CR8"),
    }
    cpu::set_cr8(0);
    apic::write(LDR, ONES);
    check_eq!(apic::read(LDR), 0xff00_0000, "LDR");
    apic::write(DFR, 0x0fff_ffff & 0x1234_5678);
    check_eq!(apic::read(DFR), 0x1fff_ffff & 0x0fff_ffff, "DFR: 28 ones");
    apic::write(DFR, ONES);
    check_eq!(apic::read(ISR), 0, "ISR");
    // Registers are 32 bits at multiples of 16; what is between them is undefined but harmless.
    let _ = cpu::read32(PAGE + 0x24);
    let _ = apic::read(APR);
}

fn pending(what: &str, destination: u32, command: u32, expected: bool) {
    apic::send(destination, command | ASSERT | 0x41);
    check_eq!(apic::requested(0x41), expected, "IPI {}: requested", what);
    check_eq!(taken(), if expected { 0x4f } else { 0 }, "IPI {}: handlers", what);
    check!(!apic::requested(0x41), "IPI {}: still requested", what);
}

/// Section 12.6: every way to address this only CPU, and ways to miss it.
fn destinations() {
    let id = cpu::cpuid(1, 0)[1] >> 24;
    pending("by id", id, 0, true);
    pending("to another id", id ^ 0x55, 0, false);
    pending("to self", 0, SELF, true);
    pending("to all", 0, ALL, true);
    pending("to others", 0, OTHERS, false);
    pending("lowest priority by id", id, LOWEST, true);
    if apic::is_x2() {
        let logical = id >> 4 << 16 | 1 << (id & 15);
        check_eq!(apic::read(LDR), logical, "x2APIC LDR");
        pending("broadcast", ONES, 0, true);
        pending("logical", logical, LOGICAL, true);
        pending("logical, several", logical | 0xffff, LOGICAL, true);
        pending("logical, another bit", logical ^ 3, LOGICAL, false);
        pending("logical, another cluster", logical | 0x10_0000, LOGICAL, false);
        return;
    }
    pending("broadcast", 0xff, 0, true);
    apic::write(LDR, 0x2400_0000);
    pending("flat", 0x20, LOGICAL, true);
    pending("flat, several", 0xff, LOGICAL, true);
    pending("flat, lowest priority", 0x0f, LOGICAL | LOWEST, true);
    pending("flat, other bits", 0xdb, LOGICAL, false);
    apic::write(DFR, 0x0fff_ffff);
    pending("cluster", 0x24, LOGICAL, true);
    pending("cluster, several", 0x2f, LOGICAL, true);
    pending("all clusters", 0xff, LOGICAL, true);
    pending("another cluster", 0x14, LOGICAL, false);
    pending("cluster, another bit", 0x2b, LOGICAL, false);
    apic::write(DFR, ONES);
    apic::write(LDR, 0);
}

fn common() {
    held_back();
    priorities();
    nesting();
    if number("nmis", 1) != 0 {
        nmis();
        nmi_return_faults();
        nmi_behind_a_step();
    }
}

fn to_self(vector: u8) {
    apic::send(0, SELF | ASSERT | u32::from(vector));
}

/// What is requested waits for as long as interrupts are off, whatever happens to the machine meanwhile: here the host is
/// interrupted for the sake of this guest's own timer. `held-back=0` leaves it out, for a Bochs that delivers interrupts out
/// of a virtual local APIC: it does so then.
fn held_back() {
    if number("held-back", 1) == 0 {
        return;
    }
    // From CLI to the end nothing exits but for the host's sake.
    let (x2, millisecond) = (apic::is_x2(), time::tsc_hz() / 1000);
    apic::write(LVT_TIMER, 0x51);
    apic::write(apic::register::DIVIDE, 0xb);
    apic::write(apic::register::INITIAL_COUNT, (time::apic_hz() / 2000) as u32);
    cpu::sti();
    let _ = cpu::cpuid(0, 0);
    cpu::cli();
    // Where others had their turns, the timer has come already.
    TRACE.set(0);
    if x2 {
        cpu::wrmsr(0x83f, 0x41);
    } else {
        cpu::write32(PAGE + ICR as usize, SELF | ASSERT | 0x41);
    }
    let end = cpu::tsc() + millisecond;
    while cpu::tsc() < end {}
    check_eq!(TRACE.get(), 0, "interrupts while they are off");
    let order = taken();
    check!(matches!(order, 0x5f4f | 0x4f5f | 0x4f), "interrupts that waited, traced {:#x}", order);
    apic::write(LVT_TIMER, MASKED);
}

/// Section 12.8.3: the highest first; TPR and CR8 hold back their class and what is below.
fn priorities() {
    for vector in [0x41, 0x61, 0x51, 0x41] {
        to_self(vector);
    }
    check_eq!(taken(), 0x6f_5f4f, "three interrupts by priority");
    cpu::set_cr8(5);
    for vector in [0x41, 0x61, 0x51] {
        to_self(vector);
    }
    check_eq!(taken(), 0x6f, "what CR8 of 5 lets through");
    check!(apic::requested(0x51) && apic::requested(0x41), "what CR8 of 5 holds back");
    apic::write(TPR, 0x4f);
    check_eq!(taken(), 0x5f, "what TPR of 0x4f lets through");
    // Lowering CR8 with interrupts on lets the last one in.
    TRACE.set(0);
    cpu::sti();
    cpu::set_cr8(0);
    cpu::pause();
    cpu::cli();
    check_eq!(TRACE.get(), 0x4f, "what lowering CR8 lets through");
}

/// A higher class interrupts a handler that allows it; a lower or equal one waits for EOI.
fn nesting() {
    trap::handle(
        0x41,
        (|_: &mut Frame| {
            trace(4);
            to_self(0x31);
            to_self(0x61);
            to_self(0x42);
            cpu::take_interrupts();
            check_eq!(apic::read(PPR), 0x40, "PPR after a nested handler");
            trace(0xf);
            apic::eoi();
        }) as trap::Handler,
    );
    trap::handle(
        0x42,
        (|_: &mut Frame| {
            trace(8);
            apic::eoi();
        }) as trap::Handler,
    );
    to_self(0x41);
    check_eq!(taken(), 0x46_ff83f, "handlers nested");
    trap::handle(0x41, note as trap::Handler);
    trap::handle(0x42, None);
}

/// An instruction that is stepped sends an NMI to its own CPU: #DB goes first, and the NMI comes into its handler although
/// that does nothing that a hypervisor would see.
fn nmi_behind_a_step() {
    static SEEN: Shared<bool> = Shared::new(false);
    SEEN.set(false);
    trap::handle(NMI, (|_: &mut Frame| ()) as trap::Handler);
    trap::handle(
        DB,
        (|frame: &mut Frame| {
            // Behind the one instruction of the snippet.
            if frame.rip == run::code_base() as u64 + 2 {
                frame.rflags &= !TRAP_FLAG;
                SEEN.set((0..5_000_000).any(|_| trap::count(NMI) == NMIS.get() + 1));
            }
        }) as trap::Handler,
    );
    NMIS.set(trap::count(NMI));
    let command = u64::from(SELF | ASSERT | NMI_MODE);
    let number = 0x800 + u64::from(ICR) / 16;
    let rdi = (PAGE + ICR as usize) as u64;
    let mut regs = Regs { rax: command, rcx: number, rdi, rflags: 2 | TRAP_FLAG, ..Regs::default() };
    // WRMSR; MOV [RDI], EAX.
    let code: [u8; 2] = if apic::is_x2() { [0x0f, 0x30] } else { [0x89, 0x07] };
    check!(run(&code, &mut regs).is_ok(), "an NMI to itself, stepped");
    check!(SEEN.get(), "the NMI behind a step comes while its handler runs");
    check_eq!(trap::count(NMI), NMIS.get() + 1, "NMIs behind a step");
    trap::handle(DB, None);
    trap::handle(NMI, None);
}

/// An NMI comes with interrupts off; another one waits for IRET, and several become one (section 7.7.1).
fn nmis() {
    static DEPTH: Shared<u64> = Shared::new(0);
    trap::handle(
        NMI,
        (|_: &mut Frame| {
            check_eq!(DEPTH.bump(), 0, "NMIs nested");
            trace(2);
            if TRACE.get() == 2 {
                apic::send(0, ASSERT | NMI_MODE);
                apic::send(0, ASSERT | NMI_MODE);
                // Other exits in between change nothing.
                let _ = cpu::cpuid(0, 0);
            }
            trace(0xf);
            DEPTH.set(0);
        }) as trap::Handler,
    );
    TRACE.set(0);
    apic::send(0, ASSERT | NMI_MODE);
    let _ = cpu::cpuid(0, 0);
    check_eq!(TRACE.get(), 0x2f2f, "an NMI and those sent from its handler");
    // After all that, interrupts work as before.
    to_self(0x51);
    check_eq!(taken(), 0x5f, "an interrupt after NMIs");
    trap::handle(NMI, None);
}

/// An NMI waits while its handler's IRET faults: the frames show nothing of how it was waited for, and it comes at the
/// fault, which has ended the blocking (section 7.7.1).
fn nmi_return_faults() {
    /// Beyond the GDT.
    const NO_SELECTOR: u64 = 0xfff8;
    static CODE: Shared<u64> = Shared::new(0);
    trap::handle(
        NMI,
        (|frame: &mut Frame| {
            check_eq!(frame.rflags & TRAP_FLAG, 0, "TF in an NMI's frame");
            trace(2);
            if TRACE.get() == 2 {
                CODE.set(frame.cs);
                frame.cs = NO_SELECTOR;
                apic::send(0, ASSERT | NMI_MODE);
            }
        }) as trap::Handler,
    );
    trap::handle(
        GP,
        (|frame: &mut Frame| {
            check_eq!((frame.error, frame.rflags & TRAP_FLAG), (NO_SELECTOR, 0), "the frame of IRET's #GP");
            // The stack at the IRET: RIP, then CS.
            cpu::write64(frame.rsp as usize + 8, CODE.get());
            trace(1);
        }) as trap::Handler,
    );
    TRACE.set(0);
    apic::send(0, ASSERT | NMI_MODE);
    let _ = cpu::cpuid(0, 0);
    check!(
        matches!(TRACE.get(), 0x212 | 0x221),
        "an NMI, and at its IRET #GP and another, traced {:#x}",
        TRACE.get()
    );
    trap::handle(NMI, None);
    trap::handle(GP, None);
}

/// Section 12.5.3: illegal vectors and registers, and the error interrupt.
fn errors() {
    let _ = cpu::read32(PAGE + 0x40);
    apic::write(ESR, 0);
    check_eq!(apic::read(ESR), 1 << 7, "ESR: illegal register address");
    apic::write(ESR, 0);
    check_eq!(apic::read(ESR), 0, "ESR is cleared by a second write");
    apic::write(LVT_ERROR, 0x71);
    apic::send(0, SELF | ASSERT | 5);
    check_eq!(taken(), 0x7f, "the error interrupt");
    apic::write(ESR, 0);
    check_eq!(apic::read(ESR) & 1 << 5, 1 << 5, "ESR: send illegal vector");
    apic::write(LVT_TIMER, 5);
    apic::write(apic::register::INITIAL_COUNT, 1);
    apic::write(LVT_ERROR, MASKED);
    apic::write(LVT_TIMER, MASKED);
    apic::write(ESR, 0);
    cpu::take_interrupts();
    // Software-disabled: entries are masked and stay so; fixed interrupts are not taken, what is pending stays.
    apic::write(LVT_LINT0, 0x51);
    apic::write(SVR, 0xff);
    check_eq!(apic::read(LVT_LINT0), MASKED | 0x51, "LINT0 while disabled by software");
    apic::write(LVT_LINT0, 0x51);
    check_eq!(apic::read(LVT_LINT0), MASKED | 0x51, "LINT0 written while disabled by software");
    pending("while disabled by software", 0, 0, false);
    apic::enable();
    apic::write(LVT_LINT0, MASKED);
}

/// Section 12.4.5.
fn relocated() {
    for page in [0xfee1_0000, 0xd000_0000usize] {
        cpu::wrmsr(BASE_MSR, page as u64 | ENABLE | 1 << 8);
        check_eq!(cpu::read32(PAGE + 0x30), ONES, "where the APIC was");
        check_eq!(cpu::read32(page + 0x30) & 0xff, 0x14, "version at {:#x}", page);
        cpu::write32(page + ICR as usize, SELF | ASSERT | 0x41);
        check_eq!(cpu::read32(page + 0x220) & 2, 2, "IRR at {:#x}", page);
        cpu::wrmsr(BASE_MSR, PAGE as u64 | ENABLE | 1 << 8);
        check_eq!(taken(), 0x4f, "the interrupt sent at {:#x}", page);
        check_eq!(cpu::read32(page + 0x30), ONES, "where the APIC was");
    }
}

/// Section 12.4.3: hidden while disabled, and reset.
fn disabled() {
    cpu::wrmsr(BASE_MSR, PAGE as u64 | 1 << 8);
    check_eq!(cpu::read32(PAGE + 0x30), ONES, "the page of a disabled APIC");
    check_eq!(cpu::cpuid(1, 0)[3] & 1 << 9, 0, "CPUID's APIC bit while disabled");
    let into_x2 = cpu::try_wrmsr(BASE_MSR, PAGE as u64 | ENABLE | X2APIC | 1 << 8);
    check_eq!(into_x2.map_err(|trap| trap.vector), Err(GP), "from disabled to x2APIC");
    let x2_alone = cpu::try_wrmsr(BASE_MSR, PAGE as u64 | X2APIC | 1 << 8);
    check_eq!(x2_alone.map_err(|trap| trap.vector), Err(GP), "x2APIC without enable");
    cpu::wrmsr(BASE_MSR, PAGE as u64 | ENABLE | 1 << 8);
    check_eq!(apic::read(SVR), 0xff, "SVR after disabling");
    check_eq!(apic::read(LVT_LINT0), MASKED, "LINT0 after disabling");
    check!(cpu::cpuid(1, 0)[3] & 1 << 9 != 0, "CPUID's APIC bit");
    apic::enable();
    pending("after disabling", 0, SELF, true);
}

/// Section 12.12.
fn x2apic() {
    check!(cpu::cpuid(1, 0)[2] & 1 << 21 != 0, "x2APIC is announced");
    apic::enable_x2();
    check_eq!(cpu::read32(PAGE + 0x30), ONES, "the page in x2APIC mode");
    check_eq!(cpu::rdmsr(0x802), u64::from(cpu::cpuid(0xb, 0)[3]), "x2APIC id");
    cpu::wrmsr(0x83f, 0x51);
    check_eq!(taken(), 0x5f, "SELF IPI register");
    cpu::wrmsr(0x830, u64::from(SELF | 0x41));
    check_eq!(cpu::rdmsr(0x830), u64::from(SELF | 0x41), "ICR reads as it was written");
    check_eq!(taken(), 0x4f, "ICR");
}

fn x2apic_faults() {
    let gp = |what: &str, result: Result<(), trap::Trap>| {
        check_eq!(result.map_err(|trap| (trap.vector, trap.error)), Err((GP, 0)), "x2APIC: {}", what);
    };
    for register in [0x80e, 0x831, 0x801, 0x80b, 0x83f, 0x8ff] {
        gp("read of a register that is not there or not readable", cpu::try_rdmsr(register).map(|_| ()));
    }
    gp("write of the id", cpu::try_wrmsr(0x802, 0));
    gp("write of LDR", cpu::try_wrmsr(0x80d, 1));
    gp("EOI of 1", cpu::try_wrmsr(0x80b, 1));
    gp("TPR of 0x100", cpu::try_wrmsr(0x808, 0x100));
    gp("ICR with reserved bits", cpu::try_wrmsr(0x830, 1 << 20 | 0x41));
    gp("SELF IPI with reserved bits", cpu::try_wrmsr(0x83f, 0x141));
    gp("straight back to xAPIC", cpu::try_wrmsr(BASE_MSR, PAGE as u64 | ENABLE | 1 << 8));
    gp("a reserved bit of the base", cpu::try_wrmsr(BASE_MSR, PAGE as u64 | ENABLE | X2APIC | 1 << 9));
}
