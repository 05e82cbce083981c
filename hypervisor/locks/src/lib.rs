//! The hypervisor's one lock, and the one order in which its locks are taken.
//!
//! A [`Mutex`] is `spin::Mutex` with a [`Rank`]. A CPU that holds a lock takes only locks of higher ranks, so that no two
//! CPUs can wait for each other. Builds with debug assertions check that at every [`Mutex::lock`], in the machine as well as
//! in host tests, and panic with both ranks and places. Other builds know nothing of ranks: the lock has the size and the
//! code of `spin::Mutex`.
//!
//! # Invariants
//!
//! - What a CPU holds is in its own [`Held`], which the machine names once by [`find_held_by`]; before that nothing is
//!   checked. On a host each thread has its own.
//! - Interrupt handlers take no locks, so that a CPU's locks are one chain of calls'.
//! - [`Mutex::try_lock`] never waits, and may be used in any order; what it took counts for who comes after.
//! - Two locks of one rank are taken by [`lock_two`] alone.
//! - Who has nothing to lose, a crash record, may [stop the checking](stop_checking) and [break locks](Mutex::unranked).
//!
//! The list of ranks with its reasons is docs/locking.md.

#![no_std]
#![forbid(unsafe_code)]

// For a thread's own list of what it holds, where there are threads.
#[cfg(all(debug_assertions, not(target_os = "none")))]
extern crate std;

#[cfg(debug_assertions)]
mod checked;
mod rank;
#[cfg(not(debug_assertions))]
mod unchecked;

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests;

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

#[cfg(debug_assertions)]
use checked as held;
#[cfg(not(debug_assertions))]
use unchecked as held;

pub use held::{Held, find_held_by, stop_checking};
pub use rank::Rank;

use held::{Label, Ticket};

/// A spin lock that has its place in the one order of all locks.
// The only use of the bare lock.
#[allow(clippy::disallowed_types)]
pub struct Mutex<T> {
    label: Label,
    inner: spin::Mutex<T>,
}

/// What a [`Mutex`] guards, until this is dropped. It stays on the CPU that took the lock.
#[allow(clippy::disallowed_types)]
pub struct MutexGuard<'a, T> {
    inner: spin::MutexGuard<'a, T>,
    _held: Ticket,
    _stays: PhantomData<*const ()>,
}

impl<T> Mutex<T> {
    /// An open lock of this rank.
    #[inline]
    #[must_use]
    #[allow(clippy::disallowed_types)]
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { label: Label::new(rank), inner: spin::Mutex::new(value) }
    }

    /// Waits until the lock is open, and takes it.
    ///
    /// # Panics
    /// With debug assertions, where this CPU holds one of the same or a higher rank: a bug of Caisson's.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = Ticket::check(self.label, self.address(), None);
        MutexGuard { inner: self.inner.lock(), _held: held, _stays: PhantomData }
    }

    /// Takes the lock if it is open. In any order: it never waits.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(MutexGuard { inner, _held: Ticket::note(self.label, self.address()), _stays: PhantomData })
    }

    /// The lock without its rank: for a crash record, which breaks locks open.
    #[allow(clippy::disallowed_types)]
    pub fn unranked(&self) -> &spin::Mutex<T> {
        &self.inner
    }

    #[inline]
    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
}

/// Takes two locks of one rank, which must be different ones, the one at the lower address first: so nobody who takes the
/// same two waits for somebody who waits for him.
///
/// # Panics
/// As [`Mutex::lock`]; with debug assertions also where both are the same lock.
#[cfg_attr(debug_assertions, track_caller)]
pub fn lock_two<'a, T>(one: &'a Mutex<T>, other: &'a Mutex<T>) -> (MutexGuard<'a, T>, MutexGuard<'a, T>) {
    debug_assert!(one.address() != other.address(), "lock_two: it is the same lock twice");
    let swapped = other.address() < one.address();
    let (low, high) = if swapped { (other, one) } else { (one, other) };
    let first = low.lock();
    let held = Ticket::check(high.label, high.address(), Some(low.address()));
    let second = MutexGuard { inner: high.inner.lock(), _held: held, _stays: PhantomData };
    if swapped { (second, first) } else { (first, second) }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
