//! A guest's RAM.
//!
//! Guest frames are never behind a Rust reference, because the guest writes them at any time: they are copied from and
//! to by string instructions and single volatile accesses.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use alloc::vec::Vec;
use caisson_frames::{MAX_ORDER, Owner};
use caisson_stage2::WriteLog;
use caisson_types::{DomainId, Extent, Gpa, GuestMemory, Hpa, MemoryError, PAGE_SIZE, granted};
use spin::Once;

use super::frame::DomainMarks;
use super::{direct, frames, scrub};

/// Bytes that are scrubbed at a time when a domain dies, so that nobody waits long.
const SCRUB_STEP: u64 = 2 << 20;

/// The pages of a door, as a power of two.
const DOOR_ORDER: u8 = 9;

/// What 32 bits reach.
const FOUR_GIB: u64 = 4 << 30;

/// The largest extent, as single loads look it up: nearly all of them go there.
struct Main {
    /// The guest-physical address of its first byte.
    start: u64,
    /// The last offset from there at which a word of 8 bytes fits.
    last: u64,
    /// Where the first byte is in the direct map.
    at: u64,
}

impl Main {
    /// Of extents that are whole pages; `None` where there is none.
    fn of(extents: &[Extent]) -> Option<Self> {
        // Of several the first one.
        let largest = extents.iter().rev().max_by_key(|extent| extent.bytes)?;
        Some(Self {
            start: largest.gpa.as_u64(),
            last: largest.bytes.checked_sub(8)?,
            at: direct(largest.hpa) as u64,
        })
    }

    /// Where a word of up to 8 bytes is, if it is there.
    #[inline(always)]
    fn word(&self, gpa: Gpa) -> Option<*const u8> {
        let offset = gpa.as_u64().wrapping_sub(self.start);
        if offset <= self.last { Some((self.at + offset) as *const u8) } else { None }
    }
}

/// A domain's RAM: every byte of it is a frame that the domain owns.
pub struct GuestRam {
    domain: DomainId,
    extents: Vec<Extent>,
    main: Main,
    /// From here on it is the domain's alone.
    private_from: Gpa,
    scrubbed: (usize, u64),
    /// Which pages have been written, once somebody has asked.
    log: Once<WriteLog<DomainMarks>>,
    /// Somebody asks now.
    logging: AtomicBool,
}

