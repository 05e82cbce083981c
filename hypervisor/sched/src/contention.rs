//! The clock of the time in which somebody of a pool waits for a CPU.
//!
//! Time in which nobody waits takes from nobody, and is not charged by weight. Each CPU must know how much of a run was
//! such time, though what began or ended it happened on others: so they share a clock that stands still while no queue
//! has anyone waiting. One word holds it, so that it can be read at once and moved without a lock.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of the count of queues in which somebody waits.
const COUNT: u32 = 10;
const COUNTED: u64 = (1 << COUNT) - 1;
/// The clock has this many bits, and wraps: 52 days at 4 GHz. No run that is charged at once is half as long; where one
/// were, it would be charged too little.
const BITS: u32 = u64::BITS - COUNT;

/// Invariants: the low bits count the queues that have entered and not left. The high bits are the clock while the count
/// is 0, and the clock less the time (of the caller's) while it is not.
pub(crate) struct Contention(AtomicU64);

impl Contention {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether the clock runs.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) & COUNTED != 0
    }

    /// The clock at `now`.
    pub(crate) fn at(&self, now: u64) -> u64 {
        let word = self.0.load(Ordering::Relaxed);
        let base = word >> COUNT;
        let clock = if word & COUNTED == 0 { base } else { base.wrapping_add(now) };
        clock << COUNT >> COUNT
    }

    /// From one reading to a later one; 0 where the CPUs' clocks differ by so little that it comes out negative.
    pub(crate) fn between(from: u64, to: u64) -> u64 {
        let difference = to.wrapping_sub(from) << COUNT;
        if difference >> (u64::BITS - 1) != 0 { 0 } else { difference >> COUNT }
    }

    /// A queue in which nobody waited has one that waits.
    pub(crate) fn enter(&self, now: u64) {
        self.change(|base, count| (if count == 0 { base.wrapping_sub(now) } else { base }, count + 1));
    }

    /// A queue that entered has nobody any more that waits.
    pub(crate) fn leave(&self, now: u64) {
        self.change(|base, count| {
            (if count == 1 { base.wrapping_add(now) } else { base }, count.saturating_sub(1))
        });
    }

    fn change(&self, change: impl Fn(u64, u64) -> (u64, u64)) {
        let next = |word: u64| {
            let (base, count) = change(word >> COUNT, word & COUNTED);
            Some(base << COUNT | count.min(COUNTED))
        };
        // It is changed as long as another changes it in between: each of them has then done its own.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

const _: () = assert!(BITS == 54);

#[cfg(test)]
mod tests {
    use super::Contention;

    /// However many queues come and go at once, none is lost.
    #[test]
    fn changes_of_many_cpus_all_count() {
        let clock = std::sync::Arc::new(Contention::new());
        let cpus: std::vec::Vec<_> = (0..4)
            .map(|_| {
                let clock = clock.clone();
                std::thread::spawn(move || {
                    for now in 0..20_000 {
                        clock.enter(now);
                        assert!(clock.is_on());
                        clock.leave(now);
                    }
                })
            })
            .collect();
        cpus.into_iter().for_each(|cpu| cpu.join().unwrap());
        assert!(!clock.is_on());
    }

    #[test]
    fn it_runs_while_somebody_waits() {
        let clock = Contention::new();
        let start = u64::MAX - 50;
        assert!(!clock.is_on());
        assert_eq!(clock.at(start), 0);
        clock.enter(start);
        clock.enter(start.wrapping_add(10));
        assert!(clock.is_on());
        assert_eq!(clock.at(start.wrapping_add(30)), 30);
        clock.leave(start.wrapping_add(40));
        clock.leave(start.wrapping_add(60));
        assert!(!clock.is_on());
        assert_eq!(clock.at(start.wrapping_add(90)), 60);
        clock.enter(5_000_000);
        assert_eq!(clock.at(5_000_007), 67);
        assert_eq!(Contention::between(60, 67), 7);
        assert_eq!(Contention::between(67, 60), 0);
        let wrapped = (1 << 54) - 3;
        assert_eq!(Contention::between(wrapped, 4), 7);
    }
}
