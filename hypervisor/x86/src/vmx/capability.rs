//! Capability MSRs (SDM vol. 3, appendix A): what each control may and must be.

use core::fmt;

use bitflags::bitflags;

use super::control::{PinControls, ProcessorControls, SecondaryControls};
use super::feature::VmxFeatures;

/// Numbers of the capability MSRs.
#[allow(missing_docs)]
pub mod capability_msr {
    pub const BASIC: u32 = 0x480;
    pub const PIN: u32 = 0x481;
    pub const PROCESSOR: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED0: u32 = 0x486;
    pub const CR0_FIXED1: u32 = 0x487;
    pub const CR4_FIXED0: u32 = 0x488;
    pub const CR4_FIXED1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    pub const TRUE_PIN: u32 = 0x48d;
    pub const TRUE_PROCESSOR: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
}

/// IA32_VMX_BASIC (section A.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Basic(pub u64);

impl Basic {
    /// The revision that a VMCS region starts with.
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.0 as u32 & 0x7fff_ffff
    }
    /// INS and OUTS tell their operands.
    #[must_use]
    pub const fn string_io(self) -> bool {
        self.0 & 1 << 54 != 0
    }
    /// The true-controls MSRs are there.
    #[must_use]
    pub const fn true_controls(self) -> bool {
        self.0 & 1 << 55 != 0
    }
}

/// IA32_VMX_MISC (section A.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misc(pub u64);

impl Misc {
    /// The preemption timer counts once in 2 to this power TSC ticks.
    #[must_use]
    pub const fn preemption_timer_shift(self) -> u32 {
        self.0 as u32 & 31
    }
    /// An exit stores EFER.LMA in the entry control for IA-32e mode.
    #[must_use]
    pub const fn stores_long_mode(self) -> bool {
        self.0 & 1 << 5 != 0
    }
}

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP (section A.10).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EptVpid: u64 {
        /// Walks of four levels.
        const FOUR_LEVELS = 1 << 6;
        /// The tables may be write-back.
        const WRITE_BACK = 1 << 14;
        /// Leaves of 2 MiB.
        const LEAF_2M = 1 << 16;
        /// Leaves of 1 GiB.
        const LEAF_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty bits.
        const ACCESSED_DIRTY = 1 << 21;
        /// INVEPT of a single context.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT of all contexts.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID of a single context.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID of all contexts.
        const INVVPID_ALL = 1 << 42;
    }
}

/// What one control word may be: a pair of masks out of its capability MSR (section A.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// Bits that must be 1.
    pub must: u32,
    /// Bits that may be 1.
    pub may: u32,
}

/// A control that Caisson cannot do without cannot be set as it needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MissingControl {
    /// The bits of the word.
    pub bits: u32,
}

impl fmt::Display for MissingControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bits {:#x}", self.bits)
    }
}

impl Allowed {
    /// Out of the MSR's value.
    #[must_use]
    pub const fn new(msr: u64) -> Self {
        Self { must: msr as u32, may: (msr >> 32) as u32 }
    }

    /// The word with all of `required`, what the CPU has of `wanted`, and none of `never`.
    ///
    /// # Errors
    /// A bit of `required` cannot be 1, or one of `never` must be.
    pub const fn choose(self, required: u32, wanted: u32, never: u32) -> Result<u32, MissingControl> {
        let bits = required & !self.may | never & self.must;
        if bits != 0 {
            return Err(MissingControl { bits });
        }
        Ok(self.must | required | wanted & self.may)
    }
}

/// Everything that the capability MSRs say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// IA32_VMX_BASIC.
    pub basic: Basic,
    /// IA32_VMX_MISC.
    pub misc: Misc,
    /// Pin-based controls.
    pub pin: Allowed,
    /// Primary processor-based controls.
    pub processor: Allowed,
    /// Secondary processor-based controls; nothing where there are none.
    pub secondary: Allowed,
    /// Exit controls.
    pub exit: Allowed,
    /// Entry controls.
    pub entry: Allowed,
    /// EPT and VPID.
    pub ept_vpid: EptVpid,
    /// CR0 bits that must be 1 in VMX operation, and those that may.
    pub cr0: (u64, u64),
    /// The same of CR4.
    pub cr4: (u64, u64),
}