impl GuestRam {
    /// Allocates the guest-physical ranges `(start, bytes)`, whole pages in ascending order, from free memory, all
    /// zeros. `None` without enough memory, or for ranges that are not of that form, or none; nothing is kept then.
    #[must_use]
    pub fn allocate(domain: DomainId, ranges: &[(Gpa, u64)]) -> Option<Self> {
        let mut extents = Vec::new();
        let mut chains = Vec::new();
        let owner = Owner::Domain(domain);
        let mut frames = frames();
        let mut fill = || -> Option<()> {
            let mut lowest = Gpa::new(0);
            for &(start, bytes) in ranges {
                let end = start.checked_add(bytes)?;
                let whole_pages = start.as_u64().is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE);
                if start < lowest || !whole_pages {
                    return None;
                }
                lowest = end;
                let chain = frames.allocate_range(bytes, owner)?;
                let mut at = start;
                for (hpa, bytes) in frames.blocks_of(&chain) {
                    push(&mut extents, Extent { gpa: at, hpa, bytes });
                    at = at.checked_add(bytes)?;
                }
                chains.push(chain);
            }
            Some(())
        };
        let main = fill().and_then(|()| Main::of(&extents));
        let Some(main) = main else {
            for chain in chains {
                // Nothing has used it: it still reads as zero.
                if let Err(error) = frames.free_range(chain) {
                    log::error!("unused guest memory could not be freed: {error}");
                }
            }
            return None;
        };
        let (log, logging) = (Once::new(), AtomicBool::new(false));
        let private_from = Gpa::new(u64::MAX);
        Some(Self { domain, extents, main, private_from, scrubbed: (0, 0), log, logging })
    }

    /// The same, of which everything from the guest-physical address `from` on is the domain's alone: nobody is granted it.
    #[must_use]
    pub fn private_from(mut self, from: Gpa) -> Self {
        self.private_from = from;
        self
    }

    /// Adds `bytes` of memory, whole pages, that the guest sees where it is: for devices that reach it without translation.
    /// All of it lies between 1 MiB and 4 GiB, which every device can name, in the largest pieces there are. `false` without
    /// enough memory.
    #[must_use]
    pub fn add_identical(&mut self, bytes: u64) -> bool {
        let owner = Owner::Domain(self.domain);
        let mut frames = frames();
        let mut left = bytes / PAGE_SIZE;
        let mut order = MAX_ORDER;
        while left > 0 {
            if 1 << order > left {
                order -= 1;
                continue;
            }
            match frames.allocate_below(Hpa::new(FOUR_GIB), order, owner) {
                Some(block) => {
                    left -= 1 << order;
                    let (hpa, bytes) = (block.start(), block.bytes());
                    // The allocator knows whose it is, and takes it back at the domain's end.
                    let _ = block.into_start();
                    self.extents.push(Extent { gpa: Gpa::new(hpa.as_u64()), hpa, bytes });
                }
                None if order == 0 => return false,
                None => order -= 1,
            }
        }
        drop(frames);
        self.extents.sort_unstable_by_key(|extent| extent.gpa);
        let pieces = core::mem::take(&mut self.extents);
        pieces.into_iter().for_each(|extent| push(&mut self.extents, extent));
        self.note_main();
        true
    }

    /// Adds the pages of a door: a piece of 2 MiB that the guest sees where it is, apart from its other memory. Where that
    /// is; `None` without memory.
    #[must_use]
    pub fn add_door(&mut self) -> Option<Gpa> {
        let block = frames().allocate(DOOR_ORDER, Owner::Domain(self.domain))?;
        let (hpa, bytes) = (block.start(), block.bytes());
        // The allocator knows whose it is, and takes it back at the domain's end.
        let _ = block.into_start();
        let gpa = Gpa::new(hpa.as_u64());
        self.extents.push(Extent { gpa, hpa, bytes });
        self.extents.sort_unstable_by_key(|extent| extent.gpa);
        self.note_main();
        Some(gpa)
    }

    fn note_main(&mut self) {
        if let Some(main) = Main::of(&self.extents) {
            self.main = main;
        }
    }

    #[inline(never)]
    fn u16_elsewhere(&self, gpa: Gpa) -> Result<u16, MemoryError> {
        match self.find(gpa) {
            // SAFETY: two bytes of the guest's RAM.
            Some((at, 2..)) => Ok(unsafe { load_u16(at) }),
            _ => self.read_elsewhere(gpa).map(u16::from_le_bytes),
        }
    }

    #[inline(never)]
    fn u32_elsewhere(&self, gpa: Gpa) -> Result<u32, MemoryError> {
        match self.find(gpa) {
            // SAFETY: four bytes of the guest's RAM.
            Some((at, 4..)) => Ok(unsafe { load_u32(at) }),
            _ => self.read_elsewhere(gpa).map(u32::from_le_bytes),
        }
    }

    #[inline(never)]
    fn u64_elsewhere(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        match self.find(gpa) {
            // SAFETY: eight bytes of the guest's RAM.
            Some((at, 8..)) => Ok(unsafe { load_u64(at) }),
            _ => self.read_elsewhere(gpa).map(u64::from_le_bytes),
        }
    }

    fn entry_elsewhere(&self, gpa: Gpa) -> u64 {
        self.u64_elsewhere(gpa).unwrap_or(0)
    }

    /// A word that is in two extents, or in none.
    #[cold]
    #[inline(never)]
    fn read_elsewhere<const BYTES: usize>(&self, gpa: Gpa) -> Result<[u8; BYTES], MemoryError> {
        let mut bytes = [0; BYTES];
        self.read(gpa, &mut bytes)?;
        Ok(bytes)
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes).sum()
    }

    /// Sets a bit (modulo 64) of the word at `gpa`, by one instruction: whether it was set.
    ///
    /// # Errors
    /// [`MemoryError`] where no RAM is, or for an address that is no multiple of 8.
    pub fn set_bit(&self, gpa: Gpa, bit: u32) -> Result<bool, MemoryError> {
        let at = self.word(gpa, 8)?;
        let was: u8;
        // SAFETY: an aligned word of the guest's RAM; the bit is one of it.
        unsafe {
            asm!("lock bts qword ptr [{at}], {bit}", "setc {was}", at = in(reg) at,
                 bit = in(reg) u64::from(bit % 64), was = out(reg_byte) was, options(nostack));
        }
        self.written(gpa, 8);
        Ok(was != 0)
    }

    /// Clears one, likewise.
    ///
    /// # Errors
    /// As [`GuestRam::set_bit`].
    pub fn clear_bit(&self, gpa: Gpa, bit: u32) -> Result<bool, MemoryError> {
        let at = self.word(gpa, 8)?;
        let was: u8;
        // SAFETY: an aligned word of the guest's RAM; the bit is one of it.
        unsafe {
            asm!("lock btr qword ptr [{at}], {bit}", "setc {was}", at = in(reg) at,
                 bit = in(reg) u64::from(bit % 64), was = out(reg_byte) was, options(nostack));
        }
        self.written(gpa, 8);
        Ok(was != 0)
    }

    /// Puts `new` into the word at `gpa`: what was there.
    ///
    /// # Errors
    /// As [`GuestRam::set_bit`].
    pub fn swap_u64(&self, gpa: Gpa, new: u64) -> Result<u64, MemoryError> {
        let at = self.word(gpa, 8)?;
        // SAFETY: an aligned word of the guest's RAM, accessed atomically.
        let word = unsafe { &*at.cast::<AtomicU64>() };
        let old = word.swap(new, Ordering::SeqCst);
        self.written(gpa, 8);
        Ok(old)
    }

    /// Whose it is.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// The pieces, in ascending order of guest-physical address.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// What nobody else is granted, in the same order.
    pub fn private(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().filter_map(|extent| extent.from(self.private_from))
    }

    /// What other domains that serve this one may have of it, in the same order: the same for as long as it lives.
    pub fn granted(&self) -> impl Iterator<Item = Extent> + Clone + '_ {
        granted(&self.extents, self.private_from)
    }

    /// From now on what is written here is marked in the log, which is empty; the guest's own writes are to be marked by who
    /// learns of them. `false` without memory for the log. That it has is the domain's to its end.
    #[must_use]
    pub fn start_log(&self) -> bool {
        if self.log.get().is_none() {
            let ranges = self.extents.iter().map(|extent| (extent.gpa, extent.bytes));
            let Some(log) = WriteLog::new(ranges, || DomainMarks::allocate(self.domain)) else {
                return false;
            };
            self.log.call_once(|| log);
        }
        if let Some(log) = self.log.get() {
            log.clear();
        }
        self.logging.store(true, Ordering::Release);
        true
    }

    /// Nothing is marked any more.
    pub fn stop_log(&self) {
        self.logging.store(false, Ordering::Release);
    }

    /// The log, if it has ever been started.
    #[must_use]
    pub fn log(&self) -> Option<&WriteLog<DomainMarks>> {
        self.log.get()
    }

    /// These bytes have been written, by the guest or for it. To be called afterwards.
    #[inline]
    pub fn written(&self, gpa: Gpa, bytes: u64) {
        if self.logging.load(Ordering::Relaxed) {
            self.mark(gpa, bytes);
        }
    }

    #[cold]
    fn mark(&self, gpa: Gpa, bytes: u64) {
        if let Some(log) = self.log.get() {
            log.mark(gpa, bytes);
        }
    }

    /// Scrubs the next piece after the domain's death; `true` when all is done.
    pub fn scrub_step(&mut self) -> bool {
        let (index, offset) = self.scrubbed;
        let Some(extent) = self.extents.get(index) else { return true };
        let bytes = SCRUB_STEP.min(extent.bytes - offset);
        // SAFETY: the frames are this domain's, which runs no more.
        unsafe { scrub(Hpa::new(extent.hpa.as_u64() + offset), bytes) };
        self.scrubbed = if offset + bytes == extent.bytes { (index + 1, 0) } else { (index, offset + bytes) };
        self.scrubbed.0 == self.extents.len()
    }

    /// The piece that holds `gpa`, and the bytes from there to its end.
    #[inline]
    fn find(&self, gpa: Gpa) -> Option<(*mut u8, u64)> {
        for extent in &self.extents {
            let offset = gpa.as_u64().wrapping_sub(extent.gpa.as_u64());
            if offset < extent.bytes {
                return Some((direct(Hpa::new(extent.hpa.as_u64() + offset)), extent.bytes - offset));
            }
        }
        None
    }

    /// A naturally aligned word of `bytes`, which cannot cross pieces.
    #[inline]
    fn word(&self, gpa: Gpa, bytes: u64) -> Result<*mut u8, MemoryError> {
        match self.find(gpa) {
            Some((at, _)) if gpa.as_u64().is_multiple_of(bytes) => Ok(at),
            _ => Err(MemoryError { gpa }),
        }
    }

    fn pieces(
        &self,
        gpa: Gpa,
        bytes: usize,
        mut each: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < bytes {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError { gpa })?;
            let (pointer, room) = self.find(at).ok_or(MemoryError { gpa: at })?;
            let part = room.min((bytes - done) as u64) as usize;
            each(pointer, done, part);
            done += part;
        }
        Ok(())
    }
}

