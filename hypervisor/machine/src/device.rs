//! Device registers in memory: mapped uncached into a window of their own.

use core::ptr;

use alloc::vec::Vec;
use caisson_locks::{Mutex, Rank};
use caisson_types::{Hpa, PAGE_SIZE};

use crate::{memory, paging};

/// Where the window starts.
const WINDOW: u64 = 0xffff_c000_0000_0000;
/// The window's size in bytes.
const WINDOW_BYTES: u64 = 1 << 30;

/// Copies memory that is none of Caisson's, such as a table of the firmware's. `None` as for [`Registers::map`].
///
/// # Safety
/// As [`Registers::map`], and reading the range must have no effect.
#[must_use]
pub unsafe fn bytes(at: Hpa, bytes: u64) -> Option<Vec<u8>> {
    // SAFETY: promised by the caller.
    let registers = unsafe { Registers::map(at, bytes)? };
    Some((0..bytes).map(|offset| registers.read(offset, 1) as u8).collect())
}

static NEXT: Mutex<u64> = Mutex::new(Rank::Window, WINDOW);

/// A device's registers.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: u64,
    bytes: u64,
}

impl Registers {
    /// Maps `bytes` of registers at `at`, uncached. Mappings live for ever: call it at start-up.
    ///
    /// `None` when memory or the window is used up.
    ///
    /// # Safety
    /// The range must be device registers that are the caller's, and no RAM.
    #[must_use]
    pub unsafe fn map(at: Hpa, bytes: u64) -> Option<Self> {
        let mut next = NEXT.lock();
        let offset = at.page_offset();
        let pages = (offset + bytes).div_ceil(PAGE_SIZE);
        let base = *next;
        if base + pages * PAGE_SIZE > WINDOW + WINDOW_BYTES {
            return None;
        }
        for page in 0..pages {
            let from = Hpa::new(at.as_u64() - offset + page * PAGE_SIZE);
            // SAFETY: the page of the window is unused, and the caller owns the registers.
            unsafe { paging::map_device_page(base + page * PAGE_SIZE, from, &mut memory::TableFrames)? };
        }
        *next = base + pages * PAGE_SIZE;
        Some(Self { base: base + offset, bytes })
    }

    /// Reads a 32-bit register at `offset` bytes.
    ///
    /// # Panics
    /// Past the end, or unaligned: a bug of Caisson's.
    #[inline]
    #[must_use]
    pub fn read32(&self, offset: u64) -> u32 {
        assert!(
            offset + 4 <= self.bytes && offset.is_multiple_of(4),
            "register {offset:#x} is outside its device"
        );
        // SAFETY: inside the mapped registers, aligned.
        unsafe { ptr::read_volatile((self.base + offset) as *const u32) }
    }

    /// Writes a 32-bit register at `offset` bytes.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    #[inline]
    pub fn write32(&self, offset: u64, value: u32) {
        assert!(
            offset + 4 <= self.bytes && offset.is_multiple_of(4),
            "register {offset:#x} is outside its device"
        );
        // SAFETY: inside the mapped registers, aligned; what the write does is the owner's to decide.
        unsafe { ptr::write_volatile((self.base + offset) as *mut u32, value) };
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` bytes, with one access.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let at = self.at(offset, size);
        // SAFETY: inside the mapped registers, aligned.
        unsafe {
            match size {
                1 => ptr::read_volatile(at as *const u8).into(),
                2 => ptr::read_volatile(at as *const u16).into(),
                4 => ptr::read_volatile(at as *const u32).into(),
                _ => ptr::read_volatile(at as *const u64),
            }
        }
    }

    /// Writes the low `size` bytes of `value` there, with one access.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    pub fn write(&self, offset: u64, size: u8, value: u64) {
        let at = self.at(offset, size);
        // SAFETY: inside the mapped registers, aligned; what the write does is the owner's to decide.
        unsafe {
            match size {
                1 => ptr::write_volatile(at as *mut u8, value as u8),
                2 => ptr::write_volatile(at as *mut u16, value as u16),
                4 => ptr::write_volatile(at as *mut u32, value as u32),
                _ => ptr::write_volatile(at as *mut u64, value),
            }
        }
    }

    fn at(&self, offset: u64, size: u8) -> u64 {
        let bytes = u64::from(size);
        assert!(
            matches!(size, 1 | 2 | 4 | 8) && offset + bytes <= self.bytes && offset.is_multiple_of(bytes),
            "register {offset:#x} of {size} bytes is outside its device"
        );
        self.base + offset
    }

    /// The first register's address, for memory that is written in bulk.
    #[must_use]
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.base as *mut u8
    }

    /// Reads a 64-bit register at `offset` bytes.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    #[must_use]
    pub fn read64(&self, offset: u64) -> u64 {
        assert!(
            offset + 8 <= self.bytes && offset.is_multiple_of(8),
            "register {offset:#x} is outside its device"
        );
        // SAFETY: inside the mapped registers, aligned.
        unsafe { ptr::read_volatile((self.base + offset) as *const u64) }
    }
}
