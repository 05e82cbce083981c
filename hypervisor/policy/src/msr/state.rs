//! A vCPU's MSRs that are plain storage or constants.

use caisson_x86::msr;

use super::mtrr::{Mtrrs, is_mtrr};
use super::{INT_PENDING, MMIO_CONF_BASE, MsrClass};
use crate::cpuid::{CpuidTable, Register};
use crate::{GeneralProtection, Paravirt, Vendor};

/// What a vCPU's MSRs are made with; all of it is the same for each vCPU of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MsrSetup {
    /// The paravirtual features that CPUID announces.
    pub paravirt: Paravirt,
    /// The host's BIOS_SIGN_ID (Intel, after CPUID) or patch level (AMD), as RDMSR gives it.
    pub microcode: u64,
    /// The host's ARCH_CAPABILITIES, where it has one.
    pub arch_capabilities: Option<u64>,
    /// LFENCE serialises on the host: DE_CFG bit 1 is set, which Caisson sees to where it can.
    pub lfence_serializes: bool,
    /// SPEC_CTRL and PRED_CMD are carried; as [`crate::HostCaps::spec_ctrl`].
    pub spec_ctrl: bool,
    /// The guest-physical address where RAM below 4 GiB ends and device space starts.
    pub low_memory_end: u64,
    /// The guest-physical address where RAM above 4 GiB ends, or 0.
    pub high_memory_end: u64,
}

/// What a write asks of the vCPU beyond the storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// The vCPU's TSC moves: add this to its offset, modulo 2^64, and bring the timers and clocks that hang on it along.
    AddTscOffset(u64),
}

/// A vCPU's MSRs that are neither in the control block nor a device's.
#[derive(Clone, Copy, Debug)]
pub struct MsrState {
    vendor: Vendor,
    features: Features,
    setup: MsrSetup,
    mtrrs: Mtrrs,
    tsc_adjust: u64,
    fast_strings: bool,
    hwcr: u64,
    nb_cfg: u64,
}

/// What CPUID announces and MSRs come with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Features {
    tsc_adjust: bool,
    mtrr: bool,
    mca: bool,
    pat: bool,
    sep: bool,
    tsc_aux: bool,
    xsaves: bool,
    invariant_tsc: bool,
    arch_capabilities: bool,
    x2apic_timer: bool,
}

/// MISC_ENABLE: fast strings.
const FAST_STRINGS: u64 = 1 << 0;
/// MISC_ENABLE: no branch-trace store, no precise event sampling.
const NO_BTS_NO_PEBS: u64 = 3 << 11;
/// FEATURE_CONTROL: locked, with neither VMX nor SGX on.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// HWCR bits that can be set and have no effect here: TlbCacheDis, FFDIS, IgnneEm, McStatusWrEn.
const HWCR_STORED: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18;
/// HWCR: the TSC counts at the P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// NB_CFG: configuration space above 256 bytes through port CF8H, which Linux turns on.
const NB_CFG_EXT_CF8: u64 = 1 << 46;
/// DE_CFG: LFENCE serialises.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// OSVW: errata that are numbered; erratum 1 (298's and 400's APIC timer) is kept from the guest, like all others.
const OSVW_COUNT: u64 = 5;
/// ARCH_CAPABILITIES bits that tell about the CPU; those that announce an MSR or are about nested guests are left out:
/// RDCL_NO, IBRS_ALL, RSBA, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR,
/// RRSBA, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, RFDS_CLEAR.
const ARCH_CAPABILITIES_SHOWN: u64 = 1 << 0
    | 1 << 1
    | 1 << 2
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 7 << 13
    | 1 << 17
    | 3 << 19
    | 1 << 24
    | 7 << 26;

