//! Memory that the kernel reads or writes while the daemon goes on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::Memory;

/// The most pieces of one transfer: Linux's `UIO_MAXIOV`.
const MAX_PIECES: usize = 1024;

/// Pages of the daemon's own, aligned for direct transfers.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Pages {
    /// Pages for `bytes` bytes, zeroed.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { pages: vec![Page([0; 4096]); bytes.div_ceil(4096)] }
    }
}

/// What keeps the memory of [`Buffers`] where it is.
#[derive(Debug)]
enum Keep {
    Guest(Arc<Memory>),
    Own { _pages: Pages },
}

/// Pieces of memory, one behind the other as one run of bytes: of a guest's memory, which stays mapped while they live, or the
/// daemon's own.
#[derive(Debug)]
pub struct Buffers {
    pieces: Vec<libc::iovec>,
    bytes: usize,
    keep: Keep,
}

// SAFETY: the pieces point to memory that lives as long as the value wherever it is; every access is volatile or the kernel's.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The ranges of a guest's memory, each with its length; `None` where one is not in that memory, or where they are too many
    /// pieces for a transfer.
    #[must_use]
    pub fn guest(memory: &Arc<Memory>, ranges: &[(GuestAddress, usize)]) -> Option<Self> {
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut bytes = 0_usize;
        for &(at, length) in ranges {
            for slice in memory.regions().get_slices(at, length) {
                let slice = slice.ok()?;
                pieces.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
                bytes = bytes.checked_add(slice.len())?;
            }
        }
        let keep = Keep::Guest(Arc::clone(memory));
        (pieces.len() <= MAX_PIECES).then_some(Self { pieces, bytes, keep })
    }

    /// The first `bytes` bytes of pages of the daemon's own, as many as there are.
    #[must_use]
    pub fn own(mut pages: Pages, bytes: usize) -> Self {
        let bytes = bytes.min(pages.pages.len() * 4096);
        let pieces = vec![libc::iovec { iov_base: pages.pages.as_mut_ptr().cast(), iov_len: bytes }];
        Self { pieces, bytes, keep: Keep::Own { _pages: pages } }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether every piece starts at a multiple of `start`, a power of two, and is as long as one of `length`.
    #[must_use]
    pub fn is_aligned(&self, start: usize, length: usize) -> bool {
        self.pieces
            .iter()
            .all(|piece| piece.iov_base.addr() & (start - 1) == 0 && piece.iov_len & (length - 1) == 0)
    }

    /// Takes the first `bytes` bytes away.
    pub fn skip(&mut self, mut bytes: usize) {
        bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let whole = self.pieces.iter().take_while(|piece| {
            let skipped = piece.iov_len <= bytes;
            if skipped {
                bytes -= piece.iov_len;
            }
            skipped
        });
        let whole = whole.count();
        self.pieces.drain(..whole);
        if let Some(first) = self.pieces.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(bytes);
            first.iov_len -= bytes;
        }
    }

    /// Takes away what comes first, of a guest's memory: at most `bytes` bytes in at most `pieces` pieces, one of each at least;
    /// `None` where that is all there is, or where the memory is the daemon's own.
    #[must_use]
    pub fn split_first(&mut self, bytes: usize, pieces: usize) -> Option<Self> {
        let Keep::Guest(memory) = &self.keep else { return None };
        let (mut first, mut count) = (Vec::new(), 0);
        for piece in self.pieces.iter().take(pieces.max(1)) {
            let room = bytes.max(1) - count;
            let part = piece.iov_len.min(room);
            first.push(libc::iovec { iov_len: part, ..*piece });
            count += part;
            if part == room {
                break;
            }
        }
        if count >= self.bytes {
            return None;
        }
        let first = Self { pieces: first, bytes: count, keep: Keep::Guest(Arc::clone(memory)) };
        self.skip(count);
        Some(first)
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces.iter().map(|piece| {
            // SAFETY: the piece was made of memory that lives as long as `self`, and has only become smaller since.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        })
    }

    /// Copies bytes from `offset` on out of the memory; how many there were.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        self.each(offset, into.len(), |slice, at, range| {
            into.get_mut(range).is_some_and(|into| slice.read_slice(into, at).is_ok())
        })
    }

    /// Copies bytes into the memory from `offset` on; for how many there was room.
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        self.each(offset, from.len(), |slice, at, range| {
            from.get(range).is_some_and(|from| slice.write_slice(from, at).is_ok())
        })
    }

    /// Copies the first `bytes` bytes of `other` to the start of these; how many there were and had room.
    pub fn copy_from(&self, other: &Self, bytes: usize) -> usize {
        let mut part = [0; 4096];
        let mut done = 0;
        while done < bytes {
            let wanted = part.len().min(bytes - done);
            let count = other.read(done, part.get_mut(..wanted).unwrap_or_default());
            let written = self.write(done, part.get(..count).unwrap_or_default());
            done += written;
            if written == 0 {
                break;
            }
        }
        done
    }

    /// Calls `copy` for each slice that has a part of the `bytes` from `offset` on: with the part's place in the slice and among
    /// the bytes. How many bytes were copied before it said no.
    fn each(
        &self,
        mut offset: usize,
        bytes: usize,
        mut copy: impl FnMut(&VolatileSlice<'_>, usize, std::ops::Range<usize>) -> bool,
    ) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            if offset >= slice.len() {
                offset -= slice.len();
                continue;
            }
            let part = (slice.len() - offset).min(bytes - done);
            if part == 0 || !copy(&slice, offset, done..done + part) {
                break;
            }
            done += part;
            offset = 0;
        }
        done
    }

    /// Fills several, one behind the other, from what `file` gives next: one `readv(2)`.
    ///
    /// # Errors
    /// Those of `readv(2)`; `InvalidInput` where they have too many pieces.
    pub fn fill<'a>(all: impl IntoIterator<Item = &'a Self>, file: BorrowedFd<'_>) -> io::Result<usize> {
        // So that all of them live until the call is done.
        let all: Vec<&Self> = all.into_iter().collect();
        let pieces: Vec<_> = all.iter().flat_map(|buffers| buffers.pieces.iter().copied()).collect();
        // SAFETY: the pieces are memory that may be written and lives as long as the buffers, which are borrowed.
        let read = unsafe { libc::readv(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// How many pieces there are.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Writes `head` and what they hold to `file`, as one `writev(2)`.
    ///
    /// # Errors
    /// Those of `writev(2)`; `InvalidInput` where these are too many pieces.
    pub fn write_to(&self, head: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(self.pieces.len() + 1);
        pieces.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        pieces.extend_from_slice(&self.pieces);
        // SAFETY: `head` is borrowed, and only read; the other pieces live as long as `self`.
        let written = unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    pub(super) fn raw(&self) -> &[libc::iovec] {
        &self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory;

    #[test]
    fn what_comes_first_is_split_off_by_bytes_and_by_pieces() {
        let memory = memory(&[(0, 0x4000)]);
        let ranges =
            [(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x800), (GuestAddress(0x3000), 0x1000)];
        let all = || Buffers::guest(&memory, &ranges).unwrap();
        let lengths = |buffers: &Buffers| buffers.raw().iter().map(|piece| piece.iov_len).collect::<Vec<_>>();
        for (bytes, pieces, first, rest) in [
            (0x1000, 9, vec![0x1000], vec![0x800, 0x1000]),
            (0x1400, 9, vec![0x1000, 0x400], vec![0x400, 0x1000]),
            (0x9000, 2, vec![0x1000, 0x800], vec![0x1000]),
            (0x200, 1, vec![0x200], vec![0xe00, 0x800, 0x1000]),
            (0, 0, vec![1], vec![0xfff, 0x800, 0x1000]),
        ] {
            let mut buffers = all();
            let (start, split) = (buffers.raw()[0].iov_base, buffers.split_first(bytes, pieces).unwrap());
            assert_eq!((lengths(&split), lengths(&buffers)), (first, rest), "{bytes:#x} {pieces}");
            assert_eq!((split.raw()[0].iov_base, split.bytes() + buffers.bytes()), (start, 0x2800));
        }
        for (bytes, pieces) in [(0x2800, 3), (usize::MAX, usize::MAX)] {
            assert!(all().split_first(bytes, pieces).is_none());
        }
        assert!(Buffers::own(Pages::new(0x2000), 0x2000).split_first(0x1000, 1).is_none());
    }
}
