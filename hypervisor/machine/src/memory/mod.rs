//! RAM: the direct map, the frame allocator over the machine's memory map, the heap, and guests' memory.
//!
//! Every frame that is free reads as zero: what the firmware and the loader left is scrubbed at start, and what is
//! freed is scrubbed before it is given back. So a frame never carries anything from one owner to the next, and
//! making a domain costs no scrubbing.

mod frame;
mod guest;
mod heap;
mod map;
mod piece;
mod stack;

#[cfg(target_os = "none")]
use caisson_boot::TRAMPOLINE_END;
use caisson_boot::{BOOT_MAPPED_END, BootInfo, Image, KERNEL_BASE, Range};
use caisson_frames::{FrameAllocator, FrameMeta, Owner, SetupError, ZonePlan, heap_order, table_bytes};
use caisson_locks::{Mutex, MutexGuard, Rank};
use caisson_types::{Hpa, PAGE_SIZE};
use spin::Once;
use x86_64::PhysAddr;
use x86_64::structures::paging::{PhysFrame, Size4KiB};

use crate::cpu::Features;
use crate::paging;

pub(crate) use frame::free;
pub use frame::{DomainMarks, DomainTables, PageBox, TableFrames};
pub use guest::GuestRam;
pub use heap::{bytes as heap_bytes, is_there as has_heap, used as heap_used};
pub use piece::Piece;
pub use stack::Stack;
pub(crate) use stack::contains as is_stack;

/// Where the direct map starts: the byte at host-physical address `a` is at `DIRECT_MAP + a`.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Scrubbing more than this takes so long that a person should know what is going on: about a second.
const LONG_SCRUB: u64 = 8 << 30;
/// RAM that Caisson needs beside guests', in bytes.
const MINIMUM: u64 = 16 << 20;

/// Bytes that Caisson has taken for itself at the start, by what they are for.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The image: code, constants, variables, the boot CPU's stacks.
    pub image: u64,
    /// The page tables of all RAM.
    pub tables: u64,
    /// The frame allocator's records.
    pub records: u64,
}

static TAKEN: Once<Taken> = Once::new();

/// What Caisson has taken for itself at the start; `None` before [`init`]. The heap is [`heap_bytes`].
#[must_use]
pub fn taken() -> Option<Taken> {
    TAKEN.get().copied()
}

static FRAMES: Mutex<Option<FrameAllocator<'static>>> = Mutex::new(Rank::Frames, None);

/// What stands between the machine's RAM and Caisson.
#[derive(Clone, Copy, Debug)]
pub enum MemoryRefusal {
    /// The loader gave no memory map.
    NoMap,
    /// Too little RAM, in bytes.
    TooSmall(u64),
    /// The memory map has more pieces than can be managed.
    TooManyPieces,
}

impl core::fmt::Display for MemoryRefusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMap => {
                f.write_str("the loader gave no memory map: boot with a multiboot2 loader such as GRUB 2")
            }
            Self::TooSmall(bytes) => write!(
                f,
                "this machine has {} KiB of usable memory, and Caisson needs {} KiB beside its guests': add memory",
                bytes >> 10,
                MINIMUM >> 10
            ),
            Self::TooManyPieces => f.write_str(
                "the firmware's memory map has too many pieces: update the firmware or boot by BIOS",
            ),
        }
    }
}

/// Where a host-physical address is in the direct map.
#[inline]
#[must_use]
pub fn direct(at: Hpa) -> *mut u8 {
    (DIRECT_MAP + at.as_u64()) as *mut u8
}

/// The frame allocator.
///
/// # Panics
/// Before [`init`]: a bug of Caisson's.
#[cfg_attr(debug_assertions, track_caller)]
pub fn frames() -> impl core::ops::DerefMut<Target = FrameAllocator<'static>> {
    struct Guard(MutexGuard<'static, Option<FrameAllocator<'static>>>);
    impl core::ops::Deref for Guard {
        type Target = FrameAllocator<'static>;
        fn deref(&self) -> &Self::Target {
            #[allow(clippy::expect_used)]
            self.0.as_ref().expect("the frame allocator is set up first")
        }
    }
    impl core::ops::DerefMut for Guard {
        fn deref_mut(&mut self) -> &mut Self::Target {
            #[allow(clippy::expect_used)]
            self.0.as_mut().expect("the frame allocator is set up first")
        }
    }
    Guard(FRAMES.lock())
}

