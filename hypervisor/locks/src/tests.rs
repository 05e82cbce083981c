//! The check, on threads in place of CPUs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::{String, ToString};
use std::sync::Arc;
use std::thread;

use crate::{Mutex, Rank, lock_two};

/// What `work` panics with, on a thread of its own; `None` where it does not.
fn complaint(work: impl FnOnce() + Send) -> Option<String> {
    thread::scope(|scope| {
        let run = || {
            let panic = catch_unwind(AssertUnwindSafe(work)).err()?;
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
        };
        scope.spawn(run).join().unwrap()
    })
}

fn lock(rank: Rank) -> Mutex<u32> {
    Mutex::new(rank, 7)
}

#[test]
fn every_rank_is_taken_inside_all_before_it_and_no_other() {
    for &outer in Rank::ALL {
        for &inner in Rank::ALL {
            let said = complaint(|| {
                let (outer, inner) = (lock(outer), lock(inner));
                let held = outer.lock();
                assert_eq!(*inner.lock() + *held, 14);
            });
            assert_eq!(said.is_some(), inner <= outer, "{inner:?} inside {outer:?}: {said:?}");
        }
    }
}

#[test]
fn the_complaint_names_both_ranks_and_both_places() {
    let line = line!() + 3;
    let said = complaint(|| {
        let (queue, guest) = (lock(Rank::Queue), lock(Rank::Guest));
        let _held = queue.lock();
        let _ = guest.lock();
    });
    let said = said.unwrap();
    assert!(said.contains("Guest is taken at ") && said.contains("while Queue is held since "), "{said}");
    assert!(said.contains(&std::format!("tests.rs:{line}:")), "{said}");
    assert!(said.contains(&std::format!("tests.rs:{}:", line + 1)), "{said}");
}

#[test]
fn guards_end_in_any_order_and_what_is_given_up_counts_no_more() {
    let (guest, queue, heap) = (lock(Rank::Guest), lock(Rank::Queue), lock(Rank::Heap));
    for _ in 0..100 {
        let (a, b) = (guest.lock(), queue.lock());
        drop(a);
        let c = heap.lock();
        drop(b);
        drop(c);
        assert!(!std::format!("{:?}", guest.lock()).is_empty());
    }
    assert!(
        complaint(|| {
            let (a, b) = (queue.lock(), heap.lock());
            drop(b);
            let _ = guest.lock();
            drop(a);
        })
        .is_some(),
        "the outer one is still held"
    );
}

#[test]
fn trying_is_free_and_counts() {
    let said = complaint(|| {
        let (heap, queue, guest) = (lock(Rank::Heap), lock(Rank::Queue), lock(Rank::Guest));
        let _heap = heap.lock();
        let tried = queue.try_lock().unwrap();
        assert!(queue.try_lock().is_none());
        drop(_heap);
        assert_eq!(*tried, 7);
        let _ = guest.lock();
    });
    assert!(said.unwrap().contains("Guest is taken"), "what was tried is held");
}

#[test]
fn two_of_one_rank_are_taken_together_or_not_at_all() {
    let queues = Arc::new([Mutex::new(Rank::Queue, 0_i64), Mutex::new(Rank::Queue, 1000)]);
    thread::scope(|scope| {
        for swap in [false, true] {
            let queues = queues.clone();
            scope.spawn(move || {
                let [one, other] = &*queues;
                for _ in 0..500 {
                    let (mut a, mut b) = if swap { lock_two(one, other) } else { lock_two(other, one) };
                    *a += 1;
                    *b -= 1;
                }
            });
        }
    });
    let (one, other) = lock_two(&queues[0], &queues[1]);
    assert_eq!([*one, *other], [0, 1000]);
    drop((one, other));
    assert!(complaint(|| drop(lock_two(&queues[0], &queues[0]))).unwrap().contains("same lock twice"));
    let third = Mutex::new(Rank::Queue, 0);
    let said = complaint(|| {
        let _one = third.lock();
        let _two = lock_two(&queues[0], &queues[1]);
    });
    assert!(said.unwrap().contains("Queue is taken"), "a third one is none of the two");
}

#[test]
fn threads_hold_their_own() {
    let heap = lock(Rank::Heap);
    let _held = heap.lock();
    assert_eq!(complaint(|| drop(lock(Rank::Call).lock())), None);
}
