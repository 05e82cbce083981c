//! Counters of a fixed frequency on virtual time.

use caisson_types::Instant;

/// The frequency of a counter that starts at 0 when the domain is created.
///
/// Reading a counter is one multiplication. [`Rate::instant`] is its exact inverse: the counter shows `n` for the
/// first time at `instant(n)`, so a deadline taken from it is neither early nor late by a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rate {
    /// Ticks in 2^64 nanoseconds, rounded up.
    scale: u64,
}

impl Rate {
    /// A counter of `hz` ticks a second, below 1 GHz.
    pub(crate) const fn new(hz: u32) -> Self {
        let scale = ((hz as u128) << 64).div_ceil(1_000_000_000);
        Self { scale: scale as u64 }
    }

    /// The counter at `now`.
    #[inline]
    pub(crate) const fn ticks(self, now: Instant) -> u64 {
        ((now.as_nanos() as u128 * self.scale as u128) >> 64) as u64
    }

    /// The first time at which the counter shows `ticks`, or [`Instant::NEVER`] past the end of time.
    pub(crate) const fn instant(self, ticks: u64) -> Instant {
        let ns = ((ticks as u128) << 64).div_ceil(self.scale as u128);
        if ns > u64::MAX as u128 { Instant::NEVER } else { Instant::from_nanos(ns as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_has_as_many_ticks_as_the_frequency_says() {
        for hz in [32_768, 1_193_182, 3_579_545] {
            let rate = Rate::new(hz);
            assert_eq!(rate.ticks(Instant::ZERO), 0);
            assert_eq!(rate.ticks(Instant::from_nanos(1_000_000_000)), u64::from(hz));
            // After ten years the error is below a tick.
            let years = 10 * 365 * 86_400;
            assert_eq!(rate.ticks(Instant::from_nanos(years * 1_000_000_000)), years * u64::from(hz));
        }
    }

    proptest! {
        #[test]
        fn instant_is_the_first_with_that_count(ticks in 1..1u64 << 50, hz in 1u32..999_999_999) {
            let rate = Rate::new(hz);
            let at = rate.instant(ticks);
            if at != Instant::NEVER {
                prop_assert!(rate.ticks(at) >= ticks);
                prop_assert!(rate.ticks(at - 1) < ticks);
            }
        }
    }
}
