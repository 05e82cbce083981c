//! Values that interrupt handlers and the probe's main line share.

use core::cell::UnsafeCell;

/// A value that is read and written whole. A handler on the same CPU sees it before or after a write; probes share only
/// what may be seen either way. What several CPUs write at once is atomic instead.
#[repr(transparent)]
#[derive(Debug)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: one CPU writes it, or before others run, and no reference to the inside is ever given out.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// With a value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value's address.
    pub fn address(&self) -> usize {
        self.0.get() as usize
    }
}

impl<T: Copy> Shared<T> {
    /// The value now.
    pub fn get(&self) -> T {
        // SAFETY: valid for reads; volatile, because a handler may have written it.
        unsafe { self.0.get().read_volatile() }
    }

    /// Another value.
    pub fn set(&self, value: T) {
        // SAFETY: valid for writes; nobody holds a reference.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl Shared<u64> {
    /// Adds one; gives the value before.
    pub fn bump(&self) -> u64 {
        let value = self.get();
        self.set(value + 1);
        value
    }
}
