//! Atomics: the machine's, or loom's in its model checks.

#[cfg(not(all(test, loom)))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(all(test, loom))]
pub(crate) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

/// Adds to a word that has only one writer: a plain add, without the bus lock of an atomic one.
#[inline]
pub(crate) fn add(word: &AtomicU64, amount: u64, order: Ordering) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(amount), order);
}
