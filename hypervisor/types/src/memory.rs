//! Guest memory, seen through guest-physical addresses.
//!
//! What is read from a guest is a copy: check the copy and use the copy, never read twice. Another vCPU of the guest
//! (or its device) may write at any time, which is why every method takes `&self`.

use core::cell::Cell;
use core::fmt;

use crate::Gpa;

/// A guest-physical access that found no memory of the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryError {
    /// The first address that could not be reached.
    pub gpa: Gpa,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest memory at {}", self.gpa)
    }
}

/// A guest's RAM. An access that leaves RAM fails whole or in part, without effect on anything else.
pub trait GuestMemory {
    /// Copies `buf.len()` bytes from guest memory at `gpa` into `buf`.
    ///
    /// # Errors
    /// [`MemoryError`] where some byte is not RAM; `buf` is then unspecified.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `data` into guest memory at `gpa`.
    ///
    /// # Errors
    /// [`MemoryError`] where some byte is not RAM; a prefix may have been written.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError>;

    /// Whether the `len` bytes at `gpa` are RAM, all of them.
    fn is_ram(&self, gpa: Gpa, len: u64) -> bool;

    /// Fills `len` bytes of guest memory at `gpa` with zeros.
    ///
    /// # Errors
    /// [`MemoryError`] where some byte is not RAM; a prefix may have been written.
    fn fill_zero(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        const ZEROS: [u8; 256] = [0; 256];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROS.len() as u64);
            let at = gpa.checked_add(done).ok_or(MemoryError { gpa })?;
            self.write(at, &ZEROS[..part as usize])?;
            done += part;
        }
        Ok(())
    }

    /// Atomically replaces the aligned little-endian 32-bit word at `gpa` by `new` if it is `current`.
    /// `Ok(true)` when it was replaced.
    ///
    /// # Errors
    /// [`MemoryError`] where the word is not RAM or `gpa` is not a multiple of 4.
    fn compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<bool, MemoryError>;

    /// Atomically replaces the aligned little-endian 64-bit word at `gpa` by `new` if it is `current`.
    /// `Ok(true)` when it was replaced.
    ///
    /// # Errors
    /// [`MemoryError`] where the word is not RAM or `gpa` is not a multiple of 8.
    fn compare_exchange_u64(&self, gpa: Gpa, current: u64, new: u64) -> Result<bool, MemoryError>;

    /// Atomically puts `new` into the byte at `gpa`, and answers what was there: a guest's other vCPUs change such a byte
    /// by locked instructions.
    ///
    /// # Errors
    /// [`MemoryError`] where the byte is not RAM.
    fn swap_u8(&self, gpa: Gpa, new: u8) -> Result<u8, MemoryError>;

    /// Reads a little-endian 16-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u16(&self, gpa: Gpa) -> Result<u16, MemoryError> {
        let mut b = [0; 2];
        self.read(gpa, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }

    /// Reads a little-endian 32-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u32(&self, gpa: Gpa) -> Result<u32, MemoryError> {
        let mut b = [0; 4];
        self.read(gpa, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Reads a little-endian 64-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u64(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// The little-endian 64-bit word at `gpa`, or 0 where there is no memory: an entry of a page table is then not present.
    fn entry(&self, gpa: Gpa) -> u64 {
        self.read_u64(gpa).unwrap_or(0)
    }

    /// Writes a little-endian 16-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn write_u16(&self, gpa: Gpa, value: u16) -> Result<(), MemoryError> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Writes a little-endian 32-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn write_u32(&self, gpa: Gpa, value: u32) -> Result<(), MemoryError> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Writes a little-endian 64-bit word; one access when it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn write_u64(&self, gpa: Gpa, value: u64) -> Result<(), MemoryError> {
        self.write(gpa, &value.to_le_bytes())
    }
}

/// Guest memory made of a slice that starts at guest-physical address 0: for host tests and fuzz targets.
pub struct SliceMemory<'a> {
    bytes: &'a [Cell<u8>],
}

