//! What the machine is made of, and what can be wrong with it.

use std::collections::BTreeSet;

/// A step that is left out, or done in another's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It has not given back what it has of others'.
    Leave,
    /// It is taken apart while others use it.
    LetGo,
    /// Functions are not told to stop.
    Stop,
    /// The IOMMU is not asked to keep them out.
    Block,
    /// It has not answered, and that is not told.
    Stuck,
    /// Functions are not reset.
    Reset,
    /// Nobody is told.
    Tell,
    /// They are told before the reset.
    TellEarly,
    /// They are told that a function reaches nothing, which may reach it for ever.
    TellWrong,
    /// They are told twice.
    TellTwice,
    /// Memory is not scrubbed.
    Scrub,
    /// Lost memory is given back.
    Keep,
    /// What a revocation could not take away is held to be taken away.
    Revoked,
    /// Who asked for something is not woken.
    Wake,
    /// A domain that has lost memory is made again.
    Again,
}

/// What a machine's parts answer when they are asked next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    /// Whether the IOMMU's units of the two functions do.
    pub(crate) iommu: [bool; 2],
    /// Steps until a reset is done, memory scrubbed, blobs given back; CPUs that let go late.
    pub(crate) steps: u8,
}

impl Default for Answers {
    fn default() -> Self {
        Self { iommu: [true; 2], steps: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    Used,
    Freed,
    Kept,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) state: Memory,
    pub(super) is_scrubbed: bool,
}

/// A function, as it is.
#[derive(Default, Debug)]
pub(super) struct Function {
    /// It begins DMA when it is told to.
    pub(super) is_on: bool,
    /// DMA that it has begun has not ended.
    pub(super) is_busy: bool,
    /// It has a place in the IOMMU's tables, if there is one.
    pub(super) is_attached: bool,
    /// What is in its tables, or still cached of them.
    pub(super) mapped: BTreeSet<usize>,
    /// What its owner has ever told it of: its own, and what was granted. Without an IOMMU it goes on to reach that.
    pub(super) told: BTreeSet<usize>,
    /// Its unit has not answered: it never does again.
    pub(super) is_stuck: bool,
    /// It does nothing that it is told to: an IOMMU alone keeps it from memory.
    pub(super) defies: bool,
}

/// All that exists of a domain while it lives: the number of its memory.
#[derive(Debug)]
pub(crate) struct Life(pub(super) usize);

/// Its memory, by number, which must not be dropped: it is freed or kept.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(super) block: usize,
    pub(super) left: u8,
}

/// A reset of a function, and the times that it has to be looked at.
#[derive(Debug)]
pub(crate) struct Reset(pub(super) u8);
