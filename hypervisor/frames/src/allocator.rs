//! The allocator: zones, owners and their accounts.

use core::fmt;

use caisson_types::Hpa;

use crate::meta::{MAX_FRAMES, State};
use crate::owner::Accounts;
use crate::plan::{LOW_END, Span};
use crate::zone::{Block, Zone};
use crate::{
    FRAME_SHIFT, FrameMeta, FreeError, MAX_ORDER, MAX_ZONES, ORDERS, Owner, RegionError, SetupError,
    ZonePlan, largest_order,
};

/// An allocated block of frames: whoever holds it may use the frames, and gives them back by
/// [`FrameAllocator::free`].
///
/// It can be neither copied nor made up, so that safe code frees a block once. Where only the address can be
/// kept (a page-table entry), take it by [`into_start`](Self::into_start) and get the block back, checked, by
/// [`FrameAllocator::reclaim`]. A block that is dropped stays allocated until its owner is
/// [released](FrameAllocator::release_owner).
#[must_use = "a dropped block stays allocated"]
#[derive(PartialEq, Eq)]
pub struct FrameBlock {
    start: Hpa,
    order: u8,
    owner: Owner,
}

impl FrameBlock {
    pub(crate) const fn new(block: Block, owner: Owner) -> Self {
        Self { start: Hpa::new(block.pfn << FRAME_SHIFT), order: block.order, owner }
    }

    pub(crate) const fn block(&self) -> Block {
        Block { pfn: self.start.as_u64() >> FRAME_SHIFT, order: self.order }
    }

    /// The first byte's address, a multiple of [`bytes`](Self::bytes).
    #[must_use]
    pub const fn start(&self) -> Hpa {
        self.start
    }

    /// log2 of the number of frames.
    #[must_use]
    pub const fn order(&self) -> u8 {
        self.order
    }

    /// Who owns the block.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The block's size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        1 << (self.order as u32 + FRAME_SHIFT)
    }

    /// The address alone, for a place that can keep no more; the way back is [`FrameAllocator::reclaim`].
    #[must_use = "the address is all that is left of the block"]
    pub const fn into_start(self) -> Hpa {
        self.start
    }
}

impl fmt::Debug for FrameBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameBlock({}+{:#x} of {})", self.start, self.bytes(), self.owner)
    }
}

/// Counts over all zones, in blocks by order and in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statistics {
    /// Free blocks of each order.
    pub free_blocks: [u64; ORDERS],
    /// Allocated blocks of each order.
    pub used_blocks: [u64; ORDERS],
    /// Frames that are free.
    pub free_frames: u64,
    /// Frames that were seeded: all that are free or owned.
    pub total_frames: u64,
}

/// The frame allocator; see the [crate] for its rules.
pub struct FrameAllocator<'m> {
    meta: &'m mut [FrameMeta],
    zones: [Zone; MAX_ZONES],
    zones_used: usize,
    accounts: Accounts,
    used_blocks: [u64; ORDERS],
    free_frames: u64,
    total_frames: u64,
}

impl<'m> FrameAllocator<'m> {
    /// An allocator over the zones of `plan`, with no memory yet. Every entry of `meta` is
    /// [`FrameMeta::ABSENT`], which is what zeroed memory holds.
    ///
    /// # Errors
    /// [`SetupError`] where `meta` is too short for the plan or the plan too long for any metadata.
    pub fn new(plan: &ZonePlan, meta: &'m mut [FrameMeta]) -> Result<Self, SetupError> {
        let needed = plan.frames();
        if needed > MAX_FRAMES {
            return Err(SetupError::TooManyFrames { planned: needed, limit: MAX_FRAMES });
        }
        if (meta.len() as u64) < needed {
            return Err(SetupError::MetadataTooSmall { needed, given: meta.len() as u64 });
        }
        let mut zones = [Zone::EMPTY; MAX_ZONES];
        let mut index = 0;
        for (zone, &span) in zones.iter_mut().zip(plan.spans()) {
            *zone = Zone::new(span, index);
            index += span.frames();
        }
        Ok(Self {
            meta,
            zones,
            zones_used: plan.spans().len(),
            accounts: Accounts::new(),
            used_blocks: [0; ORDERS],
            free_frames: 0,
            total_frames: 0,
        })
    }

