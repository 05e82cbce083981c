//! The local APIC's timer: one-shot, periodic, TSC-deadline.
//!
//! Intel SDM volume 3, "APIC Timer" and "TSC-Deadline Mode". The count is kept as the tick of the input clock at which it
//! reaches zero, so that it can be read at any time, a late periodic timer keeps its phase, and rounding never adds up.

use caisson_types::{Instant, ticks_at};

const NANOS: u64 = 1_000_000_000;

/// The shortest time between two interrupts of a periodic timer. A guest may program any period; faster interrupts than
/// this merge into one, as they do in IRR when software is slower than the timer.
pub(crate) const MIN_PERIOD_NANOS: u64 = 20_000;

/// Where the guest's TSC stands: a point that is on both clocks, and the TSC's speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscClock {
    /// The virtual time.
    pub now: Instant,
    /// The guest's TSC at that time.
    pub tsc: u64,
    /// The guest's TSC frequency in Hz (0 counts as 1).
    pub hz: u64,
}

impl TscClock {
    /// The virtual time at which the guest's TSC is at `tsc` or just past it; [`Self::now`] when it is already.
    #[must_use]
    pub fn instant_of(&self, tsc: u64) -> Instant {
        let ticks = tsc.saturating_sub(self.tsc);
        self.now + nanos_for(ticks, self.hz)
    }
}

/// Nanoseconds that `ticks` of a clock of `hz` take, rounded up, so that what waits for them is never early.
pub(crate) fn nanos_for(ticks: u64, hz: u64) -> u64 {
    if hz == NANOS {
        return ticks;
    }
    let hz = hz.max(1);
    match ticks.checked_mul(NANOS) {
        Some(scaled) => scaled.div_ceil(hz),
        None => {
            let nanos = (u128::from(ticks) * u128::from(NANOS)).div_ceil(u128::from(hz));
            u64::try_from(nanos).unwrap_or(u64::MAX)
        }
    }
}

/// LVT timer bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Encoding 3: nothing counts.
    Reserved,
}

impl TimerMode {
    pub(crate) const fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

const STOPPED: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(crate) struct Timer {
    hz: u64,
    mode: TimerMode,
    /// DCR bits 3, 1 and 0.
    divide: u8,
    initial: u32,
    /// The input clock's tick at which the count reaches zero, or [`STOPPED`].
    zero_at: u64,
    /// The same, or the TSC deadline, as virtual time; [`Instant::NEVER`] when nothing runs.
    due: Instant,
    /// A periodic timer stays silent until then.
    quiet_until: Instant,
    tsc_deadline: u64,
}

impl Timer {
    pub(crate) fn new(hz: u64) -> Self {
        Self {
            hz: hz.max(1),
            mode: TimerMode::OneShot,
            divide: 0,
            initial: 0,
            zero_at: STOPPED,
            due: Instant::NEVER,
            quiet_until: Instant::ZERO,
            tsc_deadline: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.hz);
    }

    fn ticks(&self, now: Instant) -> u64 {
        if self.hz == NANOS { now.as_nanos() } else { ticks_at(now.as_nanos(), self.hz) }
    }

    fn stop(&mut self) {
        self.zero_at = STOPPED;
        self.due = Instant::NEVER;
    }

    fn run_until(&mut self, tick: u64) {
        self.zero_at = tick;
        self.due =
            if tick == STOPPED { Instant::NEVER } else { Instant::from_nanos(nanos_for(tick, self.hz)) };
    }

    /// log2 of the divisor: encodings 0 to 6 are 2 to 128, 7 is 1.
    const fn shift(&self) -> u32 {
        let code = (self.divide & 3) | (self.divide & 8) >> 1;
        (code as u32 + 1) & 7
    }

    /// Ticks of the input clock in a whole count. At most 2^39.
    const fn period(&self) -> u64 {
        (self.initial as u64) << self.shift()
    }

    /// A change to or from TSC-deadline mode disarms; between the other two the count goes on.
    pub(crate) fn set_mode(&mut self, mode: TimerMode) {
        if mode == self.mode {
            return;
        }
        if !(mode.counts() && self.mode.counts()) {
            self.stop();
            self.initial = 0;
            self.tsc_deadline = 0;
        }
        self.quiet_until = Instant::ZERO;
        self.mode = mode;
    }

    pub(crate) const fn initial_count(&self) -> u32 {
        self.initial
    }

    /// Starts the count, or stops it by 0. Ignored outside of the counting modes.
    pub(crate) fn set_initial_count(&mut self, count: u32, now: Instant) {
        if !self.mode.counts() {
            return;
        }
        self.initial = count;
        self.quiet_until = Instant::ZERO;
        if count == 0 {
            self.stop();
        } else {
            self.run_until(self.ticks(now).saturating_add(self.period()));
        }
    }

    pub(crate) fn current_count(&self, now: Instant) -> u32 {
        if self.zero_at == STOPPED || self.initial == 0 {
            return 0;
        }
        let ticks = self.ticks(now);
        let left = if ticks < self.zero_at {
            self.zero_at - ticks
        } else if self.mode == TimerMode::Periodic {
            self.period() - (ticks - self.zero_at) % self.period()
        } else {
            0
        };
        let shift = self.shift();
        let count = left.saturating_add((1 << shift) - 1) >> shift;
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(crate) const fn divide(&self) -> u8 {
        self.divide
    }

    /// Changes the divisor; a running count goes on from where it is.
    pub(crate) fn set_divide(&mut self, divide: u8, now: Instant) {
        let count = self.current_count(now);
        self.divide = divide & 0b1011;
        if count != 0 {
            let left = u64::from(count) << self.shift();
            self.run_until(self.ticks(now).saturating_add(left));
        }
    }

    pub(crate) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms (or by 0 disarms) the deadline. Ignored outside of TSC-deadline mode.
    pub(crate) fn set_tsc_deadline(&mut self, deadline: u64, clock: &TscClock) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = deadline;
            self.due = if deadline == 0 { Instant::NEVER } else { clock.instant_of(deadline) };
        }
    }

