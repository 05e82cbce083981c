//! The ring of one physical CPU.
//!
//! One CPU writes, outside of NMI handlers: these only set bits that the run loop looks at, as all of Caisson's handlers
//! do, and the loop records what it then does. A handler that wrote amid a write would take that write's place.
//!
//! Anybody reads meanwhile. Event *n* lies in place *n* modulo the size. The writer first lets its count *n* be seen, then
//! overwrites event *n* - size, then counts on. So a reader that finds the count below *n* + size **after** it has read
//! event *n* has read it whole: had it seen a word of the event that takes its place, it would see that count as well
//! (the writer's release fence, the reader's acquire fence).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::Event;
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// The largest ring.
pub const MAX_EVENTS: usize = 1 << 20;

/// There is not enough memory for a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too little memory for the trace: ask for fewer events (trace=EVENTS)")
    }
}

/// What a reader finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// The event.
    Event(Event),
    /// It has been overwritten, or is being so.
    Overwritten,
    /// It has not happened yet.
    NotYet,
}

/// The last events of one CPU: 16 bytes each.
#[derive(Debug)]
#[repr(align(64))]
pub struct Ring {
    /// Whether events are recorded.
    on: AtomicBool,
    /// Events recorded so far.
    count: AtomicU64,
    /// A power of two of places, or none.
    slots: Box<[[AtomicU64; 2]]>,
}

impl Ring {
    /// A ring of no events, which is off for good. Takes no memory.
    #[must_use]
    pub fn none() -> Self {
        Self { on: AtomicBool::new(false), count: AtomicU64::new(0), slots: Box::default() }
    }

    /// A ring that is on, for `events` events, rounded up to a power of two; at most [`MAX_EVENTS`].
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(events: usize) -> Result<Self, NoMemory> {
        let events = events.clamp(2, MAX_EVENTS).next_power_of_two();
        let mut slots = Vec::new();
        slots.try_reserve_exact(events).map_err(|_| NoMemory)?;
        slots.extend((0..events).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]));
        Ok(Self { on: AtomicBool::new(true), count: AtomicU64::new(0), slots: slots.into_boxed_slice() })
    }

    /// Whether events are recorded: one load.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Turns recording on or off, from any CPU. Answers how it was. A ring of no events stays off.
    pub fn set_on(&self, on: bool) -> bool {
        self.on.swap(on && !self.slots.is_empty(), Ordering::Relaxed)
    }

    /// Places for events.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Events recorded so far, those overwritten among them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Records an event in place of the oldest. For the ring's CPU, and not in an NMI handler. Where recording is off it
    /// is a load and a branch, and what makes the event is not called.
    #[inline]
    pub fn record(&self, event: impl FnOnce() -> Event) {
        if self.is_on() {
            self.write(event());
        }
    }

    #[inline]
    fn write(&self, event: Event) {
        let [first, second] = event.pack();
        let count = self.count.load(Ordering::Relaxed);
        let Some(slot) = self.slots.get(count as usize & self.slots.len().wrapping_sub(1)) else { return };
        fence(Ordering::Release);
        slot[0].store(first, Ordering::Relaxed);
        slot[1].store(second, Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Reads event `number`, counted from 0. From any CPU, at any time.
    #[must_use]
    pub fn read(&self, number: u64) -> Read {
        let size = self.slots.len() as u64;
        let count = self.count();
        if number >= count {
            return Read::NotYet;
        }
        let slot = match self.slots.get(number as usize & self.slots.len().wrapping_sub(1)) {
            Some(slot) if count - number <= size => slot,
            _ => return Read::Overwritten,
        };
        let words = [slot[0].load(Ordering::Relaxed), slot[1].load(Ordering::Relaxed)];
        fence(Ordering::Acquire);
        let untouched = self.count.load(Ordering::Relaxed) - number < size;
        match Event::unpack(words) {
            Some(event) if untouched => Read::Event(event),
            _ => Read::Overwritten,
        }
    }

    /// The number of the oldest event that can be read: one place is always taken for being overwritten.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.count().saturating_sub((self.slots.len() as u64).saturating_sub(1))
    }
}

/// Every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-trace --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::What;
    use caisson_types::{DomainId, VcpuId};
    use loom::sync::Arc;
    use loom::thread;

    /// Event `n`, whose words both say so.
    fn event(n: u64) -> Event {
        let vcpu = VcpuId { domain: DomainId(n as u16), index: n as u16 };
        Event { time: n, vcpu, what: What::Timer { late: n as u32 } }
    }

    /// What a reader gets is the event that it asked for, whole, or the word that it cannot be had.
    #[test]
    fn events_are_read_whole() {
        loom::model(|| {
            let ring = Arc::new(Ring::new(2).unwrap());
            // The reader is the thread that comes second: loom remembers only the last access to a word, so that it would
            // overlook a reader that came before the writer's own loads.
            let reader = {
                let ring = ring.clone();
                thread::spawn(move || {
                    for n in 0..2 {
                        if let Read::Event(read) = ring.read(n) {
                            assert_eq!(read, event(n));
                        }
                    }
                })
            };
            (0..3).for_each(|n| ring.record(|| event(n)));
            reader.join().unwrap();
            assert_eq!(
                [0, 1, 2, 3].map(|n| ring.read(n)),
                [Read::Overwritten, Read::Overwritten, Read::Event(event(2)), Read::NotYet]
            );
        });
    }
}