    /// Seeds the whole frames within `len` bytes at `start` as free memory, and answers how many they are.
    /// The memory there reads as zero. O(blocks) for regions in ascending order.
    ///
    /// # Errors
    /// [`RegionError`] where part of it was not planned or is managed already; nothing is seeded then.
    pub fn add_region(&mut self, start: Hpa, len: u64) -> Result<u64, RegionError> {
        let region = Span::inside(start, len);
        let hpa = |pfn: u64| Hpa::new(pfn << FRAME_SHIFT);
        let mut pfn = region.start;
        while pfn < region.end {
            let zone = self.zone_of(pfn).map(|at| &self.zones[at]).ok_or(RegionError::Unplanned(hpa(pfn)))?;
            let part = zone.span().intersect(pfn, region.end);
            if !zone.is_vacant(self.meta, part) {
                return Err(RegionError::Overlap(hpa(pfn)));
            }
            pfn = part.end;
        }
        for zone in &mut self.zones[..self.zones_used] {
            let part = zone.span().intersect(region.start, region.end);
            if part.frames() != 0 {
                zone.seed(self.meta, part);
            }
        }
        self.free_frames += region.frames();
        self.total_frames += region.frames();
        Ok(region.frames())
    }

    /// Allocates a block of 2^`order` frames, from the highest zone that has one, never below 1 MiB.
    ///
    /// `None` where no such block is free, `order` is over [`MAX_ORDER`], `owner` is [`Owner::Free`], or one
    /// domain too many ([`MAX_DOMAINS`](crate::MAX_DOMAINS)) would own frames. Nothing has changed then.
    pub fn allocate(&mut self, order: u8, owner: Owner) -> Option<FrameBlock> {
        if order > MAX_ORDER || !self.accounts.can_charge(owner) {
            return None;
        }
        let meta = &mut *self.meta;
        let block = zones_above_low(&mut self.zones[..self.zones_used]).find_map(|z| z.take(meta, order))?;
        Some(self.hand_out(block, owner))
    }

    /// Allocates a block of 2^`order` frames all of whose bytes lie below `limit`, from the highest zone that
    /// has one; memory under 1 MiB only if `limit` is at most 1 MiB.
    ///
    /// At once where `limit` is 1 MiB, 4 GiB or above all memory, else O(free blocks of the zone that it is
    /// in).
    ///
    /// `None` as in [`allocate`](Self::allocate).
    pub fn allocate_below(&mut self, limit: Hpa, order: u8, owner: Owner) -> Option<FrameBlock> {
        if order > MAX_ORDER || !self.accounts.can_charge(owner) {
            return None;
        }
        let limit = limit.as_u64() >> FRAME_SHIFT;
        let zones = &mut self.zones[..self.zones_used];
        let meta = &mut *self.meta;
        let block = zones
            .iter_mut()
            .rev()
            .filter(|zone| zone.span().start < limit && (zone.span().start >= LOW_END || limit <= LOW_END))
            .find_map(|zone| zone.take_below(meta, order, limit))?;
        Some(self.hand_out(block, owner))
    }

    /// Allocates just the block of 2^`order` frames at `start`.
    ///
    /// `None` where not all of it is free or `start` is no multiple of its size, else as in
    /// [`allocate`](Self::allocate).
    pub fn allocate_at(&mut self, start: Hpa, order: u8, owner: Owner) -> Option<FrameBlock> {
        if order > MAX_ORDER || !self.accounts.can_charge(owner) {
            return None;
        }
        let pfn = start.as_u64() >> FRAME_SHIFT;
        if start.as_u64() & ((1 << (u32::from(order) + FRAME_SHIFT)) - 1) != 0 {
            return None;
        }
        let zone = self.zone_of(pfn)?;
        let block = self.zones[zone].take_at(self.meta, pfn, order)?;
        Some(self.hand_out(block, owner))
    }