/// Adds an extent, joined with the last where both address spaces continue.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = extents.last_mut()
        && last.gpa.as_u64() + last.bytes == extent.gpa.as_u64()
        && last.hpa.as_u64() + last.bytes == extent.hpa.as_u64()
    {
        last.bytes += extent.bytes;
    } else {
        extents.push(extent);
    }
}

/// Copies bytes, eight at a time where it can.
///
/// # Safety
/// Both ranges must be valid memory, and must not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("rep movsq", "mov rcx, {tail}", "rep movsb", tail = in(reg) bytes & 7,
             inout("rcx") bytes >> 3 => _, inout("rsi") from => _, inout("rdi") to => _,
             options(nostack, preserves_flags));
    }
}

/// Fills bytes with zeros, eight at a time where it can.
///
/// # Safety
/// The range must be valid memory.
unsafe fn fill_zero(at: *mut u8, bytes: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("rep stosq", "mov rcx, {tail}", "rep stosb", tail = in(reg) bytes & 7,
             inout("rcx") bytes >> 3 => _, inout("rdi") at => _, in("rax") 0u64,
             options(nostack, preserves_flags));
    }
}

impl GuestMemory for GuestRam {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let to = buf.as_mut_ptr();
        // SAFETY: the piece is RAM of the guest's, the buffer is Rust's and has room; they cannot overlap.
        self.pieces(gpa, buf.len(), |at, done, part| unsafe { copy(at, to.add(done), part) })
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let from = data.as_ptr();
        // SAFETY: as above, the other way round.
        let result = self.pieces(gpa, data.len(), |at, done, part| unsafe { copy(from.add(done), at, part) });
        self.written(gpa, data.len() as u64);
        result
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        let mut done = 0;
        while done < len {
            // Extents are few, and each turn ends one.
            let Some((_, room)) = gpa.checked_add(done).and_then(|at| self.find(at)) else { return false };
            done = done.saturating_add(room);
        }
        true
    }

    fn fill_zero(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done).ok_or(MemoryError { gpa })?;
            let (pointer, room) = self.find(at).ok_or(MemoryError { gpa: at })?;
            let part = room.min(len - done);
            // SAFETY: the piece is RAM of the guest's.
            unsafe { fill_zero(pointer, part as usize) };
            self.written(at, part);
            done += part;
        }
        Ok(())
    }

    fn compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<bool, MemoryError> {
        let at = self.word(gpa, 4)?;
        // SAFETY: an aligned word of the guest's RAM, accessed atomically.
        let word = unsafe { &*at.cast::<AtomicU32>() };
        let done = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.written(gpa, 4);
        Ok(done)
    }

    fn compare_exchange_u64(&self, gpa: Gpa, current: u64, new: u64) -> Result<bool, MemoryError> {
        let at = self.word(gpa, 8)?;
        // SAFETY: an aligned word of the guest's RAM, accessed atomically.
        let word = unsafe { &*at.cast::<AtomicU64>() };
        let done = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.written(gpa, 8);
        Ok(done)
    }

    fn swap_u8(&self, gpa: Gpa, new: u8) -> Result<u8, MemoryError> {
        let at = self.word(gpa, 1)?;
        // SAFETY: a byte of the guest's RAM, accessed atomically.
        let byte = unsafe { &*at.cast::<AtomicU8>() };
        let old = byte.swap(new, Ordering::SeqCst);
        self.written(gpa, 1);
        Ok(old)
    }

    #[inline]
    fn write_u16(&self, gpa: Gpa, value: u16) -> Result<(), MemoryError> {
        let Some((at, 2..)) = self.find(gpa) else { return self.write(gpa, &value.to_le_bytes()) };
        // SAFETY: two bytes of the guest's RAM.
        unsafe { store_u16(at, value) };
        self.written(gpa, 2);
        Ok(())
    }

    #[inline]
    fn write_u32(&self, gpa: Gpa, value: u32) -> Result<(), MemoryError> {
        let Some((at, 4..)) = self.find(gpa) else { return self.write(gpa, &value.to_le_bytes()) };
        // SAFETY: four bytes of the guest's RAM.
        unsafe { store_u32(at, value) };
        self.written(gpa, 4);
        Ok(())
    }

    #[inline]
    fn write_u64(&self, gpa: Gpa, value: u64) -> Result<(), MemoryError> {
        let Some((at, 8..)) = self.find(gpa) else { return self.write(gpa, &value.to_le_bytes()) };
        // SAFETY: eight bytes of the guest's RAM.
        unsafe { store_u64(at, value) };
        self.written(gpa, 8);
        Ok(())
    }

    #[inline(always)]
    fn read_u16(&self, gpa: Gpa) -> Result<u16, MemoryError> {
        match self.main.word(gpa) {
            // SAFETY: two bytes of the guest's RAM.
            Some(at) => Ok(unsafe { load_u16(at) }),
            None => self.u16_elsewhere(gpa),
        }
    }

    #[inline(always)]
    fn read_u32(&self, gpa: Gpa) -> Result<u32, MemoryError> {
        match self.main.word(gpa) {
            // SAFETY: four bytes of the guest's RAM.
            Some(at) => Ok(unsafe { load_u32(at) }),
            None => self.u32_elsewhere(gpa),
        }
    }

    #[inline(always)]
    fn read_u64(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        match self.main.word(gpa) {
            // SAFETY: eight bytes of the guest's RAM.
            Some(at) => Ok(unsafe { load_u64(at) }),
            None => self.u64_elsewhere(gpa),
        }
    }

    #[inline(always)]
    fn entry(&self, gpa: Gpa) -> u64 {
        match self.main.word(gpa) {
            // SAFETY: eight bytes of the guest's RAM.
            Some(at) => unsafe { load_u64(at) },
            None => self.entry_elsewhere(gpa),
        }
    }
}

