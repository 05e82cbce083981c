//! A call to other CPUs: the caller goes on when all have made it.
//!
//! One call is under way at a time. Who waits for its turn answers the call under way, so that two CPUs that call each
//! other both get done. Who is called answers between a guest's exit and the next entry, or where it idles. So a caller
//! must hold no lock that another CPU may wait for: its own lock has the first rank of all, so that holding any is found out.

use crate::pending::{self, Pending};
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, Rank, constructor, spin_loop};

/// A CPU that can be called.
pub trait Callee {
    /// Its pending word.
    fn pending(&self) -> &Pending;
    /// Ends its guest's run or its sleep, so that it looks at the word.
    fn interrupt(&self);
}

/// The call under way, if there is one: what `T` says is to be done.
pub struct Calls<T> {
    what: Mutex<Option<T>>,
    /// CPUs that have yet to do it.
    left: AtomicU32,
    /// Somebody calls.
    busy: AtomicBool,
}

impl<T: Copy> Calls<T> {
    constructor! {
        /// No call.
        pub fn new() -> Self {
            Self { what: Mutex::new(Rank::Call, None), left: AtomicU32::new(0), busy: AtomicBool::new(false) }
        }
    }

    /// Has each of `others` do `what`, and returns when all have: each has then been out of its guest since this was
    /// called, and sees what was stored before. `me` is the caller's own word, and `run` does what another one wants of it
    /// meanwhile.
    pub fn call<C: Callee>(
        &self,
        what: T,
        me: &Pending,
        others: impl Iterator<Item = C>,
        mut run: impl FnMut(T),
    ) {
        while self.busy.swap(true, Ordering::AcqRel) {
            self.serve(me, &mut run);
            spin_loop();
        }
        *self.what.lock() = Some(what);
        // One more than there are, so that it is not 0 before all are called.
        self.left.store(1, Ordering::Relaxed);
        for other in others {
            self.left.fetch_add(1, Ordering::Relaxed);
            // The bit may be set already, by no one: its interrupt is never left to somebody else.
            let _ = other.pending().set(pending::CALL);
            other.interrupt();
        }
        self.left.fetch_sub(1, Ordering::AcqRel);
        while self.left.load(Ordering::Acquire) != 0 {
            spin_loop();
        }
        *self.what.lock() = None;
        self.busy.store(false, Ordering::Release);
    }

    /// Does what another CPU wants of this one, if one does.
    pub fn serve(&self, me: &Pending, run: impl FnOnce(T)) {
        if me.look() & pending::CALL == 0 || me.take(pending::CALL) == 0 {
            return;
        }
        let what = *self.what.lock();
        if let Some(what) = what {
            run(what);
            self.left.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl<T: Copy> Default for Calls<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    struct Cpu {
        pending: Pending,
        made: [AtomicUsize; 3],
    }

    impl Callee for &Cpu {
        fn pending(&self) -> &Pending {
            &self.pending
        }

        fn interrupt(&self) {}
    }

    /// Three CPUs call each other without end: every call ends, and is made by each other CPU exactly once before it does.
    #[test]
    fn calls_across_each_other_end_and_are_made_once() {
        const ROUNDS: usize = 8;
        let cpus =
            [(); 3].map(|()| Cpu { pending: Pending::new(), made: [const { AtomicUsize::new(0) }; 3] });
        let calls = Calls::new();
        let finished = AtomicUsize::new(0);
        thread::scope(|scope| {
            for me in 0..cpus.len() {
                let (cpus, calls, finished) = (&cpus, &calls, &finished);
                scope.spawn(move || {
                    let this = &cpus[me];
                    let note = |caller: usize| {
                        thread::yield_now();
                        this.made[caller].fetch_add(1, Ordering::Relaxed);
                    };
                    let others =
                        || cpus.iter().enumerate().filter(move |&(cpu, _)| cpu != me).map(|(_, cpu)| cpu);
                    for round in 1..=ROUNDS {
                        calls.call(me, &this.pending, others(), note);
                        assert!(others().all(|cpu| cpu.made[me].load(Ordering::Relaxed) == round));
                    }
                    finished.fetch_add(1, Ordering::Relaxed);
                    while finished.load(Ordering::Relaxed) < cpus.len() {
                        calls.serve(&this.pending, note);
                        thread::yield_now();
                    }
                });
            }
        });
        for (me, cpu) in cpus.iter().enumerate() {
            let made: [usize; 3] = core::array::from_fn(|caller| cpu.made[caller].load(Ordering::Relaxed));
            assert_eq!(made, core::array::from_fn(|caller| if caller == me { 0 } else { ROUNDS }));
        }
    }
}