/// Frames taken off the end of one range before the allocator exists.
struct Early {
    next: u64,
    end: u64,
}

// SAFETY: each frame is handed out once, from RAM that is free and mapped at its own address.
unsafe impl x86_64::structures::paging::FrameAllocator<Size4KiB> for Early {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        (self.next < self.end).then(|| {
            let at = self.next;
            self.next += PAGE_SIZE;
            // SAFETY: as above.
            unsafe { zero(at as *mut u8, PAGE_SIZE) };
            PhysFrame::containing_address(PhysAddr::new(at))
        })
    }
}

/// Bytes of a turn of [`zero`]'s loop.
const ZEROED_AT_ONCE: u64 = 256;

/// Fills memory with zeros, past the caches: what is given back is not used soon, and what others have there stays. An emulator's
/// translator is faster at this than at REP STOS as well.
///
/// # Safety
/// `at` must be 8-byte aligned and `bytes` a multiple of [`ZEROED_AT_ONCE`], all of it writable memory of the caller's.
unsafe fn zero(at: *mut u8, bytes: u64) {
    // SAFETY: promised by the caller. The fence has others see the zeros before what is stored later.
    unsafe {
        core::arch::asm!(
            "test rcx, rcx",
            "jz 3f",
            "2:",
            ".set zeroed, 0",
            ".rept {unrolled}",
            "movnti [rdi + zeroed], rax",
            ".set zeroed, zeroed + 8",
            ".endr",
            "add rdi, 8 * {unrolled}",
            "dec rcx",
            "jnz 2b",
            "sfence",
            "3:",
            unrolled = const ZEROED_AT_ONCE / 8,
            inout("rcx") bytes / ZEROED_AT_ONCE => _, inout("rdi") at => _, in("rax") 0u64,
            options(nostack)
        );
    }
}

/// Fills RAM of the direct map with zeros.
///
/// # Safety
/// The range must be whole frames of RAM that nobody uses.
unsafe fn scrub(at: Hpa, bytes: u64) {
    // SAFETY: promised by the caller.
    unsafe { zero(direct(at), bytes) };
}

/// `bytes` at the end of the highest of `ranges` that lies below `limit` and has as many.
fn highest(ranges: &map::Ranges, bytes: u64, limit: u64) -> Option<Range> {
    let fits = |r: &&Range| r.end <= limit && r.end - r.start >= bytes;
    ranges.iter().filter(fits).max_by_key(|r| r.end).map(|r| Range { start: r.end - bytes, end: r.end })
}