impl MsrState {
    /// The MSRs of a vCPU as firmware hands them to an operating system.
    #[must_use]
    pub fn new(table: &CpuidTable, setup: &MsrSetup) -> Self {
        let edx = |bit| table.has(1, 0, Register::Edx, bit);
        let features = Features {
            tsc_adjust: table.has(7, 0, Register::Ebx, 1),
            mtrr: edx(12),
            mca: edx(14),
            pat: edx(16),
            sep: edx(11),
            xsaves: table.has(0xd, 1, Register::Eax, 3),
            tsc_aux: table.has(0x8000_0001, 0, Register::Edx, 27) || table.has(7, 0, Register::Ecx, 22),
            invariant_tsc: table.has(0x8000_0007, 0, Register::Edx, 8),
            arch_capabilities: table.has(7, 0, Register::Edx, 29),
            x2apic_timer: table.has(1, 0, Register::Ecx, 24),
        };
        Self {
            vendor: table.vendor(),
            features,
            setup: *setup,
            mtrrs: Mtrrs::firmware(table.limits().physical_bits, setup.low_memory_end),
            tsc_adjust: 0,
            fast_strings: true,
            hwcr: 0,
            nb_cfg: 0,
        }
    }

    /// The MTRRs.
    #[must_use]
    pub const fn mtrrs(&self) -> &Mtrrs {
        &self.mtrrs
    }

    /// What the guest has added to this vCPU's TSC, by TSC or by TSC_ADJUST, modulo 2^64.
    #[inline]
    #[must_use]
    pub const fn tsc_adjust(&self) -> u64 {
        self.tsc_adjust
    }

    /// Who answers for `number` on this vCPU.
    #[inline]
    #[must_use]
    pub const fn classify(&self, number: u32) -> MsrClass {
        let (class, there) = match number {
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => (MsrClass::X2Apic, true),
            msr::TSC_DEADLINE => (MsrClass::TscDeadline, self.features.x2apic_timer),
            msr::APIC_BASE => (MsrClass::ApicBase, true),
            msr::TSC => (MsrClass::Tsc, true),
            msr::EFER => (MsrClass::Efer, true),
            msr::FS_BASE
            | msr::GS_BASE
            | msr::KERNEL_GS_BASE
            | msr::STAR
            | msr::LSTAR
            | msr::CSTAR
            | msr::SFMASK => (MsrClass::Hardware, true),
            msr::SYSENTER_CS | msr::SYSENTER_ESP | msr::SYSENTER_EIP => {
                (MsrClass::Hardware, self.features.sep)
            }
            msr::PAT => (MsrClass::Hardware, self.features.pat),
            msr::TSC_AUX => (MsrClass::Hardware, self.features.tsc_aux),
            msr::SPEC_CTRL | msr::PRED_CMD => (MsrClass::Hardware, self.setup.spec_ctrl),
            msr::KVM_WALL_CLOCK_NEW => (MsrClass::KvmWallClock, self.paravirt(Paravirt::CLOCKSOURCE2)),
            msr::KVM_SYSTEM_TIME_NEW => (MsrClass::KvmSystemTime, self.paravirt(Paravirt::CLOCKSOURCE2)),
            msr::KVM_PV_EOI_EN => (MsrClass::KvmPvEoi, self.paravirt(Paravirt::PV_EOI)),
            msr::KVM_STEAL_TIME => (MsrClass::KvmStealTime, self.paravirt(Paravirt::STEAL_TIME)),
            _ => (MsrClass::State, self.has(number)),
        };
        if there { class } else { MsrClass::Unknown }
    }

    const fn paravirt(&self, feature: Paravirt) -> bool {
        self.setup.paravirt.contains(feature)
    }

    /// Whether `number` is one of the registers kept here.
    const fn has(&self, number: u32) -> bool {
        match number {
            msr::P5_MC_ADDR | msr::P5_MC_TYPE | msr::MCG_CAP | msr::MCG_STATUS => self.features.mca,
            msr::TSC_ADJUST => self.features.tsc_adjust,
            msr::ARCH_CAPABILITIES => self.features.arch_capabilities,
            msr::XSS => self.features.xsaves,
            msr::BIOS_SIGN_ID | msr::DEBUGCTL => true,
            msr::PLATFORM_ID | msr::FEATURE_CONTROL | msr::MISC_ENABLE => {
                matches!(self.vendor, Vendor::Intel)
            }
            msr::SYSCFG
            | msr::HWCR
            | msr::TOP_MEM
            | msr::TOP_MEM2
            | msr::NB_CFG
            | msr::OSVW_ID_LENGTH
            | msr::OSVW_STATUS
            | msr::DE_CFG
            | INT_PENDING
            | MMIO_CONF_BASE => matches!(self.vendor, Vendor::Amd),
            _ => is_mtrr(number) && self.features.mtrr,
        }
    }

