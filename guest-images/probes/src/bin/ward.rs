//! A guest that others control: every 10 ms it looks whether its power button was pressed, whereupon it turns itself off, and
//! whether something was typed, which it tells. It tells as well when the time between two looks was more than a second: it is
//! not to see how long it has been paused.

#![no_std]
#![no_main]

use caisson_probes::apic::{self, DEADLINE, TSC_DEADLINE, register::LVT_TIMER};
use caisson_probes::{check, cpu, kvm_clock, probe, say, time, trap};

probe!("ward", run_probe);

const VECTOR: u8 = 0x40;
/// PM1a events, and of its bits the power button's (ACPI 6.5, section 4.8.3.1.1).
const PM1A_EVENT: u16 = 0x600;
const POWER_BUTTON: u16 = 1 << 8;
const COM1: u16 = 0x3f8;
const DATA_READY: u8 = 1;

fn run_probe() {
    trap::handle(VECTOR, apic::count_and_eoi as trap::Handler);
    apic::enable_x2();
    apic::write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
    kvm_clock::start();
    let second = time::tsc_hz();
    let mut last = cpu::tsc();
    let mut clock = kvm_clock::at(last);
    say!("ready");
    while cpu::inw(PM1A_EVENT) & POWER_BUTTON == 0 {
        cpu::wrmsr(TSC_DEADLINE, last + second / 100);
        cpu::sti_hlt();
        cpu::cli();
        let now = cpu::tsc();
        let at = kvm_clock::at(now);
        check!(now > last && at > clock, "time that goes on");
        if now - last > second || at - clock > 1_000_000_000 {
            say!("{} ms have been skipped", (at - clock) / 1_000_000);
        }
        (last, clock) = (now, at);
        if cpu::inb(COM1 + 5) & DATA_READY != 0 {
            say!("typed {}", char::from(cpu::inb(COM1)));
        }
    }
    say!("power button");
}
