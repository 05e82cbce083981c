//! The frame allocator: a buddy system over the machine's memory map that knows the owner of every frame.
//!
//! Blocks are naturally aligned powers of two of 4 KiB frames, from order 0 (4 KiB) to [`MAX_ORDER`] (1 GiB),
//! so that a block is always fit for the largest stage-2 leaf that its size allows. RAM is not contiguous:
//! [`ZonePlan`] covers the memory map by a few zones, says how much metadata they need (8 bytes a frame,
//! holes between zones are free of charge), and [`FrameAllocator`] manages the frames by that metadata alone.
//! The frames themselves are never touched here, which is what makes the crate pure and testable on any host.
//!
//! # Invariants
//!
//! - **A free frame reads as zero.** The allocator cannot see memory, so the machine crate keeps this: who frees (or
//!   seeds) a block scrubs it first; who allocates may rely on zeros. Scrubbing on free keeps one domain's secrets
//!   from the next even if an allocation path forgets to.
//! - Only the first frame of a block (its head) carries metadata; all other entries are [`FrameMeta::ABSENT`]. This
//!   makes every operation O([`MAX_ORDER`]), seeding included, and every lookup by address exact.
//! - No two free buddies exist: they are merged as soon as the second becomes free.
//! - The counts by owner add up to the frames that were seeded, always.
//!
//! # Placement
//!
//! Zones end at 1 MiB and at 4 GiB. An allocation takes the highest zone that can serve it, so that memory
//! which 32-bit devices can reach is spent last. Memory below 1 MiB is given only to those who name it
//! (application processor trampolines): by [`FrameAllocator::allocate_below`] or
//! [`FrameAllocator::allocate_at`].

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod allocator;
mod budget;
mod chain;
mod error;
mod meta;
mod owner;
mod plan;
mod zone;

#[cfg(test)]
mod tests;

pub use allocator::{FrameAllocator, FrameBlock, Statistics};
pub use budget::{heap_order, left_for_guests, table_bytes};
pub use chain::{ChainBlocks, FrameChain};
pub use error::{FreeError, RegionError, SetupError};
pub use meta::FrameMeta;
pub use owner::{MAX_DOMAINS, Owner};
pub use plan::{MAX_ZONES, ZonePlan};

/// The largest block's order: 2^18 frames of 4 KiB are 1 GiB.
pub const MAX_ORDER: u8 = 18;

/// How many orders there are: 0 to [`MAX_ORDER`].
pub const ORDERS: usize = MAX_ORDER as usize + 1;

/// log2 of a frame's bytes.
const FRAME_SHIFT: u32 = 12;

/// The largest order of a block that may start at frame number `pfn` and end within `frames` (at least 1)
/// frames.
const fn largest_order(pfn: u64, frames: u64) -> u8 {
    let by_size = frames.ilog2();
    let by_place = pfn.trailing_zeros();
    let order = if by_size < by_place { by_size } else { by_place };
    if order < MAX_ORDER as u32 { order as u8 } else { MAX_ORDER }
}
