//! What a guest wrote last, for whoever reads its console without being the serial line.
//!
//! Bytes have numbers, counted from the first that was ever written. Readers keep their own positions: nobody takes anything
//! away from anybody, and nobody waits for a reader. Who is too late finds that bytes are missing, and how many.

use alloc::boxed::Box;

/// Bytes that are kept of a guest's output.
pub const HISTORY_BYTES: usize = 16 << 10;

/// The last bytes of a guest's output.
pub(crate) struct History {
    bytes: Box<[u8]>,
    /// Bytes written so far.
    end: u64,
}

/// What a reader is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The number of the first byte.
    pub first: u64,
    /// How many bytes there are.
    pub count: usize,
    /// How many have been written so far.
    pub end: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { bytes: alloc::vec![0; HISTORY_BYTES].into_boxed_slice(), end: 0 }
    }

    /// One byte more, in the oldest one's place.
    pub(crate) fn write(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut((self.end % HISTORY_BYTES as u64) as usize) {
            *place = byte;
        }
        self.end += 1;
    }

    /// Reads from byte `position` on, or from the oldest that is there; a position in the future counts as the end.
    pub(crate) fn read(&self, position: u64, into: &mut [u8]) -> Piece {
        let oldest = self.end.saturating_sub(HISTORY_BYTES as u64);
        let first = position.clamp(oldest, self.end);
        let count = into.len().min((self.end - first) as usize);
        for (number, to) in (first..).zip(into.iter_mut().take(count)) {
            *to = self.bytes.get((number % HISTORY_BYTES as u64) as usize).copied().unwrap_or(0);
        }
        Piece { first, count, end: self.end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn readers_find_what_was_written_or_that_it_is_lost(
            written in prop_oneof![0..200_usize, HISTORY_BYTES - 2..HISTORY_BYTES + 3, 0..3 * HISTORY_BYTES],
            position in prop_oneof![0..100_u64, 0..4 * HISTORY_BYTES as u64, any::<u64>()],
            room in prop_oneof![0..100_usize, 0..2 * HISTORY_BYTES],
        ) {
            let value = |number: u64| ((number * 31) >> 3) as u8;
            let mut history = History::new();
            (0..written as u64).for_each(|number| history.write(value(number)));
            let mut bytes = alloc::vec![0; room];
            let piece = history.read(position, &mut bytes);
            prop_assert_eq!(piece.end, written as u64);
            let oldest = written.saturating_sub(HISTORY_BYTES) as u64;
            prop_assert_eq!(piece.first, position.max(oldest).min(written as u64));
            prop_assert_eq!(piece.count, room.min((piece.end - piece.first) as usize));
            let expected: Vec<u8> = (piece.first..).map(value).take(piece.count).collect();
            prop_assert_eq!(&bytes[..piece.count], &expected[..]);
        }
    }
}