    /// Makes every free frame that `len` bytes at `start` touch [`Owner::Reserved`], and answers how many
    /// they were. Frames that are not free stay what they are.
    pub fn reserve(&mut self, start: Hpa, len: u64) -> u64 {
        let range = Span::around(start, len);
        let before = self.free_frames;
        for at in 0..self.zones_used {
            let part = self.zones[at].span().intersect(range.start, range.end);
            let mut pfn = part.start;
            while pfn < part.end {
                pfn = match self.zones[at].find(self.meta, pfn) {
                    None => pfn + 1,
                    Some((block, State::Free { .. })) => {
                        let order = largest_order(pfn, part.end.min(block.end()) - pfn);
                        match self.zones[at].take_at(self.meta, pfn, order) {
                            Some(taken) => {
                                self.mark_used(taken, Owner::Reserved);
                                taken.end()
                            }
                            None => block.end(),
                        }
                    }
                    Some((block, _)) => block.end(),
                };
            }
        }
        before - self.free_frames
    }

    /// Frees `block`, whose memory the caller has filled with zeros.
    ///
    /// # Errors
    /// [`FreeError`] where the allocator's records say otherwise, as after the release of its owner; the frames then
    /// stay what they are.
    #[allow(clippy::needless_pass_by_value, reason = "the token ends here")]
    pub fn free(&mut self, block: FrameBlock) -> Result<(), FreeError> {
        let (zone, used) = self.check(block.start, block.order, block.owner, false)?;
        self.take_back(zone, used, block.owner);
        Ok(())
    }

    /// The block of 2^`order` frames at `start` again, for a caller who kept only its address.
    ///
    /// This trusts the caller to have given the block up by [`FrameBlock::into_start`], and checks all else.
    ///
    /// # Errors
    /// [`FreeError`] where no such block of `owner`'s is allocated there outside a chain.
    pub fn reclaim(&self, start: Hpa, order: u8, owner: Owner) -> Result<FrameBlock, FreeError> {
        let (_, block) = self.check(start, order, owner, false)?;
        Ok(FrameBlock::new(block, owner))
    }

    /// Makes `block` another owner's.
    ///
    /// # Errors
    /// The block itself where the records do not agree with it or `owner` cannot own more; nothing has changed then.
    pub fn transfer(&mut self, block: FrameBlock, owner: Owner) -> Result<FrameBlock, FrameBlock> {
        let Ok((_, used)) = self.check(block.start, block.order, block.owner, false) else {
            return Err(block);
        };
        if !self.accounts.can_charge(owner) {
            return Err(block);
        }
        self.accounts.discharge(block.owner, used.frames());
        self.used_blocks[usize::from(used.order)] -= 1;
        self.mark_owner(used, owner);
        Ok(FrameBlock::new(used, owner))
    }

    /// Cuts `block` into its lower and its upper half, for an owner who gives back or away a part.
    ///
    /// # Errors
    /// The block itself where it is a single frame or the records do not agree with it; nothing has changed then.
    pub fn split(&mut self, block: FrameBlock) -> Result<(FrameBlock, FrameBlock), FrameBlock> {
        let (Ok((_, whole)), Some(order)) =
            (self.check(block.start, block.order, block.owner, false), block.order.checked_sub(1))
        else {
            return Err(block);
        };
        self.accounts.discharge(block.owner, whole.frames());
        self.used_blocks[usize::from(whole.order)] -= 1;
        let lower = Block { pfn: whole.pfn, order };
        let upper = Block { pfn: lower.end(), order };
        self.mark_owner(lower, block.owner);
        self.mark_owner(upper, block.owner);
        Ok((FrameBlock::new(lower, block.owner), FrameBlock::new(upper, block.owner)))
    }