impl<'a> SliceMemory<'a> {
    /// Memory whose address 0 is `bytes[0]`.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes: Cell::from_mut(bytes).as_slice_of_cells() }
    }

    fn range(&self, gpa: Gpa, len: usize) -> Result<&[Cell<u8>], MemoryError> {
        let start = usize::try_from(gpa.as_u64()).map_err(|_| MemoryError { gpa })?;
        let end = start.checked_add(len).ok_or(MemoryError { gpa })?;
        self.bytes.get(start..end).ok_or(MemoryError { gpa })
    }

    fn exchange<const N: usize>(
        &self,
        gpa: Gpa,
        current: [u8; N],
        new: [u8; N],
    ) -> Result<bool, MemoryError> {
        if !gpa.as_u64().is_multiple_of(N as u64) {
            return Err(MemoryError { gpa });
        }
        let cells = self.range(gpa, N)?;
        if cells.iter().map(Cell::get).ne(current) {
            return Ok(false);
        }
        cells.iter().zip(new).for_each(|(cell, byte)| cell.set(byte));
        Ok(true)
    }
}

impl GuestMemory for SliceMemory<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let cells = self.range(gpa, buf.len())?;
        buf.iter_mut().zip(cells).for_each(|(byte, cell)| *byte = cell.get());
        Ok(())
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let cells = self.range(gpa, data.len())?;
        cells.iter().zip(data).for_each(|(cell, byte)| cell.set(*byte));
        Ok(())
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.range(gpa, len).is_ok())
    }

    fn compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<bool, MemoryError> {
        self.exchange(gpa, current.to_le_bytes(), new.to_le_bytes())
    }

    fn compare_exchange_u64(&self, gpa: Gpa, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.exchange(gpa, current.to_le_bytes(), new.to_le_bytes())
    }

    fn swap_u8(&self, gpa: Gpa, new: u8) -> Result<u8, MemoryError> {
        self.range(gpa, 1)?.first().map(|cell| cell.replace(new)).ok_or(MemoryError { gpa })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_memory_refuses_what_lies_outside() {
        let mut bytes = [0; 16];
        let mem = SliceMemory::new(&mut bytes);
        assert_eq!(mem.write_u64(Gpa::new(8), 7), Ok(()));
        assert_eq!(mem.read_u64(Gpa::new(8)), Ok(7));
        assert!(mem.write_u64(Gpa::new(9), 7).is_err());
        assert!(mem.read_u32(Gpa::new(u64::MAX)).is_err());
        assert_eq!(mem.compare_exchange_u64(Gpa::new(8), 7, 9), Ok(true));
        assert_eq!(mem.compare_exchange_u64(Gpa::new(8), 7, 1), Ok(false));
        assert_eq!(mem.read_u64(Gpa::new(8)), Ok(9));
        assert!(mem.compare_exchange_u32(Gpa::new(2), 0, 1).is_err());
        assert_eq!((mem.swap_u8(Gpa::new(8), 3), mem.swap_u8(Gpa::new(8), 5)), (Ok(9), Ok(3)));
        assert!(mem.swap_u8(Gpa::new(16), 1).is_err() && mem.swap_u8(Gpa::new(u64::MAX), 1).is_err());
        assert!(mem.is_ram(Gpa::new(0), 16) && mem.is_ram(Gpa::new(16), 0));
        assert!(!mem.is_ram(Gpa::new(1), 16) && !mem.is_ram(Gpa::new(1), u64::MAX));
        assert!(mem.write_u16(Gpa::new(14), 0xabcd).is_ok() && mem.write_u16(Gpa::new(15), 0).is_err());
        assert_eq!(mem.read_u16(Gpa::new(14)), Ok(0xabcd));
        assert_eq!(mem.fill_zero(Gpa::new(0), 16), Ok(()));
        assert_eq!(mem.read_u64(Gpa::new(8)), Ok(0));
    }
}
