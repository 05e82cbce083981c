//! The VMX-preemption timer (SDM vol. 3, section 26.5.1), as a second way to end a guest's run beside the host's interrupts.
//!
//! An interrupt of the host's ends a guest's run whatever the guest's flags are, but not on every CPU: Bochs leaves it pending
//! while a guest that was entered with interrupts off goes on. So the timer is set once a turn, to a little more than what is left
//! of the turn: where interrupts do their work it never fires, and costs one VMWRITE a turn. Without an end of the turn it fires
//! some times a second, so that other CPUs and the serial line are heard in the end.

/// Parts of a second: how much later than the turn it ends.
const SLACK: u64 = 20_000;
/// How often a second it fires where a turn has no end, or one far away.
const RARELY: u64 = 10;
/// How often a second it fires when the end of the turn is past.
const OFTEN: u64 = 500;

/// What the timer is set to, in ticks of the TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Backstop {
    slack: u64,
    rarely: u64,
    often: u64,
    /// The timer counts at the rate of this bit of the TSC.
    shift: u32,
}

impl Backstop {
    /// For a TSC of `hz` ticks a second, of which the timer counts one in two to the power of `shift` (0 to 31).
    pub(crate) const fn new(hz: u64, shift: u32) -> Self {
        Self { slack: hz / SLACK, rarely: hz / RARELY, often: hz / OFTEN, shift }
    }

    /// What the timer is set to when a turn begins that ends in `ticks` of the TSC, and whenever it has fired from then on.
    pub(crate) fn of_turn(&self, ticks: u64) -> (u32, u32) {
        let first = ticks.saturating_add(self.slack).min(self.rarely);
        let again = if ticks >= self.rarely { self.rarely } else { self.often };
        (self.count(first), self.count(again))
    }

    fn count(&self, ticks: u64) -> u32 {
        (ticks >> self.shift).clamp(1, u64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_little_later_than_the_turn() {
        let backstop = Backstop::new(2_000_000_000, 5);
        let (first, again) = backstop.of_turn(20_000_000);
        assert_eq!((first, again), (20_100_000 >> 5, 4_000_000 >> 5));
        // A turn that is over.
        assert_eq!(backstop.of_turn(0).0, 100_000 >> 5);
    }

    #[test]
    fn without_an_end_it_fires_rarely() {
        let backstop = Backstop::new(50_000_000, 0);
        assert_eq!(backstop.of_turn(u64::MAX), (5_000_000, 5_000_000));
        assert_eq!(backstop.of_turn(6_000_000), (5_000_000, 5_000_000));
    }

    #[test]
    fn no_clock_makes_it_stop_or_stand() {
        for (hz, shift) in [(0, 31), (1, 0), (u64::MAX, 0), (u64::MAX, 31)] {
            for ticks in [0, 1, u64::MAX] {
                let (first, again) = Backstop::new(hz, shift).of_turn(ticks);
                assert!(first > 0 && again > 0);
            }
        }
    }
}
