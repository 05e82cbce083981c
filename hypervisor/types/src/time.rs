//! Virtual time: nanoseconds since a domain was created, as its devices see them.
//!
//! Device models take the time as a parameter and never ask a clock, so that tests run on times of their choosing.

use core::ops::{Add, Sub};

/// A point in a domain's virtual time, in nanoseconds since the domain was created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Instant(u64);

impl Instant {
    /// The creation of the domain.
    pub const ZERO: Self = Self(0);
    /// A time that never comes (584 years).
    pub const NEVER: Self = Self(u64::MAX);

    /// The time `ns` nanoseconds after the domain's creation.
    #[must_use]
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the domain's creation.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to this, or 0 when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point in time that is worked out only when it is asked for: an [`Instant`], or what reads a clock.
pub trait Moment: Copy {
    /// Which one.
    fn instant(self) -> Instant;
}

impl Moment for Instant {
    #[inline]
    fn instant(self) -> Instant {
        self
    }
}

impl<F: Fn() -> Instant + Copy> Moment for F {
    #[inline]
    fn instant(self) -> Instant {
        self()
    }
}

/// Saturates at [`Instant::NEVER`].
impl Add<u64> for Instant {
    type Output = Self;
    fn add(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// Saturates at [`Instant::ZERO`].
impl Sub<u64> for Instant {
    type Output = Self;
    fn sub(self, ns: u64) -> Self {
        Self(self.0.saturating_sub(ns))
    }
}

/// What [`ticks_at`] answers where the count would not fit.
pub const TICKS_NEVER: u64 = u64::MAX;

/// Whole ticks of a counter of `hz` ticks a second after `ns` nanoseconds (rounded down).
#[must_use]
pub const fn ticks_at(ns: u64, hz: u64) -> u64 {
    let ticks = ns as u128 * hz as u128 / 1_000_000_000;
    if ticks > u64::MAX as u128 { TICKS_NEVER } else { ticks as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_and_scales() {
        assert_eq!(Instant::NEVER + 5, Instant::NEVER);
        assert_eq!(Instant::ZERO - 5, Instant::ZERO);
        assert_eq!(ticks_at(1_000_000_000, 3_579_545), 3_579_545);
        assert_eq!(ticks_at(u64::MAX, u64::MAX), TICKS_NEVER);
    }
}
