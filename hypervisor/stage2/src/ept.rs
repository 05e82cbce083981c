//! Intel's extended page tables (Intel SDM vol. 3, 29.3.2).
//!
//! The accessed and dirty bits count only if the EPTP asks for them. The memory type of a leaf is combined
//! with the guest's PAT (29.3.7.2): "ignore PAT" stays clear, so that a guest that drives a real device gets
//! the types that it asks for.

use caisson_types::Hpa;

use crate::{Format, MemoryType, Permissions};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const TYPE_SHIFT: u32 = 3;
const TYPE_MASK: u64 = 7;

/// Memory types as EPT entries, the EPTP, MTRRs and PAT number them (SDM vol. 3, 12.11, "MTRR memory types").
const UNCACHEABLE: u64 = 0;
const WRITE_COMBINING: u64 = 1;
const WRITE_THROUGH: u64 = 4;
const WRITE_BACK: u64 = 6;

/// EPTP (SDM vol. 3, 25.6.11): bits 5:3 are the walk's length less one, bit 6 enables accessed and dirty
/// bits.
const EPTP_LENGTH_SHIFT: u32 = 3;
const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;

/// Intel's extended page tables.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

impl Format for Ept {
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & (READ | WRITE | EXECUTE) != 0
    }

    fn table(child: Hpa, _level: u8) -> u64 {
        child.as_u64() & Self::ADDRESS | READ | WRITE | EXECUTE | Self::ACCESSED
    }

    fn leaf(page: Hpa, large: bool, permissions: Permissions, memory_type: MemoryType) -> u64 {
        let number = match memory_type {
            MemoryType::WriteBack => WRITE_BACK,
            MemoryType::WriteThrough => WRITE_THROUGH,
            MemoryType::WriteCombining => WRITE_COMBINING,
            MemoryType::Uncacheable => UNCACHEABLE,
        };
        let size = if large { Self::LARGE } else { 0 };
        let entry =
            page.as_u64() & Self::ADDRESS | Self::ACCESSED | Self::DIRTY | size | number << TYPE_SHIFT;
        Self::with_permissions(entry, permissions)
    }

    #[inline]
    fn permissions(leaf: u64) -> Permissions {
        Permissions { read: leaf & READ != 0, write: leaf & WRITE != 0, execute: leaf & EXECUTE != 0 }
    }

    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        let read = if permissions.read { READ } else { 0 };
        let write = if permissions.write { WRITE } else { 0 };
        let execute = if permissions.execute { EXECUTE } else { 0 };
        leaf & !(READ | WRITE | EXECUTE) | read | write | execute
    }

    #[inline]
    fn memory_type(leaf: u64, _large: bool) -> MemoryType {
        match leaf >> TYPE_SHIFT & TYPE_MASK {
            WRITE_BACK => MemoryType::WriteBack,
            WRITE_THROUGH => MemoryType::WriteThrough,
            WRITE_COMBINING => MemoryType::WriteCombining,
            _ => MemoryType::Uncacheable,
        }
    }

    fn root_pointer(root: Hpa, levels: u8, accessed_dirty: bool) -> u64 {
        let length = u64::from(levels.saturating_sub(1)) << EPTP_LENGTH_SHIFT;
        let accessed_dirty = if accessed_dirty { EPTP_ACCESSED_DIRTY } else { 0 };
        root.as_u64() & Self::ADDRESS | WRITE_BACK | length | accessed_dirty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_draws_them() {
        let page = Hpa::new(0x1_2340_0000);
        assert_eq!(Ept::table(page, 1), 0x1_2340_0107);
        assert_eq!(Ept::leaf(page, true, Permissions::ALL, MemoryType::WriteBack), 0x1_2340_03b7);
        assert_eq!(Ept::leaf(page, false, Permissions::READ_EXECUTE, MemoryType::WriteBack), 0x1_2340_0335);
        assert_eq!(Ept::leaf(page, false, Permissions::READ_WRITE, MemoryType::Uncacheable), 0x1_2340_0303);
        assert_eq!(Ept::root_pointer(page, 4, true), 0x1_2340_005e);
        assert_eq!(Ept::root_pointer(page, 5, false), 0x1_2340_0026);
    }
}
