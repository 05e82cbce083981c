//! One zone: a contiguous span of frames with its free lists.
//!
//! Frames are named by frame number (`pfn`) here and by metadata index in the links; within a zone the two
//! differ by a constant. All methods take the metadata of all zones.

use crate::meta::{NIL, State};
use crate::plan::Span;
use crate::{FrameMeta, MAX_ORDER, ORDERS, largest_order};

/// A block, by its first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) pfn: u64,
    pub(crate) order: u8,
}

impl Block {
    pub(crate) const fn frames(self) -> u64 {
        1 << self.order
    }

    pub(crate) const fn end(self) -> u64 {
        self.pfn + self.frames()
    }
}

/// A contiguous span of frames, some of which are memory, with lists of the free blocks of each order.
#[derive(Clone, Copy)]
pub(crate) struct Zone {
    span: Span,
    /// Frame number minus metadata index.
    offset: u64,
    /// Frames that were seeded so far lie between these.
    seeded: Span,
    /// Bit n: there is a free block of order n.
    nonempty: u32,
    heads: [u32; ORDERS],
    blocks: [u32; ORDERS],
}

impl Zone {
    pub(crate) const EMPTY: Self = Self::new(Span { start: 0, end: 0 }, 0);

    /// A zone over `span` whose metadata starts at `index`, with no memory yet.
    pub(crate) const fn new(span: Span, index: u64) -> Self {
        Self {
            span,
            offset: span.start.wrapping_sub(index),
            seeded: Span { start: span.start, end: span.start },
            nonempty: 0,
            heads: [NIL; ORDERS],
            blocks: [0; ORDERS],
        }
    }

    pub(crate) const fn span(&self) -> Span {
        self.span
    }

    pub(crate) const fn contains(&self, pfn: u64) -> bool {
        self.span.start <= pfn && pfn < self.span.end
    }

    /// The free blocks of `order`.
    pub(crate) const fn free_blocks(&self, order: u8) -> u32 {
        self.blocks[order as usize]
    }

    /// The largest order of which there is a free block.
    pub(crate) const fn largest_free(&self) -> Option<u8> {
        match self.nonempty.checked_ilog2() {
            Some(order) => Some(order as u8),
            None => None,
        }
    }

    /// The metadata index of a frame of this zone.
    pub(crate) const fn index(&self, pfn: u64) -> usize {
        pfn.wrapping_sub(self.offset) as usize
    }

    /// The frame number of a metadata index of this zone.
    pub(crate) const fn pfn(&self, index: u32) -> u64 {
        self.offset.wrapping_add(index as u64)
    }

    /// The block that covers `pfn`, and what it is.
    pub(crate) fn find(&self, meta: &[FrameMeta], pfn: u64) -> Option<(Block, State)> {
        for order in 0..=MAX_ORDER {
            let head = pfn & !((1 << order) - 1);
            if !self.contains(head) {
                return None;
            }
            // Frames inside a block are absent, so the first head found is the only one that can cover `pfn`.
            match meta[self.index(head)].state() {
                State::Absent => {}
                state @ (State::Free { order } | State::Used { order, .. }) => {
                    let block = Block { pfn: head, order };
                    return (pfn < block.end()).then_some((block, state));
                }
            }
        }
        None
    }

    /// Takes some free block of `order` or larger, cut to `order`.
    pub(crate) fn take(&mut self, meta: &mut [FrameMeta], order: u8) -> Option<Block> {
        let larger = self.nonempty >> order;
        if larger == 0 {
            return None;
        }
        let found = order + larger.trailing_zeros() as u8;
        let pfn = self.pfn(self.heads[usize::from(found)]);
        Some(self.take_from(meta, Block { pfn, order: found }, pfn, order))
    }

    /// Takes a block of `order` that ends at or before `limit` out of this zone, the lowest that some free
    /// block has. O(free blocks of the zone).
    pub(crate) fn take_below(&mut self, meta: &mut [FrameMeta], order: u8, limit: u64) -> Option<Block> {
        if self.span.end <= limit {
            return self.take(meta, order);
        }
        for found in order..=MAX_ORDER {
            let mut at = self.heads[usize::from(found)];
            while at != NIL {
                let block = Block { pfn: self.pfn(at), order: found };
                if block.pfn + (1 << order) <= limit {
                    return Some(self.take_from(meta, block, block.pfn, order));
                }
                at = meta[at as usize].next();
            }
        }
        None
    }

