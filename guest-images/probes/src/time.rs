//! Time by the ACPI PM timer and the TSC.

use crate::cpu;

/// The PM timer's port.
const PM_TIMER: u16 = 0x608;
/// Its frequency in Hz (ACPI 6.5, section 4.8.2.1).
pub const PM_HZ: u64 = 3_579_545;

/// The PM timer: 32 bits.
#[must_use]
pub fn pm_timer() -> u32 {
    cpu::inl(PM_TIMER)
}

/// The frequency of the TSC in Hz, as the hypervisor's timing leaf tells.
#[must_use]
pub fn tsc_hz() -> u64 {
    u64::from(cpu::cpuid(0x4000_0010, 0)[0]) * 1000
}

/// The frequency of the APIC timer's input in Hz, as the hypervisor's timing leaf tells.
#[must_use]
pub fn apic_hz() -> u64 {
    u64::from(cpu::cpuid(0x4000_0010, 0)[1]) * 1000
}

/// The TSC and the PM timer, read as close together as possible.
#[must_use]
pub fn both() -> (u64, u32) {
    // The pair with the shortest time around the PM timer's read is the best.
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = cpu::tsc();
        let pm = pm_timer();
        let after = cpu::tsc();
        if after - before < best.0 {
            best = (after - before, before + (after - before) / 2, pm);
        }
    }
    (best.1, best.2)
}

/// Spins for some microseconds.
pub fn spin(microseconds: u64) {
    let end = cpu::tsc() + tsc_hz() * microseconds / 1_000_000;
    while cpu::tsc() < end {
        cpu::pause();
    }
}

/// Whether `condition` becomes true within some milliseconds, with interrupts on meanwhile. Those of that time have all been taken when
/// it returns `false`, also where other guests ran for the most of it.
pub fn wait(milliseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = cpu::tsc() + tsc_hz() * milliseconds / 1000;
    loop {
        if condition() {
            return true;
        }
        let is_over = cpu::tsc() > end;
        cpu::take_interrupts();
        if is_over {
            return condition();
        }
    }
}
