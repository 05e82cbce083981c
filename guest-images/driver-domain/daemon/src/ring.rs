//! A virtqueue, and the chains of descriptors in it, of a guest that may do anything.
//!
//! `virtio_queue` reads the rings; here is what it leaves open: a chain is taken whole, and checked whole, before anything is
//! done for it, and what is wrong with it has a name. A descriptor is read once, so that a guest that changes it under our feet
//! changes nothing. And several chains can be given back as one.
//!
//! # In order
//!
//! Buffers are given back in the order in which they came. Work on them may end in any order; who serves a queue holds back what
//! ends early. So the used index alone says what is done: a backend that finds a ring after another one has died starts at the
//! available entry of that number, and everything behind it is to be done, once more perhaps, nothing else. A backend that gave
//! buffers back as they end would have to keep a list of those in flight somewhere that outlives it. What it costs is that one
//! slow request holds back the news of those behind it, not the work on them.

use std::fmt;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use caisson_abi::io::QueueState;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::sys::Memory;

/// Places in the used ring (section 2.7.8): its index, its entries, and their size.
const USED_INDEX: u64 = 2;
const USED_ENTRIES: u64 = 4;
const USED_ENTRY: u64 = 8;
/// Where the entries of the available ring begin (section 2.7.6).
const AVAILABLE_ENTRIES: u64 = 4;

/// The most descriptors of a chain. Caisson's own devices take as many.
pub const MAX_DESCRIPTORS: usize = 1024;

/// What is wrong with a ring or a chain. Its device needs a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The ring is not whole in what the guest grants of its memory, or its size is no power of two.
    Place,
    /// The available index has moved by more than the ring holds, or back.
    Index,
    /// A chain goes on behind its last descriptor: it runs in a circle, is longer than its table or than 2^32 bytes, or has an
    /// index or an indirect table that cannot be.
    Cut,
    /// A chain has more than [`MAX_DESCRIPTORS`].
    TooLong,
    /// A buffer of no bytes.
    Empty,
    /// A buffer to read behind one to write.
    Order,
    /// A buffer is not in what the guest grants of its memory.
    NotRam,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Place => "a ring is not in the memory that it grants",
            Self::Index => "the available index has moved by more than the ring holds",
            Self::Cut => "a chain of descriptors does not end as it should",
            Self::TooLong => "a chain has over 1024 descriptors",
            Self::Empty => "a descriptor has no bytes",
            Self::Order => "a buffer to read comes behind one to write",
            Self::NotRam => "a buffer is not in the memory that it grants",
        })
    }
}

impl std::error::Error for RingError {}

/// A range of a guest's memory.
pub type Range = (GuestAddress, usize);

/// A chain of descriptors, taken from its ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// What it is given back by.
    pub head: u16,
    /// What the driver has written for the device.
    pub readable: Vec<Range>,
    /// Where the device may write.
    pub writable: Vec<Range>,
}

/// How many bytes ranges have.
#[must_use]
pub fn bytes_of(ranges: &[Range]) -> usize {
    ranges.iter().map(|&(_, bytes)| bytes).sum()
}

/// Splits ranges behind their first `bytes` bytes; `None` where they have not as many.
#[must_use]
pub fn split(ranges: &[Range], mut bytes: usize) -> Option<(Vec<Range>, Vec<Range>)> {
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for &(at, length) in ranges {
        let part = length.min(bytes);
        if part > 0 {
            first.push((at, part));
        }
        if part < length {
            rest.push((GuestAddress(at.0.wrapping_add(part as u64)), length - part));
        }
        bytes -= part;
    }
    (bytes == 0).then_some((first, rest))
}

/// What a device is told of a queue that starts.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Its index.
    pub index: u16,
    /// Where its rings are.
    pub state: QueueState,
    /// The features that were agreed upon.
    pub features: u64,
    /// The guest's memory.
    pub memory: Arc<Memory>,
}

/// A virtqueue in use.
pub struct Ring {
    queue: Queue,
    memory: Arc<Memory>,
    /// Without `EVENT_IDX`: the last word about notifications, so that it is not written again and again.
    armed: bool,
    /// The used index behind what has been given back, as far as the driver sees it, and when it was last asked whether it wants
    /// an interrupt.
    used: Wrapping<u16>,
    shown: Wrapping<u16>,
    asked: Wrapping<u16>,
}

