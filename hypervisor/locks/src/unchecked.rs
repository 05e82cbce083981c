//! Without debug assertions: nothing is kept of ranks, and nothing checked.

use crate::Rank;

/// What a CPU holds, where that is checked: here nothing.
#[derive(Debug, Default)]
pub struct Held;

impl Held {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

/// Says where this CPU's [`Held`] is. Here nobody asks.
pub fn find_held_by(_: fn() -> &'static Held) {}

/// From now on no order is checked. Here none ever is.
pub fn stop_checking() {}

#[derive(Clone, Copy)]
pub(crate) struct Label;

impl Label {
    #[inline]
    pub(crate) const fn new(_: Rank) -> Self {
        Self
    }
}

pub(crate) struct Ticket;

impl Ticket {
    #[inline]
    pub(crate) fn check(_: Label, _: usize, _: Option<usize>) -> Self {
        Self
    }

    #[inline]
    pub(crate) fn note(_: Label, _: usize) -> Self {
        Self
    }
}

// The lock costs what `spin`'s does.
#[allow(clippy::disallowed_types)]
const _: () = {
    assert!(size_of::<crate::Mutex<u64>>() == size_of::<spin::Mutex<u64>>());
    assert!(size_of::<crate::MutexGuard<'static, u64>>() == size_of::<spin::MutexGuard<'static, u64>>());
    assert!(!core::mem::needs_drop::<Ticket>());
};
