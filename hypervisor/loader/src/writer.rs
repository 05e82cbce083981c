//! Writing a block of structures into guest memory, one after the other.

use caisson_types::{Gpa, GuestMemory};

use crate::LoadError;

/// Writes upwards from an address.
pub(crate) struct Writer<'m, M> {
    memory: &'m M,
    at: u64,
}

impl<'m, M: GuestMemory> Writer<'m, M> {
    /// Writes from `at` on. The caller has taken as much RAM there as it is going to write.
    pub(crate) fn new(memory: &'m M, at: u64) -> Self {
        Self { memory, at }
    }

    /// Writes bytes; returns where they are.
    pub(crate) fn put(&mut self, data: &[u8]) -> Result<u64, LoadError> {
        let at = self.at;
        self.memory.write(Gpa::new(at), data)?;
        self.at = at.wrapping_add(data.len() as u64);
        Ok(at)
    }

    /// Writes text and a terminating zero; returns where it is.
    pub(crate) fn text(&mut self, text: &str) -> Result<u64, LoadError> {
        let at = self.put(text.as_bytes())?;
        self.put(&[0])?;
        Ok(at)
    }
}

/// A structure of a fixed length, filled field by field.
pub(crate) struct Record<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> Record<N> {
    pub(crate) fn new() -> Self {
        Self([0; N])
    }

    pub(crate) fn put(&mut self, at: u64, data: &[u8]) -> &mut Self {
        let at = at as usize;
        if let Some(place) = self.0.get_mut(at..at + data.len()) {
            place.copy_from_slice(data);
        }
        self
    }

    /// A 32-bit field; the value's lower half.
    pub(crate) fn u32(&mut self, at: u64, value: u64) -> &mut Self {
        self.put(at, &(value as u32).to_le_bytes())
    }

    pub(crate) fn u64(&mut self, at: u64, value: u64) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }
}
