//! The I/O page tables of AMD's IOMMU, version 1 (AMD I/O Virtualization Technology Specification 3.10, section 2.2.3, "I/O
//! Page Tables for Host Translations").
//!
//! An entry says in bits 11:9 of which level the table is that it points to, and that it is a leaf by level 0. What the
//! engine asks for above the last level, a leaf marked by bit 7, is said there as well, for software alone: the unit ignores that
//! bit. Devices read and write; the memory type is the request's own; there are no accessed and dirty bits unless the device's
//! entry asks for them.

use caisson_types::Hpa;

use crate::{Format, MemoryType, Permissions};

const PRESENT: u64 = 1 << 0;
const NEXT_LEVEL_SHIFT: u32 = 9;
/// Coherent: the unit snoops the processors' caches.
const FORCE_COHERENT: u64 = 1 << 60;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

/// AMD's I/O page tables.
#[derive(Clone, Copy, Debug)]
pub struct AmdVi;

impl Format for AmdVi {
    const ACCESSED: u64 = 0;
    const DIRTY: u64 = 0;

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn table(child: Hpa, level: u8) -> u64 {
        child.as_u64() & Self::ADDRESS | PRESENT | u64::from(level & 7) << NEXT_LEVEL_SHIFT | READ | WRITE
    }

    fn leaf(page: Hpa, large: bool, permissions: Permissions, _: MemoryType) -> u64 {
        let size = if large { Self::LARGE } else { 0 };
        let entry = page.as_u64() & Self::ADDRESS | PRESENT | FORCE_COHERENT | size;
        Self::with_permissions(entry, permissions)
    }

    #[inline]
    fn permissions(leaf: u64) -> Permissions {
        Permissions { read: leaf & READ != 0, write: leaf & WRITE != 0, execute: false }
    }

    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        let read = if permissions.read { READ } else { 0 };
        let write = if permissions.write { WRITE } else { 0 };
        leaf & !(READ | WRITE) | read | write
    }

    #[inline]
    fn memory_type(_leaf: u64, _large: bool) -> MemoryType {
        MemoryType::WriteBack
    }

    /// The first word of a device table entry with its two valid bits clear: the root's address and level, and that the
    /// tables alone restrict reading and writing.
    fn root_pointer(root: Hpa, levels: u8, _accessed_dirty: bool) -> u64 {
        root.as_u64() & Self::ADDRESS | u64::from(levels & 7) << NEXT_LEVEL_SHIFT | READ | WRITE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_draws_them() {
        let page = Hpa::new(0x1_2340_0000);
        assert_eq!(AmdVi::table(page, 2), 0x6000_0001_2340_0401);
        let leaf = |large, permissions| AmdVi::leaf(page, large, permissions, MemoryType::WriteBack);
        assert_eq!(leaf(true, Permissions::READ_WRITE), 0x7000_0001_2340_0081);
        assert_eq!(leaf(false, Permissions::READ), 0x3000_0001_2340_0001);
        assert_eq!(AmdVi::root_pointer(page, 4, false), 0x6000_0001_2340_0800);
    }
}
