//! A physical CPU's time.

use crate::sync::{AtomicU64, Ordering, add, spin_loop};

/// How often a reader tries for one moment's pair of words.
const ATTEMPTS: u32 = 64;

/// Time that runs while it is on: one word, so that every write leaves it right.
///
/// Bit 0: it is on. The other bits, modulo 2^63: the ticks so far, less the moment at which it was turned on while it
/// is. So that either change of state is one addition.
#[derive(Debug)]
struct Stopwatch(AtomicU64);

/// The moments and sums that bits 63:1 have room for.
const MASK: u64 = u64::MAX >> 1;

/// What was read off a [`Stopwatch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reading(u64);

impl Reading {
    fn is_on(self) -> bool {
        self.0 & 1 != 0
    }

    /// The ticks up to `now`.
    fn total(self, now: u64) -> u64 {
        if !self.is_on() {
            return self.0 >> 1;
        }
        let total = (self.0 >> 1).wrapping_add(now) & MASK;
        // `now` lies before the moment at which it was turned on by more than there was: nothing yet.
        if total > MASK / 2 { 0 } else { total }
    }
}

impl Stopwatch {
    #[cfg(not(all(test, loom)))]
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[cfg(all(test, loom))]
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Turns it on, which it must not be.
    #[inline]
    fn start(&self, now: u64) {
        add(&self.0, 1u64.wrapping_sub(now << 1), Ordering::Release);
    }

    /// Turns it off, which it must not be.
    #[inline]
    fn stop(&self, now: u64) {
        add(&self.0, (now << 1).wrapping_sub(1), Ordering::Release);
    }

    /// Takes back `ticks` that ran too long.
    #[inline]
    fn take_back(&self, ticks: u64) {
        add(&self.0, (ticks << 1).wrapping_neg(), Ordering::Release);
    }

    fn read(&self) -> Reading {
        Reading(self.0.load(Ordering::Acquire))
    }
}

/// Where a physical CPU's time goes. Written by that CPU alone, read by all.
///
/// The hypervisor's part is what is left: the time since the beginning, less guests' and idle time. What the CPU does after
/// an exit counts as the guest's until the answer is complete: a reader that comes in between sees it there.
#[derive(Debug)]
#[repr(align(64))]
pub struct CpuAccount {
    begun: AtomicU64,
    guests: Stopwatch,
    idle: Stopwatch,
}

/// A physical CPU's ticks up to some moment. Their sum is the time since the account began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuTimes {
    /// In guests.
    pub guests: u64,
    /// In the hypervisor.
    pub hypervisor: u64,
    /// Asleep, with nothing to do.
    pub idle: u64,
}

impl CpuTimes {
    /// The sum: the time since the account began.
    #[must_use]
    pub const fn elapsed(&self) -> u64 {
        self.guests.wrapping_add(self.hypervisor).wrapping_add(self.idle)
    }

    /// What was added since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            guests: self.guests.saturating_sub(earlier.guests),
            hypervisor: self.hypervisor.saturating_sub(earlier.hypervisor),
            idle: self.idle.saturating_sub(earlier.idle),
        }
    }
}

impl CpuAccount {
    /// An account that begins at tick 0, in the hypervisor.
    #[cfg(not(all(test, loom)))]
    #[must_use]
    pub const fn new() -> Self {
        Self { begun: AtomicU64::new(0), guests: Stopwatch::new(), idle: Stopwatch::new() }
    }

    /// An account that begins at tick 0, in the hypervisor.
    #[cfg(all(test, loom))]
    #[must_use]
    pub fn new() -> Self {
        Self { begun: AtomicU64::new(0), guests: Stopwatch::new(), idle: Stopwatch::new() }
    }

    /// Begins it at `now`, in the hypervisor. Once, before anything else is told of.
    pub fn begin(&self, now: u64) {
        self.begun.store(now, Ordering::Release);
    }

    /// The CPU takes up a vCPU: its time is guests' from `now` on, but for what [`CpuAccount::take_back`] says. It must not
    /// have one.
    pub fn take_up(&self, now: u64) {
        self.guests.start(now);
    }

    /// The CPU was in the hypervisor for the last `ticks`, since the exit of the vCPU that it has.
    #[inline]
    pub fn take_back(&self, ticks: u64) {
        self.guests.take_back(ticks);
    }

    /// The CPU puts its vCPU down, which it must have, and is in the hypervisor since `exited`.
    pub fn put_down(&self, exited: u64) {
        self.guests.stop(exited);
    }

    /// The CPU has nothing to do and goes to sleep. Nothing happens where it sleeps already.
    pub fn sleep(&self, now: u64) {
        if !self.idle.read().is_on() {
            self.idle.start(now);
        }
    }

    /// The CPU is awake again. Nothing happens where it was.
    pub fn wake(&self, now: u64) {
        if self.idle.read().is_on() {
            self.idle.stop(now);
        }
    }

    /// Its times up to `now`, from any CPU.
    #[must_use]
    pub fn times(&self, now: u64) -> CpuTimes {
        let mut guests = self.guests.read();
        let mut idle = self.idle.read();
        // Neither word ever comes back to a value it had, so that a word that is the same before and after the other was
        // read was so in between. Whoever is outrun by that many changes takes two words of different moments, some
        // nanoseconds apart.
        for _ in 0..ATTEMPTS {
            let again = self.guests.read();
            if again == guests {
                break;
            }
            spin_loop();
            guests = again;
            idle = self.idle.read();
        }
        let elapsed = now.saturating_sub(self.begun.load(Ordering::Acquire));
        let guests = guests.total(now).min(elapsed);
        let idle = idle.total(now).min(elapsed - guests);
        CpuTimes { guests, hypervisor: elapsed - guests - idle, idle }
    }
}

impl Default for CpuAccount {
    fn default() -> Self {
        Self::new()
    }
}

/// Every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-accounts --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Guest for 10 ticks with 3 of the hypervisor's among them, hypervisor for 10, asleep for 10: whenever a reader looks,
    /// guests' time and idle time are of one moment, which only these pairs are.
    #[test]
    fn a_reader_sees_one_moment() {
        loom::model(|| {
            let account = Arc::new(CpuAccount::new());
            // The reader is the thread that comes second: see the vCPU's model.
            let reader = {
                let account = account.clone();
                thread::spawn(move || {
                    let times = account.times(100);
                    let seen = (times.guests, times.idle);
                    assert!(
                        matches!(seen, (0, 0) | (100, 0) | (97, 0) | (7, 0) | (7, 80) | (7, 10)),
                        "{seen:?}"
                    );
                    assert_eq!(times.elapsed(), 100);
                })
            };
            account.take_up(0);
            account.take_back(3);
            account.put_down(10);
            account.sleep(20);
            account.wake(30);
            reader.join().unwrap();
            assert_eq!(account.times(100), CpuTimes { guests: 7, hypervisor: 83, idle: 10 });
        });
    }
}
