//! A guest's memory map, region by region: what the firmware tells a kernel and what a loader may write to.

use core::fmt;

use crate::Gpa;

/// What a region of guest-physical addresses is for.
///
/// The discriminants are the address range types of ACPI 6.5, table 15.2 (`INT 15h, E820h`); multiboot1, PVH and the
/// Linux boot protocol use the same numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum RegionKind {
    /// Memory that the guest may use as it likes (`AddressRangeMemory`).
    Ram = 1,
    /// Not memory, or memory that must be left alone (`AddressRangeReserved`).
    Reserved = 2,
    /// ACPI tables: ordinary memory once the guest has read them (`AddressRangeACPI`).
    AcpiReclaim = 3,
    /// Memory that the firmware keeps in use, and that sleep states must save (`AddressRangeNVS`).
    AcpiNvs = 4,
    /// Memory with a purpose of its own, which is left to drivers (`EFI_MEMORY_SP`): the number is Linux's, which calls it
    /// soft-reserved.
    SoftReserved = 0xefff_ffff,
}

impl RegionKind {
    /// The type's number in an e820 entry.
    #[must_use]
    pub const fn e820_type(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "usable",
            Self::Reserved => "reserved",
            Self::AcpiReclaim => "ACPI data",
            Self::AcpiNvs => "ACPI NVS",
            Self::SoftReserved => "soft reserved",
        })
    }
}

/// A region of guest-physical addresses of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryRegion {
    /// The region's first byte.
    pub start: Gpa,
    /// The region's length in bytes.
    pub len: u64,
    /// What the region is for.
    pub kind: RegionKind,
}

impl MemoryRegion {
    /// A region of `len` bytes from `start`.
    #[must_use]
    pub const fn new(start: Gpa, len: u64, kind: RegionKind) -> Self {
        Self { start, len, kind }
    }

    /// The first byte after the region, or the highest address where that would not fit.
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa::new(self.start.as_u64().saturating_add(self.len))
    }

    /// Whether the `len` bytes from `start` all lie in this region. No bytes at all lie nowhere.
    #[must_use]
    pub const fn contains(&self, start: Gpa, len: u64) -> bool {
        match start.as_u64().checked_add(len) {
            Some(end) => len != 0 && start.as_u64() >= self.start.as_u64() && end <= self.end().as_u64(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containment_minds_both_ends_and_overflow() {
        let low = MemoryRegion::new(Gpa::new(0x1000), 0x1000, RegionKind::Ram);
        assert!(low.contains(Gpa::new(0x1000), 0x1000));
        assert!(!low.contains(Gpa::new(0xFFF), 2));
        assert!(!low.contains(Gpa::new(0x1FFF), 2));
        assert!(!low.contains(Gpa::new(0x1800), 0));
        assert!(!low.contains(Gpa::new(0x1800), u64::MAX));
        let top = MemoryRegion::new(Gpa::new(u64::MAX), u64::MAX, RegionKind::Reserved);
        assert_eq!(top.end(), Gpa::new(u64::MAX));
        assert_eq!(RegionKind::AcpiNvs.e820_type(), 4);
    }
}
