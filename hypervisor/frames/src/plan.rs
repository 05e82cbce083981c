//! Covering the machine's memory map by a few zones, before there is an allocator.

use caisson_types::{Hpa, PAGE_SIZE};

use crate::{FRAME_SHIFT, FrameMeta};

/// The most zones of a plan.
pub const MAX_ZONES: usize = 8;

/// Frame numbers below this are under 1 MiB: real-mode code and trampolines.
pub(crate) const LOW_END: u64 = (1 << 20) >> FRAME_SHIFT;
/// Frame numbers below this are under 4 GiB: 32-bit DMA.
pub(crate) const DMA32_END: u64 = (1 << 32) >> FRAME_SHIFT;
/// One past the last frame number: x86-64 has physical addresses of at most 52 bits (AMD APM vol. 2, 5.3).
const PFN_END: u64 = 1 << (52 - FRAME_SHIFT);
/// A hole of up to so many frames (1 GiB, 2 MiB of metadata) does not end a zone.
const MAX_HOLE: u64 = 1 << 18;

/// Where zones must end: the classes of memory that the placement tells apart.
const BORDERS: [(u64, u64); 3] = [(0, LOW_END), (LOW_END, DMA32_END), (DMA32_END, PFN_END)];

/// Frame numbers from `start` to before `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// The whole frames within `len` bytes at `start`, empty when there is none.
    pub(crate) fn inside(start: Hpa, len: u64) -> Self {
        let end = start.as_u64().saturating_add(len) >> FRAME_SHIFT;
        let start = start.as_u64().div_ceil(PAGE_SIZE);
        Self { start, end: end.min(PFN_END).max(start) }
    }

    /// All frames that `len` bytes at `start` touch.
    pub(crate) fn around(start: Hpa, len: u64) -> Self {
        let end = start.as_u64().saturating_add(len).div_ceil(PAGE_SIZE);
        let start = start.as_u64() >> FRAME_SHIFT;
        Self { start, end: if len == 0 { start } else { end.min(PFN_END).max(start) } }
    }

    pub(crate) const fn frames(self) -> u64 {
        self.end - self.start
    }

    /// The part that both spans have, which may be empty.
    pub(crate) fn intersect(self, start: u64, end: u64) -> Self {
        let start = self.start.max(start);
        Self { start, end: self.end.min(end).max(start) }
    }

    fn join(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Frames between the two spans; `None` when a border of the placement lies between them.
    fn hole(self, other: Self) -> Option<u64> {
        let class =
            |span: Self| BORDERS.iter().position(|&(start, end)| start <= span.start && span.start < end);
        let (low, high) = if self.start <= other.start { (self, other) } else { (other, self) };
        (class(low) == class(high)).then(|| high.start.saturating_sub(low.end))
    }
}

/// A plan of zones: spans of memory that the allocator will keep metadata for.
///
/// [Include](Self::include) every region of RAM that will ever be handed to the allocator, in any order;
/// reserve [`metadata_bytes`](Self::metadata_bytes) of zeroed memory; then set the allocator up. Planning a
/// zone makes nothing allocatable: regions do, see
/// [`FrameAllocator::add_region`](crate::FrameAllocator::add_region).
#[derive(Clone, Copy, Debug)]
pub struct ZonePlan {
    /// One more than there may be zones, for the moment before two are joined.
    spans: [Span; MAX_ZONES + 1],
    used: usize,
}

impl ZonePlan {
    /// A plan without zones.
    #[must_use]
    pub const fn new() -> Self {
        Self { spans: [Span::EMPTY; MAX_ZONES + 1], used: 0 }
    }

    /// Includes `len` bytes at `start`, clipped to whole frames. Regions may overlap and come in any order.
    ///
    /// Neighbours with up to 1 GiB between them share a zone, and if there would be more than [`MAX_ZONES`],
    /// so do those that are the closest together.
    pub fn include(&mut self, start: Hpa, len: u64) {
        let region = Span::inside(start, len);
        for (start, end) in BORDERS {
            let part = region.intersect(start, end);
            if part.frames() != 0 {
                self.include_part(part);
            }
        }
        self.spans[..self.used].sort_unstable_by_key(|span| span.start);
    }