impl Capabilities {
    /// Asks `read` for each MSR that the ones before it say is there.
    pub fn read(mut read: impl FnMut(u32) -> u64) -> Self {
        use capability_msr as number;
        let basic = Basic(read(number::BASIC));
        let pick = |plain, precise| if basic.true_controls() { precise } else { plain };
        let pin = Allowed::new(read(pick(number::PIN, number::TRUE_PIN)));
        let processor = Allowed::new(read(pick(number::PROCESSOR, number::TRUE_PROCESSOR)));
        let exit = Allowed::new(read(pick(number::EXIT, number::TRUE_EXIT)));
        let entry = Allowed::new(read(pick(number::ENTRY, number::TRUE_ENTRY)));
        let secondary = if processor.may & ProcessorControls::SECONDARY.bits() != 0 {
            Allowed::new(read(number::SECONDARY))
        } else {
            Allowed::new(0)
        };
        let paging = SecondaryControls::EPT | SecondaryControls::VPID;
        let ept_vpid = if secondary.may & paging.bits() != 0 {
            EptVpid::from_bits_retain(read(number::EPT_VPID))
        } else {
            EptVpid::empty()
        };
        Self {
            basic,
            misc: Misc(read(number::MISC)),
            pin,
            processor,
            secondary,
            exit,
            entry,
            ept_vpid,
            cr0: (read(number::CR0_FIXED0), read(number::CR0_FIXED1)),
            cr4: (read(number::CR4_FIXED0), read(number::CR4_FIXED1)),
        }
    }

    /// EPT as Caisson needs it: four levels, write-back tables, leaves of 2 MiB, INVEPT; and guests that may run in real
    /// mode, with exits that tell whether they are in long mode.
    #[must_use]
    pub const fn has_nested_paging(&self) -> bool {
        const NEEDED: EptVpid =
            EptVpid::FOUR_LEVELS.union(EptVpid::WRITE_BACK).union(EptVpid::LEAF_2M).union(EptVpid::INVEPT);
        const EITHER: EptVpid = EptVpid::INVEPT_SINGLE.union(EptVpid::INVEPT_ALL);
        let controls = SecondaryControls::EPT.union(SecondaryControls::UNRESTRICTED_GUEST).bits();
        self.secondary.may & controls == controls
            && self.ept_vpid.contains(NEEDED)
            && self.ept_vpid.intersects(EITHER)
            && self.misc.stores_long_mode()
    }

