//! The host's page tables, by the `x86_64` crate.
//!
//! | range | what | access |
//! |---|---|---|
//! | `KERNEL_BASE` | the image, 4 KiB pages | code RX, constants R, variables and stacks RW; pages below stacks absent |
//! | [`memory::DIRECT_MAP`] | all RAM but the image, largest pages | RW |
//! | [`crate::device`]'s window | device registers, uncached | RW |
//! | [`memory::Stack`]'s window | stacks of the CPUs that start later, an absent page below each | RW |
//!
//! Nothing is both writable and executable, and the low half is empty.

use caisson_boot::{Image, KERNEL_BASE, Range};
use caisson_locks::{Mutex, Rank};
use caisson_types::Hpa;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size1GiB,
    Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::gdt;
use crate::memory;

const DATA: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::NO_EXECUTE);
const CONSTANTS: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE);
const CODE: PageTableFlags = PageTableFlags::PRESENT;
const DEVICE: PageTableFlags = DATA.union(PageTableFlags::NO_CACHE).union(PageTableFlags::WRITE_THROUGH);

/// New tables under construction, while the boot tables map physical memory at its own addresses.
pub(crate) struct Builder<'f, F> {
    root: PhysFrame,
    mapper: OffsetPageTable<'static>,
    frames: &'f mut F,
    gigabyte_pages: bool,
}

/// No frame was left for a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoTable;

impl<'f, F: FrameAllocator<Size4KiB>> Builder<'f, F> {
    /// Empty tables.
    ///
    /// # Safety
    /// The boot tables must be active, and `frames` must give zeroed frames below the end of what they map.
    pub(crate) unsafe fn new(frames: &'f mut F, gigabyte_pages: bool) -> Result<Self, NoTable> {
        let root = frames.allocate_frame().ok_or(NoTable)?;
        // SAFETY: the frame is new, zeroed and mapped at its own address.
        let table = unsafe { &mut *(root.start_address().as_u64() as *mut PageTable) };
        // SAFETY: tables come from `frames` only, which are mapped at their own addresses.
        let mapper = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };
        Ok(Self { root, mapper, frames, gigabyte_pages })
    }

    fn page<S: PageSize>(&mut self, at: u64, to: u64, flags: PageTableFlags) -> Result<(), NoTable>
    where
        OffsetPageTable<'static>: Mapper<S>,
    {
        let page = Page::<S>::containing_address(VirtAddr::new(at));
        let frame = PhysFrame::<S>::containing_address(PhysAddr::new(to));
        // SAFETY: the tables are not in use yet, and each range is mapped once.
        match unsafe { self.mapper.map_to(page, frame, flags, self.frames) } {
            Ok(flush) => {
                flush.ignore();
                Ok(())
            }
            Err(_) => Err(NoTable),
        }
    }

    /// Maps RAM into the direct map with the largest pages that fit.
    pub(crate) fn direct(&mut self, range: Range) -> Result<(), NoTable> {
        let mut at = range.start.next_multiple_of(Size4KiB::SIZE);
        let end = range.end & !(Size4KiB::SIZE - 1);
        while at < end {
            let to = memory::DIRECT_MAP + at;
            let fits = |size: u64| at.is_multiple_of(size) && end - at >= size;
            if self.gigabyte_pages && fits(Size1GiB::SIZE) {
                self.page::<Size1GiB>(to, at, DATA)?;
                at += Size1GiB::SIZE;
            } else if fits(Size2MiB::SIZE) {
                self.page::<Size2MiB>(to, at, DATA)?;
                at += Size2MiB::SIZE;
            } else {
                self.page::<Size4KiB>(to, at, DATA)?;
                at += Size4KiB::SIZE;
            }
        }
        Ok(())
    }

    /// Maps the image, each part with its own rights.
    pub(crate) fn image(&mut self, image: &Image) -> Result<(), NoTable> {
        let [a, b, c] = gdt::stack_guards();
        let guards = [a, b, c, image.stack_guard];
        let parts = [(image.text, CODE), ((image.text.1, image.data.0), CONSTANTS), (image.data, DATA)];
        for ((start, end), flags) in parts {
            for at in (start..end).step_by(Size4KiB::SIZE as usize) {
                if !guards.contains(&at) {
                    self.page::<Size4KiB>(at, at - KERNEL_BASE, flags)?;
                }
            }
        }
        Ok(())
    }

    /// Activates the tables, with [`protect`]'s protections.
    ///
    /// # Safety
    /// The image and all memory that is in use must be mapped.
    pub(crate) unsafe fn activate(self) {
        // SAFETY: promised by the caller.
        unsafe {
            protect();
            Cr3::write(self.root, x86_64::registers::control::Cr3Flags::empty());
        }
    }
}

/// Turns this CPU's protections on: no-execute pages, write protection, supervisor protections where it has them.
///
/// # Safety
/// With tables that heed them, or before such are loaded.
pub(crate) unsafe fn protect() {
    // SAFETY: promised by the caller; the features were asked for.
    unsafe {
        Efer::update(|efer| *efer |= EferFlags::NO_EXECUTE_ENABLE);
        Cr0::update(|cr0| *cr0 |= Cr0Flags::WRITE_PROTECT);
        let features = crate::cpu::cpuid(7, 0);
        let has_leaf_7 = crate::cpu::cpuid(0, 0).eax >= 7;
        Cr4::update(|cr4| {
            cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, has_leaf_7 && features.ebx & 1 << 7 != 0);
            cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::MACHINE_CHECK_EXCEPTION);
        });
    }
}

/// Host-physical address of the root of the tables in use.
pub(crate) fn root() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// Maps a page of device registers at `at` in the tables in use; `None` without memory for a table.
///
/// # Safety
/// The page must be unused, and `to` device registers.
pub(crate) unsafe fn map_device_page(
    at: u64,
    to: Hpa,
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe { map_page(at, to, DEVICE, frames) }
}

/// Maps a page of RAM at `at` in the tables in use; `None` without memory for a table.
///
/// # Safety
/// The page must be unused, and `to` a frame of the caller's.
pub(crate) unsafe fn map_data_page(
    at: u64,
    to: Hpa,
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> Option<()> {
    // SAFETY: promised by the caller.
    unsafe { map_page(at, to, DATA, frames) }
}

/// Held while the tables in use are changed: pages that were absent appear, which no CPU has cached.
static CHANGING: Mutex<()> = Mutex::new(Rank::Paging, ());

/// Maps an absent page in the tables in use, which all CPUs share.
///
/// # Safety
/// The page must be unused, and `to` the caller's.
unsafe fn map_page(
    at: u64,
    to: Hpa,
    flags: PageTableFlags,
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> Option<()> {
    let _changing = CHANGING.lock();
    let table = memory::direct(Hpa::new(root())).cast::<PageTable>();
    // SAFETY: the active tables are RAM in the direct map, changed only here, under the lock.
    let mut mapper = unsafe { OffsetPageTable::new(&mut *table, VirtAddr::new(memory::DIRECT_MAP)) };
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at));
    let frame = PhysFrame::containing_address(PhysAddr::new(to.as_u64()));
    // SAFETY: promised by the caller.
    unsafe { mapper.map_to(page, frame, flags, frames) }.ok()?.flush();
    Some(())
}
