//! The memory map of a domain that sees the machine's memory where it is.

use alloc::vec::Vec;

use caisson_types::{Gpa, MemoryRegion, RegionKind};

/// Where the first MiB ends, which is as in any guest.
const LOW_END: u64 = 0x10_0000;

/// What Linux maps of soft-reserved memory at a time, from a multiple of it on (`device_dax`).
const PIECE: u64 = 0x20_0000;

/// The machine's memory that is not the domain's: soft-reserved in whole pieces, what is left at the ends reserved.
fn keep(add: &mut impl FnMut(u64, u64, RegionKind), start: u64, end: u64) {
    let first = start.next_multiple_of(PIECE).min(end);
    let last = (end / PIECE * PIECE).max(first);
    add(start, first, RegionKind::Reserved);
    add(first, last, RegionKind::SoftReserved);
    add(last, end, RegionKind::Reserved);
}

/// The map from 1 MiB on, of a machine whose firmware tells of `areas` (in any order, RAM as [`RegionKind::Ram`]): `own` is
/// the domain's RAM, as first and past-the-end address, in ascending order without overlap; the end of the piece that holds
/// `acpi` is for ACPI tables, from there on. All other RAM of the machine is soft-reserved, in whole pieces of 2 MiB, and what is
/// no RAM is reserved.
///
/// The regions ascend and do not overlap, whatever the firmware says; where its areas overlap, the one that starts first
/// counts.
#[must_use]
pub fn real_memory_map(areas: &[MemoryRegion], own: &[(u64, u64)], acpi: Gpa) -> Vec<MemoryRegion> {
    let mut regions = Vec::new();
    let mut add = |start: u64, end: u64, kind| {
        if start < end {
            regions.push(MemoryRegion::new(Gpa::new(start), end - start, kind));
        }
    };
    let mut areas: Vec<_> = areas.iter().collect();
    areas.sort_unstable_by_key(|area| area.start);
    let mut done = LOW_END;
    for area in areas {
        let (mut at, end) = (area.start.as_u64().max(done), area.end().as_u64());
        done = done.max(end);
        if area.kind != RegionKind::Ram {
            add(at, end, RegionKind::Reserved);
            continue;
        }
        for &(first, last) in own {
            let (first, last) = (first.max(at), last.min(end));
            if first >= last {
                continue;
            }
            let tables = if (first..last).contains(&acpi.as_u64()) { acpi.as_u64() } else { last };
            keep(&mut add, at, first);
            add(first, tables, RegionKind::Ram);
            add(tables, last, RegionKind::AcpiReclaim);
            at = last;
        }
        keep(&mut add, at, end);
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(start: u64, end: u64, kind: RegionKind) -> MemoryRegion {
        MemoryRegion::new(Gpa::new(start), end - start, kind)
    }

    #[test]
    fn the_rest_of_the_machine_is_kept_apart() {
        let areas = [
            area(0x4000_0000, 0x8000_0000, RegionKind::Reserved),
            area(0, 0x9_fc00, RegionKind::Ram),
            area(0x10_0000, 0x4000_0000, RegionKind::Ram),
        ];
        let map = real_memory_map(
            &areas,
            &[(0x40_0000, 0x80_0000), (0x1000_0000, 0x2000_0000)],
            Gpa::new(0x1fff_0000),
        );
        let map: Vec<_> = map.iter().map(|r| (r.start.as_u64(), r.end().as_u64(), r.kind)).collect();
        assert_eq!(
            map,
            [
                (0x10_0000, 0x20_0000, RegionKind::Reserved),
                (0x20_0000, 0x40_0000, RegionKind::SoftReserved),
                (0x40_0000, 0x80_0000, RegionKind::Ram),
                (0x80_0000, 0x1000_0000, RegionKind::SoftReserved),
                (0x1000_0000, 0x1fff_0000, RegionKind::Ram),
                (0x1fff_0000, 0x2000_0000, RegionKind::AcpiReclaim),
                (0x2000_0000, 0x4000_0000, RegionKind::SoftReserved),
                (0x4000_0000, 0x8000_0000, RegionKind::Reserved),
            ]
        );
    }

    proptest! {
        #[test]
        fn no_firmware_is_too_strange(
            areas in proptest::collection::vec((0u64..64, 0u64..64, 0u8..3), 0..12),
            own in proptest::collection::btree_set(1u64..60, 0..8),
            acpi in 0u64..64,
        ) {
            const UNIT: u64 = 0x10_0000;
            let kinds = [RegionKind::Ram, RegionKind::Reserved, RegionKind::AcpiReclaim];
            let areas: Vec<_> = areas
                .iter()
                .map(|&(start, len, kind)| area(start * UNIT, (start + len) * UNIT, kinds[usize::from(kind)]))
                .collect();
            let own: Vec<_> = own.iter().map(|&at| (at * UNIT, (at + 1) * UNIT)).collect();
            let mut end = LOW_END;
            for region in real_memory_map(&areas, &own, Gpa::new(acpi * UNIT)) {
                let start = region.start.as_u64();
                prop_assert!(start >= end && region.len > 0);
                end = region.end().as_u64();
                // What is given as memory is the domain's own, all of it.
                if matches!(region.kind, RegionKind::Ram | RegionKind::AcpiReclaim) {
                    for at in (start..end).step_by(UNIT as usize) {
                        prop_assert!(own.iter().any(|&(first, last)| (first..last).contains(&at)));
                    }
                }
            }
        }
    }
}
