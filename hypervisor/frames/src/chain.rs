//! Chains: memory of any size as a list of blocks, linked through their metadata.

use caisson_types::{Hpa, PAGE_SIZE};

use crate::allocator::FrameBlock;
use crate::meta::{NIL, State};
use crate::zone::Block;
use crate::{FRAME_SHIFT, FrameAllocator, FreeError, MAX_ORDER, Owner};

/// Memory of one owner's as a list of blocks, from the largest to the smallest.
///
/// As each block is a multiple of the next one's size, memory that is mapped block after block from an
/// aligned address has every block aligned to its own size, fit for the largest leaves.
///
/// The list is linked through the allocator's metadata and needs no memory of its own. Like a
/// [`FrameBlock`], a dropped chain stays allocated until its owner is released.
#[must_use = "a dropped chain stays allocated"]
#[derive(PartialEq, Eq, Debug)]
pub struct FrameChain {
    first: u32,
    blocks: u32,
    frames: u64,
    owner: Owner,
}

impl FrameChain {
    /// How many blocks are in the chain.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The size of all blocks together, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.frames << FRAME_SHIFT
    }

    /// Who owns the blocks.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether no block is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.blocks == 0
    }
}

/// The blocks of a chain as (start, bytes), from the largest to the smallest.
pub struct ChainBlocks<'a, 'm> {
    allocator: &'a FrameAllocator<'m>,
    next: u32,
    left: u32,
    owner: Owner,
}

impl Iterator for ChainBlocks<'_, '_> {
    type Item = (Hpa, u64);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (block, next) = self.allocator.link(self.next, self.owner).ok()?;
        self.next = next;
        Some((Hpa::new(block.pfn << FRAME_SHIFT), block.frames() << FRAME_SHIFT))
    }
}

impl<'m> FrameAllocator<'m> {
    /// Allocates `bytes` (rounded up to whole frames) in the fewest and largest blocks that are free,
    /// from 1 GiB down to 4 KiB, never below 1 MiB, and of those the ones that follow each other. All or nothing.
    ///
    /// `None` where `bytes` is 0, there is not so much free memory, or `owner` cannot own it (see
    /// [`allocate`](Self::allocate)). Nothing has changed then.
    pub fn allocate_range(&mut self, bytes: u64, owner: Owner) -> Option<FrameChain> {
        let frames = bytes.div_ceil(PAGE_SIZE);
        // Any block can be cut down to frames, so that enough free frames are all that it takes.
        if frames == 0 || frames > self.free_above_low() || !self.can_charge(owner) {
            return None;
        }
        let mut chain = FrameChain { first: NIL, blocks: 0, frames: 0, owner };
        let mut last = NIL;
        let mut end = None;
        while chain.frames < frames {
            // Not refused while the counts are right; what there is is given back if they are not.
            let Some((mut first, blocks)) = self.take_run(frames - chain.frames, end, owner) else {
                return self.give_up(chain);
            };
            for _ in 0..blocks {
                last = self.append(&mut chain, last, first);
                first.pfn += first.frames();
            }
            end = Some(first.pfn);
        }
        Some(chain)
    }

    /// Takes one or more blocks that follow each other, of the largest size that is free and no more than `frames`, which are
    /// what is wanted: behind `end` if they are free there, else where what is wanted beside them may follow. The first one,
    /// and how many.
    fn take_run(&mut self, frames: u64, end: Option<u64>, owner: Owner) -> Option<(Block, u64)> {
        let order = self.largest_free(frames.ilog2().min(u32::from(MAX_ORDER)) as u8)?;
        if let Some(behind) = end.and_then(|end| self.take_at(end, order, owner)) {
            return Some((behind, 1));
        }
        let block = self.take(order, owner)?;
        let size = block.frames();
        let (mut first, mut blocks) = (block, 1);
        let mut before = |first: Block| self.take_at(first.pfn.checked_sub(size)?, order, owner);
        while blocks < frames >> order
            && let Some(found) = before(first)
        {
            (first, blocks) = (found, blocks + 1);
        }
        let rest = frames - blocks * size;
        if rest >= size || rest == 0 || self.is_free_at(block.pfn + size, rest.ilog2() as u8) {
            return Some((first, blocks));
        }
        // All of it one block further down, so that the rest finds room where the last one was.
        if let Some(found) = first.pfn.checked_sub(size).and_then(|pfn| self.take_at(pfn, order, owner)) {
            self.take_back(self.zone_of(block.pfn)?, block, owner);
            first = found;
        }
        Some((first, blocks))
    }

