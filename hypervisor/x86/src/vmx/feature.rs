//! What of VT-x is optional to Caisson.

use core::fmt;

use bitflags::bitflags;

use crate::names;

bitflags! {
    /// Capabilities that are used where the CPU has them, and are never assumed. The numbers are Caisson's own.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct VmxFeatures: u32 {
        /// TLB entries tagged with a VPID, and INVVPID to flush them.
        const VPID = 1 << 0;
        /// The VMX-preemption timer.
        const PREEMPTION_TIMER = 1 << 1;
        /// CR8 in the virtual-APIC page.
        const TPR_SHADOW = 1 << 2;
        /// Accessed and dirty bits in EPT entries.
        const EPT_ACCESSED_DIRTY = 1 << 3;
        /// EPT leaves of 1 GiB.
        const EPT_1G = 1 << 4;
        /// INVEPT of a single context.
        const INVEPT_SINGLE = 1 << 5;
        /// INVVPID of a single context.
        const INVVPID_SINGLE = 1 << 6;
        /// MSR bitmaps.
        const MSR_BITMAPS = 1 << 7;
        /// RDTSCP in guests.
        const RDTSCP = 1 << 8;
        /// INVPCID in guests.
        const INVPCID = 1 << 9;
        /// Pause-loop exiting.
        const PAUSE_LOOP = 1 << 10;
        /// Exits of ENCLS.
        const ENCLS = 1 << 11;
        /// Operands of INS and OUTS at their exits.
        const STRING_IO = 1 << 12;
        /// Virtual-interrupt delivery. The next three are used together with it only.
        const VIRTUAL_INTERRUPTS = 1 << 13;
        /// x2APIC's MSRs in the virtual-APIC page.
        const X2APIC = 1 << 14;
        /// Accesses to the local APIC's page in the virtual-APIC page.
        const APIC_ACCESSES = 1 << 15;
        /// XSAVES and XRSTORS in guests.
        const XSAVES = 1 << 16;
        /// A multiplier for the guest's TSC.
        const TSC_SCALING = 1 << 17;
        /// All registers of the local APIC in the virtual-APIC page.
        const APIC_REGISTERS = 1 << 18;
        /// Page-modification logging.
        const PML = 1 << 19;
    }
}

impl fmt::Display for VmxFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names::write(f, self.iter_names().map(|(name, _)| name))
    }
}

impl VmxFeatures {
    /// Without those that need one that is not there.
    #[must_use]
    pub fn consistent(self) -> Self {
        let mut features = self;
        if !features.contains(Self::EPT_ACCESSED_DIRTY) {
            // It logs the setting of dirty bits.
            features -= Self::PML;
        }
        if !features.contains(Self::TPR_SHADOW) {
            features -= Self::VIRTUAL_INTERRUPTS;
        }
        if !features.contains(Self::VIRTUAL_INTERRUPTS) {
            features -= Self::X2APIC | Self::APIC_ACCESSES;
        }
        if !features.contains(Self::MSR_BITMAPS) {
            features -= Self::X2APIC;
        }
        if !features.intersects(Self::X2APIC | Self::APIC_ACCESSES) {
            features -= Self::APIC_REGISTERS;
        }
        features
    }

    /// The feature that is written so by [`fmt::Display`].
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::all().iter_names().find(|(name, _)| names::is(name, word)).map(|(_, feature)| feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_found_by_name() {
        assert_eq!(VmxFeatures::named("vpid"), Some(VmxFeatures::VPID));
        assert_eq!(VmxFeatures::named("preemption-timer"), Some(VmxFeatures::PREEMPTION_TIMER));
        assert_eq!(VmxFeatures::named("nrips"), None);
    }

    #[test]
    fn nothing_is_used_without_what_it_needs() {
        let all = VmxFeatures::all();
        let apic = VmxFeatures::X2APIC | VmxFeatures::APIC_ACCESSES | VmxFeatures::APIC_REGISTERS;
        assert_eq!(all.consistent(), all);
        let bits = VmxFeatures::EPT_ACCESSED_DIRTY;
        assert_eq!((all - bits).consistent(), all - bits - VmxFeatures::PML);
        assert_eq!(
            (all - VmxFeatures::TPR_SHADOW).consistent(),
            all - apic - VmxFeatures::VIRTUAL_INTERRUPTS - VmxFeatures::TPR_SHADOW
        );
        let off = VmxFeatures::VIRTUAL_INTERRUPTS;
        assert_eq!((all - off).consistent(), all - off - apic);
        let off = VmxFeatures::MSR_BITMAPS;
        assert_eq!((all - off).consistent(), all - off - VmxFeatures::X2APIC);
        let off = VmxFeatures::MSR_BITMAPS | VmxFeatures::APIC_ACCESSES;
        assert_eq!((all - off).consistent(), all - off - apic);
        let off = VmxFeatures::APIC_REGISTERS;
        assert_eq!((all - off).consistent(), all - off);
    }
}
