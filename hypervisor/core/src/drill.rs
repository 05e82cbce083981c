//! Crashes on demand: the boot word `crash=panic|fault|stack|locks` has Caisson fail once its first guest has run, so that
//! whoever depends on crash records, a test or the owner of a machine, can see that they arrive.

use core::hint::black_box;

use caisson_boot::BootInfo;
use caisson_locks::{Mutex, Rank};

/// An address that Caisson's page tables never map: the first page is left out.
const UNMAPPED: *const u64 = 0x18 as *const u64;

/// How to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Drill {
    /// A panic.
    Panic,
    /// A page fault.
    Fault,
    /// The stack runs into its guard page, which is a double fault.
    Stack,
    /// Two locks are taken in the wrong order, which images with debug assertions find.
    Locks,
}

impl Drill {
    /// What the boot words ask for.
    pub(crate) fn of(info: &BootInfo) -> Option<Self> {
        match info.option("crash")? {
            "panic" => Some(Self::Panic),
            "fault" => Some(Self::Fault),
            "stack" => Some(Self::Stack),
            "locks" if cfg!(debug_assertions) => Some(Self::Locks),
            "locks" => {
                log::warn!(
                    "crash=locks: this image does not check the order of locks: build it with --profile checked"
                );
                None
            }
            other => {
                log::warn!("crash={other}: there are panic, fault, stack and locks");
                None
            }
        }
    }

    /// Fails.
    #[inline(never)]
    #[allow(clippy::panic, unsafe_code)]
    pub(crate) fn crash(self) {
        match self {
            Self::Panic => panic!("asked for by the boot word crash=panic"),
            Self::Fault => {
                // SAFETY: nothing lies there: the read faults, and the fault does not return.
                black_box(unsafe { UNMAPPED.read_volatile() });
            }
            Self::Stack => {
                black_box(descend(0));
            }
            Self::Locks => take_out_of_order(&Mutex::new(Rank::Queue, ()), &Mutex::new(Rank::Guest, ())),
        }
    }
}

/// Takes the lock of a guest's record inside that of a run queue: the check is to say so.
#[inline(never)]
fn take_out_of_order(queue: &Mutex<()>, guest: &Mutex<()>) {
    let queue = queue.lock();
    black_box(guest.lock());
    drop(queue);
}

/// Calls itself until the stack is used up.
#[inline(never)]
#[allow(unconditional_recursion)]
fn descend(depth: u64) -> u64 {
    black_box(descend(black_box(depth) + 1)) + depth
}
