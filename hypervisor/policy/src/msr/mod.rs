//! The MSRs of a virtual CPU: a class for every number, and the registers that are plain storage.
//!
//! [`MsrState::classify`] tells the dispatcher who answers; what is in [`MsrClass::State`] is answered by
//! [`MsrState::read`] and [`MsrState::write`]; numbers that no table names are [`MsrClass::Unknown`] and get #GP, never a
//! silent zero. [`TABLE`] is the policy for people, one row a register, each with its reason; a test holds the two
//! together. [`passthrough`] is what the backend's permission map lets through without an exit.

mod mtrr;
mod state;
mod table;

use caisson_x86::{Efer, msr};

pub use mtrr::Mtrrs;
pub use state::{Effect, MsrSetup, MsrState};
pub use table::{Condition, PASSTHROUGH, PASSTHROUGH_WHERE_CARRIED, Passthrough, Row, TABLE, passthrough};

use crate::{GeneralProtection, Limits};

/// AMD interrupt pending and CMP-halt (Linux's erratum 400 check reads it).
pub const INT_PENDING: u32 = 0xc001_0055;
/// AMD family 10h MMIO configuration base.
pub const MMIO_CONF_BASE: u32 = 0xc001_0058;

/// Who answers for an MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrClass {
    /// The hardware keeps it with the vCPU: `Vcpu::hardware_msr` and `set_hardware_msr`, after [`check_hardware`].
    Hardware,
    /// APIC_BASE: the local APIC.
    ApicBase,
    /// TSC_DEADLINE: the local APIC's timer.
    TscDeadline,
    /// 800H to 8FFH: the local APIC in x2APIC mode.
    X2Apic,
    /// TSC: read as the guest's, written through [`MsrState::write_tsc`].
    Tsc,
    /// EFER: written through [`Limits::check_efer`].
    Efer,
    /// KVM's wall clock: [`crate::pvclock::wall_clock_address`].
    KvmWallClock,
    /// KVM's system time: [`crate::pvclock::enabled_address`].
    KvmSystemTime,
    /// KVM's end of interrupt: [`crate::pvclock::enabled_address`].
    KvmPvEoi,
    /// KVM's stolen time: [`crate::StealTime::from_msr`].
    KvmStealTime,
    /// [`MsrState::read`] and [`MsrState::write`].
    State,
    /// Not there: #GP(0).
    Unknown,
}

/// Checks a value that WRMSR puts into a register of [`MsrClass::Hardware`].
///
/// # Errors
/// A linear address that is not canonical, a bad memory type in PAT, reserved bits.
pub const fn check_hardware(limits: &Limits, number: u32, value: u64) -> Result<(), GeneralProtection> {
    let valid = match number {
        msr::FS_BASE
        | msr::GS_BASE
        | msr::KERNEL_GS_BASE
        | msr::LSTAR
        | msr::CSTAR
        | msr::SYSENTER_ESP
        | msr::SYSENTER_EIP => limits.is_msr_canonical(value),
        msr::PAT => is_pat(value),
        msr::SFMASK | msr::TSC_AUX => value >> 32 == 0,
        msr::SPEC_CTRL => value & !limits.spec_ctrl == 0,
        msr::PRED_CMD => value & !limits.pred_cmd == 0,
        _ => true,
    };
    if valid { Ok(()) } else { Err(GeneralProtection) }
}

/// Whether every entry of a PAT value names a memory type (SDM vol. 3, table 13-11).
#[must_use]
pub const fn is_pat(value: u64) -> bool {
    // Types are 0, 1, 4, 5, 6, 7: three bits, and bit 1 only beside bit 2.
    let reserved = value & 0xf8f8_f8f8_f8f8_f8f8;
    let bit_1 = value >> 1 & 0x0101_0101_0101_0101;
    let bit_2 = value >> 2 & 0x0101_0101_0101_0101;
    reserved == 0 && bit_1 & !bit_2 == 0
}

/// PAT after power-on: WB, WT, UC-, UC, twice.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// EFER after power-on.
pub const EFER_RESET: u64 = Efer::empty().bits();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuidTable;
    use crate::cpuid::tests::{epyc, setup};

    #[test]
    fn pat_types() {
        assert!(is_pat(PAT_RESET) && is_pat(0) && is_pat(0x0706_0504_0100_0706));
        for bad in [2, 3, 8, 0x10, 0x80] {
            assert!(!is_pat(bad) && !is_pat(bad << 56) && !is_pat(PAT_RESET & !0xff00 | bad << 8), "{bad}");
        }
    }

    #[test]
    fn hardware_values_are_checked() {
        let table = CpuidTable::build(&setup(1), epyc);
        let bad = [
            (msr::FS_BASE, 1 << 47),
            (msr::LSTAR, 1 << 63),
            (msr::SYSENTER_EIP, 1 << 48),
            (msr::PAT, 2),
            (msr::SFMASK, 1 << 32),
            (msr::TSC_AUX, 1 << 32),
            (msr::SPEC_CTRL, 1),
            (msr::PRED_CMD, 1),
        ];
        for (number, value) in bad {
            assert!(check_hardware(table.limits(), number, value).is_err(), "{number:#x}");
        }
        assert!(check_hardware(table.limits(), msr::GS_BASE, 0xffff_8000_0000_0000).is_ok());
        assert!(check_hardware(table.limits(), msr::STAR, u64::MAX).is_ok());
    }
}