    /// Takes the block of `order` at `pfn` (aligned to it) if all of it is free.
    pub(crate) fn take_at(&mut self, meta: &mut [FrameMeta], pfn: u64, order: u8) -> Option<Block> {
        match self.find(meta, pfn)? {
            (block, State::Free { order: found }) if found >= order => {
                Some(self.take_from(meta, block, pfn, order))
            }
            _ => None,
        }
    }

    /// Takes the part of `order` at `pfn` out of the free block `block`; the rest stays free.
    fn take_from(&mut self, meta: &mut [FrameMeta], block: Block, pfn: u64, order: u8) -> Block {
        self.unlink(meta, block);
        let mut head = block.pfn;
        for half in (order..block.order).rev() {
            let middle = head + (1 << half);
            if pfn < middle {
                self.push(meta, Block { pfn: middle, order: half });
            } else {
                self.push(meta, Block { pfn: head, order: half });
                head = middle;
            }
        }
        Block { pfn: head, order }
    }

    /// Makes `block`, whose head's metadata is absent, free. Answers the block that it became part of.
    pub(crate) fn give(&mut self, meta: &mut [FrameMeta], mut block: Block) -> Block {
        while block.order < MAX_ORDER {
            let buddy = Block { pfn: block.pfn ^ block.frames(), order: block.order };
            if !self.contains(buddy.pfn) || !meta[self.index(buddy.pfn)].is_free_of(buddy.order) {
                break;
            }
            self.unlink(meta, buddy);
            block = Block { pfn: block.pfn & buddy.pfn, order: block.order + 1 };
        }
        self.push(meta, block);
        block
    }

    /// Whether no frame of `span` (a part of this zone) is managed. Regions that come in ascending order are
    /// answered at once; others by a look at each frame.
    pub(crate) fn is_vacant(&self, meta: &[FrameMeta], span: Span) -> bool {
        self.seeded.intersect(span.start, span.end).frames() == 0
            || (self.find(meta, span.start).is_none()
                && meta[self.index(span.start)..self.index(span.end)].iter().all(|word| word.is_absent()))
    }

    /// Makes all of `span`, which is vacant, free, in the largest blocks.
    pub(crate) fn seed(&mut self, meta: &mut [FrameMeta], span: Span) {
        self.seeded = if self.seeded.frames() == 0 {
            span
        } else {
            Span { start: self.seeded.start.min(span.start), end: self.seeded.end.max(span.end) }
        };
        let mut pfn = span.start;
        while pfn < span.end {
            let block = Block { pfn, order: largest_order(pfn, span.end - pfn) };
            self.give(meta, block);
            pfn = block.end();
        }
    }

    fn push(&mut self, meta: &mut [FrameMeta], block: Block) {
        let order = usize::from(block.order);
        let index = self.index(block.pfn);
        let next = self.heads[order];
        meta[index] = FrameMeta::free(block.order, NIL, next);
        if next != NIL {
            meta[next as usize] = meta[next as usize].with_previous(index as u32);
        }
        self.heads[order] = index as u32;
        self.blocks[order] += 1;
        self.nonempty |= 1 << order;
    }

    /// Takes the free `block` out of its list and leaves its head absent.
    fn unlink(&mut self, meta: &mut [FrameMeta], block: Block) {
        let order = usize::from(block.order);
        let index = self.index(block.pfn);
        let word = core::mem::take(&mut meta[index]);
        let (previous, next) = (word.previous(), word.next());
        if next != NIL {
            meta[next as usize] = meta[next as usize].with_previous(previous);
        }
        if previous == NIL {
            self.heads[order] = next;
            if next == NIL {
                self.nonempty &= !(1 << order);
            }
        } else {
            meta[previous as usize] = meta[previous as usize].with_next(next);
        }
        self.blocks[order] -= 1;
    }
}