    /// When [`Self::expire`] has something to do, provided that an expiry is of interest.
    #[inline]
    pub(crate) fn next(&self) -> Instant {
        self.due.max(self.quiet_until)
    }

    /// Takes the expiries up to `now`; answers whether there was one (however many there were).
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        if now < self.next() || self.due == Instant::NEVER {
            return false;
        }
        match self.mode {
            TimerMode::TscDeadline => {
                self.stop();
                self.tsc_deadline = 0;
            }
            TimerMode::Periodic if self.initial != 0 => {
                let late = self.ticks(now).saturating_sub(self.zero_at);
                let step = (late / self.period() + 1).saturating_mul(self.period());
                self.run_until(self.zero_at.saturating_add(step));
                self.quiet_until = now + MIN_PERIOD_NANOS;
            }
            _ => self.stop(),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    #[test]
    fn divisors_are_those_of_the_table() {
        let mut timer = Timer::new(NANOS);
        for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            timer.set_divide(code, at(0));
            timer.set_initial_count(10, at(100));
            assert_eq!(timer.next(), at(100 + 10 * divisor));
            assert_eq!(timer.current_count(at(100)), 10);
            assert_eq!(timer.current_count(at(100 + divisor)), 9);
        }
    }

    #[test]
    fn a_one_shot_fires_once() {
        let mut timer = Timer::new(NANOS);
        timer.set_divide(0b1011, at(0));
        timer.set_initial_count(100, at(0));
        assert!(!timer.expire(at(99)));
        assert_eq!(timer.current_count(at(101)), 0);
        assert!(timer.expire(at(100)));
        assert!(!timer.expire(at(1000)));
        assert_eq!(timer.next(), Instant::NEVER);
        assert_eq!((timer.current_count(at(1000)), timer.initial_count()), (0, 100));
    }

    #[test]
    fn a_late_periodic_timer_fires_once_and_keeps_its_phase() {
        let mut timer = Timer::new(NANOS);
        timer.set_divide(0b1011, at(0));
        timer.set_mode(TimerMode::Periodic);
        timer.set_initial_count(100_000, at(0));
        assert!(timer.expire(at(730_000)));
        assert!(!timer.expire(at(730_000)));
        assert_eq!(timer.next(), at(800_000));
        assert_eq!(timer.current_count(at(730_000)), 70_000);
        assert!(timer.expire(at(800_000)));
    }

    #[test]
    fn a_period_too_short_is_thinned_out() {
        let mut timer = Timer::new(NANOS);
        timer.set_mode(TimerMode::Periodic);
        timer.set_initial_count(1, at(0));
        assert!(timer.expire(at(2)));
        assert!(!timer.expire(at(100)));
        assert_eq!(timer.next(), at(2 + MIN_PERIOD_NANOS));
        assert!(timer.expire(timer.next()));
    }

    #[test]
    fn a_deadline_is_never_early_and_reads_0_when_past() {
        let mut timer = Timer::new(NANOS);
        let clock = TscClock { now: at(1000), tsc: 5000, hz: 3_000_000_000 };
        timer.set_tsc_deadline(6000, &clock);
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_mode(TimerMode::TscDeadline);
        timer.set_tsc_deadline(5001, &clock);
        assert_eq!(timer.next(), at(1001));
        timer.set_initial_count(5, at(0));
        assert_eq!((timer.initial_count(), timer.current_count(at(0))), (0, 0));
        assert!(timer.expire(at(1001)));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(u64::MAX, &clock);
        timer.set_mode(TimerMode::OneShot);
        assert_eq!((timer.tsc_deadline(), timer.next()), (0, Instant::NEVER));
    }

    proptest! {
        #[test]
        fn never_early_never_late(count in 1u32.., divide: u8, hz in 1u64..20_000_000_000, start in 0u64..1 << 60) {
            let mut timer = Timer::new(hz);
            timer.set_divide(divide, at(0));
            timer.set_initial_count(count, at(start));
            let due = timer.next();
            if due != Instant::NEVER {
                let period = u128::from(timer.period());
                let elapsed = u128::from(due.since(at(start))) * u128::from(hz);
                // Between the count's length and one tick of the clock and of virtual time more or less.
                prop_assert!(elapsed + u128::from(hz.max(NANOS)) >= period * u128::from(NANOS));
                prop_assert!(elapsed <= (period + 1) * u128::from(NANOS) + u128::from(hz));
                prop_assert!(!timer.clone().expire(due - 1));
                prop_assert_eq!(timer.current_count(due), 0);
                prop_assert!(timer.expire(due));
            }
        }

        #[test]
        fn counting_down_is_monotonic(count in 1u32.., steps in proptest::collection::vec(0u64..1 << 34, 1..20)) {
            let mut timer = Timer::new(NANOS);
            timer.set_initial_count(count, at(0));
            let (mut now, mut last) = (0, count);
            for step in steps {
                now += step;
                let read = timer.current_count(at(now));
                prop_assert!(read <= last);
                last = read;
            }
        }
    }
}