impl Ring {
    /// The queue of `setup`. It goes on behind what its used ring says is done.
    ///
    /// # Errors
    /// [`RingError::Place`].
    pub fn new(setup: &QueueSetup) -> Result<Self, RingError> {
        let regions = setup.memory.regions();
        let mut queue = Queue::new(setup.state.size).map_err(|_| RingError::Place)?;
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(setup.state.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(setup.state.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(setup.state.device);
        queue.set_used_ring_address(low, high);
        let taken = queue.desc_table() == setup.state.descriptors
            && queue.avail_ring() == setup.state.driver
            && queue.used_ring() == setup.state.device;
        queue.set_ready(true);
        queue.set_event_idx(setup.features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0);
        if !taken || !queue.is_valid(regions) {
            return Err(RingError::Place);
        }
        let used = queue.used_idx(regions, Ordering::Acquire).map_err(|_| RingError::Place)?.0;
        queue.set_next_avail(used);
        let used = Wrapping(used);
        Ok(Self { queue, memory: Arc::clone(&setup.memory), armed: true, used, shown: used, asked: used })
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain, if there is one.
    ///
    /// # Errors
    /// What is wrong with the ring or the chain.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let regions = self.memory.regions();
        let mut available = self.queue.iter(regions).map_err(|_| RingError::Index)?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        let head = descriptors.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut more = true;
        for descriptor in descriptors {
            let range = (descriptor.addr(), descriptor.len() as usize);
            if range.1 == 0 {
                return Err(RingError::Empty);
            }
            if readable.len() + writable.len() == MAX_DESCRIPTORS {
                return Err(RingError::TooLong);
            }
            if descriptor.is_write_only() {
                writable.push(range);
            } else if writable.is_empty() {
                readable.push(range);
            } else {
                return Err(RingError::Order);
            }
            more = descriptor.has_next();
        }
        if more { Err(RingError::Cut) } else { Ok(Some(Chain { head, readable, writable })) }
    }

    /// Gives a chain back, in which `written` bytes have been written. The driver sees it with the next [`Ring::show`], and all
    /// of them at once: parts of one frame must not come one by one.
    ///
    /// # Errors
    /// [`RingError::Place`] if the ring is not where it was.
    pub fn give(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        let entry = u64::from(self.used.0 % self.queue.size());
        let place = GuestAddress(self.queue.used_ring() + USED_ENTRIES + entry * USED_ENTRY);
        let bytes = (u64::from(written) << 32 | u64::from(head)).to_le_bytes();
        self.memory.regions().write_slice(&bytes, place).map_err(|_| RingError::Place)?;
        self.used += 1;
        Ok(())
    }

    /// Lets the driver see all that has been given back.
    ///
    /// # Errors
    /// [`RingError::Place`] if the ring is not where it was.
    pub fn show(&mut self) -> Result<(), RingError> {
        if self.shown == self.used {
            return Ok(());
        }
        self.shown = self.used;
        let place = GuestAddress(self.queue.used_ring() + USED_INDEX);
        self.memory
            .regions()
            .store(self.used.0.to_le(), place, Ordering::Release)
            .map_err(|_| RingError::Place)
    }

    /// How many chains have been given back since it was last asked whether the driver wants an interrupt.
    #[must_use]
    pub fn unannounced(&self) -> u16 {
        (self.used - self.asked).0
    }

    /// Shows what has been given back; whether the driver is to be interrupted for what it has not been asked about yet
    /// (sections 2.7.7.2, 2.7.10.1).
    ///
    /// # Errors
    /// [`RingError::Place`] if the ring is not where it was.
    pub fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        self.show()?;
        let before = std::mem::replace(&mut self.asked, self.used);
        if before == self.used {
            return Ok(false);
        }
        // What the driver wants is looked at when it can see what it has got.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let event = Wrapping(self.driver_word(AVAILABLE_ENTRIES + 2 * u64::from(self.queue.size()))?);
            return Ok(self.used - event - Wrapping(1) < self.used - before);
        }
        Ok(u32::from(self.driver_word(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The word at `offset` in the driver's area.
    fn driver_word(&self, offset: u64) -> Result<u16, RingError> {
        let place = GuestAddress(self.queue.avail_ring() + offset);
        self.memory.regions().load(place, Ordering::Relaxed).map(u16::from_le).map_err(|_| RingError::Place)
    }

    /// Asks the driver for notifications. Whether there is something to take already.
    ///
    /// # Errors
    /// [`RingError::Place`] if the ring is not where it was.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.armed = true;
        self.queue.enable_notification(self.memory.regions()).map_err(|_| RingError::Place)
    }

    /// Tells the driver that the ring is being looked at without them. With `EVENT_IDX` it knows by itself.
    ///
    /// # Errors
    /// [`RingError::Place`] if the ring is not where it was.
    pub fn disarm(&mut self) -> Result<(), RingError> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        self.queue.disable_notification(self.memory.regions()).map_err(|_| RingError::Place)
    }
}
