//! A split virtqueue (section 2.7) as a device reads and writes it.
//!
//! The rings are in the guest's memory, which its vCPUs write at any time: each index and each descriptor is read once, and
//! checked and used as it was read. What a driver must not do ends in a [`RingError`], after which the device needs a reset.
//!
//! A device's turn is
//!
//! ```text
//! while let Some(mut chain) = ring.pop(memory)? {
//!     while let Some(buffer) = chain.next(memory)? { … }
//!     ring.push(memory, chain, written)?;
//! }
//! if ring.needs_interrupt(memory)? { channel.interrupt(Interrupt::Used) }
//! ```
//!
//! Bounds: a chain has no more than as many descriptors as the queue has entries, or [`MAX_INDIRECT`] in a table of its own;
//! as many chains wait as the queue has entries.

mod chain;
mod layout;
#[cfg(test)]
mod tests;

use core::fmt;
use core::sync::atomic::{Ordering, fence};

use caisson_types::{Gpa, GuestMemory, MemoryError};

use crate::QueueState;
use crate::features::{EVENT_IDX, INDIRECT_DESC};

pub use chain::{Buffer, Chain, MAX_INDIRECT};
pub use layout::Layout;

/// `flags` of the available ring: the driver wants no interrupts (section 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// `flags` of the used ring: the device wants no notifications (section 2.7.8).
const NO_NOTIFY: u16 = 1;

/// What a driver has done to its ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The queue is not ready, or its size no power of two.
    NotReady,
    /// The available ring's index has moved by more than the ring has entries since it was last looked at.
    AvailableIndex {
        /// The index.
        index: u16,
        /// The one up to which the device has looked.
        seen: u16,
    },
    /// A descriptor's index is past the end of its table.
    Descriptor(u16),
    /// A chain is longer than its table: it runs in a circle.
    Endless {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer of zero bytes.
    Empty {
        /// Where it is.
        gpa: Gpa,
    },
    /// A buffer is not in the guest's RAM whole.
    NotRam {
        /// Where it starts.
        gpa: Gpa,
        /// Its bytes.
        length: u32,
    },
    /// A chain of more than 2^32 bytes.
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer to read behind one to write.
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A table of descriptors where none may be, or of a length that is none.
    Indirect {
        /// Where it is.
        gpa: Gpa,
        /// Its bytes.
        length: u32,
    },
    /// The ring itself is not RAM.
    Memory(MemoryError),
}

impl From<MemoryError> for RingError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("the queue is not ready"),
            Self::AvailableIndex { index, seen } => {
                write!(f, "the available index went from {seen} to {index}, more than the ring holds")
            }
            Self::Descriptor(index) => write!(f, "descriptor {index} is past the end of its table"),
            Self::Endless { head } => write!(f, "the chain from descriptor {head} has no end"),
            Self::Empty { gpa } => write!(f, "the buffer at {gpa} has no bytes"),
            Self::NotRam { gpa, length } => write!(f, "the buffer at {gpa} of {length} bytes is not RAM"),
            Self::TooLong { head } => write!(f, "the chain from descriptor {head} has over 2^32 bytes"),
            Self::Order { head } => {
                write!(f, "the chain from descriptor {head} has a buffer to read behind one to write")
            }
            Self::Indirect { gpa, length } => {
                write!(f, "no table of descriptors can be at {gpa} with {length} bytes")
            }
            Self::Memory(error) => write!(f, "the ring is not in RAM: {error}"),
        }
    }
}

/// Whether somebody who has asked to be told when the index passes `event` is told after it went from `old` to `new`
/// (section 2.7.10).
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A device's place in a queue.
#[derive(Clone, Debug)]
pub struct Ring {
    layout: Layout,
    indirect: bool,
    event_idx: bool,
    /// The next entry of the available ring to look at.
    next_available: u16,
    /// The next entry of the used ring to write.
    next_used: u16,
    /// What that was when the device last decided about an interrupt.
    decided: u16,
}

