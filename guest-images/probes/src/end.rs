//! How a probe ends.

use core::{arch::asm, fmt};

use crate::{cpu, name, serial};

/// PM1a control, SLP_TYP of S5 and SLP_EN (ACPI 6.5, section 4.8.3.2.1).
const PM1A_CONTROL: u16 = 0x604;
const SOFT_OFF: u16 = 5 << 10 | 1 << 13;

/// Prints that the probe has passed and powers the machine off.
pub fn pass() -> ! {
    serial::write(format_args!("probe {}: ok\n", name()));
    cpu::outw(PM1A_CONTROL, SOFT_OFF);
    // The emulator without Caisson has another sleep type.
    cpu::outw(PM1A_CONTROL, 1 << 13);
    fail(file!(), line!(), format_args!("ACPI power-off: expected the end, got the next instruction"))
}

/// Prints what failed and ends the machine by a triple fault.
pub fn fail(file: &str, line: u32, what: fmt::Arguments<'_>) -> ! {
    serial::write(format_args!("probe {}: FAIL {file}:{line} {what}\n", name()));
    triple_fault()
}

/// An exception without an IDT.
pub fn triple_fault() -> ! {
    let idtr = [0u16; 5];
    // SAFETY: the end is what is wanted.
    unsafe { asm!("lidt [{}]", "2: ud2", "jmp 2b", in(reg) &raw const idtr, options(noreturn)) }
}
