//! The KVM clock (Linux `Documentation/virt/kvm/x86/msr.rst`), of the boot CPU.

use crate::{Shared, check_eq, cpu};

/// MSR_KVM_SYSTEM_TIME_NEW.
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `struct pvclock_vcpu_time_info`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct TimeInfo([u32; 8]);

static TIME: Shared<TimeInfo> = Shared::new(TimeInfo([0; 8]));

/// Has the hypervisor write it; gives what was written into the MSR.
pub fn start() -> u64 {
    let named = TIME.address() as u64 | 1;
    cpu::wrmsr(SYSTEM_TIME, named);
    named
}

/// The structure's version: 0 until it has been written, odd while that is being done.
#[must_use]
pub fn version() -> u32 {
    TIME.get().0[0]
}

/// Whether it says that all CPUs have the same clock.
#[must_use]
pub fn is_stable() -> bool {
    TIME.get().0[7] >> 8 & 1 != 0
}

/// Its nanoseconds when the TSC was `tsc`, by the published formula.
#[must_use]
pub fn at(tsc: u64) -> u64 {
    let TimeInfo([version, _, tsc_low, tsc_high, time_low, time_high, multiplier, flags]) = TIME.get();
    check_eq!(version & 1, 0, "version of the KVM clock");
    let at = u64::from(tsc_high) << 32 | u64::from(tsc_low);
    let base = u64::from(time_high) << 32 | u64::from(time_low);
    let shift = flags as i8;
    let delta = tsc - at;
    let shifted = if shift < 0 { delta >> -shift } else { delta << shift };
    base + ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64
}
