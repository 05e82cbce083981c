//! Readings of the time-stamp counter around what is measured.

use std::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    fmt,
};

/// Executions before the first one that counts, for each eight that do: what is only there once is left out.
const WARM: usize = 8;

/// Ticks of many executions of the same.
#[derive(Debug)]
pub(crate) struct Samples(Vec<u64>);

/// The time-stamp counter, once everything before has been executed.
#[inline(always)]
pub(crate) fn tsc() -> u64 {
    // SAFETY: both instructions change no memory; SSE2, which has the first, is part of x86-64.
    #[allow(unsafe_code)]
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

impl Samples {
    /// Measures `work` so many times.
    #[inline(always)]
    pub(crate) fn of(count: usize, mut work: impl FnMut()) -> Self {
        let mut ticks = Vec::with_capacity(count);
        for _ in 0..=count / WARM {
            work();
        }
        for _ in 0..count {
            let start = tsc();
            work();
            ticks.push(tsc().wrapping_sub(start));
        }
        Self(ticks)
    }

    /// Those that were measured already.
    pub(crate) fn from(ticks: Vec<u64>) -> Self {
        Self(ticks)
    }

    /// What is measured once.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) fn once(work: impl FnOnce() -> Result<(), String>) -> Result<Self, String> {
        let start = tsc();
        work()?;
        Ok(Self(vec![tsc().wrapping_sub(start)]))
    }
}

impl fmt::Display for Samples {
    /// Median, least and most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0);
        write!(f, "{} {} {}", at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_least_and_most() {
        assert_eq!(Samples::from(vec![7, 3, 5]).to_string(), "5 3 7");
        assert_eq!(Samples::from(vec![4, 1, 3, 2]).to_string(), "3 1 4");
        assert_eq!(Samples::from(Vec::new()).to_string(), "0 0 0");
    }

    #[test]
    fn as_many_samples_as_asked_for() {
        let mut executed = 0;
        let samples = Samples::of(16, || executed += 1);
        assert_eq!((samples.0.len(), executed), (16, 19));
    }
}
