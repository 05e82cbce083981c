//! A chain of descriptors (section 2.7.5), looked at one by one.

use caisson_types::{Gpa, GuestMemory};

use super::RingError;
use super::layout::{DESCRIPTOR, Layout};

/// The most descriptors of an indirect table. The specification allows no more than the queue has entries, which stock
/// drivers do not keep to.
pub const MAX_INDIRECT: u16 = 1024;

/// Bits of a descriptor's `flags`.
mod flags {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;
}

/// The most bytes of a chain (section 2.7.5.1).
const MOST_BYTES: u64 = 1 << 32;

/// A piece of a chain: RAM of the guest's, at least one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// Where it starts.
    pub gpa: Gpa,
    /// Its bytes.
    pub length: u32,
    /// Whether it is the device's to write; otherwise it is to be read.
    pub writable: bool,
}

/// A chain that the driver has made available: to be given back by [`Ring::push`](super::Ring::push).
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// The table that the next descriptor is in, and its entries.
    table: Gpa,
    entries: u16,
    next: Option<u16>,
    /// How many more there can be in this table.
    left: u16,
    /// Whether a table can follow.
    indirect: bool,
    bytes: u64,
    writing: bool,
}

/// A descriptor as it was read.
struct Descriptor {
    gpa: Gpa,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &impl GuestMemory, gpa: Gpa) -> Result<Self, RingError> {
        let mut bytes = [0; DESCRIPTOR as usize];
        memory.read(gpa, &mut bytes)?;
        let raw = u128::from_le_bytes(bytes);
        Ok(Self {
            gpa: Gpa::new(raw as u64),
            length: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Chain {
    /// The chain whose first descriptor is `head`, which is in the table.
    pub(super) fn new(head: u16, layout: &Layout, indirect: bool) -> Self {
        let entries = layout.size();
        Self {
            head,
            table: layout.descriptors(),
            entries,
            next: Some(head),
            left: entries,
            indirect,
            bytes: 0,
            writing: false,
        }
    }

    /// Its first descriptor's index, by which the driver knows it.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The next buffer: those to read come first, then those to write (section 2.7.4.2). `None` at the end.
    ///
    /// # Errors
    /// What the driver has done to the chain.
    pub fn next(&mut self, memory: &impl GuestMemory) -> Result<Option<Buffer>, RingError> {
        let Some(descriptor) = self.step(memory)? else { return Ok(None) };
        if !descriptor.is(flags::INDIRECT) {
            return self.buffer(&descriptor, memory).map(Some);
        }
        self.enter(&descriptor, memory)?;
        match self.step(memory)? {
            // A table refers to no other one.
            Some(inner) if inner.is(flags::INDIRECT) => {
                Err(RingError::Indirect { gpa: inner.gpa, length: inner.length })
            }
            Some(inner) => self.buffer(&inner, memory).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the next descriptor.
    fn step(&mut self, memory: &impl GuestMemory) -> Result<Option<Descriptor>, RingError> {
        let Some(index) = self.next else { return Ok(None) };
        if index >= self.entries {
            return Err(RingError::Descriptor(index));
        }
        self.left = self.left.checked_sub(1).ok_or(RingError::Endless { head: self.head })?;
        let descriptor = Descriptor::read(memory, self.table.wrapping_add(DESCRIPTOR * u64::from(index)))?;
        self.next = descriptor.is(flags::NEXT).then_some(descriptor.next);
        Ok(Some(descriptor))
    }

    /// Goes on in the table that a descriptor refers to, which must be the chain's last (section 2.7.5.3.1).
    fn enter(&mut self, descriptor: &Descriptor, memory: &impl GuestMemory) -> Result<(), RingError> {
        let Descriptor { gpa, length, .. } = *descriptor;
        let entries = u64::from(length) / DESCRIPTOR;
        let whole = u64::from(length).is_multiple_of(DESCRIPTOR) && entries != 0;
        let entries = u16::try_from(entries).ok().filter(|&entries| whole && entries <= MAX_INDIRECT);
        match entries {
            Some(entries)
                if self.indirect && self.next.is_none() && memory.is_ram(gpa, u64::from(length)) =>
            {
                self.table = gpa;
                self.entries = entries;
                self.left = entries;
                self.next = Some(0);
                self.indirect = false;
                Ok(())
            }
            _ => Err(RingError::Indirect { gpa, length }),
        }
    }

    fn buffer(&mut self, descriptor: &Descriptor, memory: &impl GuestMemory) -> Result<Buffer, RingError> {
        let Descriptor { gpa, length, .. } = *descriptor;
        let writable = descriptor.is(flags::WRITE);
        if length == 0 {
            return Err(RingError::Empty { gpa });
        }
        if !memory.is_ram(gpa, u64::from(length)) {
            return Err(RingError::NotRam { gpa, length });
        }
        if self.writing && !writable {
            return Err(RingError::Order { head: self.head });
        }
        self.writing = writable;
        self.bytes += u64::from(length);
        if self.bytes > MOST_BYTES {
            return Err(RingError::TooLong { head: self.head });
        }
        Ok(Buffer { gpa, length, writable })
    }
}
