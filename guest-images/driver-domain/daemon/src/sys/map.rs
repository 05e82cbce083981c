//! Mappings of files and devices.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

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

/// A guest's memory. Whatever works on it holds an `Arc` of this, so that it stays mapped meanwhile.
#[derive(Debug)]
pub struct Memory {
    regions: GuestMemoryMmap,
    /// Dropped after the regions that lie in them; each with its region's address, and where in it that is.
    mappings: Vec<(Mapping, u64, usize, usize)>,
}

impl Memory {
    /// The memory that consists of `pieces`.
    ///
    /// # Errors
    /// [`MemoryError`] where the pieces do not fit.
    pub fn new(pieces: Vec<Piece>) -> Result<Self, MemoryError> {
        const PAGE: usize = 4096;
        let (mut regions, mut mappings) = (Vec::new(), Vec::new());
        for piece in pieces {
            let end = piece.offset.checked_add(piece.bytes).ok_or(MemoryError::Piece)?;
            let pages = piece.offset.is_multiple_of(PAGE) && piece.bytes.is_multiple_of(PAGE);
            if end > piece.mapping.bytes || !pages || piece.bytes == 0 {
                return Err(MemoryError::Piece);
            }
            let regions_error = |error: &dyn fmt::Display| MemoryError::Regions(error.to_string());
            // SAFETY: the piece lies in its mapping, as just seen; the mapping is kept beside the regions in a `Memory`, and
            // nothing takes them out of it.
            let region = unsafe {
                let start = piece.mapping.start.as_ptr().add(piece.offset);
                MmapRegionBuilder::new(piece.bytes)
                    .with_raw_mmap_pointer(start)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_SHARED)
                    .build()
            };
            let region = region.map_err(|error| regions_error(&error))?;
            let region = GuestRegionMmap::new(region, GuestAddress(piece.guest))
                .ok_or_else(|| MemoryError::Regions("it reaches beyond 2^64".into()))?;
            regions.push(region);
            mappings.push((piece.mapping, piece.guest, piece.offset, piece.bytes));
        }
        regions.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(region).0);
        let regions = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MemoryError::Regions(error.to_string()))?;
        Ok(Self { regions, mappings })
    }

    /// What is in it, for `vm_memory`'s accesses. Not to be cloned: the mappings do not last longer than this.
    #[must_use]
    pub fn regions(&self) -> &GuestMemoryMmap {
        &self.regions
    }

    /// How many bytes are mapped for it.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.mappings.iter().map(|(mapping, ..)| mapping.bytes()).sum()
    }

    /// Its pieces, for another process to map.
    pub fn shared(&self) -> impl Iterator<Item = Shared<'_>> {
        self.mappings.iter().map(|(mapping, guest, offset, bytes)| Shared {
            guest: *guest,
            address: mapping.start.addr().get() as u64 + *offset as u64,
            bytes: *bytes as u64,
            file: mapping.file.as_fd(),
            offset: mapping.offset + *offset as u64,
        })
    }

    /// Where this process has what the guest has at `guest`, as a number.
    #[must_use]
    pub fn address_of(&self, guest: u64) -> Option<u64> {
        let piece = self.shared().find(|piece| guest.wrapping_sub(piece.guest) < piece.bytes)?;
        Some(piece.address + (guest - piece.guest))
    }
}