    /// The optional features that the CPU has.
    #[must_use]
    pub fn features(&self) -> VmxFeatures {
        use VmxFeatures as F;
        let mut features = F::empty();
        let pin = |control: PinControls| self.pin.may & control.bits() == control.bits();
        let processor = |control: ProcessorControls| self.processor.may & control.bits() == control.bits();
        let secondary = |control: SecondaryControls| self.secondary.may & control.bits() == control.bits();
        let invvpid = self.ept_vpid.contains(EptVpid::INVVPID | EptVpid::INVVPID_ALL);
        features.set(F::VPID, secondary(SecondaryControls::VPID) && invvpid);
        features.set(F::PREEMPTION_TIMER, pin(PinControls::PREEMPTION_TIMER));
        features.set(F::TPR_SHADOW, processor(ProcessorControls::TPR_SHADOW));
        features.set(F::EPT_ACCESSED_DIRTY, self.ept_vpid.contains(EptVpid::ACCESSED_DIRTY));
        features.set(F::EPT_1G, self.ept_vpid.contains(EptVpid::LEAF_1G));
        features.set(F::INVEPT_SINGLE, self.ept_vpid.contains(EptVpid::INVEPT_SINGLE));
        features.set(F::INVVPID_SINGLE, self.ept_vpid.contains(EptVpid::INVVPID_SINGLE));
        features.set(F::MSR_BITMAPS, processor(ProcessorControls::MSR_BITMAPS));
        features.set(F::RDTSCP, secondary(SecondaryControls::RDTSCP));
        features.set(F::INVPCID, secondary(SecondaryControls::INVPCID));
        features.set(F::PAUSE_LOOP, secondary(SecondaryControls::PAUSE_LOOP));
        features.set(F::ENCLS, secondary(SecondaryControls::ENCLS));
        features.set(F::XSAVES, secondary(SecondaryControls::XSAVES));
        features.set(F::TSC_SCALING, secondary(SecondaryControls::TSC_SCALING));
        // It logs the setting of dirty bits.
        let dirty = features.contains(F::EPT_ACCESSED_DIRTY);
        features.set(F::PML, secondary(SecondaryControls::PML) && dirty);
        features.set(F::STRING_IO, self.basic.string_io());
        features.set(F::VIRTUAL_INTERRUPTS, secondary(SecondaryControls::VIRTUAL_INTERRUPTS));
        features.set(F::X2APIC, secondary(SecondaryControls::X2APIC));
        features.set(F::APIC_ACCESSES, secondary(SecondaryControls::APIC_ACCESSES));
        features.set(F::APIC_REGISTERS, secondary(SecondaryControls::APIC_REGISTERS));
        features.consistent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Bochs's `corei7_haswell_4770` says, as far as it matters here.
    fn haswell(msr: u32) -> u64 {
        match msr {
            capability_msr::BASIC => 0x00da_0400_0000_002b | 1 << 55,
            capability_msr::TRUE_PIN => 0x0000_007f_0000_0016,
            capability_msr::TRUE_PROCESSOR => 0xfff9_fffe_0400_6172,
            capability_msr::TRUE_EXIT => 0x007f_ffff_0003_6dfb,
            capability_msr::TRUE_ENTRY => 0x0000_ffff_0000_11fb,
            capability_msr::MISC => 0x0400_01e0,
            capability_msr::SECONDARY => 0x0004_7fff_0000_0000,
            capability_msr::EPT_VPID => 0x0f01_0633_4141,
            capability_msr::CR0_FIXED0 => 0x8000_0021,
            capability_msr::CR4_FIXED0 => 0x2000,
            _ => u64::MAX,
        }
    }

    /// What later CPUs have.
    const NEWER: VmxFeatures =
        VmxFeatures::ENCLS.union(VmxFeatures::XSAVES).union(VmxFeatures::TSC_SCALING).union(VmxFeatures::PML);

    #[test]
    fn a_haswell_has_everything_that_is_needed() {
        let caps = Capabilities::read(haswell);
        assert_eq!(caps.basic.revision(), 0x2b);
        assert!(caps.has_nested_paging());
        assert_eq!(caps.features(), VmxFeatures::all() - NEWER);
    }

    #[test]
    fn without_unrestricted_guest_there_is_no_nested_paging() {
        let caps = Capabilities::read(|msr| match msr {
            capability_msr::SECONDARY => 0x0000_007f_0000_0000,
            other => haswell(other),
        });
        assert!(!caps.has_nested_paging());
        let caps = Capabilities::read(|msr| match msr {
            capability_msr::TRUE_PROCESSOR => 0x7ff9_fffe_0400_6172,
            other => haswell(other),
        });
        assert!(!caps.has_nested_paging());
        assert_eq!(caps.ept_vpid, EptVpid::empty());
    }

    #[test]
    fn pages_are_logged_where_they_have_dirty_bits() {
        let skylake = |ept_vpid: u64| {
            move |msr| match msr {
                capability_msr::SECONDARY => 0x0217_7fff_0000_0000,
                capability_msr::EPT_VPID => ept_vpid,
                other => haswell(other),
            }
        };
        assert!(Capabilities::read(skylake(0x0f01_0633_4141)).features().contains(VmxFeatures::PML));
        assert!(!Capabilities::read(skylake(0x0f01_0613_4141)).features().contains(VmxFeatures::PML));
    }

    #[test]
    fn controls_are_chosen_by_their_masks() {
        let allowed = Allowed::new(0x0000_00ff_0000_0016);
        assert_eq!(allowed.choose(0x1, 0x108, 0), Ok(0x1f));
        assert_eq!(allowed.choose(0x100, 0, 0), Err(MissingControl { bits: 0x100 }));
        assert_eq!(allowed.choose(0, 0, 0x4), Err(MissingControl { bits: 4 }));
    }
}
