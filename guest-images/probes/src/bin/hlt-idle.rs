//! Waiting: HLT ends with the timer's interrupt, with an NMI while interrupts are off, and at once when an interrupt is
//! pending already (STI's shadow makes STI; HLT one step: SDM vol. 2, "STI"); PAUSE and the absence of MWAIT.

#![no_std]
#![no_main]

use caisson_probes::apic::{self, DEADLINE, TSC_DEADLINE, register::LVT_TIMER};
use caisson_probes::trap::vector::{NMI, UD};
use caisson_probes::{Frame, Regs, Shared, check, check_eq, cpu, probe, random::Random, run, time, trap};

probe!("hlt-idle", run_probe);

const VECTOR: u8 = 0x40;

/// RIP in the last interrupt's frame.
static RETURN: Shared<u64> = Shared::new(0);

fn run_probe() {
    trap::handle(
        VECTOR,
        (|frame: &mut Frame| {
            RETURN.set(frame.rip);
            check!(frame.rip as usize != run::code_base() + 1, "no interrupt between STI and HLT");
            apic::eoi();
        }) as trap::Handler,
    );
    apic::enable_x2();
    apic::write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    wakes();
    races();
    nmi();
    pauses();
    check!(cpu::cpuid(1, 0)[2] & 1 << 3 == 0, "MONITOR is not announced");
    let mwait = run(&[0x0f, 0x01, 0xc9], &mut Regs::default());
    check_eq!(mwait.map_err(|trap| trap.vector), Err(UD), "MWAIT");
}

/// STI; HLT; CLI: the interrupt returns to CLI, whose address this is.
const STI_HLT: [u8; 3] = [0xfb, 0xf4, 0xfa];

fn sti_hlt() {
    let before = trap::count(VECTOR);
    check!(run(&STI_HLT, &mut Regs::default()).is_ok(), "STI; HLT");
    check_eq!(trap::count(VECTOR), before + 1, "interrupts that ended HLT");
    check_eq!(RETURN.get() as usize - run::code_base(), 2, "where HLT's interrupt returns to");
}

/// Sleeps as long as the timer says.
fn wakes() {
    for milliseconds in [1, 10, 30] {
        let due = cpu::tsc() + milliseconds * time::tsc_hz() / 1000;
        cpu::wrmsr(TSC_DEADLINE, due);
        sti_hlt();
        check!(cpu::tsc() >= due, "HLT lasts {} ms", milliseconds);
    }
}

/// Interrupts that come before, at and after STI and HLT: none is lost.
fn races() {
    let mut random = Random::new(1);
    for _ in 0..300 {
        cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + random.below(200_000));
        for _ in 0..random.below(300) {
            cpu::pause();
        }
        sti_hlt();
    }
    // Pending for certain.
    for _ in 0..100 {
        apic::send(0, 0x4_4000 | u32::from(VECTOR));
        check!(apic::requested(VECTOR), "a self-IPI is requested while interrupts are off");
        sti_hlt();
    }
}

/// The 8254 through the I/O APIC as NMI ends a HLT with interrupts off.
fn nmi() {
    trap::handle(NMI, (|frame: &mut Frame| RETURN.set(frame.rip)) as trap::Handler);
    apic::io_route(2, 0, 0x400);
    // Counter 0, mode 0: 20 ms.
    let count = (1_193_182u32 / 50) as u16;
    cpu::outb(0x43, 0x30);
    cpu::outb(0x40, count as u8);
    cpu::outb(0x40, (count >> 8) as u8);
    let before = trap::count(NMI);
    check!(run(&[0xfa, 0xf4, 0x90], &mut Regs::default()).is_ok(), "CLI; HLT");
    check_eq!(trap::count(NMI), before + 1, "NMIs that ended HLT");
    check_eq!(RETURN.get() as usize - run::code_base(), 2, "where the NMI returns to");
    apic::io_route(2, 0, 1 << 16);
}

/// Spinning with PAUSE ends, and time goes on meanwhile.
fn pauses() {
    let start = cpu::tsc();
    // MOV ECX,100000; PAUSE; LOOP
    let code = [0xb9, 0xa0, 0x86, 0x01, 0x00, 0xf3, 0x90, 0xe2, 0xfc];
    let mut regs = Regs::default();
    check!(run(&code, &mut regs).is_ok(), "PAUSE");
    check_eq!(regs.rcx, 0, "PAUSEs left");
    check!(cpu::tsc() > start + 100_000, "the TSC counts during PAUSE");
}
