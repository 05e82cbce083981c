//! A guest that never gives the CPU up: interrupts off for `ms=N` milliseconds, in which it does nothing but leave to the
//! hypervisor by one way after another, or never leave at all.

#![no_std]
#![no_main]

use caisson_probes::apic::{self, register::VERSION};
use caisson_probes::{Regs, check, cpu, number, probe, run, say, time};

probe!("spin", run_probe);

/// The ways, each for the same part of the time.
const WAYS: &[fn() -> bool] = &[
    || true,
    || cpu::cpuid(0, 0)[0] != 0,
    || cpu::inb(0x80) == 0,
    || cpu::rdmsr(apic::BASE_MSR) != 0,
    || apic::read(VERSION) != 0,
    || cpu::try_rdmsr(0xdead).is_err(),
    hypercall,
];

/// The hypercall that nobody has, by the instruction of the CPU's vendor.
fn hypercall() -> bool {
    let regs = Regs { rax: 99, ..Regs::default() };
    [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]].iter().any(|code| run(code, &mut regs.clone()).is_ok())
}

fn run_probe() {
    let milliseconds = number("ms", 1000);
    let part = time::tsc_hz() * milliseconds / 1000 / WAYS.len() as u64;
    let mut end = cpu::tsc();
    for way in WAYS {
        end += part;
        while cpu::tsc() < end {
            check!(way(), "what is always there");
        }
    }
    say!("{} ms without a pause", milliseconds);
}
