//! The local APIC, in either of its modes (SDM vol. 3, chapter 12), and the I/O APIC.

use crate::cpu;

/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
/// Its enable bit.
pub const ENABLE: u64 = 1 << 11;
/// Its x2APIC bit.
pub const X2APIC: u64 = 1 << 10;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Where the xAPIC's page is after reset.
pub const PAGE: usize = 0xfee0_0000;
/// The I/O APIC's page.
pub const IOAPIC: usize = 0xfec0_0000;

/// Registers, by their offset in the page; MSR 0x800 + offset / 16 in x2APIC mode.
#[allow(missing_docs)]
pub mod register {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const APR: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}
use register::{EOI, ICR, ICR_HIGH, IRR, ISR, SVR};

/// Masked local vector table entry.
pub const MASKED: u32 = 1 << 16;
/// Periodic timer.
pub const PERIODIC: u32 = 1 << 17;
/// TSC-deadline timer.
pub const DEADLINE: u32 = 1 << 18;

/// Whether it is in x2APIC mode.
#[must_use]
pub fn is_x2() -> bool {
    cpu::rdmsr(BASE_MSR) & X2APIC != 0
}

/// Reads a register.
#[must_use]
pub fn read(register: u32) -> u32 {
    if is_x2() { cpu::rdmsr(0x800 + register / 16) as u32 } else { cpu::read32(PAGE + register as usize) }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    if is_x2() {
        cpu::wrmsr(0x800 + register / 16, value.into());
    } else {
        cpu::write32(PAGE + register as usize, value);
    }
}

/// Ends the interrupt in service.
pub fn eoi() {
    write(EOI, 0);
}

/// A handler that only ends the interrupt: it is counted by the runtime.
pub fn count_and_eoi(_: &mut crate::Frame) {
    eoi();
}

/// Software-enables it, with 0xff as the spurious vector.
pub fn enable() {
    write(SVR, 0x1ff);
}

/// Puts it into x2APIC mode and software-enables it.
pub fn enable_x2() {
    cpu::wrmsr(BASE_MSR, cpu::rdmsr(BASE_MSR) | ENABLE | X2APIC);
    enable();
}

/// Sends an interrupt; in xAPIC mode the destination is 8 bits wide.
pub fn send(destination: u32, command: u32) {
    if is_x2() {
        cpu::wrmsr(0x800 + ICR / 16, u64::from(destination) << 32 | u64::from(command));
    } else {
        write(ICR_HIGH, destination << 24);
        write(ICR, command);
    }
}

/// Whether a vector is requested.
#[must_use]
pub fn requested(vector: u8) -> bool {
    bit(IRR, vector)
}

/// Whether a vector is in service.
#[must_use]
pub fn in_service(vector: u8) -> bool {
    bit(ISR, vector)
}

/// A bit of one of the 256-bit registers.
#[must_use]
pub fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector >> 5) * 0x10) >> (vector & 31) & 1 != 0
}

/// Reads a register of the I/O APIC.
#[must_use]
pub fn io_read(index: u32) -> u32 {
    cpu::write32(IOAPIC, index);
    cpu::read32(IOAPIC + 0x10)
}

/// Writes a register of the I/O APIC.
pub fn io_write(index: u32, value: u32) {
    cpu::write32(IOAPIC, index);
    cpu::write32(IOAPIC + 0x10, value);
}

/// Sets the redirection entry of a pin.
pub fn io_route(pin: u32, destination: u32, low: u32) {
    io_write(0x11 + 2 * pin, destination << 24);
    io_write(0x10 + 2 * pin, low);
}