    /// Frees every block of `owner`, chained ones included, and answers how many frames they were. `scrub` is
    /// called for each (start, bytes) before it is freed and fills it with zeros.
    ///
    /// The sure end of a domain: whatever it had, down to tokens that were dropped, is free afterwards. It
    /// looks at every block of the machine until all of the owner's are found. Tokens of the owner's that
    /// still exist are refused when they are freed later. [`Owner::Free`] has nothing to release.
    pub fn release_owner(&mut self, owner: Owner, mut scrub: impl FnMut(Hpa, u64)) -> u64 {
        let frames = self.accounts.frames(owner);
        for at in (0..self.zones_used).rev() {
            let span = self.zones[at].span();
            let mut pfn = span.start;
            while pfn < span.end && self.accounts.frames(owner) != 0 {
                let zone = &self.zones[at];
                pfn = match self.meta[zone.index(pfn)].state() {
                    State::Absent => pfn + 1,
                    State::Free { order } => pfn + (1 << order),
                    State::Used { order, owner: actual, .. } => {
                        let block = Block { pfn, order };
                        if actual == owner {
                            scrub(Hpa::new(pfn << FRAME_SHIFT), block.frames() << FRAME_SHIFT);
                            self.take_back(at, block, owner).end()
                        } else {
                            block.end()
                        }
                    }
                };
            }
        }
        frames
    }

    /// How many frames `owner` has; of [`Owner::Free`], how many are free.
    #[must_use]
    pub fn owned_by(&self, owner: Owner) -> u64 {
        if owner == Owner::Free { self.free_frames } else { self.accounts.frames(owner) }
    }

    /// Who owns the frame at `at`; `None` where there is no memory of the allocator's.
    #[must_use]
    pub fn owner_of(&self, at: Hpa) -> Option<Owner> {
        let pfn = at.as_u64() >> FRAME_SHIFT;
        match self.zones[self.zone_of(pfn)?].find(self.meta, pfn)? {
            (_, State::Used { owner, .. }) => Some(owner),
            (_, State::Free { .. }) => Some(Owner::Free),
            (_, State::Absent) => None,
        }
    }

    /// How many frames are free.
    #[must_use]
    pub const fn free_frames(&self) -> u64 {
        self.free_frames
    }