impl Ring {
    /// The device's end of a queue, with the `features` that were agreed upon, behind what the used ring says is done: at
    /// the start of a new queue; and where another backend has left off, if it has used the buffers in their order.
    ///
    /// # Errors
    /// [`RingError::NotReady`], or that the ring's memory or its indices are not as they have to be.
    pub fn new(queue: &QueueState, features: u64, memory: &impl GuestMemory) -> Result<Self, RingError> {
        let at = |address| Gpa::new(address);
        let layout = Layout::new(queue.size, at(queue.descriptors), at(queue.driver), at(queue.device));
        let layout = layout.filter(|_| queue.ready != 0).ok_or(RingError::NotReady)?;
        let used = memory.read_u16(layout.used_index())?;
        let ring = Self {
            layout,
            indirect: features & INDIRECT_DESC != 0,
            event_idx: features & EVENT_IDX != 0,
            next_available: used,
            next_used: used,
            decided: used,
        };
        ring.available(memory)?;
        Ok(ring)
    }

    /// The queue's entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// How many chains wait for the device.
    fn available(&self, memory: &impl GuestMemory) -> Result<u16, RingError> {
        let index = memory.read_u16(self.layout.available_index())?;
        // The entries are read after the index that says that they are there.
        fence(Ordering::Acquire);
        let count = index.wrapping_sub(self.next_available);
        if count > self.size() {
            return Err(RingError::AvailableIndex { index, seen: self.next_available });
        }
        Ok(count)
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    /// What the driver has done to the ring.
    pub fn pop(&mut self, memory: &impl GuestMemory) -> Result<Option<Chain>, RingError> {
        if self.available(memory)? == 0 {
            return Ok(None);
        }
        let head = memory.read_u16(self.layout.available_entry(self.next_available))?;
        if head >= self.size() {
            return Err(RingError::Descriptor(head));
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Chain::new(head, &self.layout, self.indirect)))
    }

    /// Gives a chain back to the driver, into whose buffers `written` bytes were written, from the first one on.
    ///
    /// # Errors
    /// Where the used ring is not RAM any more.
    #[expect(clippy::needless_pass_by_value, reason = "a chain is given back once")]
    pub fn push(&mut self, memory: &impl GuestMemory, chain: Chain, written: u32) -> Result<(), RingError> {
        let entry = u64::from(written) << 32 | u64::from(chain.head());
        memory.write_u64(self.layout.used_entry(self.next_used), entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The entry is there before the index that says so.
        fence(Ordering::Release);
        memory.write_u16(self.layout.used_index(), self.next_used)?;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked (section 2.7.7).
    ///
    /// # Errors
    /// Where the available ring is not RAM any more.
    pub fn needs_interrupt(&mut self, memory: &impl GuestMemory) -> Result<bool, RingError> {
        let (old, new) = (self.decided, self.next_used);
        self.decided = new;
        if old == new {
            return Ok(false);
        }
        // The driver looks at the index after it has said what it wants; one of both sees the other's word.
        fence(Ordering::SeqCst);
        if self.event_idx {
            return Ok(need_event(memory.read_u16(self.layout.used_event())?, new, old));
        }
        Ok(memory.read_u16(self.layout.available_flags())? & NO_INTERRUPT == 0)
    }

    /// Asks the driver for no notifications, as far as it heeds that (section 2.7.10).
    ///
    /// # Errors
    /// Where the used ring is not RAM any more.
    pub fn disable_notifications(&mut self, memory: &impl GuestMemory) -> Result<(), RingError> {
        if !self.event_idx {
            memory.write_u16(self.layout.used_flags(), NO_NOTIFY)?;
        }
        // With indices the one that was asked for last lies behind, and is reached once in 65536 times.
        Ok(())
    }

    /// Asks the driver for a notification of the next chain. `true` where one has come meanwhile, of which it may not tell:
    /// the device goes on.
    ///
    /// # Errors
    /// Where the used ring is not RAM any more, or what the driver has done to the other.
    pub fn enable_notifications(&mut self, memory: &impl GuestMemory) -> Result<bool, RingError> {
        if self.event_idx {
            memory.write_u16(self.layout.available_event(), self.next_available)?;
        } else {
            memory.write_u16(self.layout.used_flags(), 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.available(memory)? != 0)
    }
}
