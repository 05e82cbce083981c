//! What a guest has written to its serial port and the serial line's CPU has not taken yet.
//!
//! A guest's vCPUs put bytes in, under a lock of the ring's own, which no other guest touches. Whoever has the [`Mux`](crate::Mux)
//! takes them out, without a lock, so that a crash record can. A full ring has the guest wait; no byte is lost.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use caisson_locks::{Mutex, Rank};

/// Bytes that a ring holds.
pub const RING_BYTES: usize = 512;

const _: () = assert!(RING_BYTES.is_power_of_two(), "the counts wrap");

/// A guest's bytes on their way.
pub struct Ring {
    bytes: [AtomicU8; RING_BYTES],
    /// Bytes put in so far, modulo 2^32; changed by who holds `putting`.
    put: AtomicU32,
    /// Bytes taken out so far, likewise; changed by who has the console.
    taken: AtomicU32,
    putting: Mutex<()>,
}

impl Ring {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [const { AtomicU8::new(0) }; RING_BYTES],
            put: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            putting: Mutex::new(Rank::Ring, ()),
        }
    }

    /// Puts a byte in. `false` where the ring is full: the guest is to wait.
    #[must_use]
    pub fn put(&self, byte: u8) -> bool {
        let _one_at_a_time = self.putting.lock();
        let put = self.put.load(Ordering::Relaxed);
        if put.wrapping_sub(self.taken.load(Ordering::Acquire)) as usize >= RING_BYTES {
            return false;
        }
        self.place(put).store(byte, Ordering::Relaxed);
        self.put.store(put.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest byte out. For one taker at a time: the console's.
    pub(crate) fn take(&self) -> Option<u8> {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.put.load(Ordering::Acquire) == taken {
            return None;
        }
        let byte = self.place(taken).load(Ordering::Relaxed);
        self.taken.store(taken.wrapping_add(1), Ordering::Release);
        Some(byte)
    }

    /// Whether nothing waits in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.put.load(Ordering::Acquire) == self.taken.load(Ordering::Relaxed)
    }

    fn place(&self, count: u32) -> &AtomicU8 {
        &self.bytes[count as usize % RING_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::thread;

    proptest! {
        #[test]
        fn it_is_a_queue_with_an_end(
            start in prop_oneof![Just(0), Just(u32::MAX - 3), any::<u32>()],
            steps in proptest::collection::vec((any::<bool>(), 0..2 * RING_BYTES), 0..20),
        ) {
            let ring = Ring::new();
            ring.put.store(start, Ordering::Relaxed);
            ring.taken.store(start, Ordering::Relaxed);
            let mut model = VecDeque::new();
            let mut next = 0_u8;
            for (puts, times) in steps {
                for _ in 0..times {
                    if puts {
                        let room = model.len() < RING_BYTES;
                        prop_assert_eq!(ring.put(next), room);
                        if room {
                            model.push_back(next);
                        }
                        next = next.wrapping_add(1);
                    } else {
                        prop_assert_eq!(ring.take(), model.pop_front());
                    }
                    prop_assert_eq!(ring.is_empty(), model.is_empty());
                }
            }
        }
    }

    /// Two vCPUs write, the console takes: each one's bytes arrive, all and in order.
    #[test]
    fn two_writers_lose_nothing_to_one_taker() {
        const EACH: usize = 5000;
        let ring = Ring::new();
        let mut seen = [0_usize; 2];
        thread::scope(|scope| {
            for writer in 0..2_u8 {
                let ring = &ring;
                scope.spawn(move || {
                    for count in 0..EACH {
                        while !ring.put(writer << 7 | (count % 128) as u8) {
                            thread::yield_now();
                        }
                    }
                });
            }
            while seen != [EACH; 2] {
                let Some(byte) = ring.take() else {
                    thread::yield_now();
                    continue;
                };
                let seen = &mut seen[usize::from(byte >> 7)];
                assert_eq!(usize::from(byte & 127), *seen % 128);
                *seen += 1;
            }
        });
        assert!(ring.is_empty());
    }
}
