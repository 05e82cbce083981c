//! The guest-physical memory map, as e820, multiboot and PVH hand it over.
//!
//! RAM is one piece from address 0 to the hole and another from 4 GiB. In the first, the range from 0xA0000 to 1 MiB is
//! not the guest's to allocate, as on any PC, but memory stands behind it: a guest that draws into a VGA window there
//! does no harm and causes no exit.
//!
//! ACPI 6.5, section 15 ("System Address Map Interfaces").

use alloc::vec::Vec;

use caisson_types::{Gpa, MemoryRegion, RegionKind};

use crate::{GuestLayout, IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS};

/// Start of the extended BIOS data area, where conventional memory ends.
pub(crate) const EBDA: u64 = 0x9_FC00;
/// Start of the VGA window.
const VGA: u64 = 0xA_0000;
/// Start of the firmware's tables.
pub(crate) const FIRMWARE: u64 = 0xE_0000;
/// Start of extended memory.
pub(crate) const EXTENDED: u64 = 0x10_0000;
const FOUR_GIB: u64 = 1 << 32;

impl GuestLayout<'_> {
    /// The memory map to hand to the guest: in ascending order, without overlap.
    pub fn memory_map(&self) -> impl Iterator<Item = MemoryRegion> {
        use RegionKind::{Ram, Reserved};
        let region =
            |start, end: u64, kind| MemoryRegion::new(Gpa::new(start), end.saturating_sub(start), kind);
        let page = |start: u32| region(u64::from(start), u64::from(start) + 0x1000, Reserved);
        let low = [region(0, EBDA, Ram), region(EBDA, VGA, Reserved), region(FIRMWARE, EXTENDED, Reserved)];
        let usual = [
            region(EXTENDED, self.ram_below_4g(), Ram),
            page(IOAPIC_ADDRESS),
            page(LOCAL_APIC_ADDRESS),
            region(FOUR_GIB, FOUR_GIB.saturating_add(self.ram_above_4g()), Ram),
        ];
        let high: Vec<_> = match self.real {
            None => usual.to_vec(),
            Some(real) => real.regions.to_vec(),
        };
        low.into_iter().chain(high).filter(|region| region.len > 0)
    }

    /// The ranges behind which memory stands, as start and bytes: what the stage-2 tables map. With real devices it is the
    /// first MiB alone; all other memory is where it is.
    pub fn backed(&self) -> impl Iterator<Item = (Gpa, u64)> + use<> {
        let low = if self.real.is_some() { EXTENDED } else { self.ram_below_4g() };
        let high = if self.real.is_some() { 0 } else { self.ram_above_4g() };
        [(Gpa::new(0), low), (Gpa::new(FOUR_GIB), high)].into_iter().filter(|&(_, size)| size > 0)
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

    proptest! {
        #[test]
        fn regions_ascend_and_ram_is_backed(pages in 512u64..1 << 24) {
            let layout = GuestLayout::new(pages * 4096, &[0]);
            let (mut end, mut ram) = (0, 0);
            for region in layout.memory_map() {
                let start = region.start.as_u64();
                prop_assert!(start >= end && region.len > 0);
                end = start + region.len;
                if region.kind == RegionKind::Ram {
                    ram += region.len;
                    prop_assert!(layout.backed().any(|(at, size)| start >= at.as_u64() && end <= at.as_u64() + size));
                }
            }
            // All but the legacy range between the EBDA and 1 MiB.
            prop_assert_eq!(ram, layout.ram - (EXTENDED - EBDA));
            prop_assert_eq!(layout.backed().map(|(_, size)| size).sum::<u64>(), layout.ram);
        }
    }
}
