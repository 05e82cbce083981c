//! Powers the machine off by ACPI (ACPI 6.5, section 4.8.3.2.1): SLP_EN alone or with another sleep type does nothing.

#![no_std]
#![no_main]

use caisson_probes::{check_eq, cpu, probe};

probe!("poweroff", run);

fn run() {
    for sleep_type in [0, 1, 2, 3, 4, 6, 7u16] {
        cpu::outw(0x604, sleep_type << 10 | 1 << 13);
        check_eq!(cpu::inw(0x604), sleep_type << 10, "PM1a control after sleep type {}", sleep_type);
    }
}