    /// RDMSR of a register of [`MsrClass::State`].
    ///
    /// # Errors
    /// It is not one of those that this vCPU has.
    pub fn read(&self, number: u32) -> Result<u64, GeneralProtection> {
        if !self.has(number) {
            return Err(GeneralProtection);
        }
        Ok(match number {
            msr::TSC_ADJUST => self.tsc_adjust,
            msr::ARCH_CAPABILITIES => self.setup.arch_capabilities.unwrap_or(0) & ARCH_CAPABILITIES_SHOWN,
            msr::BIOS_SIGN_ID => self.setup.microcode,
            msr::FEATURE_CONTROL => FEATURE_CONTROL_LOCKED,
            msr::MISC_ENABLE => self.misc_enable(),
            msr::HWCR => self.hwcr(),
            msr::TOP_MEM => self.setup.low_memory_end,
            msr::TOP_MEM2 => self.setup.high_memory_end,
            msr::NB_CFG => self.nb_cfg,
            msr::OSVW_ID_LENGTH => OSVW_COUNT,
            msr::DE_CFG => self.de_cfg(),
            _ if is_mtrr(number) => self.mtrrs.read(number)?,
            // Machine checks, debug control and the rest of AMD's platform registers: nothing there, nothing on.
            _ => 0,
        })
    }

    /// WRMSR of `value` to a register of [`MsrClass::State`].
    ///
    /// # Errors
    /// It is not one of those that this vCPU has, is read-only, or does not take the value.
    pub fn write(&mut self, number: u32, value: u64) -> Result<Effect, GeneralProtection> {
        if !self.has(number) {
            return Err(GeneralProtection);
        }
        match number {
            msr::TSC_ADJUST => {
                let delta = value.wrapping_sub(self.tsc_adjust);
                self.tsc_adjust = value;
                return Ok(Effect::AddTscOffset(delta));
            }
            msr::MISC_ENABLE => {
                accept(value & !FAST_STRINGS == self.misc_enable() & !FAST_STRINGS)?;
                self.fast_strings = value & FAST_STRINGS != 0;
            }
            msr::HWCR => {
                accept(value & !HWCR_STORED == self.hwcr() & !HWCR_STORED)?;
                self.hwcr = value & HWCR_STORED;
            }
            msr::NB_CFG => {
                accept(value & !NB_CFG_EXT_CF8 == 0)?;
                self.nb_cfg = value;
            }
            // The way to read the microcode revision starts with a write of 0, which CPUID then replaces.
            msr::BIOS_SIGN_ID => accept(matches!(self.vendor, Vendor::Intel))?,
            msr::DE_CFG => accept(value == self.de_cfg())?,
            // What reads zero and can be written takes back its zero.
            msr::P5_MC_ADDR
            | msr::P5_MC_TYPE
            | msr::MCG_STATUS
            | msr::DEBUGCTL
            | msr::XSS
            | msr::SYSCFG
            | INT_PENDING
            | MMIO_CONF_BASE => accept(value == 0)?,
            _ if is_mtrr(number) => self.mtrrs.write(number, value)?,
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::None)
    }

    /// WRMSR of `value` to TSC when the guest's TSC reads `now`: both the TSC and TSC_ADJUST move by the difference
    /// (SDM vol. 3, section 19.17.3).
    pub const fn write_tsc(&mut self, now: u64, value: u64) -> Effect {
        let delta = value.wrapping_sub(now);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(delta);
        Effect::AddTscOffset(delta)
    }

    const fn misc_enable(&self) -> u64 {
        NO_BTS_NO_PEBS | if self.fast_strings { FAST_STRINGS } else { 0 }
    }

    const fn hwcr(&self) -> u64 {
        self.hwcr | if self.features.invariant_tsc { HWCR_TSC_FREQ_SEL } else { 0 }
    }

    const fn de_cfg(&self) -> u64 {
        if self.setup.lfence_serializes { DE_CFG_LFENCE } else { 0 }
    }
}

const fn accept(valid: bool) -> Result<(), GeneralProtection> {
    if valid { Ok(()) } else { Err(GeneralProtection) }
}