/// One load of guest memory that the compiler can neither repeat nor split; it may be unaligned, as x86 allows.
macro_rules! load {
    ($name:ident, $type:ty, $instruction:literal) => {
        /// # Safety
        /// As many bytes as the type has must be valid memory.
        #[inline]
        unsafe fn $name(at: *const u8) -> $type {
            let value: $type;
            // SAFETY: promised by the caller.
            unsafe {
                asm!($instruction, out(reg) value, in(reg) at, options(nostack, readonly, preserves_flags));
            }
            value
        }
    };
}

load!(load_u16, u16, "mov {0:x}, word ptr [{1}]");
load!(load_u32, u32, "mov {0:e}, dword ptr [{1}]");
load!(load_u64, u64, "mov {0}, qword ptr [{1}]");

/// One store to guest memory that the compiler can neither repeat, split nor move past another; it may be unaligned, as
/// x86 allows, and is seen whole by the guest's other vCPUs when it is not.
macro_rules! store {
    ($name:ident, $type:ty, $instruction:literal) => {
        /// # Safety
        /// As many bytes as the type has must be valid memory.
        #[inline]
        unsafe fn $name(at: *mut u8, value: $type) {
            // SAFETY: promised by the caller.
            unsafe {
                asm!($instruction, in(reg) at, in(reg) value, options(nostack, preserves_flags));
            }
        }
    };
}

store!(store_u16, u16, "mov word ptr [{0}], {1:x}");
store!(store_u32, u32, "mov dword ptr [{0}], {1:e}");
store!(store_u64, u64, "mov qword ptr [{0}], {1}");

impl Drop for GuestRam {
    /// Scrubs what is left and gives back every frame that the domain owns.
    fn drop(&mut self) {
        while !self.scrub_step() {}
        // What is not RAM of the guest's (tables, control blocks) is scrubbed here; the RAM has been.
        let extents = &self.extents;
        frames().release_owner(Owner::Domain(self.domain), |hpa, bytes| {
            let is_ram = extents.iter().any(|e| hpa.as_u64().wrapping_sub(e.hpa.as_u64()) < e.bytes);
            if !is_ram {
                // SAFETY: frames of a domain that is gone.
                unsafe { scrub(hpa, bytes) };
            }
        });
    }
}
