//! A virtqueue as the transport knows it: its size and where its rings are.

use core::fmt;

use caisson_types::{Gpa, GuestMemory};

use crate::QueueState;
use crate::ring::Layout;

/// Why a queue cannot be made ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The driver has chosen this size, which is no power of two or more than the queue's most.
    Size(u32),
    /// An area is not aligned as it has to be.
    Unaligned(Gpa),
    /// An area does not lie in the guest's RAM whole.
    NotRam(Gpa),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "it cannot have {size} entries"),
            Self::Unaligned(gpa) => write!(f, "its area at {gpa} is not aligned"),
            Self::NotRam(gpa) => write!(f, "its area at {gpa} is not in RAM"),
        }
    }
}

/// A queue of a device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Queue {
    /// The most entries; a power of two.
    pub(super) max: u16,
    /// What the driver has written.
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// Whether it can be used. Its size and areas have then been checked, and do not change.
    pub(super) ready: bool,
}

impl Queue {
    /// A queue after reset.
    pub(super) fn new(max: u16) -> Self {
        Self { max, size: u32::from(max), descriptors: 0, driver: 0, device: 0, ready: false }
    }

    /// Checks what the driver has written.
    pub(super) fn check(&self, memory: &impl GuestMemory) -> Result<(), Refusal> {
        let size = u16::try_from(self.size).ok().filter(|&size| size.is_power_of_two() && size <= self.max);
        let size = size.ok_or(Refusal::Size(self.size))?;
        let at = |address| Gpa::new(address);
        let layout = Layout::new(size, at(self.descriptors), at(self.driver), at(self.device))
            .ok_or(Refusal::Size(self.size))?;
        for (area, bytes, alignment) in layout.areas() {
            if !area.as_u64().is_multiple_of(alignment) {
                return Err(Refusal::Unaligned(area));
            }
            if !memory.is_ram(area, bytes) {
                return Err(Refusal::NotRam(area));
            }
        }
        Ok(())
    }

    pub(super) fn snapshot(&self) -> QueueState {
        QueueState {
            descriptors: self.descriptors,
            driver: self.driver,
            device: self.device,
            size: u16::try_from(self.size).unwrap_or(0),
            ready: u16::from(self.ready),
            reserved: 0,
        }
    }
}
