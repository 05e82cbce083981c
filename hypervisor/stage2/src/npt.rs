//! AMD's nested page tables: the format of long-mode page tables (AMD APM vol. 2, 5.3), as 15.25 reads them.
//!
//! Nested walks are user accesses, so that every entry has U=1. The memory type is an index into the *host's*
//! PAT (15.25.8), and the no-execute bit counts only with the host's EFER.NXE set. nCR3 holds the root's
//! address.

use caisson_types::Hpa;

use crate::{Format, MemoryType, Permissions};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Bits 0 and 1 of the PAT index.
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
/// Bit 2 of the PAT index, in a 4 KiB and in a larger leaf.
const PAT_SMALL: u64 = 1 << 7;
const PAT_LARGE: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;

/// AMD's nested page tables.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

impl Npt {
    /// What the host's PAT register (MSR 0x277) must hold while guests run: the power-up value with
    /// write-combining and write-protected in entries 4 and 5. With the power-up value itself all types but
    /// write-combining are right.
    pub const HOST_PAT: u64 = 0x0007_0501_0007_0406;
}

impl Format for Npt {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn table(child: Hpa, _level: u8) -> u64 {
        child.as_u64() & Self::ADDRESS | PRESENT | WRITE | USER | Self::ACCESSED
    }

    fn leaf(page: Hpa, large: bool, permissions: Permissions, memory_type: MemoryType) -> u64 {
        let pat = if large { PAT_LARGE } else { PAT_SMALL };
        let cache = match memory_type {
            MemoryType::WriteBack => 0,
            MemoryType::WriteThrough => PWT,
            MemoryType::Uncacheable => PCD | PWT,
            MemoryType::WriteCombining => pat,
        };
        let size = if large { Self::LARGE } else { 0 };
        let entry =
            page.as_u64() & Self::ADDRESS | PRESENT | USER | Self::ACCESSED | Self::DIRTY | size | cache;
        Self::with_permissions(entry, permissions)
    }

    #[inline]
    fn permissions(leaf: u64) -> Permissions {
        Permissions { read: leaf & PRESENT != 0, write: leaf & WRITE != 0, execute: leaf & NO_EXECUTE == 0 }
    }

    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        let write = if permissions.write { WRITE } else { 0 };
        let no_execute = if permissions.execute { 0 } else { NO_EXECUTE };
        leaf & !(WRITE | NO_EXECUTE) | write | no_execute
    }

    #[inline]
    fn memory_type(leaf: u64, large: bool) -> MemoryType {
        let pat = if large { PAT_LARGE } else { PAT_SMALL };
        if leaf & pat != 0 {
            return MemoryType::WriteCombining;
        }
        match (leaf & PCD != 0, leaf & PWT != 0) {
            (false, false) => MemoryType::WriteBack,
            (false, true) => MemoryType::WriteThrough,
            (true, _) => MemoryType::Uncacheable,
        }
    }

    fn root_pointer(root: Hpa, _levels: u8, _accessed_dirty: bool) -> u64 {
        root.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_draws_them() {
        let page = Hpa::new(0x1_2340_0000);
        assert_eq!(Npt::table(page, 1), 0x1_2340_0027);
        assert_eq!(Npt::leaf(page, true, Permissions::ALL, MemoryType::WriteBack), 0x1_2340_00e7);
        assert_eq!(Npt::leaf(page, false, Permissions::READ_EXECUTE, MemoryType::WriteBack), 0x1_2340_0065);
        assert_eq!(
            Npt::leaf(page, false, Permissions::READ_WRITE, MemoryType::Uncacheable),
            0x8000_0001_2340_007f
        );
        assert_eq!(Npt::leaf(page, true, Permissions::ALL, MemoryType::WriteCombining), 0x1_2340_10e7);
        assert_eq!(Npt::root_pointer(page, 4, true), page.as_u64());
    }
}
