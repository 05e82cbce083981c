//! The second-level tables of Intel's VT-d, as its legacy mode walks them (VT-d specification 4.1, section 3.7 and chapter 9,
//! "Second-Stage Paging Entries").
//!
//! Devices read and write. What they fetch is a read, and the memory type is the request's own: neither is in an entry, and
//! both read back as what every entry has. There are no accessed and dirty bits in legacy mode.

use caisson_types::Hpa;

use crate::{Format, MemoryType, Permissions};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;

/// VT-d's second-level tables.
#[derive(Clone, Copy, Debug)]
pub struct Vtd;

impl Format for Vtd {
    const ACCESSED: u64 = 0;
    const DIRTY: u64 = 0;

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & (READ | WRITE) != 0
    }

    fn table(child: Hpa, _level: u8) -> u64 {
        child.as_u64() & Self::ADDRESS | READ | WRITE
    }

    fn leaf(page: Hpa, large: bool, permissions: Permissions, _: MemoryType) -> u64 {
        let size = if large { Self::LARGE } else { 0 };
        Self::with_permissions(page.as_u64() & Self::ADDRESS | size, permissions)
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

    /// The low half of a context entry with its present bit clear: the address, to be translated as the tables say.
    fn root_pointer(root: Hpa, _levels: u8, _accessed_dirty: bool) -> u64 {
        root.as_u64() & Self::ADDRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_draws_them() {
        let page = Hpa::new(0x1_2340_0000);
        assert_eq!(Vtd::table(page, 2), 0x1_2340_0003);
        assert_eq!(Vtd::leaf(page, true, Permissions::READ_WRITE, MemoryType::WriteBack), 0x1_2340_0083);
        assert_eq!(Vtd::leaf(page, false, Permissions::READ, MemoryType::WriteBack), 0x1_2340_0001);
        assert_eq!(Vtd::root_pointer(page, 4, true), 0x1_2340_0000);
    }
}
