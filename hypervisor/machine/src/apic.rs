//! This CPU's local APIC, in either mode (SDM vol. 3, chapter 12).

use caisson_types::Hpa;
use caisson_x86::msr;
use spin::Once;

use crate::cpu::{self, Features, read_msr, write_msr};
use crate::device::Registers;
use crate::trap;

/// Registers, by their xAPIC offset; the x2APIC MSR is 0x800 + offset / 16.
mod register {
    pub(super) const ID: u32 = 0x20;
    pub(super) const VERSION: u32 = 0x30;
    pub(super) const TASK_PRIORITY: u32 = 0x80;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const SPURIOUS: u32 = 0xf0;
    pub(super) const COMMAND: u32 = 0x300;
    pub(super) const COMMAND_HIGH: u32 = 0x310;
    pub(super) const LVT_TIMER: u32 = 0x320;
    pub(super) const LVT_THERMAL: u32 = 0x330;
    pub(super) const LVT_COUNTERS: u32 = 0x340;
    pub(super) const LVT_LINT0: u32 = 0x350;
    pub(super) const LVT_LINT1: u32 = 0x360;
    pub(super) const LVT_ERROR: u32 = 0x370;
    pub(super) const INITIAL_COUNT: u32 = 0x380;
    pub(super) const CURRENT_COUNT: u32 = 0x390;
    pub(super) const DIVIDE: u32 = 0x3e0;
}

const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// Words of the interrupt command register (SDM vol. 3, figure 12-12).
mod command {
    pub(super) const NMI: u32 = 4 << 8;
    pub(super) const INIT: u32 = 5 << 8;
    pub(super) const START_UP: u32 = 6 << 8;
    pub(super) const PENDING: u32 = 1 << 12;
    pub(super) const ASSERT: u32 = 1 << 14;
    pub(super) const ALL_BUT_SELF: u32 = 3 << 18;
}
/// The highest id that an xAPIC can name; 255 is everybody.
const LAST_XAPIC_ID: u32 = 254;

/// How the local APICs are reached: the same way on every CPU.
enum Access {
    Memory(Registers),
    Msr,
}

static ACCESS: Once<Access> = Once::new();

impl Access {
    #[inline]
    fn read(&self, register: u32) -> u32 {
        match self {
            Self::Memory(registers) => registers.read32(u64::from(register)),
            // SAFETY: x2APIC mode is on; reading these registers has no side effect.
            Self::Msr => unsafe { read_msr(msr::X2APIC_FIRST + register / 16) as u32 },
        }
    }

    #[inline]
    fn write(&self, register: u32, value: u32) {
        match self {
            Self::Memory(registers) => registers.write32(u64::from(register), value),
            // SAFETY: x2APIC mode is on; the local APIC is Caisson's alone.
            Self::Msr => unsafe { write_msr(msr::X2APIC_FIRST + register / 16, u64::from(value)) },
        }
    }
}

#[inline]
fn access() -> &'static Access {
    // SAFETY: `init` runs before interrupts are possible and before any timer is armed.
    unsafe { ACCESS.get_unchecked() }
}

/// Turns this CPU's local APIC on: x2APIC mode where the firmware left it on or the CPU has it, everything masked but
/// NMIs, the timer in one-shot mode. `None` when its registers cannot be mapped.
///
/// # Safety
/// Once on each CPU, with interrupts off.
#[must_use]
pub unsafe fn init(features: &Features) -> Option<()> {
    // SAFETY: every CPU of the last twenty years has the MSR.
    let base = unsafe { read_msr(msr::APIC_BASE) };
    let mode = if features.x2apic { msr::APIC_BASE_X2APIC } else { 0 };
    // SAFETY: enabling the APIC in the mode that CPUID announces; xAPIC to x2APIC is a legal transition.
    unsafe {
        write_msr(msr::APIC_BASE, base | msr::APIC_BASE_ENABLE);
        write_msr(msr::APIC_BASE, base | msr::APIC_BASE_ENABLE | mode);
    }
    if ACCESS.get().is_none() {
        // The boot CPU; the others do as it does.
        let access = if features.x2apic {
            Access::Msr
        } else {
            // SAFETY: the APIC's registers are there, and Caisson's.
            Access::Memory(unsafe { Registers::map(Hpa::new(base & 0x000f_ffff_ffff_f000), 4096)? })
        };
        ACCESS.call_once(|| access);
        crate::percpu::current().set_apic_id(id());
    }
    let apic = access();
    // The number of the last LVT entry: the counters' is there from 4 on, the thermal sensor's from 5 (SDM vol. 3,
    // section 12.4.8). In x2APIC mode a write to one that is not there faults.
    let last_lvt = apic.read(register::VERSION) >> 16 & 0xff;
    for (lvt, number) in [
        (register::LVT_LINT0, 0),
        (register::LVT_ERROR, 0),
        (register::LVT_COUNTERS, 4),
        (register::LVT_THERMAL, 5),
    ] {
        if last_lvt >= number {
            apic.write(lvt, MASKED);
        }
    }
    apic.write(register::LVT_LINT1, DELIVER_NMI);
    apic.write(register::TASK_PRIORITY, 0);
    apic.write(register::SPURIOUS, SOFTWARE_ENABLE | u32::from(trap::APIC_SPURIOUS));
    apic.write(register::DIVIDE, DIVIDE_BY_1);
    apic.write(register::LVT_TIMER, u32::from(trap::TIMER));
    apic.write(register::INITIAL_COUNT, 0);
    Some(())
}

