//! The firmware's memory map, made simple: sorted, disjoint ranges of RAM.

use arrayvec::ArrayVec;
use caisson_boot::{AreaKind, BootInfo, Range};
use caisson_types::PAGE_SIZE;

/// Most ranges that are kept.
const MAX_RANGES: usize = 256;
/// Memory below 1 MiB is left alone: the firmware's data, and where application processors start.
pub(crate) const LOW_END: u64 = 1 << 20;

pub(crate) type Ranges = ArrayVec<Range, MAX_RANGES>;

/// The RAM that the firmware calls free, above 1 MiB, whole pages, sorted; where areas overlap, the stricter counts.
/// `None` when it has too many pieces.
pub(crate) fn usable(info: &BootInfo) -> Option<Ranges> {
    let mut ranges = Ranges::new();
    for area in info.areas.iter().filter(|a| a.kind == AreaKind::Usable) {
        let start = area.range.start.max(LOW_END).checked_next_multiple_of(PAGE_SIZE)?;
        let end = area.range.end & !(PAGE_SIZE - 1);
        if start < end {
            ranges.try_push(Range { start, end }).ok()?;
        }
    }
    let merged = merged(ranges);
    let others = info.areas.iter().filter(|a| a.kind != AreaKind::Usable).map(|a| a.range);
    without(&merged, others)
}

/// The highest page of free RAM below `limit` that neither the firmware nor the loader uses; page 0, which the firmware
/// uses whatever it says, is none.
#[cfg_attr(not(any(target_os = "none", test)), allow(dead_code))]
pub(crate) fn low_page(info: &BootInfo, limit: u64) -> Option<u64> {
    let taken = |page: u64| {
        let overlaps = |range: Range| range.start < page + PAGE_SIZE && page < range.end;
        info.areas.iter().filter(|a| a.kind != AreaKind::Usable).any(|a| overlaps(a.range))
            || info.loader_memory().any(overlaps)
    };
    let free = |page: u64| {
        let holds = |range: Range| range.start <= page && page + PAGE_SIZE <= range.end;
        info.areas.iter().any(|a| a.kind == AreaKind::Usable && holds(a.range)) && !taken(page)
    };
    (1..limit / PAGE_SIZE).rev().map(|number| number * PAGE_SIZE).find(|&page| free(page))
}

/// Sorts ranges and joins those that touch or overlap.
fn merged(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable_by_key(|r| r.start);
    let mut joined = Ranges::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            // There are at most as many as before.
            _ => joined.push(range),
        }
    }
    joined
}

/// `ranges` and what else is in use as RAM, in whole pages. `None` when it has too many pieces.
pub(crate) fn with(ranges: &Ranges, more: impl Iterator<Item = Range>) -> Option<Ranges> {
    let mut all = ranges.clone();
    for range in more.filter(|r| r.start < r.end) {
        let end = range.end.checked_next_multiple_of(PAGE_SIZE)?;
        all.try_push(Range { start: range.start & !(PAGE_SIZE - 1), end }).ok()?;
    }
    Some(merged(all))
}

/// `ranges` with `holes` cut out, in whole pages. `None` when it has too many pieces.
pub(crate) fn without(ranges: &Ranges, holes: impl Iterator<Item = Range>) -> Option<Ranges> {
    let mut left = ranges.clone();
    for hole in holes {
        if hole.start >= hole.end {
            continue;
        }
        let start = hole.start & !(PAGE_SIZE - 1);
        let end = hole.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        let mut next = Ranges::new();
        for range in left {
            for piece in [
                Range { start: range.start, end: range.end.min(start) },
                Range { start: range.start.max(end), end: range.end },
            ] {
                if piece.start < piece.end {
                    next.try_push(piece).ok()?;
                }
            }
        }
        left = next;
    }
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        list.iter().map(|&(start, end)| Range { start, end }).collect()
    }

    #[test]
    fn holes_are_cut_in_whole_pages() {
        let all = ranges(&[(0x10_0000, 0x20_0000), (0x40_0000, 0x50_0000)]);
        let holes = [Range { start: 0x11_0800, end: 0x11_0801 }, Range { start: 0x1f_f000, end: 0x41_0000 }];
        assert_eq!(
            without(&all, holes.into_iter()),
            Some(ranges(&[(0x10_0000, 0x11_0000), (0x11_1000, 0x1f_f000), (0x41_0000, 0x50_0000)]))
        );
    }

    #[test]
    fn what_the_loader_filled_is_added() {
        let all = ranges(&[(0x10_0000, 0x20_0000)]);
        let more = [Range { start: 0x1f_0000, end: 0x20_0801 }, Range { start: 0x9_0010, end: 0x9_0020 }];
        let expected = ranges(&[(0x9_0000, 0x9_1000), (0x10_0000, 0x20_1000)]);
        assert_eq!(with(&all, more.into_iter()), Some(expected));
    }

    #[test]
    fn a_low_page_is_nobody_elses() {
        let area = |start, end, kind| caisson_boot::Area { range: Range { start, end }, kind };
        let mut info = BootInfo {
            command_line: arrayvec::ArrayString::new(),
            areas: ArrayVec::new(),
            modules: ArrayVec::new(),
            rsdp: None,
            screen: None,
            symbols: None,
            structure: Range { start: 0x9_d800, end: 0x9_e010 },
        };
        assert_eq!(low_page(&info, 0xa_0000), None);
        info.areas.push(area(0, 0x9_fc00, AreaKind::Usable));
        assert_eq!(low_page(&info, 0xa_0000), Some(0x9_c000));
        info.areas.push(area(0x1000, 0x9_d000, AreaKind::Reserved));
        assert_eq!(low_page(&info, 0xa_0000), None);
    }

    #[test]
    fn touching_ranges_are_joined() {
        let list = ranges(&[(5, 9), (1, 5), (8, 10), (20, 21)]);
        assert_eq!(merged(list), ranges(&[(1, 10), (20, 21)]));
    }
}
