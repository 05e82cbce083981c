//! What CPUID Fn8000_000A EDX announces.

use core::fmt;

use bitflags::bitflags;

use crate::names;

bitflags! {
    /// CPUID Fn8000_000A EDX (APM vol. 3, appendix E.4.9): SVM features beyond the base.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SvmFeatures: u32 {
        /// Nested paging.
        const NESTED_PAGING = 1 << 0;
        /// Virtualised last-branch records.
        const LBR_VIRTUALIZATION = 1 << 1;
        /// SVM lock.
        const LOCK = 1 << 2;
        /// The next RIP is saved at an exit.
        const NRIP_SAVE = 1 << 3;
        /// TSC ratio MSR.
        const TSC_RATE = 1 << 4;
        /// VMCB clean bits.
        const CLEAN_BITS = 1 << 5;
        /// A VMRUN can flush one ASID.
        const FLUSH_BY_ASID = 1 << 6;
        /// Instruction bytes and operands are saved at an exit.
        const DECODE_ASSISTS = 1 << 7;
        /// Pause-intercept filter.
        const PAUSE_FILTER = 1 << 10;
        /// Pause-filter threshold.
        const PAUSE_THRESHOLD = 1 << 12;
        /// Virtual interrupt controller.
        const AVIC = 1 << 13;
        /// Virtualised VMLOAD and VMSAVE.
        const VIRTUAL_VMLOAD = 1 << 15;
        /// Virtual global interrupt flag.
        const VGIF = 1 << 16;
        /// Virtual NMI.
        const VNMI = 1 << 25;
    }
}

/// The features by name, as in `nested-paging, nrip-save`; unknown bits are left out.
impl fmt::Display for SvmFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names::write(f, self.iter_names().map(|(name, _)| name))
    }
}

impl SvmFeatures {
    /// The feature that is written so by [`fmt::Display`].
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::all().iter_names().find(|(name, _)| names::is(name, word)).map(|(_, feature)| feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn features_are_told_by_name() {
        struct Expect(&'static str);
        impl Write for Expect {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
                Ok(())
            }
        }
        let mut expect = Expect("nested-paging, nrip-save");
        assert!(write!(expect, "{}", SvmFeatures::NESTED_PAGING | SvmFeatures::NRIP_SAVE).is_ok());
        assert_eq!(expect.0, "");
    }
}
