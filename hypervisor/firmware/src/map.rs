//! The guest-physical memory map, as e820, multiboot and PVH hand it over.
//!
//! RAM is one piece from address 0 to the hole and another from 4 GiB. In the first, the range from 0xA0000 to 1 MiB is
//! not the guest's to allocate, as on any PC, but memory stands behind it: a guest that draws into a VGA window there
//! does no harm and causes no exit.
//!
//! ACPI 6.5, section 15 ("System Address Map Interfaces").

use alloc::vec::Vec;

use caisson_types::{Gpa, MemoryRegion, RegionKind};

use crate::layout::FOUR_GIB;
use crate::{GuestLayout, IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS};

/// Start of the extended BIOS data area, where conventional memory ends.
pub(crate) const EBDA: u64 = 0x9_FC00;
/// Start of the VGA window.
const VGA: u64 = 0xA_0000;
/// Start of the firmware's tables.
pub(crate) const FIRMWARE: u64 = 0xE_0000;
/// Start of extended memory.
pub(crate) const EXTENDED: u64 = 0x10_0000;

impl GuestLayout<'_> {
    /// The memory map to hand to the guest: in ascending order, without overlap.
    pub fn memory_map(&self) -> impl Iterator<Item = MemoryRegion> {
        use RegionKind::{Ram, Reserved, SoftReserved};
        let region =
            |start, end: u64, kind| MemoryRegion::new(Gpa::new(start), end.saturating_sub(start), kind);
        let page = |start: u32| region(u64::from(start), u64::from(start) + 0x1000, Reserved);
        let low = [region(0, EBDA, Ram), region(EBDA, VGA, Reserved), region(FIRMWARE, EXTENDED, Reserved)];
        let high = |bytes| FOUR_GIB.saturating_add(bytes);
        let usual = [
            region(EXTENDED, self.shared_below_4g(), Ram),
            region(self.shared_below_4g(), self.ram_below_4g(), SoftReserved),
            page(IOAPIC_ADDRESS),
            page(LOCAL_APIC_ADDRESS),
            region(FOUR_GIB, high(self.shared_above_4g()), Ram),
            region(high(self.shared_above_4g()), high(self.ram_above_4g()), SoftReserved),
        ];
        let high: Vec<_> = match self.real {
            None => usual.to_vec(),
            Some(real) => real.regions.to_vec(),
        };
        low.into_iter().chain(high).filter(|region| region.len > 0)
    }

    /// The ranges behind which memory stands, as start and bytes, ascending: what the stage-2 tables map. Private memory has ranges
    /// of its own. With real devices it is the first MiB alone; all other memory is where it is.
    pub fn backed(&self) -> impl Iterator<Item = (Gpa, u64)> + use<> {
        let part = |start: u64, shared: u64, all: u64| {
            [(start, shared), (start.saturating_add(shared), all - shared)]
        };
        let ranges = match self.real {
            Some(_) => [part(0, EXTENDED, EXTENDED), part(FOUR_GIB, 0, 0)],
            None => [
                part(0, self.shared_below_4g(), self.ram_below_4g()),
                part(FOUR_GIB, self.shared_above_4g(), self.ram_above_4g()),
            ],
        };
        let ranges = ranges.into_iter().flatten().filter(|&(_, size)| size > 0);
        ranges.map(|(start, size)| (Gpa::new(start), size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_machine() {
        let ranges: Vec<_> = GuestLayout::new(256 << 20, &[0])
            .memory_map()
            .map(|r| (r.start.as_u64(), r.start.as_u64() + r.len, r.kind.e820_type()))
            .collect();
        assert_eq!(
            ranges,
            [
                (0, 0x9_FC00, 1),
                (0x9_FC00, 0xA_0000, 2),
                (0xE_0000, 0x10_0000, 2),
                (0x10_0000, 0x1000_0000, 1),
                (0xFEC0_0000, 0xFEC0_1000, 2),
                (0xFEE0_0000, 0xFEE0_1000, 2),
            ]
        );
    }

    #[test]
    fn private_memory_is_soft_reserved() {
        let ranges = |ram, private| -> Vec<_> {
            let layout = GuestLayout { private, ..GuestLayout::new(ram, &[0]) };
            let soft = layout.memory_map().filter(|region| region.kind == RegionKind::SoftReserved);
            soft.map(|region| (region.start.as_u64(), region.len)).collect()
        };
        assert_eq!(ranges(256 << 20, 64 << 20), [(192 << 20, 64 << 20)]);
        assert_eq!(ranges(4 << 30, 512 << 20), [((4 << 30) + (512 << 20), 512 << 20)]);
        assert_eq!(ranges(4 << 30, 2 << 30), [(2 << 30, 1 << 30), (4 << 30, 1 << 30)]);
    }

    proptest! {
        #[test]
        fn regions_ascend_and_memory_is_backed(pieces in 2u64..1 << 15, pages in 0u64..512, part in 0u64..1 << 15) {
            // Private memory comes with RAM in whole pieces.
            let (ram, private) = if part % 2 == 0 { ((pieces << 21) + pages * 4096, 0) } else { (pieces << 21, (part % pieces) << 21) };
            let layout = GuestLayout { private, ..GuestLayout::new(ram, &[0]) };
            prop_assert_eq!(layout.check(), Ok(()));
            let (mut end, mut usable, mut soft) = (0, 0, 0);
            for region in layout.memory_map() {
                let start = region.start.as_u64();
                prop_assert!(start >= end && region.len > 0);
                end = start + region.len;
                match region.kind {
                    RegionKind::Ram => usable += region.len,
                    RegionKind::SoftReserved => soft += region.len,
                    _ => continue,
                }
                prop_assert!(layout.backed().any(|(at, size)| start >= at.as_u64() && end <= at.as_u64() + size));
                // All from one address on is private, and whole pieces.
                let is_private = region.kind == RegionKind::SoftReserved;
                prop_assert_eq!(region.start >= layout.private_from(), is_private);
                prop_assert!(!is_private || (start % (2 << 20) == 0 && region.len % (2 << 20) == 0));
            }
            // All but the legacy range between the EBDA and 1 MiB.
            prop_assert_eq!((usable, soft), (ram - private - (EXTENDED - EBDA), private));
            prop_assert_eq!(layout.backed().map(|(_, size)| size).sum::<u64>(), ram);
            let mut free = 0;
            for (at, size) in layout.backed() {
                prop_assert!(at.as_u64() >= free);
                free = at.as_u64() + size;
                // None is private in part.
                prop_assert!(at >= layout.private_from() || free <= layout.private_from().as_u64());
            }
        }
    }
}
