//! Shooting down what CPUs have cached of a domain's second-stage tables.
//!
//! Whoever changes an entry that a guest may have used calls [`shoot_down`] before it relies on the change: before it
//! frees the frame, or reads the dirty bits that it has cleared. Each vCPU is left a letter that has it flush before its
//! next entry; then each CPU that holds one of the vCPUs is called ([`Calls`](crate::Calls)), and with that is out of its
//! guest and looks at the letters before it enters one again. When all have answered, no vCPU can use an old
//! translation:
//!
//! - one that was in its guest has left it, and flushes on its way back;
//! - one that a CPU takes up meanwhile is held by it before its mail is looked at. Letter and look, hold and call have a
//!   fence between them on either side: the CPU finds the letter, or is called;
//! - one that nobody runs flushes when it is run. What CPUs still have cached of it is under its own address-space id, and
//!   used by nobody else.
//!
//! Entering a guest costs nothing for it. The caller holds no lock that another CPU may wait for.

use crate::sync::{Ordering, fence};

/// A domain whose vCPUs may have translations cached.
pub trait Cached {
    /// Leaves each vCPU the letter that has it flush before its next entry, and wakes those for whom it was the first.
    fn post_flush(&self);
    /// Whether `cpu` holds one of the vCPUs ([`Place::holder`](crate::Place::holder)).
    fn is_held_by(&self, cpu: u32) -> bool;
}

/// Returns when no vCPU of `domain` uses a translation that was cached before. `call` has the CPUs for which it is given
/// `true` leave their guests, and returns when they have; the calling CPU, which is in no guest, does not count.
pub fn shoot_down<D: Cached>(domain: &D, call: impl FnOnce(&dyn Fn(u32) -> bool)) {
    domain.post_flush();
    fence(Ordering::SeqCst);
    call(&|cpu| domain.is_held_by(cpu));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::vec::Vec;

    use super::*;

    /// CPUs of fake hardware, by the vCPU that each holds, and what each vCPU has cached where.
    struct Fake {
        holds: Vec<Option<usize>>,
        letters: Vec<Cell<bool>>,
        steps: RefCell<Vec<(&'static str, usize)>>,
    }

    impl Cached for Fake {
        fn post_flush(&self) {
            for (vcpu, letter) in self.letters.iter().enumerate() {
                letter.set(true);
                self.steps.borrow_mut().push(("letter", vcpu));
            }
        }

        fn is_held_by(&self, cpu: u32) -> bool {
            self.holds[cpu as usize].is_some()
        }
    }

    #[test]
    fn all_have_letters_and_only_cpus_that_hold_one_are_called() {
        let fake = Fake {
            holds: [None, Some(2), None, Some(0)].to_vec(),
            letters: (0..3).map(|_| Cell::new(false)).collect(),
            steps: RefCell::new(Vec::new()),
        };
        shoot_down(&fake, |wanted| {
            for cpu in (0..4).filter(|&cpu| wanted(cpu)) {
                // On its way back to the guest it finds the letter.
                assert!(fake.letters[fake.holds[cpu as usize].unwrap()].get());
                fake.steps.borrow_mut().push(("call", cpu as usize));
            }
        });
        let expected = [("letter", 0), ("letter", 1), ("letter", 2), ("call", 1), ("call", 3)];
        assert_eq!(*fake.steps.borrow(), expected);
    }
}
