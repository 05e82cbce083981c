//! What Caisson takes of a machine's RAM before the first guest: one sum, by which the machine crate reserves and the
//! front door tells beforehand that a machine is too small.

use caisson_types::PAGE_SIZE;

use crate::{FRAME_SHIFT, FrameMeta};

/// The heap is this part of the RAM, and at least and at most so many frames, as log2: 4 and 64 MiB. What is kept on it
/// for a guest is some tens of KiB.
const HEAP_PART: u64 = 128;
const HEAP_ORDERS: (u8, u8) = (10, 14);

/// log2 of the heap's frames on a machine with `total` bytes of RAM.
#[must_use]
pub const fn heap_order(total: u64) -> u8 {
    let frames = total / HEAP_PART / PAGE_SIZE;
    let order = if frames == 0 { 0 } else { frames.ilog2() as u8 };
    if order < HEAP_ORDERS.0 {
        HEAP_ORDERS.0
    } else if order > HEAP_ORDERS.1 {
        HEAP_ORDERS.1
    } else {
        order
    }
}

/// Bytes of the host's page tables for `total` bytes of RAM in `ranges` pieces, with an image of `image` bytes in 4 KiB
/// pages: a table for each GiB and level, and those at the edges of each piece.
#[must_use]
pub const fn table_bytes(total: u64, ranges: u64, image: u64) -> u64 {
    ((64 + 4 * ranges + (total >> 30) * 2) * PAGE_SIZE + image / 256).next_multiple_of(PAGE_SIZE)
}

/// The most bytes that a machine with `ram` bytes can leave to guests. Caisson's image, which ends at address `image_end`,
/// and the `kept` bytes that the loader leaves are taken off, then tables, metadata and heap. What the firmware keeps,
/// which only the machine knows, is not, nor are the guests' own tables: a little less than this is left in truth.
#[must_use]
pub const fn left_for_guests(ram: u64, image_end: u64, kept: u64) -> u64 {
    let free =
        ram.saturating_sub(image_end).saturating_sub(kept.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1));
    let metadata = (free >> FRAME_SHIFT) * size_of::<FrameMeta>() as u64;
    free.saturating_sub(table_bytes(ram, 1, image_end))
        .saturating_sub(metadata)
        .saturating_sub(PAGE_SIZE << heap_order(ram))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn everything_that_caisson_takes_is_taken_off() {
        let left = left_for_guests(256 * MIB, 4 * MIB, 10 * MIB + 1);
        // Heap, metadata (an entry of 8 bytes for each 4 KiB), and tables.
        let taken = (4 + 10 + 4) * MIB + 484 * 1024 + PAGE_SIZE;
        assert!((256 * MIB - taken - MIB..256 * MIB - taken).contains(&left), "{left}");
    }

    #[test]
    fn the_heap_grows_with_the_machine() {
        assert_eq!([256 * MIB, 1 << 30, 8 << 30, 1 << 40].map(heap_order), [10, 11, 14, 14]);
        assert_eq!(heap_order(0), 10);
    }

    #[test]
    fn a_machine_without_room_leaves_nothing() {
        assert_eq!(left_for_guests(MIB, 4 * MIB, 0), 0);
        assert_eq!(left_for_guests(0, u64::MAX, u64::MAX), 0);
        assert_eq!(left_for_guests(8 * MIB, 4 * MIB, 0), 0);
    }

    #[test]
    fn more_memory_leaves_more() {
        let left = |gib: u64| left_for_guests(gib << 30, 4 * MIB, MIB);
        assert!((1..4096).all(|gib| left(gib) < left(gib + 1) && left(gib) < gib << 30));
    }
}
