//! Atomics and a slot that is read by many: the real ones, or loom's.

#[cfg(not(all(test, loom)))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, Ordering},
};
#[cfg(all(test, loom))]
pub(crate) use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread::yield_now as spin_loop,
};

/// A place for a `T` that many look at and few change.
#[cfg(not(all(test, loom)))]
pub(crate) struct Slot<T> {
    content: spin::RwLock<Option<T>>,
    /// Held by who waits for the looks to end: has its place among the locks checked.
    changes: caisson_locks::Mutex<()>,
}

#[cfg(not(all(test, loom)))]
impl<T> Slot<T> {
    pub(crate) const fn empty() -> Self {
        let changes = caisson_locks::Mutex::new(caisson_locks::Rank::Ports, ());
        Self { content: spin::RwLock::new(None), changes }
    }

    /// A look at what is in it, which stays until the look ends. `None`, without waiting, while somebody changes it.
    #[inline]
    pub(crate) fn look(&self) -> Option<spin::RwLockReadGuard<'_, Option<T>>> {
        self.content.try_read()
    }

    /// Puts in another one, as soon as all looks at the old one have ended; answers that. New looks fail meanwhile, so
    /// that they cannot delay this.
    pub(crate) fn replace(&self, new: Option<T>) -> Option<T> {
        let _changes = self.changes.lock();
        core::mem::replace(&mut *self.content.upgradeable_read().upgrade(), new)
    }
}

/// A place for a `T` that many look at and few change.
#[cfg(all(test, loom))]
pub(crate) struct Slot<T>(loom::sync::RwLock<Option<T>>);

#[cfg(all(test, loom))]
impl<T> Slot<T> {
    pub(crate) fn empty() -> Self {
        Self(loom::sync::RwLock::new(None))
    }

    pub(crate) fn look(&self) -> Option<loom::sync::RwLockReadGuard<'_, Option<T>>> {
        self.0.try_read().ok()
    }

    pub(crate) fn replace(&self, new: Option<T>) -> Option<T> {
        core::mem::replace(&mut *self.0.write().unwrap(), new)
    }
}
