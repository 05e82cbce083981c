//! Atomics and a lock: the real ones, or loom's.

#[cfg(not(all(test, loom)))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(all(test, loom))]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    thread::yield_now as spin_loop,
};

pub(crate) use caisson_locks::Rank;

/// A lock that is held for a few instructions.
#[cfg(not(all(test, loom)))]
pub(crate) struct Mutex<T>(caisson_locks::Mutex<T>);

#[cfg(not(all(test, loom)))]
impl<T> Mutex<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self(caisson_locks::Mutex::new(rank, value))
    }

    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn lock(&self) -> caisson_locks::MutexGuard<'_, T> {
        self.0.lock()
    }
}

/// A lock that is held for a few instructions.
#[cfg(all(test, loom))]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(all(test, loom))]
impl<T> Mutex<T> {
    pub(crate) fn new(_: Rank, value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// Makes a constructor that is `const` but under loom, whose atomics cannot be made at compile time.
macro_rules! constructor {
    ($(#[$meta:meta])* $visibility:vis fn new($($argument:ident: $type:ty),*) -> Self $body:block) => {
        $(#[$meta])*
        #[cfg(not(all(test, loom)))]
        #[must_use]
        $visibility const fn new($($argument: $type),*) -> Self $body

        $(#[$meta])*
        #[cfg(all(test, loom))]
        #[must_use]
        $visibility fn new($($argument: $type),*) -> Self $body
    };
}
pub(crate) use constructor;
