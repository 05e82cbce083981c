//! Virtual-processor ids, and the flushing of what the CPU has cached of a guest's translations (SDM vol. 3, section
//! 29.4).
//!
//! A VPID tags linear and combined mappings, the EPT pointer tags guest-physical and combined ones. INVVPID of one id goes
//! with a change of the guest's own tables or control registers, INVEPT of one root with a change of stage 2.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use caisson_x86::vmx::VmxFeatures;

/// The ids of one CPU. Id 0 is the host's.
pub(crate) struct Vpids {
    /// Generation in the upper half, the next id in the lower.
    next: AtomicU32,
}

/// An id, and the round of ids that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vpid {
    pub(crate) id: u16,
    pub(crate) generation: u16,
}

impl Vpid {
    /// No id of any generation.
    pub(crate) const NONE: Self = Self { id: 0, generation: 0 };
}

impl Vpids {
    pub(crate) const fn new() -> Self {
        Self { next: AtomicU32::new(1 << 16 | 1) }
    }

    /// The generation in force: an id of an earlier one may be somebody else's.
    #[inline]
    pub(crate) fn generation(&self) -> u16 {
        (self.next.load(Ordering::Relaxed) >> 16) as u16
    }

    /// A fresh id. `true` beside it when the ids start anew: all of them must be flushed first.
    pub(crate) fn allocate(&self) -> (Vpid, bool) {
        let next = self.next.load(Ordering::Relaxed);
        let (mut generation, mut id) = ((next >> 16) as u16, next as u16);
        let wrapped = id == u16::MAX;
        if wrapped {
            (generation, id) = (generation.wrapping_add(1).max(1), 1);
        }
        self.next.store(u32::from(generation) << 16 | u32::from(id + 1), Ordering::Relaxed);
        (Vpid { id, generation }, wrapped)
    }
}

/// The operand of INVVPID and INVEPT: the tag and, for INVVPID of one address, that address.
#[repr(C, align(16))]
struct Descriptor([u64; 2]);

const SINGLE_CONTEXT: u64 = 1;
const ALL_CONTEXTS: u64 = 2;

/// Drops all linear and combined mappings of `vpid`, or of every id where the CPU cannot do one.
///
/// # Safety
/// VMX is on, and the CPU has INVVPID of all contexts.
#[inline]
pub(crate) unsafe fn invalidate_vpid(vpid: u16, features: VmxFeatures) {
    let kind = if features.contains(VmxFeatures::INVVPID_SINGLE) { SINGLE_CONTEXT } else { ALL_CONTEXTS };
    // SAFETY: promised by the caller.
    unsafe { invvpid(kind, &Descriptor([u64::from(vpid), 0])) };
}

/// Drops the mappings of every VPID.
///
/// # Safety
/// As [`invalidate_vpid`].
pub(crate) unsafe fn invalidate_all_vpids() {
    // SAFETY: promised by the caller.
    unsafe { invvpid(ALL_CONTEXTS, &Descriptor([0, 0])) };
}

unsafe fn invvpid(kind: u64, descriptor: &Descriptor) {
    // SAFETY: promised by the callers; flushing is never wrong.
    unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) descriptor, options(nostack)) };
}

/// Drops all guest-physical and combined mappings of the tables that `eptp` names, or of all where the CPU cannot do one.
///
/// # Safety
/// VMX is on, and the CPU has INVEPT.
pub(crate) unsafe fn invalidate_ept(eptp: u64, features: VmxFeatures) {
    let kind = if features.contains(VmxFeatures::INVEPT_SINGLE) { SINGLE_CONTEXT } else { ALL_CONTEXTS };
    // SAFETY: promised by the caller.
    unsafe { invept(kind, &Descriptor([eptp, 0])) };
}

/// Drops the guest-physical mappings of all tables.
///
/// # Safety
/// VMX is on, and the CPU has INVEPT of all contexts.
pub(crate) unsafe fn invalidate_all_ept() {
    // SAFETY: promised by the caller.
    unsafe { invept(ALL_CONTEXTS, &Descriptor([0, 0])) };
}

unsafe fn invept(kind: u64, descriptor: &Descriptor) {
    // SAFETY: promised by the callers; flushing is never wrong.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) descriptor, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fresh_until_they_wrap() {
        let ids = Vpids::new();
        assert_eq!(ids.allocate(), (Vpid { id: 1, generation: 1 }, false));
        for id in 2..u16::MAX {
            assert_eq!(ids.allocate(), (Vpid { id, generation: 1 }, false));
        }
        assert_eq!(ids.allocate(), (Vpid { id: 1, generation: 2 }, true));
        assert_eq!(ids.generation(), 2);
    }
}