    fn include_part(&mut self, mut part: Span) {
        let close = |a: Span, b: Span| a.hole(b).is_some_and(|hole| hole <= MAX_HOLE);
        while let Some(at) = self.spans().iter().position(|&span| close(span, part)) {
            part = part.join(self.remove(at));
        }
        self.spans[self.used] = part;
        self.used += 1;
        if self.used > MAX_ZONES {
            self.join_closest();
        }
    }

    /// Joins the two zones of one class that have the smallest hole between them. There are such, as there
    /// are fewer classes than zones, and nothing lies between them.
    fn join_closest(&mut self) {
        let mut best: Option<(u64, usize, usize)> = None;
        for a in 0..self.used {
            for b in a + 1..self.used {
                if let Some(hole) = self.spans[a].hole(self.spans[b])
                    && best.is_none_or(|(smallest, ..)| hole < smallest)
                {
                    best = Some((hole, a, b));
                }
            }
        }
        if let Some((_, a, b)) = best {
            let joined = self.spans[a].join(self.remove(b));
            self.spans[a] = joined;
        }
    }

    /// Takes the span at `at` (in range) out.
    fn remove(&mut self, at: usize) -> Span {
        let span = self.spans[at];
        self.used -= 1;
        self.spans[at] = self.spans[self.used];
        span
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans[..self.used]
    }

    /// Frames that the zones cover, holes inside them included: the entries of metadata that are needed.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.spans().iter().map(|span| span.frames()).sum()
    }

    /// Bytes of metadata that the allocator needs.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.frames() * size_of::<FrameMeta>() as u64
    }
}

impl Default for ZonePlan {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_pc_has_three_zones() {
        let mut plan = ZonePlan::new();
        plan.include(Hpa::new(4 * GIB), 5 * GIB);
        plan.include(Hpa::new(0), 0x9_fc00);
        plan.include(Hpa::new(MIB), 3 * GIB - 2 * MIB);
        let expected = [
            Span { start: 0, end: 0x9f },
            Span { start: LOW_END, end: (3 * GIB - MIB) >> 12 },
            Span { start: DMA32_END, end: (9 * GIB) >> 12 },
        ];
        assert_eq!(plan.spans(), expected);
        assert_eq!(plan.metadata_bytes(), plan.frames() * 8);
    }

    #[test]
    fn what_has_no_whole_frame_is_left_out() {
        let mut plan = ZonePlan::new();
        plan.include(Hpa::new(0x1001), 0x1ffe);
        plan.include(Hpa::new(u64::MAX), u64::MAX);
        plan.include(Hpa::new(0x1000), 0);
        assert_eq!(plan.frames(), 0);
        plan.include(Hpa::new(0x1001), 0x1fff);
        assert_eq!(plan.spans(), [Span { start: 2, end: 3 }]);
    }

    proptest! {
        #[test]
        fn zones_are_few_disjoint_and_cover_everything(
            regions in prop::collection::vec((0..64 * GIB, 1..8 * GIB), 1..40),
        ) {
            let mut plan = ZonePlan::new();
            for &(start, len) in &regions {
                plan.include(Hpa::new(start * 7), len);
            }
            prop_assert!(plan.spans().len() <= MAX_ZONES);
            prop_assert!(plan.spans().windows(2).all(|pair| pair[0].end <= pair[1].start));
            for span in plan.spans() {
                prop_assert!(BORDERS.iter().any(|&(start, end)| start <= span.start && span.end <= end));
            }
            for &(start, len) in &regions {
                let region = Span::inside(Hpa::new(start * 7), len);
                let covered: u64 =
                    plan.spans().iter().map(|span| span.intersect(region.start, region.end).frames()).sum();
                prop_assert_eq!(covered, region.frames());
            }
        }
    }
}
