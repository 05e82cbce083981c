//! What a CPU holds, and the check, in builds with debug assertions. `unchecked.rs` is its counterpart.

use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "none")]
use spin::Once;

use crate::Rank;

/// Locks that a CPU can hold at once: each rank, and a few of one rank.
const MOST: usize = 32;

/// A lock that is held, or is about to be.
#[derive(Clone, Copy)]
struct Entry {
    rank: Rank,
    /// The lock's address.
    lock: usize,
    place: &'static Location<'static>,
}

/// What a CPU holds. Only that CPU uses it.
// A bare lock that is never waited for is what makes a cell that a static can hold, without unsafe code.
#[allow(clippy::disallowed_types)]
pub struct Held {
    entries: spin::Mutex<[Option<Entry>; MOST]>,
}

impl Held {
    /// Nothing.
    #[must_use]
    #[allow(clippy::disallowed_types)]
    pub const fn new() -> Self {
        Self { entries: spin::Mutex::new([None; MOST]) }
    }

    /// The lock of the highest rank that is at least `rank`, if one is held, but for the one at `beside`.
    fn above(&self, rank: Rank, beside: Option<usize>) -> Option<Entry> {
        let entries = self.entries.lock();
        let held = entries.iter().flatten().filter(|held| held.rank >= rank && Some(held.lock) != beside);
        held.max_by_key(|held| held.rank).copied()
    }

    /// Where the entry is now; `None` without room.
    fn add(&self, entry: Entry) -> Option<usize> {
        let mut entries = self.entries.lock();
        let (at, place) = entries.iter_mut().enumerate().find(|(_, place)| place.is_none())?;
        *place = Some(entry);
        Some(at)
    }

    fn remove(&self, at: usize) {
        if let Some(place) = self.entries.lock().get_mut(at) {
            *place = None;
        }
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Held {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let held = *self.entries.lock();
        f.debug_list().entries(held.iter().flatten().map(|held| held.rank)).finish()
    }
}

/// Nobody looks at the order any more.
static STOPPED: AtomicBool = AtomicBool::new(false);

#[cfg(target_os = "none")]
static SOURCE: Once<fn() -> &'static Held> = Once::new();

/// Says where this CPU's [`Held`] is. The first word stands. On a host nobody asks: each thread has one.
pub fn find_held_by(source: fn() -> &'static Held) {
    #[cfg(target_os = "none")]
    SOURCE.call_once(|| source);
    #[cfg(not(target_os = "none"))]
    let _ = source;
}

/// From now on no order is checked, and nothing kept: for who breaks locks open because all else has ended.
pub fn stop_checking() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Does something with what this CPU holds; nothing before there is a place to keep it.
fn with_held<T>(work: impl FnOnce(&Held) -> T) -> Option<T> {
    if STOPPED.load(Ordering::Relaxed) {
        return None;
    }
    #[cfg(target_os = "none")]
    {
        SOURCE.get().map(|source| work(source()))
    }
    #[cfg(not(target_os = "none"))]
    {
        std::thread_local!(static HELD: Held = const { Held::new() });
        HELD.try_with(work).ok()
    }
}

/// What a lock is called.
#[derive(Clone, Copy)]
pub(crate) struct Label(Rank);

impl Label {
    #[inline]
    pub(crate) const fn new(rank: Rank) -> Self {
        Self(rank)
    }
}

/// What a guard leaves in [`Held`] until it is dropped: the entry's number there.
pub(crate) struct Ticket(Option<usize>);

impl Ticket {
    /// For a lock that is about to be waited for. `beside` is the address of one that may have the same rank.
    #[track_caller]
    pub(crate) fn check(label: Label, lock: usize, beside: Option<usize>) -> Self {
        let place = Location::caller();
        if let Some(Some(held)) = with_held(|held| held.above(label.0, beside)) {
            out_of_order(label.0, place, &held);
        }
        Self::keep(Entry { rank: label.0, lock, place })
    }

    /// For a lock that has been taken without waiting.
    #[track_caller]
    pub(crate) fn note(label: Label, lock: usize) -> Self {
        Self::keep(Entry { rank: label.0, lock, place: Location::caller() })
    }

    fn keep(entry: Entry) -> Self {
        let kept = with_held(|held| held.add(entry));
        assert!(kept != Some(None), "a CPU holds {MOST} locks: their guards are kept");
        Self(kept.flatten())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            let _ = with_held(|held| held.remove(at));
        }
    }
}

#[cold]
#[allow(clippy::panic)]
fn out_of_order(rank: Rank, place: &Location<'_>, held: &Entry) -> ! {
    panic!(
        "lock order: {rank:?} is taken at {place} while {:?} is held since {}: see docs/locking.md",
        held.rank, held.place
    )
}
