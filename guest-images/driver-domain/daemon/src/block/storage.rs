//! What a disk's data lies in.

use std::io;
use std::os::fd::BorrowedFd;

use super::Transfer;

/// What is known of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// How many bytes it has: a multiple of `block`.
    pub bytes: u64,
    /// What requests have to be multiples of, in place and length: a power of two from 512 on.
    pub block: u32,
    /// It is only read.
    pub read_only: bool,
}

impl Geometry {
    /// Whether these bytes can be read: whole blocks of the disk, at least one.
    #[must_use]
    pub fn allows(&self, offset: u64, bytes: u64) -> bool {
        let block = u64::from(self.block);
        let end = offset.checked_add(bytes);
        bytes > 0
            && offset.is_multiple_of(block)
            && bytes.is_multiple_of(block)
            && end.is_some_and(|end| end <= self.bytes)
    }

    /// Whether they can be changed.
    #[must_use]
    pub fn allows_change(&self, offset: u64, bytes: u64) -> bool {
        !self.read_only && self.allows(offset, bytes)
    }
}

/// A transfer that has ended.
#[derive(Debug)]
pub struct Done {
    /// As given when it began.
    pub token: u64,
    /// Whether it went well.
    pub result: io::Result<()>,
}

/// What a disk's data lies in. Transfers overlap, and end in any order.
pub trait Storage: Send {
    /// What is known of it.
    fn geometry(&self) -> Geometry;
    /// Whether a transfer can begin.
    fn has_room(&self) -> bool;
    /// Begins a transfer within the geometry. It may be held back until [`Storage::submit`]. With `durable`, a write has ended
    /// only when it is on the medium.
    fn start(&mut self, token: u64, transfer: Transfer, durable: bool);
    /// Sees to it that all that has begun goes on.
    fn submit(&mut self);
    /// Nobody wants to know what has begun until now: it ends, well or not, as soon as it can, and is collected as ever.
    fn give_up(&mut self);
    /// Puts what has ended at the end of `into`.
    fn collect(&mut self, into: &mut Vec<Done>);
    /// Waits until there may be something to collect.
    fn wait(&mut self);
    /// Becomes readable when there is something to collect.
    fn fd(&self) -> BorrowedFd<'_>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_of_the_disk() {
        let disk = Geometry { bytes: 1 << 20, block: 4096, read_only: false };
        for (offset, bytes) in [(0, 4096), (0, 1 << 20), ((1 << 20) - 4096, 4096)] {
            assert!(disk.allows(offset, bytes) && disk.allows_change(offset, bytes));
            assert!(!Geometry { read_only: true, ..disk }.allows_change(offset, bytes));
        }
        let never =
            [(0, 0), (512, 4096), (0, 512), (1 << 20, 4096), (0, (1 << 20) + 4096), (u64::MAX - 4095, 4096)];
        for (offset, bytes) in never {
            assert!(!disk.allows(offset, bytes), "{offset} {bytes}");
        }
    }
}
