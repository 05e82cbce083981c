//! Why an operation was refused.

use core::fmt;

use caisson_types::Gpa;

/// An operation on stage-2 tables was refused; the tables are as they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// There is no memory for the tables that the operation needs.
    OutOfTables,
    /// Part of the range is mapped already, from this address on.
    Overlap(Gpa),
    /// Part of the range is not mapped, from this address on.
    NotMapped(Gpa),
    /// An address or the length is not a multiple of 4 KiB.
    Misaligned,
    /// The range leaves the guest-physical address space that the tables span, or the host's 52 bits.
    BeyondWidth,
    /// The permissions do not include reading, which not every processor can express.
    Unreadable,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTables => f.write_str("no memory left for stage-2 page tables"),
            Self::Overlap(gpa) => write!(f, "guest-physical {gpa} is mapped already: unmap it first"),
            Self::NotMapped(gpa) => write!(f, "guest-physical {gpa} is not mapped"),
            Self::Misaligned => f.write_str("addresses and length must be multiples of 4 KiB"),
            Self::BeyondWidth => f.write_str("the range does not fit the width of physical addresses"),
            Self::Unreadable => f.write_str("a mapping must be readable: unmap what nobody may read"),
        }
    }
}
