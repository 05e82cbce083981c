//! A vCPU's time and exits.

use core::array;

use caisson_hwvirt::ExitClass;

use crate::Charge;
use crate::sync::{AtomicU32, AtomicU64, Ordering, add, fence, spin_loop};

/// How often a reader tries before it takes the writer for dead. A write takes some nanoseconds.
const ATTEMPTS: u32 = 10_000;

/// What a vCPU is doing, as the scheduler sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Activity {
    /// It waits for an interrupt, or for its start.
    Blocked,
    /// It could run, and has no CPU: its time is stolen.
    Ready,
    /// It has a CPU: in its guest, or in the hypervisor on its behalf.
    Running,
}

impl Activity {
    const COUNT: usize = 3;

    const fn of(value: u32) -> Self {
        match value {
            0 => Self::Blocked,
            1 => Self::Ready,
            _ => Self::Running,
        }
    }
}

/// How often something happened, and the ticks that it took.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    /// How often.
    pub count: u64,
    /// Ticks in all.
    pub ticks: u64,
}

impl Count {
    /// What was added since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            count: self.count.saturating_sub(earlier.count),
            ticks: self.ticks.saturating_sub(earlier.ticks),
        }
    }
}

/// A [`Count`] with one writer.
#[derive(Debug)]
struct Counter {
    count: AtomicU64,
    ticks: AtomicU64,
}

impl Counter {
    fn new() -> Self {
        Self { count: AtomicU64::new(0), ticks: AtomicU64::new(0) }
    }

    #[inline]
    fn charge(&self, ticks: u64) {
        add(&self.count, 1, Ordering::Relaxed);
        add(&self.ticks, ticks, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count { count: self.count.load(Ordering::Relaxed), ticks: self.ticks.load(Ordering::Relaxed) }
    }
}

/// The account of one vCPU. The crate's text tells who may write.
#[derive(Debug)]
#[repr(align(64))]
pub struct VcpuAccount {
    /// Odd while the five words below are being written.
    sequence: AtomicU32,
    activity: AtomicU32,
    since: AtomicU64,
    spent: [AtomicU64; Activity::COUNT],
    /// By [`ExitClass::index`]; [`TURN`] is [`VcpuAccount::turns`].
    counters: [Counter; PLACES],
    begun: u64,
}

/// A vCPU's times, at the moment when its activity last changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuTimes {
    /// When the account began.
    pub begun: u64,
    /// What the vCPU is doing.
    pub activity: Activity,
    /// Since when: everything before is in the sums.
    pub since: u64,
    /// Ticks blocked.
    pub blocked: u64,
    /// Ticks ready.
    pub ready: u64,
    /// Ticks running.
    pub running: u64,
}

impl VcpuTimes {
    /// The same at `now`, with the time since the last change charged to what the vCPU is doing. Nothing changes where
    /// `now` lies before that change.
    #[must_use]
    pub fn at(mut self, now: u64) -> Self {
        let span = now.saturating_sub(self.since);
        self.since += span;
        let sum = match self.activity {
            Activity::Blocked => &mut self.blocked,
            Activity::Ready => &mut self.ready,
            Activity::Running => &mut self.running,
        };
        *sum = sum.wrapping_add(span);
        self
    }

    /// The time that others had while this vCPU could have run: KVM's steal time (Linux
    /// `Documentation/virt/kvm/x86/msr.rst`, `MSR_KVM_STEAL_TIME`), in ticks.
    #[must_use]
    pub const fn stolen(&self) -> u64 {
        self.ready
    }

    /// The sum of all: `since - begun`.
    #[must_use]
    pub const fn elapsed(&self) -> u64 {
        self.blocked.wrapping_add(self.ready).wrapping_add(self.running)
    }
}

impl VcpuAccount {
    /// An account that begins at `now`.
    #[must_use]
    pub fn new(now: u64, activity: Activity) -> Self {
        Self {
            sequence: AtomicU32::new(0),
            activity: AtomicU32::new(activity as u32),
            since: AtomicU64::new(now),
            spent: array::from_fn(|_| AtomicU64::new(0)),
            counters: array::from_fn(|_| Counter::new()),
            begun: now,
        }
    }