/// Builds the page tables, the frame allocator and the heap. Returns the bytes of RAM that are free now.
///
/// # Errors
/// [`MemoryRefusal`], in words for the person at the machine.
///
/// # Safety
/// Once, on the boot CPU, with the boot tables active.
pub unsafe fn init(info: &BootInfo, features: &Features) -> Result<u64, MemoryRefusal> {
    let image = Image::current();
    if info.areas.is_empty() {
        return Err(MemoryRefusal::NoMap);
    }
    let usable = map::usable(info).ok_or(MemoryRefusal::TooManyPieces)?;
    let total = usable.iter().map(|r| r.end - r.start).sum::<u64>();
    if total < MINIMUM {
        return Err(MemoryRefusal::TooSmall(total));
    }
    let image_range = Range { start: 0, end: image.end - KERNEL_BASE };
    // A loader may leave its files in memory that it does not call free, or below 1 MiB: they are read for ever.
    let mapped = map::with(&usable, info.loader_memory()).ok_or(MemoryRefusal::TooManyPieces)?;
    let free = map::without(&usable, info.loader_memory().chain([image_range]))
        .ok_or(MemoryRefusal::TooManyPieces)?;

    let mut plan = ZonePlan::new();
    for range in &free {
        plan.include(Hpa::new(range.start), range.end - range.start);
    }
    let metadata = plan.metadata_bytes().next_multiple_of(PAGE_SIZE);
    let tables = table_bytes(total, mapped.len() as u64, image.end - KERNEL_BASE);
    // The tables are built where the boot tables reach; the metadata, which on a large machine takes gigabytes, is not
    // touched before.
    let tables = highest(&free, tables, BOOT_MAPPED_END);
    let tables = tables.ok_or(MemoryRefusal::TooSmall(total))?;
    let free = map::without(&free, [tables].into_iter()).ok_or(MemoryRefusal::TooManyPieces)?;
    let taken = highest(&free, metadata, u64::MAX).ok_or(MemoryRefusal::TooSmall(total))?;

    let mut early = Early { next: tables.start, end: tables.end };
    let build = |early: &mut Early| -> Result<(), paging::NoTable> {
        // SAFETY: the boot tables are active, and `early` gives zeroed frames below their end.
        let mut builder = unsafe { paging::Builder::new(early, features.gigabyte_pages)? };
        let image_range = Range { start: map::LOW_END, ..image_range };
        for range in map::without(&mapped, [image_range].into_iter()).iter().flatten() {
            builder.direct(*range)?;
        }
        builder.image(&image)?;
        // SAFETY: the image and all RAM are mapped; the stack is part of the image.
        unsafe { builder.activate() };
        Ok(())
    };
    build(&mut early).map_err(|_| MemoryRefusal::TooSmall(total))?;

    // SAFETY: the range was cut from free memory, is mapped by the direct map now, and zeroed bytes are valid
    // metadata.
    let meta = unsafe {
        scrub(Hpa::new(taken.start), metadata);
        let count = metadata as usize / size_of::<FrameMeta>();
        core::slice::from_raw_parts_mut(direct(Hpa::new(taken.start)).cast::<FrameMeta>(), count)
    };
    let mut frames = FrameAllocator::new(&plan, meta).map_err(|error| match error {
        SetupError::TooManyFrames { .. } => MemoryRefusal::TooManyPieces,
        SetupError::MetadataTooSmall { .. } => MemoryRefusal::TooSmall(total),
    })?;
    let to_scrub = free.iter().map(|r| r.end - r.start).sum::<u64>();
    if to_scrub > LONG_SCRUB {
        log::info!("scrubbing {} GiB of memory", to_scrub >> 30);
    }
    for range in map::without(&free, [taken].into_iter()).iter().flatten() {
        let start = range.start.next_multiple_of(PAGE_SIZE);
        let end = range.end & !(PAGE_SIZE - 1);
        if start < end {
            // SAFETY: free RAM in the direct map, used by nobody.
            unsafe { scrub(Hpa::new(start), end - start) };
            frames.add_region(Hpa::new(start), end - start).map_err(|_| MemoryRefusal::TooManyPieces)?;
        }
    }
    let heap = frames.allocate(heap_order(total), Owner::Hypervisor).ok_or(MemoryRefusal::TooSmall(total))?;
    // SAFETY: the block is Caisson's own from now on, mapped by the direct map.
    unsafe { heap::init(direct(heap.start()), heap.bytes() as usize) };
    TAKEN.call_once(|| Taken {
        image: image_range.end - map::LOW_END,
        tables: tables.end - tables.start,
        records: metadata,
    });
    let left = frames.free_frames() * PAGE_SIZE;
    *FRAMES.lock() = Some(frames);
    Ok(left)
}

/// Puts the start-up code of other CPUs into a free page below [`TRAMPOLINE_END`], and answers where; `None` where there is
/// none.
///
/// # Safety
/// On the boot CPU, with the boot tables active. The page belongs to the code from then on.
#[cfg(target_os = "none")]
#[must_use]
pub unsafe fn place_trampoline(info: &BootInfo) -> Option<Hpa> {
    let code = caisson_boot::trampoline();
    let page = map::low_page(info, TRAMPOLINE_END)?;
    assert!(code.len() as u64 <= PAGE_SIZE, "the start-up code fits a page");
    // SAFETY: the page is RAM that nobody uses, mapped at its own address by the boot tables.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page as *mut u8, code.len()) };
    Some(Hpa::new(page))
}

/// The bytes of a range that the loader filled (a module, the symbol table), for as long as Caisson runs.
///
/// # Safety
/// The range must be one of [`BootInfo::loader_memory`]'s, which the frame allocator never hands out.
#[must_use]
pub unsafe fn loader_bytes(range: Range) -> &'static [u8] {
    // SAFETY: promised by the caller; the direct map has all RAM.
    unsafe { core::slice::from_raw_parts(direct(Hpa::new(range.start)), (range.end - range.start) as usize) }
}
