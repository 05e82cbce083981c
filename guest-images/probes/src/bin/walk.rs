//! Exits one by one: for each kind a line `walk: NAME`, then exits of that kind until a byte comes in on COM1. Meanwhile
//! `cargo xtask bench --walk` has QEMU note what Caisson executes between two entries. Hypercalls are AMD-V's.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::{arch::asm, hint::black_box};

use caisson_probes::{Shared, apic, cpu, probe, trap, write_serial};

probe!("walk", run);

const TIMER: u8 = 0x40;
/// Caisson's hypercall that tells its version.
const VERSION: u64 = 0x4341_4953_0000_0000;
/// The end-of-interrupt register in x2APIC mode.
const EOI: u32 = 0x80b;
const COM1: u16 = 0x3f8;
/// Line status: a byte has come in.
const RECEIVED: u8 = 1;

/// Exits between two looks at COM1, each of which is an exit itself.
const BETWEEN_LOOKS: usize = 16;

/// Ticks until the timer is due: Caisson and the guest are done with arming it by then.
const DELAY: u64 = 20_000;

static WOKEN: Shared<bool> = Shared::new(false);

fn run() {
    repeat("mmio", || _ = cpu::read32(apic::PAGE + 0x30));
    apic::enable_x2();
    repeat("cpuid", || _ = cpu::cpuid(0, 0));
    repeat("hypercall", || {
        // SAFETY: Caisson's call that tells its version has no arguments and writes no memory.
        unsafe { asm!("vmmcall", inout("rax") VERSION => _, options(nomem, nostack)) };
    });
    repeat("port", || {
        // SAFETY: reads the mask of the first 8259, which has no side effects.
        unsafe { asm!("in al, 0x21", out("al") _, options(nomem, nostack)) };
    });
    repeat("msr", || _ = cpu::rdmsr(apic::BASE_MSR));

    let woken = |_: &mut trap::Frame| {
        WOKEN.set(true);
        cpu::wrmsr(EOI, 0);
    };
    trap::handle(TIMER, woken as trap::Handler);
    apic::write(apic::register::LVT_TIMER, apic::DEADLINE | u32::from(TIMER));
    repeat("wake-up", || until_woken(cpu::sti_hlt));
    repeat("timer", || {
        until_woken(|| {
            cpu::sti();
            while !WOKEN.get() {}
        });
    });
}

/// Arms the timer, and does what `wait` does until it has woken this vCPU.
fn until_woken(wait: fn()) {
    WOKEN.set(false);
    cpu::wrmsr(apic::TSC_DEADLINE, cpu::tsc() + DELAY);
    while !WOKEN.get() {
        wait();
        cpu::cli();
    }
}

/// Executes `exit` until told to stop.
fn repeat(name: &str, exit: fn()) {
    write_serial(format_args!("walk: {name}\n"));
    // Each exit is to leave from the same address.
    let exit = black_box(exit);
    while cpu::inb(COM1 + 5) & RECEIVED == 0 {
        (0..BETWEEN_LOOKS).for_each(|_| exit());
    }
    let _ = cpu::inb(COM1);
}
