//! What can go wrong, for a person to read.

use core::fmt;

use caisson_types::Hpa;

use crate::Owner;

/// The allocator could not be set up over the planned zones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetupError {
    /// The metadata slice has fewer entries than the plan has frames.
    MetadataTooSmall {
        /// Entries needed.
        needed: u64,
        /// Entries given.
        given: u64,
    },
    /// The plan has more frames than a metadata entry can link.
    TooManyFrames {
        /// Frames of the plan.
        planned: u64,
        /// The most that can be managed.
        limit: u64,
    },
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MetadataTooSmall { needed, given } => {
                write!(f, "frame metadata has room for {given} frames, the memory map needs {needed}")
            }
            Self::TooManyFrames { planned, limit } => write!(
                f,
                "the memory map spans {planned} frames, {limit} can be managed: leave the highest regions out"
            ),
        }
    }
}

/// A region of memory was not taken in; nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// A frame of the region is in no zone of the plan.
    Unplanned(Hpa),
    /// A frame of the region is managed already.
    Overlap(Hpa),
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplanned(at) => write!(f, "memory at {at} was not included in the zone plan"),
            Self::Overlap(at) => write!(f, "memory at {at} was added before: the memory map overlaps itself"),
        }
    }
}

/// A block was not freed (or handed back); nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// No zone has this address.
    NotManaged(Hpa),
    /// The address is not the start of an allocated block: it is free already, inside a larger block, or
    /// misaligned.
    NotAllocated(Hpa),
    /// The block there has another order.
    WrongOrder {
        /// The block's start.
        start: Hpa,
        /// The order that the allocator has on record.
        actual: u8,
    },
    /// The block there belongs to somebody else.
    WrongOwner {
        /// The block's start.
        start: Hpa,
        /// The owner that the allocator has on record.
        actual: Owner,
    },
    /// The block belongs to a [`FrameChain`](crate::FrameChain) and can only be freed through it (or, the
    /// other way round, is not part of the chain that names it).
    Chained(Hpa),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotManaged(at) => write!(f, "{at} is not memory of the frame allocator's"),
            Self::NotAllocated(at) => write!(f, "no allocated block starts at {at}: freed twice?"),
            Self::WrongOrder { start, actual } => {
                write!(f, "the block at {start} has order {actual}, not the order it was freed with")
            }
            Self::WrongOwner { start, actual } => {
                write!(f, "the block at {start} belongs to {actual}, not to who freed it")
            }
            Self::Chained(at) => write!(f, "the block at {at} was freed past (or through) the wrong chain"),
        }
    }
}
