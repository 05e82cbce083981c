//! Where things go in guest RAM, without overlap and without allocation.

use caisson_types::{Gpa, MemoryRegion, PAGE_SIZE, RegionKind};

use crate::{LoadError, LoadRequest, Module};

/// The end of what 32-bit addresses reach.
pub(crate) const FOUR_GIB: u64 = 1 << 32;

/// The most ranges that can be taken at once: segments, reserved ranges, and some for the loader itself.
const MAX_TAKEN: usize = 256;

/// Ranges for loaders' own structures, which reserved ranges leave free.
const OWN: usize = crate::MAX_SEGMENTS + 16;

#[derive(Clone, Copy, Default)]
struct Taken {
    start: u64,
    end: u64,
}

/// The RAM of a guest, and what of it is taken. Invariant: `taken[..count]` is sorted by `start`.
#[derive(Clone, Copy)]
pub(crate) struct Placement<'a> {
    map: &'a [MemoryRegion],
    taken: [Taken; MAX_TAKEN],
    count: usize,
}

impl<'a> Placement<'a> {
    /// All RAM of the request's memory map but its reserved ranges.
    pub(crate) fn new(request: &LoadRequest<'a>) -> Result<Self, LoadError> {
        let mut placement = Self { map: request.memory_map, taken: [Taken::default(); MAX_TAKEN], count: 0 };
        for &(start, len) in request.reserved {
            if placement.count >= MAX_TAKEN - OWN {
                return Err(LoadError::TooManyReserved);
            }
            let start = start.as_u64();
            placement.insert(start, start.saturating_add(len));
        }
        Ok(placement)
    }

    /// Takes the `len` bytes at `start` for the named part. They must be free RAM; none at all are always free.
    pub(crate) fn claim(&mut self, what: &'static str, start: u64, len: u64) -> Result<(), LoadError> {
        if len == 0 {
            return Ok(());
        }
        let gpa = Gpa::new(start);
        let end = start.checked_add(len).ok_or(LoadError::OutsideRam { what, start: gpa, len })?;
        if !self.is_ram(start, end) {
            return Err(LoadError::OutsideRam { what, start: gpa, len });
        }
        if self.taken().iter().any(|taken| taken.start < end && start < taken.end) {
            return Err(LoadError::Overlap { what, start: gpa, len });
        }
        self.insert(start, end);
        Ok(())
    }

    /// The lowest free address for `size` bytes, a multiple of `align`, not below `from`, that ends by `below`.
    /// `align` is a power of two.
    pub(crate) fn lowest(&self, size: u64, align: u64, from: u64, below: u64) -> Option<u64> {
        for region in self.ram() {
            let mut start = align_up(region.start.as_u64().max(from), align)?;
            for taken in self.taken() {
                if taken.start < start.checked_add(size)? && start < taken.end {
                    start = align_up(taken.end, align)?;
                }
            }
            if start.checked_add(size)? <= region.end().as_u64().min(below) {
                return Some(start);
            }
        }
        None
    }

    /// The highest free address for `size` bytes, a multiple of `align`, that ends by `below`.
    pub(crate) fn highest(&self, size: u64, align: u64, below: u64) -> Option<u64> {
        self.ram().rev().find_map(|region| {
            let top = region.end().as_u64().min(below);
            let mut start = align_down(top.checked_sub(size)?, align);
            for taken in self.taken().iter().rev() {
                if taken.start < start + size && start < taken.end {
                    start = align_down(taken.start.checked_sub(size)?, align);
                }
            }
            (start >= region.start.as_u64()).then_some(start)
        })
    }

    /// Takes the lowest free address as [`Placement::lowest`] finds it.
    pub(crate) fn place_low(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        from: u64,
        below: u64,
    ) -> Result<u64, LoadError> {
        let start = self.lowest(size, align, from, below).ok_or(LoadError::NoRoom { what, len: size })?;
        self.claim(what, start, size)?;
        Ok(start)
    }

    /// Takes the lowest free pages for a block of tables and strings that a kernel reads at its start: from 64 KiB on,
    /// above what real-mode code uses, or else from the second page on.
    pub(crate) fn place_block(&mut self, what: &'static str, size: u64) -> Result<u64, LoadError> {
        let found = [0x1_0000, PAGE_SIZE]
            .into_iter()
            .find_map(|from| self.lowest(size, PAGE_SIZE, from, FOUR_GIB))
            .ok_or(LoadError::NoRoom { what, len: size })?;
        self.claim(what, found, size)?;
        Ok(found)
    }

    fn taken(&self) -> &[Taken] {
        self.taken.get(..self.count).unwrap_or_default()
    }

    fn ram(&self) -> impl DoubleEndedIterator<Item = &'a MemoryRegion> + use<'a> {
        self.map.iter().filter(|region| region.kind == RegionKind::Ram)
    }

    fn is_ram(&self, start: u64, end: u64) -> bool {
        let mut reached = start;
        for region in self.ram() {
            if region.start.as_u64() <= reached {
                reached = reached.max(region.end().as_u64());
            }
        }
        reached >= end && self.ram().any(|region| region.contains(Gpa::new(start), 1))
    }

    /// Takes a range, which may be empty or overlap others. Callers see to it that there is room in the list: loaders
    /// take at most [`OWN`] ranges.
    fn insert(&mut self, start: u64, end: u64) {
        let at = self.taken().partition_point(|taken| taken.start <= start);
        if let Some(tail) = self.taken.get_mut(at..=self.count) {
            tail.rotate_right(1);
            if let Some(slot) = tail.first_mut() {
                *slot = Taken { start, end };
                self.count += 1;
            }
        }
    }
}