    /// Allocates `bytes` (rounded up to whole frames) in one piece: the blocks of the chain follow each other. All or nothing.
    ///
    /// `None` as with [`allocate_range`](Self::allocate_range), or where no free block is as large; none is larger than 1 GiB.
    pub fn allocate_piece(&mut self, bytes: u64, owner: Owner) -> Option<FrameChain> {
        let frames = bytes.div_ceil(PAGE_SIZE);
        let order = frames.checked_next_power_of_two().filter(|_| frames != 0)?.ilog2();
        let mut rest = self.allocate(u8::try_from(order).ok()?, owner)?;
        let mut chain = FrameChain { first: NIL, blocks: 0, frames: 0, owner };
        let mut last = NIL;
        // What is too much of the block is given back, half by half.
        while rest.bytes() >> FRAME_SHIFT > frames - chain.frames {
            let Ok((lower, upper)) = self.split(rest) else { return self.give_up(chain) };
            if lower.bytes() >> FRAME_SHIFT >= frames - chain.frames {
                if self.free(upper).is_err() {
                    return self.give_up(chain);
                }
                rest = lower;
            } else {
                last = self.append(&mut chain, last, lower.block());
                rest = upper;
            }
        }
        self.append(&mut chain, last, rest.block());
        Some(chain)
    }

    /// Not reached while the records are right: gives back what there is.
    #[cold]
    fn give_up(&mut self, chain: FrameChain) -> Option<FrameChain> {
        let _ = self.free_range(chain);
        None
    }

    /// Puts a block of the owner's behind the last of a chain; answers where its record is.
    fn append(&mut self, chain: &mut FrameChain, last: u32, block: Block) -> u32 {
        let index = self.index_of(block);
        self.set_meta(index, self.meta(index).with_chained());
        if last == NIL {
            chain.first = index;
        } else {
            self.set_meta(last, self.meta(last).with_next(index));
        }
        chain.blocks += 1;
        chain.frames += block.frames();
        index
    }

    /// Takes the first, largest block out of `chain`; `None` when the chain is empty or not of this
    /// allocator's.
    pub fn pop(&mut self, chain: &mut FrameChain) -> Option<FrameBlock> {
        if chain.is_empty() {
            return None;
        }
        let (block, next) = self.link(chain.first, chain.owner).ok()?;
        let frames_left = chain.frames.checked_sub(block.frames())?;
        self.set_meta(chain.first, crate::FrameMeta::used(block.order, chain.owner));
        *chain =
            FrameChain { first: next, blocks: chain.blocks - 1, frames: frames_left, owner: chain.owner };
        Some(FrameBlock::new(block, chain.owner))
    }

    /// The blocks of `chain` as (start, bytes), from the largest to the smallest.
    #[must_use]
    pub fn blocks_of(&self, chain: &FrameChain) -> ChainBlocks<'_, 'm> {
        ChainBlocks { allocator: self, next: chain.first, left: chain.blocks, owner: chain.owner }
    }

    /// Frees all blocks of `chain`, whose memory the caller has filled with zeros, and answers how many
    /// frames they were.
    ///
    /// # Errors
    /// [`FreeError`] where the records do not agree with the chain, as after the release of its owner; the blocks
    /// before that place are free, the others stay what they are.
    pub fn free_range(&mut self, mut chain: FrameChain) -> Result<u64, FreeError> {
        let frames = chain.frames;
        while !chain.is_empty() {
            let (block, next) = self.link(chain.first, chain.owner)?;
            let (zone, block) =
                self.check(Hpa::new(block.pfn << FRAME_SHIFT), block.order, chain.owner, true)?;
            self.take_back(zone, block, chain.owner);
            chain.first = next;
            chain.blocks -= 1;
        }
        Ok(frames)
    }

    /// The chained block of `owner`'s at a metadata index, and the index of the one after it.
    fn link(&self, index: u32, owner: Owner) -> Result<(Block, u32), FreeError> {
        let zone = self.zones().iter().find(|zone| {
            let pfn = zone.pfn(index);
            zone.contains(pfn)
        });
        let pfn = zone.map_or(u64::MAX >> FRAME_SHIFT, |zone| zone.pfn(index));
        let start = Hpa::new(pfn << FRAME_SHIFT);
        let word = if zone.is_some() { self.meta(index) } else { crate::FrameMeta::ABSENT };
        match word.state() {
            State::Used { order, owner: actual, chained: true } if actual == owner => {
                Ok((Block { pfn, order }, word.next()))
            }
            State::Used { owner: actual, chained: true, .. } => Err(FreeError::WrongOwner { start, actual }),
            State::Used { .. } => Err(FreeError::Chained(start)),
            State::Absent | State::Free { .. } => Err(FreeError::NotAllocated(start)),
        }
    }

    /// The metadata index of a block of some zone.
    fn index_of(&self, block: Block) -> u32 {
        self.zones()
            .iter()
            .find(|zone| zone.contains(block.pfn))
            .map_or(NIL, |zone| zone.index(block.pfn) as u32)
    }
}
