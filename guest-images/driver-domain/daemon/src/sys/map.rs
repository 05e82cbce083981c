//! Mappings of files and devices.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    MemoryRegionAddress, VolatileSlice,
};

/// A shared mapping of a part of a file, for reading and writing; ended when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    file: File,
    offset: u64,
}

// SAFETY: a mapping belongs to the whole process; what it gives out is atomics and raw addresses.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of `file` from `offset` on.
    ///
    /// # Errors
    /// Those of `mmap(2)`.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED;
        // SAFETY: the kernel chooses a free place, so that nothing that is mapped goes away.
        let start =
            unsafe { mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // What is mapped stays so when the file's other users are gone.
        Ok(Self { start, bytes, file: file.try_clone()?, offset })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `count` words from `offset` on, a multiple of 8; `None` where the mapping has not as much.
    #[must_use]
    pub fn words(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        let end = count.checked_mul(8)?.checked_add(offset)?;
        if !offset.is_multiple_of(8) || end > self.bytes {
            return None;
        }
        // SAFETY: the words lie in the mapping, which lives as long as the reference, and are aligned, because a mapping
        // starts at a page. Whoever else writes them does so as if by atomic accesses.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast(), count) })
    }

    /// The 32 bits at `offset`, a multiple of 4; `None` beyond the mapping.
    #[must_use]
    pub fn half(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.bytes {
            return None;
        }
        // SAFETY: as in `words`.
        Some(unsafe { &*self.start.as_ptr().add(offset).cast() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and everything that was given out borrows it.
        let ended = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(ended.is_ok());
    }
}

/// A piece of a guest's memory within a mapping.
#[derive(Debug)]
pub struct Piece {
    /// Where the guest has it.
    pub guest: u64,
    /// What it lies in.
    pub mapping: Mapping,
    /// Where in there: a multiple of the page's size.
    pub offset: usize,
    /// How many bytes: as well.
    pub bytes: usize,
}

/// A piece of a guest's memory, for another process to map.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Where the guest has it.
    pub guest: u64,
    /// Where this process has it.
    pub address: u64,
    /// How many bytes.
    pub bytes: u64,
    /// What is to be mapped.
    pub file: BorrowedFd<'a>,
    /// From where on.
    pub offset: u64,
}

/// Why a guest's memory cannot be put together.
#[derive(Debug)]
pub enum MemoryError {
    /// A piece lies beyond its mapping, or is not whole pages.
    Piece,
    /// The pieces overlap, or `vm_memory` refuses them otherwise.
    Regions(String),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Piece => f.write_str("a range of the guest's memory is not whole pages of its mapping"),
            Self::Regions(why) => write!(f, "the guest's memory cannot be put together: {why}"),
        }
    }
}

impl std::error::Error for MemoryError {}

/// A piece of a guest's memory, for `vm_memory`'s accesses. Its mapping lasts as long as it does.
#[derive(Debug)]
pub struct Region {
    guest: u64,
    mapping: Arc<Mapping>,
    /// Where in the mapping it is: it lies in there whole.
    offset: usize,
    bytes: usize,
}

impl Region {
    /// The piece, if it is whole pages of its mapping.
    fn new(Piece { guest, mapping, offset, bytes }: Piece) -> Option<Self> {
        const PAGE: usize = 4096;
        let pages = offset.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes > 0;
        let whole = offset.checked_add(bytes)? <= mapping.bytes;
        guest.checked_add(bytes as u64)?;
        (pages && whole).then(|| Self { guest, mapping: Arc::new(mapping), offset, bytes })
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> u64 {
        self.bytes as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.guest)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let start = usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        if start.checked_add(count).is_none_or(|end| end > self.bytes) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        // SAFETY: the slice lies in the region, as just seen, and that in its mapping, as `new` has; the mapping lives as long as
        // the slice, which borrows the region.
        Ok(unsafe { VolatileSlice::new(self.mapping.start.as_ptr().add(self.offset + start), count) })
    }
}

impl GuestMemoryRegionBytes for Region {}

/// A guest's memory. Whatever works on it holds an `Arc` of this, so that it stays mapped meanwhile.
#[derive(Debug)]
pub struct Memory {
    regions: GuestRegionCollection<Region>,
}

