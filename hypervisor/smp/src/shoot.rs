//! Shooting down what CPUs have cached of a domain's second-stage tables.
//!
//! Whoever takes something away in the tables that a guest may have used calls [`shoot_down`] before it relies on that: before
//! it frees the frame, or reads the dirty bits that it has cleared. The domain counts its [`Changes`], and each vCPU remembers
//! the last one for which it has [`Seen`] to its translations; then each CPU that holds one of the vCPUs is called
//! ([`Calls`](crate::Calls)), and with that is out of its guest and catches up. When all have answered, no vCPU can use an old
//! translation:
//!
//! - one that was on a CPU has left its guest, and has flushed;
//! - one that a CPU takes up meanwhile is held by it before the count is looked at. Count and look at who holds, hold and look
//!   at the count have a fence between them on either side: the CPU finds the change, or is called;
//! - one that nobody runs flushes when it is run, and is not woken for it. What CPUs still have cached of it is under its own
//!   address-space id, and used by nobody else.
//!
//! Entering a guest costs nothing for it: the count is looked at when a CPU takes a vCPU up, and when it is called. The caller
//! holds no lock that another CPU may wait for.

use crate::sync::{AtomicU64, Ordering, constructor, fence};

/// How often a domain's tables have lost something that a CPU may have cached.
#[derive(Debug)]
pub struct Changes(AtomicU64);

/// The last of its domain's changes for which a vCPU has flushed. Written by the CPU that holds it.
#[derive(Debug)]
pub struct Seen(AtomicU64);

impl Changes {
    constructor! {
        /// None.
        pub fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Has a vCPU flush by `flush`, if there were changes since it did last. On the CPU that holds it, behind
    /// [`Place::hold`](crate::Place::hold), and before a call is answered.
    #[inline]
    pub fn catch_up(&self, seen: &Seen, flush: impl FnOnce()) {
        let changes = self.0.load(Ordering::Acquire);
        if seen.0.load(Ordering::Relaxed) != changes {
            flush();
            seen.0.store(changes, Ordering::Relaxed);
        }
    }
}

impl Seen {
    constructor! {
        /// Nothing is cached of a vCPU that has never run, or it has seen no change yet.
        pub fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns when no vCPU of the domain, whose tables have changed, uses a translation that was cached before. `is_held_by` tells
/// whether a CPU holds one of the vCPUs ([`Place::holder`](crate::Place::holder)). `call` has the CPUs for which it is given
/// `true` leave their guests and catch up, and returns when they have. The calling CPU is in no guest and not called: it catches
/// up by itself with what it holds.
pub fn shoot_down(
    changes: &Changes,
    is_held_by: impl Fn(u32) -> bool,
    call: impl FnOnce(&dyn Fn(u32) -> bool),
) {
    changes.0.fetch_add(1, Ordering::AcqRel);
    fence(Ordering::SeqCst);
    call(&is_held_by);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::vec::Vec;

    use super::*;
    use crate::sync::AtomicU32;
    use crate::{Callee, Calls, Pending, Place};

    #[test]
    fn only_cpus_that_hold_one_are_called_and_find_the_change() {
        let changes = Changes::new();
        let seen = [const { Seen::new() }; 3];
        let holds = [None, Some(2), None, Some(0)];
        let (called, flushed) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let catch_up = |vcpu: usize| changes.catch_up(&seen[vcpu], || flushed.borrow_mut().push(vcpu));
        for round in 1..3 {
            shoot_down(
                &changes,
                |cpu| holds[cpu as usize].is_some(),
                |wanted| {
                    for cpu in (0..4).filter(|&cpu| wanted(cpu)) {
                        called.borrow_mut().push(cpu);
                        catch_up(holds[cpu as usize].unwrap());
                    }
                },
            );
            assert_eq!(*called.borrow(), [1, 3].repeat(round));
            assert_eq!(*flushed.borrow(), [2, 0].repeat(round));
        }
        // The one that was on no CPU catches up with both at once, and nobody does so twice.
        (0..3).for_each(catch_up);
        (0..3).for_each(catch_up);
        assert_eq!(flushed.borrow()[4..], [1]);
    }

    /// CPUs that each run a vCPU of their own domain shoot at the next one's without end: none waits for ever, and each vCPU has
    /// flushed for every change before it counts.
    #[test]
    fn cpus_that_shoot_at_each_other_all_get_done() {
        struct Cpu {
            pending: Pending,
            changes: Changes,
            seen: Seen,
            place: Place,
            flushes: AtomicU32,
        }
        impl Callee for &Cpu {
            fn pending(&self) -> &Pending {
                &self.pending
            }
            fn interrupt(&self) {}
        }
        const ROUNDS: u32 = 8;
        let cpu = |cpu| Cpu {
            pending: Pending::new(),
            changes: Changes::new(),
            seen: Seen::new(),
            place: Place::new(cpu),
            flushes: AtomicU32::new(0),
        };
        let cpus = [cpu(0), cpu(1), cpu(2)];
        let (calls, done) = (Calls::new(), AtomicU32::new(0));
        let settle = |this: &Cpu| {
            this.changes.catch_up(&this.seen, || _ = this.flushes.fetch_add(1, Ordering::Relaxed));
        };
        cpus.iter().zip(0..).for_each(|(cpu, index)| cpu.place.hold(index));
        std::thread::scope(|scope| {
            for me in 0..cpus.len() {
                let (cpus, calls, done, settle) = (&cpus, &calls, &done, &settle);
                scope.spawn(move || {
                    let (this, next) = (&cpus[me], &cpus[(me + 1) % cpus.len()]);
                    for round in 1..=ROUNDS {
                        let held = |cpu| next.place.holder() == Some(cpu);
                        shoot_down(&next.changes, held, |wanted| {
                            let others =
                                (0..).zip(cpus).filter(|&(cpu, _)| cpu as usize != me && wanted(cpu));
                            calls.call((), &this.pending, others.map(|(_, cpu)| cpu), |()| settle(this));
                        });
                        assert_eq!(next.flushes.load(Ordering::Relaxed), round);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    while done.load(Ordering::Relaxed) < cpus.len() as u32 {
                        calls.serve(&this.pending, |()| settle(this));
                        std::thread::yield_now();
                    }
                });
            }
        });
    }

    #[test]
    fn a_change_while_one_flushes_is_not_lost() {
        let (changes, seen, flushes) = (Changes::new(), Seen::new(), Cell::new(0));
        let change = || shoot_down(&changes, |_| false, |_| {});
        change();
        changes.catch_up(&seen, || {
            flushes.set(flushes.get() + 1);
            change();
        });
        changes.catch_up(&seen, || flushes.set(flushes.get() + 1));
        changes.catch_up(&seen, || flushes.set(flushes.get() + 1));
        assert_eq!(flushes.get(), 2);
    }
}
