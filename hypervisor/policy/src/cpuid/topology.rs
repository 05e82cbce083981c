//! The guest's processor topology: one package, cores of equal width, APIC ids that count from 0.

use super::{CpuidResult, Vendor};

/// How a domain's vCPUs appear: one package of `vcpus / threads_per_core` cores. The APIC id of a vCPU is its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// vCPUs of the domain; 0 counts as 1.
    pub vcpus: u16,
    /// Threads of a core, a power of two; 0 counts as 1, other values as the next power of two.
    pub threads_per_core: u8,
}

/// Level type of leaf BH: threads of a core.
const LEVEL_THREAD: u32 = 1 << 8;
/// Level type of leaf BH: cores of a package.
const LEVEL_CORE: u32 = 2 << 8;

impl Topology {
    /// `vcpus` cores of one thread each.
    #[must_use]
    pub const fn cores(vcpus: u16) -> Self {
        Self { vcpus, threads_per_core: 1 }
    }

    pub(super) fn logical(self) -> u32 {
        u32::from(self.vcpus).max(1)
    }

    pub(super) fn threads(self) -> u32 {
        1 << self.thread_bits()
    }

    /// Bits of the APIC id that number the threads of a core.
    pub(super) fn thread_bits(self) -> u8 {
        log2_ceil(u32::from(self.threads_per_core)).min(log2_ceil(self.logical()))
    }

    /// Bits of the APIC id that number the threads of the package.
    pub(super) fn package_bits(self) -> u8 {
        log2_ceil(self.logical())
    }

    fn core_count(self) -> u32 {
        self.logical().div_ceil(self.threads())
    }

    /// Leaf 1 EBX bits 23:16: Intel numbers the APIC ids that are set aside, AMD the logical processors.
    pub(super) fn leaf1_ebx(self, vendor: Vendor) -> u32 {
        let count = match vendor {
            Vendor::Intel => 1 << self.package_bits(),
            Vendor::Amd => self.logical(),
        };
        count.min(0xff) << 16
    }

    /// The levels of leaves BH and 1FH; the vCPU's id and the subleaf are added at the look-up.
    pub(super) fn levels(self) -> [CpuidResult; 2] {
        [
            CpuidResult::new(u32::from(self.thread_bits()), self.threads(), LEVEL_THREAD, 0),
            CpuidResult::new(u32::from(self.package_bits()), self.logical(), LEVEL_CORE, 0),
        ]
    }

    /// EAX of a cache in leaf 4: L1 and L2 belong to a core, what is above to the package.
    pub(super) fn intel_cache_eax(self, host: u32) -> u32 {
        let sharing = match cache_level(host) {
            1 | 2 => self.threads(),
            _ => 1 << self.package_bits(),
        };
        let cores = 1_u32 << log2_ceil(self.core_count());
        host | (sharing - 1).min(0xfff) << 14 | (cores - 1).min(0x3f) << 26
    }

    /// EAX of a cache in leaf 8000001DH.
    pub(super) fn amd_cache_eax(self, host: u32) -> u32 {
        let sharing = match cache_level(host) {
            1 | 2 => self.threads(),
            _ => self.logical(),
        };
        host | (sharing - 1).min(0xfff) << 14
    }

    /// ECX of leaf 80000008H.
    pub(super) fn amd_core_count(self) -> u32 {
        (self.logical() - 1).min(0xff) | u32::from(self.package_bits().min(15)) << 12
    }
}

const fn cache_level(eax: u32) -> u32 {
    eax >> 5 & 7
}

/// The bits that it takes to tell `n` things apart.
fn log2_ceil(n: u32) -> u8 {
    (32 - n.max(1).saturating_sub(1).leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_the_bits_they_need() {
        let expected = [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (65535, 16)];
        for (n, bits) in expected {
            assert_eq!(log2_ceil(n), bits, "{n}");
        }
        let odd = Topology { vcpus: 0, threads_per_core: 0 };
        assert_eq!((odd.logical(), odd.threads(), odd.package_bits()), (1, 1, 0));
        let smt = Topology { vcpus: 6, threads_per_core: 2 };
        assert_eq!((smt.core_count(), smt.thread_bits(), smt.package_bits()), (3, 1, 3));
        assert_eq!(Topology { vcpus: 1, threads_per_core: 2 }.threads(), 1, "no thread without a vCPU");
    }

    #[test]
    fn caches_are_shared_as_the_guest_is_laid_out() {
        let smt = Topology { vcpus: 6, threads_per_core: 2 };
        assert_eq!(smt.intel_cache_eax(0x121), 0x121 | 1 << 14 | 3 << 26);
        assert_eq!(smt.intel_cache_eax(0x163), 0x163 | 7 << 14 | 3 << 26);
        assert_eq!(smt.amd_cache_eax(0x163), 0x163 | 5 << 14);
        assert_eq!(Topology::cores(u16::MAX).leaf1_ebx(Vendor::Intel), 0xff_0000);
    }
}