impl Memory {
    /// The memory that consists of `pieces`.
    ///
    /// # Errors
    /// [`MemoryError`] where the pieces do not fit.
    pub fn new(pieces: Vec<Piece>) -> Result<Self, MemoryError> {
        let regions = pieces.into_iter().map(|piece| Region::new(piece).ok_or(MemoryError::Piece));
        let mut regions = regions.collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(|region| region.guest);
        let regions = GuestRegionCollection::from_regions(regions);
        let regions = regions.map_err(|error| MemoryError::Regions(error.to_string()))?;
        Ok(Self { regions })
    }

    /// What is in it, for `vm_memory`'s accesses.
    #[must_use]
    pub fn regions(&self) -> &GuestRegionCollection<Region> {
        &self.regions
    }

    fn each(&self) -> impl Iterator<Item = &Region> {
        vm_memory::GuestMemoryBackend::iter(&self.regions)
    }

    /// How many bytes are mapped for it.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.each().map(|region| region.mapping.bytes()).sum()
    }

    /// Its pieces, for another process to map.
    pub fn shared(&self) -> impl Iterator<Item = Shared<'_>> {
        self.each().map(|region| Shared {
            guest: region.guest,
            address: region.mapping.start.addr().get() as u64 + region.offset as u64,
            bytes: region.bytes as u64,
            file: region.mapping.file.as_fd(),
            offset: region.mapping.offset + region.offset as u64,
        })
    }

    /// Where this process has what the guest has at `guest`, as a number.
    #[must_use]
    pub fn address_of(&self, guest: u64) -> Option<u64> {
        let piece = self.shared().find(|piece| guest.wrapping_sub(piece.guest) < piece.bytes)?;
        Some(piece.address + (guest - piece.guest))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;
    use crate::testing::file;

    fn piece(guest: u64, offset: usize, bytes: usize) -> Piece {
        Piece { guest, mapping: Mapping::new(&file(0x4000), 0, 0x4000).unwrap(), offset, bytes }
    }

    #[test]
    fn pieces_are_whole_pages_of_their_mappings() {
        let wrong = [
            (0, 0, 0),
            (0, 0, 0x5000),
            (0, 0x1000, 0x4000),
            (0, 0x800, 0x1000),
            (0, 0, 0x800),
            (0, !0xfff, 0x1000),
            (!0xfff, 0, 0x2000),
        ];
        for (guest, offset, bytes) in wrong {
            let made = Memory::new(vec![piece(guest, offset, bytes)]);
            assert!(matches!(made, Err(MemoryError::Piece)), "{guest:#x} {offset:#x} {bytes:#x}");
        }
        let overlap = Memory::new(vec![piece(0x1000, 0, 0x2000), piece(0x2000, 0, 0x1000)]);
        assert!(matches!(overlap, Err(MemoryError::Regions(_))));
        assert!(matches!(Memory::new(Vec::new()), Err(MemoryError::Regions(_))));
    }

    #[test]
    fn accesses_stay_inside_and_keep_what_they_reach_mapped() {
        // The second one in the order of addresses is given first.
        let memory = Memory::new(vec![piece(0x3000, 0x1000, 0x1000), piece(0x1000, 0, 0x2000)]).unwrap();
        let regions = memory.regions();
        let all: Vec<u8> = (0..0x3000_u32).map(|at| (at / 3) as u8).collect();
        regions.write_slice(&all, GuestAddress(0x1000)).unwrap();
        let mut there = vec![0; 0x3000];
        regions.read_slice(&mut there, GuestAddress(0x1000)).unwrap();
        assert!(there == all);
        for (at, bytes) in [(0xfff, 1), (0xfff, 2), (0x3fff, 2), (0x4000, 1), (u64::MAX, 2)] {
            assert!(!regions.check_range(GuestAddress(at), bytes), "{at:#x} {bytes}");
        }
        let region = regions.find_region(GuestAddress(0x3000)).unwrap();
        assert!(region.get_slice(MemoryRegionAddress(0), 0x1001).is_err());
        assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 2).is_err());
        assert_eq!(memory.address_of(0x3008), memory.shared().nth(1).map(|piece| piece.address + 8));
        assert_eq!((memory.mapped(), memory.address_of(0x4000)), (0x8000, None));
        // What outlives the memory has its mappings.
        let kept = regions.clone();
        drop(memory);
        assert_eq!(kept.read_obj::<u8>(GuestAddress(0x3000)).unwrap(), all[0x2000]);
    }
}
