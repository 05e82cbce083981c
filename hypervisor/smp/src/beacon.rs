//! What a CPU shows the others of itself: whether it sleeps, and whether somebody waits in its queue.
//!
//! One that waits must be found by a CPU that idles, whoever is first. A queue shows that somebody waits, and its owner or
//! whoever woke the one then looks for an idle CPU; a CPU that idles shows that, and then looks for who waits. Between
//! store and look each has a fence, so that one of the two sees the other. An idle CPU is claimed by one of those who
//! look, so that two who wait are told to two CPUs; who was claimed and found other work hands on what it was told.

use crate::sync::{AtomicBool, AtomicU64, Ordering, constructor, fence};

/// What one CPU shows.
#[derive(Debug)]
pub struct Beacon {
    waiting: AtomicU64,
    idle: AtomicBool,
}

/// What [`Beacon::waiting`] is where nobody waits.
const NOBODY: u64 = u64::MAX;

impl Beacon {
    constructor! {
        /// Awake, nobody waits.
        pub fn new() -> Self {
            Self { waiting: AtomicU64::new(NOBODY), idle: AtomicBool::new(false) }
        }
    }

    /// Shows who waits best, by a key of the caller's; `u64::MAX` for nobody. Under the queue's lock.
    #[inline]
    pub fn show_waiting(&self, key: u64) {
        self.waiting.store(key, Ordering::Release);
    }

    /// What [`Beacon::show_waiting`] was told last.
    #[inline]
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// The CPU idles: before it sleeps it must look for who waits, which it does behind this.
    pub fn set_idle(&self) {
        self.idle.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The CPU idles no more. Whether somebody has claimed it meanwhile.
    pub fn end_idle(&self) -> bool {
        !self.idle.swap(false, Ordering::AcqRel)
    }

    /// Whether it sleeps and nobody has told it yet.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Whether it idled and is the caller's to tell.
    #[must_use]
    pub fn claim(&self) -> bool {
        self.is_idle() && self.idle.swap(false, Ordering::AcqRel)
    }
}

impl Default for Beacon {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands between showing that somebody waits, or may be moved now, and looking at who idles.
pub fn before_looking_for_idle() {
    fence(Ordering::SeqCst);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_idle_cpu_is_claimed_once() {
        let beacon = Beacon::new();
        assert!(!beacon.claim());
        beacon.set_idle();
        assert!(beacon.is_idle() && beacon.claim() && !beacon.claim());
        assert!(beacon.end_idle(), "it learns that it was claimed");
        beacon.set_idle();
        assert!(!beacon.end_idle());
    }
}
