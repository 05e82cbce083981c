//! One of many small guests: it says when it came to life, sleeps without a timer's help but for the one that ends it, and
//! turns itself off. `ms=N` is how long it sleeps, counted from its domain's start.
//!
//! It is loaded low, so that a MiB of memory is enough for it.

#![no_std]
#![no_main]

use caisson_probes::apic::{self, DEADLINE, TSC_DEADLINE, register::LVT_TIMER};
use caisson_probes::{check_eq, cpu, number, probe, say, time, trap};

probe!("idle", run_probe);

const VECTOR: u8 = 0x40;

fn run_probe() {
    let start = cpu::tsc();
    say!("{} us after its start", start * 1000 / (time::tsc_hz() / 1000));
    trap::handle(VECTOR, apic::count_and_eoi as trap::Handler);
    apic::enable_x2();
    apic::write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    cpu::wrmsr(TSC_DEADLINE, time::tsc_hz() * number("ms", 100) / 1000);
    cpu::sti_hlt();
    cpu::cli();
    check_eq!(trap::count(VECTOR), 1, "interrupts that ended the sleep");
}
