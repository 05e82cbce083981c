//! Where the parts of a split virtqueue are (sections 2.7.5, 2.7.6 and 2.7.8).

use caisson_types::Gpa;

use crate::MAX_QUEUE_SIZE;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;
/// Bytes of an entry of the used ring.
const USED: u64 = 8;

/// The three areas of a queue whose size is a power of two. Addresses are the driver's: they may wrap, which no RAM does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    size: u16,
    descriptors: Gpa,
    driver: Gpa,
    device: Gpa,
}

impl Layout {
    /// A queue of `size` entries; `None` unless that is a power of two, at most [`MAX_QUEUE_SIZE`].
    #[must_use]
    pub fn new(size: u16, descriptors: Gpa, driver: Gpa, device: Gpa) -> Option<Self> {
        let good = size.is_power_of_two() && size <= MAX_QUEUE_SIZE;
        good.then_some(Self { size, descriptors, driver, device })
    }

    /// The areas, with their bytes and their alignment (section 2.7).
    #[must_use]
    pub fn areas(&self) -> [(Gpa, u64, u64); 3] {
        let size = u64::from(self.size);
        // Flags, index and the event index behind the entries.
        [
            (self.descriptors, DESCRIPTOR * size, 16),
            (self.driver, 6 + 2 * size, 2),
            (self.device, 6 + USED * size, 4),
        ]
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn descriptors(&self) -> Gpa {
        self.descriptors
    }

    /// An index of a ring, which counts without end, as the number of an entry.
    fn entry(&self, index: u16) -> u64 {
        u64::from(index & (self.size - 1))
    }

    pub(super) fn available_flags(&self) -> Gpa {
        self.driver
    }

    pub(super) fn available_index(&self) -> Gpa {
        self.driver.wrapping_add(2)
    }

    pub(super) fn available_entry(&self, index: u16) -> Gpa {
        self.driver.wrapping_add(4 + 2 * self.entry(index))
    }

    /// Which entry of the used ring the driver wants to be told of.
    pub(super) fn used_event(&self) -> Gpa {
        self.driver.wrapping_add(4 + 2 * u64::from(self.size))
    }

    pub(super) fn used_flags(&self) -> Gpa {
        self.device
    }

    pub(super) fn used_index(&self) -> Gpa {
        self.device.wrapping_add(2)
    }

    pub(super) fn used_entry(&self, index: u16) -> Gpa {
        self.device.wrapping_add(4 + USED * self.entry(index))
    }

    /// Which entry of the available ring the device wants to be told of.
    pub(super) fn available_event(&self) -> Gpa {
        self.device.wrapping_add(4 + USED * u64::from(self.size))
    }
}
