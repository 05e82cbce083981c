//! Crashes on demand: the boot word `crash=panic|fault|stack` has Caisson fail once its first guest has run, so that
//! whoever depends on crash records, a test or the owner of a machine, can see that they arrive.

use core::hint::black_box;

use caisson_boot::BootInfo;

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
}

impl Drill {
    /// What the boot words ask for.
    pub(crate) fn of(info: &BootInfo) -> Option<Self> {
        match info.option("crash")? {
            "panic" => Some(Self::Panic),
            "fault" => Some(Self::Fault),
            "stack" => Some(Self::Stack),
            other => {
                log::warn!("crash={other}: there are panic, fault and stack");
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
        }
    }
}

/// Calls itself until the stack is used up.
#[inline(never)]
#[allow(unconditional_recursion)]
fn descend(depth: u64) -> u64 {
    black_box(descend(black_box(depth) + 1)) + depth
}