    /// The vCPU does something else from `now` on. What it did until now is charged with the time since the last change.
    ///
    /// For the account's writer.
    pub fn change(&self, now: u64, to: Activity) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees a word that is written below sees the odd count.
        fence(Ordering::Release);
        let since = self.since.load(Ordering::Relaxed);
        let span = now.saturating_sub(since);
        let spent = &self.spent[Activity::of(self.activity.load(Ordering::Relaxed)) as usize];
        add(spent, span, Ordering::Relaxed);
        self.since.store(since.wrapping_add(span), Ordering::Relaxed);
        self.activity.store(to as u32, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// What the vCPU is doing. One load: for the writer, to whom it is exact.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity::of(self.activity.load(Ordering::Relaxed))
    }

    /// Its times, all of one moment; [`VcpuTimes::at`] brings them up to now. From any CPU. `None` where the writer
    /// stands still amid a write, as on a CPU that has crashed.
    #[must_use]
    pub fn times(&self) -> Option<VcpuTimes> {
        for _ in 0..ATTEMPTS {
            if let Some(times) = self.attempt() {
                return Some(times);
            }
            spin_loop();
        }
        None
    }

    /// Reads once; `None` where it was written meanwhile.
    fn attempt(&self) -> Option<VcpuTimes> {
        let before = self.sequence.load(Ordering::Acquire);
        let [blocked, ready, running] = [0, 1, 2].map(|i: usize| self.spent[i].load(Ordering::Relaxed));
        let activity = self.activity();
        let since = self.since.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let unchanged = before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before;
        unchanged.then_some(VcpuTimes { begun: self.begun, activity, since, blocked, ready, running })
    }

    /// Exits of a class, with the ticks from the exit until the guest was entered again or lost its CPU.
    #[must_use]
    pub fn exits(&self, class: ExitClass) -> Count {
        self.counter(Charge::exit(class)).read()
    }

    /// How often the vCPU was given a CPU, with the ticks from then until its guest was entered.
    #[must_use]
    pub fn turns(&self) -> Count {
        self.counter(Charge::TURN).read()
    }

    /// All exits together.
    #[must_use]
    pub fn all_exits(&self) -> Count {
        ExitClass::ALL.iter().fold(Count::default(), |sum, class| {
            let Count { count, ticks } = self.exits(*class);
            Count { count: sum.count.wrapping_add(count), ticks: sum.ticks.wrapping_add(ticks) }
        })
    }

    /// Once more, for so many ticks.
    #[inline]
    pub(crate) fn charge(&self, charge: Charge, ticks: u64) {
        self.counter(charge).charge(ticks);
    }

    #[inline]
    fn counter(&self, charge: Charge) -> &Counter {
        // No branch: there is a place for every value, so that none can be out of bounds.
        &self.counters[usize::from(charge.index()) % PLACES]
    }
}

/// The counter of turns.
pub(crate) const TURN: usize = ExitClass::COUNT;
/// Places for counters: a power of two, so that an index is kept in bounds by a mask.
const PLACES: usize = (TURN + 1).next_power_of_two();

/// Every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-accounts --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// A reader's sums fit together at every moment, or it is told that they would not.
    #[test]
    fn sums_are_of_one_moment() {
        loom::model(|| {
            let account = Arc::new(VcpuAccount::new(5, Activity::Ready));
            // The reader is the thread that comes second: loom remembers only the last access to a word, so that it would
            // overlook a reader that came before the writer's own loads.
            let reader = {
                let account = account.clone();
                thread::spawn(move || {
                    // One attempt: a reader that looks again is a reader that looks later.
                    let Some(times) = account.attempt() else { return };
                    assert_eq!(times.elapsed(), times.since - times.begun, "{times:?}");
                    let expected = match times.activity {
                        Activity::Ready => (0, 0),
                        Activity::Running => (2, 0),
                        Activity::Blocked => (2, 5),
                    };
                    assert_eq!((times.ready, times.running), expected);
                })
            };
            account.change(7, Activity::Running);
            account.change(12, Activity::Blocked);
            reader.join().unwrap();
            assert_eq!(account.times().unwrap().at(20).blocked, 8);
        });
    }
}
