//! How long a thread looks for something before it sleeps.
//!
//! Sleeps that turn out short make it longer, up to what a sleep and a wake-up cost on this machine: who looks for as long as that and
//! then sleeps pays twice of what the wait has cost at least. Long ones make it shorter, down to nothing, so that an idle guest costs
//! nothing.
//!
//! What is looked for may be such that it cannot come meanwhile, as where the guest that is to make it shares the CPU with who looks.
//! So where the longest look has been in vain several times on end, nobody looks for a number of sleeps, then for twice as many.

use std::time::Duration;

/// What is learnt of one thing that is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    spin: Duration,
    most: Duration,
    /// Looks for as long as `most` that were in vain, since one was not.
    vain: u32,
    /// Sleeps that are left before looking is tried again, and how many the next such rest has.
    rest: u32,
    next_rest: u32,
}

impl Pace {
    const LEAST: Duration = Duration::from_micros(5);
    /// So many looks in vain make a rest.
    const VAIN: u32 = 8;
    /// The first rest, and the longest: then one look in 512 is in vain.
    const FIRST_REST: u32 = 64;
    const MOST_REST: u32 = 4096;

    /// Not at all at first, and never longer than `most`: about what a sleep and a wake-up cost.
    #[must_use]
    pub fn new(most: Duration) -> Self {
        let most = most.max(Self::LEAST);
        Self { spin: Duration::ZERO, most, vain: 0, rest: 0, next_rest: Self::FIRST_REST }
    }

    /// How long to look.
    #[must_use]
    pub fn spin(&self) -> Duration {
        if self.rest > 0 { Duration::ZERO } else { self.spin }
    }

    /// It came while the thread looked.
    pub fn found(&mut self) {
        if self.rest == 0 && !self.spin.is_zero() {
            self.vain = 0;
            self.next_rest = Self::FIRST_REST;
        }
    }

    /// A sleep has ended after `slept`, its own costs and the time before it among that.
    pub fn woke(&mut self, slept: Duration) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        self.vain += u32::from(self.spin == self.most);
        if self.vain == Self::VAIN {
            self.vain = 0;
            self.rest = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(Self::MOST_REST);
        }
        self.spin = if slept < self.most * 2 {
            (self.spin * 2).clamp(Self::LEAST, self.most)
        } else if self.spin <= Self::LEAST {
            Duration::ZERO
        } else {
            self.spin / 2
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(60);

    #[test]
    fn it_follows_the_sleeps() {
        let mut pace = Pace::new(MOST);
        assert_eq!(pace.spin(), Duration::ZERO);
        for _ in 0..6 {
            pace.woke(SHORT);
        }
        assert_eq!(pace.spin(), MOST);
        for _ in 0..10 {
            pace.woke(Duration::from_millis(1));
        }
        assert_eq!(pace.spin(), Duration::ZERO);
        // A wait that is as long as what it costs to look and then to sleep is just worth while.
        pace.woke(MOST * 2 - Duration::from_micros(1));
        assert_eq!(pace.spin(), Pace::LEAST);
        pace.woke(MOST * 2);
        assert_eq!(pace.spin(), Duration::ZERO);
    }

    /// How many of `sleeps` short sleeps had a look before them.
    fn looks(pace: &mut Pace, sleeps: u32) -> u32 {
        let look = |_: &u32| {
            let looked = !pace.spin().is_zero();
            pace.woke(SHORT);
            looked
        };
        (0..sleeps).filter(look).count() as u32
    }

    #[test]
    fn nobody_looks_for_what_never_comes_meanwhile() {
        let mut pace = Pace::new(MOST);
        assert!(looks(&mut pace, 100_000) < 400);
        // It is tried again, ever more seldom.
        let tried = looks(&mut pace, 2 * (Pace::MOST_REST + Pace::VAIN));
        assert!((Pace::VAIN..=3 * Pace::VAIN).contains(&tried), "{tried}");
    }

    #[test]
    fn one_that_is_found_makes_up_for_what_was_in_vain() {
        let mut pace = Pace::new(MOST);
        looks(&mut pace, 10_000);
        while pace.spin().is_zero() {
            pace.woke(SHORT);
        }
        for _ in 0..1000 {
            pace.found();
            assert_eq!(looks(&mut pace, Pace::VAIN - 1), Pace::VAIN - 1);
        }
        // And the next rest is as short as the first one.
        assert_eq!(looks(&mut pace, 1 + Pace::FIRST_REST), 1);
        assert_eq!(looks(&mut pace, 1), 1);
    }

    #[test]
    fn what_is_found_without_a_look_says_nothing() {
        let mut pace = Pace::new(MOST);
        pace.found();
        assert_eq!(pace, Pace::new(MOST));
        while pace.rest == 0 {
            pace.woke(SHORT);
        }
        let before = pace;
        pace.found();
        assert_eq!(pace, before);
    }
}
