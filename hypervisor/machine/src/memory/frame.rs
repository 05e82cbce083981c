//! Frames with a use: typed pages for the hardware, and pages for tables.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use caisson_frames::{FrameBlock, Owner};
use caisson_stage2::{Marks, TableMemory};
use caisson_types::{DomainId, Hpa, PAGE_SIZE};
use x86_64::PhysAddr;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};
use zerocopy::FromZeros;

use super::{direct, frames, scrub};

/// A value in frames of its own, known by its host-physical address: what the virtualisation hardware reads.
pub struct PageBox<T: FromZeros> {
    block: Option<FrameBlock>,
    value: *mut T,
    hpa: Hpa,
}

// SAFETY: the box owns its frames and the value in them.
unsafe impl<T: FromZeros + Send> Send for PageBox<T> {}
// SAFETY: a shared box gives shared references to its value, and no more.
unsafe impl<T: FromZeros + Sync> Sync for PageBox<T> {}

impl<T: FromZeros> PageBox<T> {
    /// A value of zeros, or `None` without memory.
    #[must_use]
    pub fn zeroed(owner: Owner) -> Option<Self> {
        const { assert!(align_of::<T>() <= PAGE_SIZE as usize && !core::mem::needs_drop::<T>()) };
        let order = size_of::<T>().div_ceil(PAGE_SIZE as usize).next_power_of_two().ilog2();
        let block = frames().allocate(order as u8, owner)?;
        let hpa = block.start();
        Some(Self { block: Some(block), value: direct(hpa).cast(), hpa })
    }

    /// Where the value is, for the hardware.
    #[inline]
    #[must_use]
    pub fn hpa(&self) -> Hpa {
        self.hpa
    }
}

impl<T: FromZeros> Deref for PageBox<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the frames are the box's, zeroed when they were allocated, and mapped.
        unsafe { &*self.value }
    }
}

impl<T: FromZeros> DerefMut for PageBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the box is borrowed mutably.
        unsafe { &mut *self.value }
    }
}

impl<T: FromZeros> Drop for PageBox<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            free(block);
        }
    }
}

/// Scrubs a block and gives it back.
pub(crate) fn free(block: FrameBlock) {
    // SAFETY: the block is the caller's, who gives it up.
    unsafe { scrub(block.start(), block.bytes()) };
    let freed = frames().free(block);
    if let Err(error) = freed {
        log::error!("a frame could not be freed: {error}");
    }
}

/// Frames for the host's page tables.
pub struct TableFrames;

// SAFETY: the frame allocator gives each frame once, zeroed.
unsafe impl FrameAllocator<Size4KiB> for TableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let block = frames().allocate(0, Owner::Hypervisor)?;
        Some(PhysFrame::containing_address(PhysAddr::new(block.into_start().as_u64())))
    }
}

/// A page of marks of one domain's log of writes: like its tables, the frame goes with the domain.
pub struct DomainMarks(&'static Marks);

impl DomainMarks {
    /// One without marks, or `None` without memory.
    pub(super) fn allocate(domain: DomainId) -> Option<Self> {
        let block = frames().allocate(0, Owner::Domain(domain))?;
        // SAFETY: the frame is the log's for as long as the domain lives, whose memory holds the log; it is zero, mapped, and
        // only ever accessed as atomics.
        Some(Self(unsafe { &*direct(block.into_start()).cast::<Marks>() }))
    }
}

impl Deref for DomainMarks {
    type Target = Marks;
    #[inline]
    fn deref(&self) -> &Marks {
        self.0
    }
}

/// Stage-2 tables of one domain: the frames are the domain's own, and go with it.
#[derive(Clone, Copy, Debug)]
pub struct DomainTables(pub DomainId);

impl DomainTables {
    fn entry(table: Hpa, index: usize) -> &'static AtomicU64 {
        debug_assert!(index < 512);
        // SAFETY: tables are frames that `allocate` gave; entries are only ever accessed as atomics, by us and by the
        // CPU's walker. The index is within the page.
        unsafe { &*direct(table).cast::<AtomicU64>().add(index & 511) }
    }
}

impl TableMemory for DomainTables {
    fn allocate(&mut self) -> Option<Hpa> {
        frames().allocate(0, Owner::Domain(self.0)).map(FrameBlock::into_start)
    }

    fn free(&mut self, table: Hpa) {
        let block = frames().reclaim(table, 0, Owner::Domain(self.0));
        match block {
            Ok(block) => free(block),
            Err(error) => log::error!("a stage-2 table could not be freed: {error}"),
        }
    }

    #[inline]
    fn read(&self, table: Hpa, index: usize) -> u64 {
        Self::entry(table, index).load(Ordering::Relaxed)
    }

    #[inline]
    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        Self::entry(table, index).store(entry, Ordering::Release);
    }

    fn compare_exchange(&mut self, table: Hpa, index: usize, current: u64, new: u64) -> Result<(), u64> {
        Self::entry(table, index)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
    }
}