    /// Counts over all zones.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut free_blocks = [0; ORDERS];
        for (order, blocks) in (0..).zip(&mut free_blocks) {
            *blocks = self.zones().iter().map(|zone| u64::from(zone.free_blocks(order))).sum();
        }
        Statistics {
            free_blocks,
            used_blocks: self.used_blocks,
            free_frames: self.free_frames,
            total_frames: self.total_frames,
        }
    }

    pub(crate) fn zones(&self) -> &[Zone] {
        &self.zones[..self.zones_used]
    }

    pub(crate) fn can_charge(&self, owner: Owner) -> bool {
        self.accounts.can_charge(owner)
    }

    pub(crate) fn meta(&self, index: u32) -> FrameMeta {
        self.meta.get(index as usize).copied().unwrap_or(FrameMeta::ABSENT)
    }

    pub(crate) fn set_meta(&mut self, index: u32, word: FrameMeta) {
        if let Some(slot) = self.meta.get_mut(index as usize) {
            *slot = word;
        }
    }

    pub(crate) fn zone_of(&self, pfn: u64) -> Option<usize> {
        self.zones().iter().position(|zone| zone.contains(pfn))
    }

    /// Records `block`, just taken from its zone, as `owner`'s.
    pub(crate) fn mark_used(&mut self, block: Block, owner: Owner) {
        self.free_frames -= block.frames();
        self.mark_owner(block, owner);
    }

    fn mark_owner(&mut self, block: Block, owner: Owner) {
        self.used_blocks[usize::from(block.order)] += 1;
        self.accounts.charge(owner, block.frames());
        if let Some(zone) = self.zone_of(block.pfn) {
            let index = self.zones[zone].index(block.pfn);
            self.meta[index] = FrameMeta::used(block.order, owner);
        }
    }

    fn hand_out(&mut self, block: Block, owner: Owner) -> FrameBlock {
        self.mark_used(block, owner);
        FrameBlock::new(block, owner)
    }

    /// Frees `block` of `zone`, which is allocated to `owner`. Answers the free block that it became part of.
    pub(crate) fn take_back(&mut self, zone: usize, block: Block, owner: Owner) -> Block {
        let zone = &mut self.zones[zone];
        self.meta[zone.index(block.pfn)] = FrameMeta::ABSENT;
        self.used_blocks[usize::from(block.order)] -= 1;
        self.accounts.discharge(owner, block.frames());
        self.free_frames += block.frames();
        zone.give(self.meta, block)
    }

    /// The zone and the block that starts at `start`, if it is allocated with just this order, owner and
    /// chaining.
    pub(crate) fn check(
        &self,
        start: Hpa,
        order: u8,
        owner: Owner,
        chained: bool,
    ) -> Result<(usize, Block), FreeError> {
        if start.page_offset() != 0 {
            return Err(FreeError::NotAllocated(start));
        }
        let pfn = start.as_u64() >> FRAME_SHIFT;
        let at = self.zone_of(pfn).ok_or(FreeError::NotManaged(start))?;
        match self.meta[self.zones[at].index(pfn)].state() {
            State::Absent | State::Free { .. } => Err(FreeError::NotAllocated(start)),
            State::Used { order: actual, .. } if actual != order => {
                Err(FreeError::WrongOrder { start, actual })
            }
            State::Used { owner: actual, .. } if actual != owner => {
                Err(FreeError::WrongOwner { start, actual })
            }
            State::Used { chained: actual, .. } if actual != chained => Err(FreeError::Chained(start)),
            State::Used { .. } => Ok((at, Block { pfn, order })),
        }
    }

    /// The largest order up to `order` of which there is a free block, never below 1 MiB.
    pub(crate) fn largest_free(&mut self, order: u8) -> Option<u8> {
        let zones = zones_above_low(&mut self.zones[..self.zones_used]);
        Some(zones.filter_map(|zone| zone.largest_free()).max()?.min(order))
    }

    /// Takes a block of 2^`order` frames, never below 1 MiB, and records it as `owner`'s.
    pub(crate) fn take(&mut self, order: u8, owner: Owner) -> Option<Block> {
        let meta = &mut *self.meta;
        let block = zones_above_low(&mut self.zones[..self.zones_used]).find_map(|z| z.take(meta, order))?;
        self.mark_used(block, owner);
        Some(block)
    }

    /// Takes just the block of 2^`order` frames from `pfn` on, if it is free, and records it as `owner`'s.
    pub(crate) fn take_at(&mut self, pfn: u64, order: u8, owner: Owner) -> Option<Block> {
        if !pfn.is_multiple_of(1 << order) || pfn < LOW_END {
            return None;
        }
        let zone = self.zone_of(pfn)?;
        let block = self.zones[zone].take_at(self.meta, pfn, order)?;
        self.mark_used(block, owner);
        Some(block)
    }

    /// Whether a block of 2^`order` frames from `pfn` on is free, and could be [taken](Self::take_at).
    pub(crate) fn is_free_at(&self, pfn: u64, order: u8) -> bool {
        let found = self.zone_of(pfn).and_then(|zone| self.zones[zone].find(self.meta, pfn));
        let free = matches!(found, Some((_, State::Free { order: found })) if found >= order);
        free && pfn.is_multiple_of(1 << order)
    }

    /// Free frames from 1 MiB upwards.
    pub(crate) fn free_above_low(&self) -> u64 {
        let low: u64 = self
            .zones()
            .iter()
            .filter(|zone| zone.span().start < LOW_END)
            .map(|zone| (0..=MAX_ORDER).map(|order| u64::from(zone.free_blocks(order)) << order).sum::<u64>())
            .sum();
        self.free_frames - low
    }
}

/// The zones of ordinary allocations, highest first.
fn zones_above_low(zones: &mut [Zone]) -> impl Iterator<Item = &mut Zone> {
    zones.iter_mut().rev().filter(|zone| zone.span().start >= LOW_END)
}