/// This CPU's local APIC id.
#[must_use]
pub fn id() -> u32 {
    match access() {
        Access::Memory(_) => access().read(register::ID) >> 24,
        Access::Msr => access().read(register::ID),
    }
}

/// Sends `word` to the CPU whose local APIC has this id. Interrupts are off, so that nobody comes in between.
fn send(apic_id: u32, word: u32) {
    let word = word | command::ASSERT;
    match access() {
        Access::Memory(registers) => {
            // One command at a time: the last one must have left (SDM vol. 3, section 12.6.1).
            let _ = cpu::wait_until(cpu::PATIENCE, || {
                registers.read32(u64::from(register::COMMAND)) & command::PENDING == 0
            });
            registers.write32(u64::from(register::COMMAND_HIGH), apic_id << 24);
            registers.write32(u64::from(register::COMMAND), word);
        }
        Access::Msr => {
            let command = u64::from(apic_id) << 32 | u64::from(word);
            // WRMSR of x2APIC registers is not ordered behind earlier stores, which the receiver is to see (SDM vol. 3,
            // section 12.12.3).
            // SAFETY: x2APIC mode is on; the local APIC is Caisson's alone. The fences have no other effect.
            unsafe {
                core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
                write_msr(msr::X2APIC_FIRST + register::COMMAND / 16, command);
            }
        }
    }
}

/// Interrupts the CPU whose local APIC has this id with `vector`.
#[inline]
pub(crate) fn send_interrupt(apic_id: u32, vector: u8) {
    send(apic_id, u32::from(vector));
}

/// Resets a CPU, which then waits for [`send_start_up`].
pub(crate) fn send_init(apic_id: u32) {
    send(apic_id, command::INIT);
}

/// Has a CPU that waits for it start at `page` * 4096 in real mode.
pub(crate) fn send_start_up(apic_id: u32, page: u8) {
    send(apic_id, command::START_UP | u32::from(page));
}

/// Has all other CPUs take an NMI, whatever they are at.
pub(crate) fn stop_others() {
    if ACCESS.get().is_some() && crate::percpu::count() > 1 {
        send(0, command::NMI | command::ALL_BUT_SELF);
    }
}

/// Whether a CPU of this id can be interrupted in the mode that the APICs are in.
pub(crate) fn reaches(apic_id: u32) -> bool {
    is_x2apic() || apic_id <= LAST_XAPIC_ID
}

/// Ends the interrupt in service.
#[inline]
pub fn end_of_interrupt() {
    access().write(register::EOI, 0);
}

/// Fires [`trap::TIMER`] after `ticks` of the APIC's clock; 0 disarms.
#[inline]
pub fn arm_timer(ticks: u32) {
    access().write(register::INITIAL_COUNT, ticks);
}

/// Ticks until the timer fires.
#[must_use]
pub fn timer_left() -> u32 {
    access().read(register::CURRENT_COUNT)
}

/// Masks or opens the timer's interrupt, for calibration.
pub(crate) fn mask_timer(masked: bool) {
    access().write(register::LVT_TIMER, u32::from(trap::TIMER) | if masked { MASKED } else { 0 });
}

/// Whether this CPU is in x2APIC mode.
#[must_use]
pub fn is_x2apic() -> bool {
    matches!(access(), Access::Msr)
}

/// Whether the CPU has a local APIC at all.
#[must_use]
pub fn is_present() -> bool {
    cpu::cpuid(1, 0).edx & 1 << 9 != 0
}