/// Free places one after the other upwards, for any number of things.
#[derive(Clone, Copy)]
pub(crate) struct Ascending<'p, 'a> {
    placement: &'p Placement<'a>,
    next: u64,
    below: u64,
}

impl<'p, 'a> Ascending<'p, 'a> {
    /// Places below 4 GiB for all of a request's modules: after the kernel and above 1 MiB if there is room for all of
    /// them, else from the first page on. What [`Ascending::place`] gives after them is free as well.
    pub(crate) fn modules(
        placement: &'p Placement<'a>,
        request: &LoadRequest<'_>,
        kernel_end: u64,
    ) -> Result<Self, LoadError> {
        let from = |next| Self { placement, next, below: FOUR_GIB };
        let rehearse = |mut places: Self| {
            request.modules.iter().try_for_each(|module| places.module(module).map(|_| ()))
        };
        let preferred = from(kernel_end.max(1 << 20));
        if rehearse(preferred).is_ok() {
            return Ok(preferred);
        }
        rehearse(from(PAGE_SIZE)).map(|()| from(PAGE_SIZE))
    }

    /// The place of the next module, a page boundary.
    pub(crate) fn module(&mut self, module: &Module<'_>) -> Result<u64, LoadError> {
        self.place("module", module.data.len() as u64, PAGE_SIZE)
    }

    /// The next free place for `size` bytes. Things of no size get a place too.
    pub(crate) fn place(&mut self, what: &'static str, size: u64, align: u64) -> Result<u64, LoadError> {
        let start = self
            .placement
            .lowest(size.max(1), align, self.next, self.below)
            .ok_or(LoadError::NoRoom { what, len: size })?;
        self.next = start.saturating_add(size.max(1));
        Ok(start)
    }
}

pub(crate) fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

fn align_down(value: u64, align: u64) -> u64 {
    value & !(align - 1)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn ram(start: u64, end: u64) -> MemoryRegion {
        MemoryRegion::new(Gpa::new(start), end - start, RegionKind::Ram)
    }

    fn request<'a>(memory_map: &'a [MemoryRegion], reserved: &'a [(Gpa, u64)]) -> LoadRequest<'a> {
        LoadRequest { modules: &[], cmdline: "", memory_map, reserved, rsdp: None }
    }

    #[test]
    fn places_lie_in_free_ram() {
        let map = [ram(0, 0xA0000), ram(0x10_0000, 0x80_0000), ram(0x80_0000, 0x100_0000)];
        let reserved = [(Gpa::new(0x9_0000), 0x1000)];
        let mut p = Placement::new(&request(&map, &reserved)).unwrap();
        assert_eq!(p.lowest(0x1000, 0x1000, 0x8_F800, FOUR_GIB), Some(0x9_1000));
        assert_eq!(p.lowest(0x10_0000, 0x1000, 0, FOUR_GIB), Some(0x10_0000));
        assert_eq!(p.highest(0x1000, 0x1000, 0x9_0800), Some(0x8_F000));
        assert_eq!(p.highest(0x1000, 0x1000, FOUR_GIB), Some(0xFF_F000));
        p.claim("a", 0x70_0000, 0x20_0000).unwrap();
        assert!(matches!(p.claim("b", 0x8F_FFFF, 1), Err(LoadError::Overlap { .. })));
        assert!(matches!(p.claim("b", 0x9_F000, 0x2000), Err(LoadError::OutsideRam { .. })));
        assert!(matches!(p.claim("b", 0xA_0000, 1), Err(LoadError::OutsideRam { .. })));
        assert!(matches!(p.claim("b", u64::MAX, 2), Err(LoadError::OutsideRam { .. })));
        assert_eq!(p.claim("none", u64::MAX, 0), Ok(()));
        assert_eq!(p.lowest(u64::MAX, 1, 0, u64::MAX), None);
        assert_eq!(p.highest(u64::MAX, 1, u64::MAX), None);
    }

    #[test]
    fn blocks_go_below_64_kib_only_when_they_must() {
        let map = [ram(0, 0x2_0000)];
        let mut p = Placement::new(&request(&map, &[])).unwrap();
        assert_eq!(p.place_block("a", 0xF000), Ok(0x1_0000));
        assert_eq!(p.place_block("b", 0x2000), Ok(0x1000));
        assert!(matches!(p.place_block("c", 0xE000), Err(LoadError::NoRoom { what: "c", len: 0xE000 })));
    }

    #[test]
    fn too_many_reserved_ranges_are_refused() {
        let map = [ram(0, 0x1000_0000)];
        let reserved = [(Gpa::new(0), 1); MAX_TAKEN];
        assert!(matches!(Placement::new(&request(&map, &reserved)), Err(LoadError::TooManyReserved)));
    }

    proptest! {
        #[test]
        fn found_places_are_free_and_extreme(
            taken in prop::collection::vec((0u64..200, 1u64..30), 0..12),
            size in 1u64..40, order in 0u32..4, from in 0u64..100, below in 100u64..260,
        ) {
            let map = [ram(0, 90), ram(110, 230)];
            let reserved: Vec<_> = taken.iter().map(|&(start, len)| (Gpa::new(start), len)).collect();
            let p = Placement::new(&request(&map, &reserved)).unwrap();
            let align = 1 << order;
            let fits = |start: u64| {
                start.is_multiple_of(align)
                    && (start + size <= 90 || start >= 110 && start + size <= 230)
                    && taken.iter().all(|&(s, l)| s + l <= start || start + size <= s)
                    && start + size <= below
            };
            prop_assert_eq!(p.lowest(size, align, from, below), (from..260).find(|&s| fits(s)));
            prop_assert_eq!(p.highest(size, align, below), (0..260).rev().find(|&s| fits(s)));
        }
    }
}
