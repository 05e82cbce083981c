//! Application processors: the code that they start with, and what each is told.

use core::sync::atomic::{AtomicU64, Ordering};

/// Where the start-up IPI can send a CPU: pages below this address (SDM vol. 3, section 11.4.4.1, the vector names one).
pub const TRAMPOLINE_END: u64 = 0xa_0000;

/// What `ap.S` takes over: page-table root, stack, argument, function. One CPU starts at a time.
// SAFETY: no other symbol has this name; `ap.S` reads four words from it.
#[unsafe(no_mangle)]
static ap_start_block: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// What the next CPU to start is told.
#[derive(Clone, Copy, Debug)]
pub struct ApStart {
    /// Host-physical address of its page tables' root, below 4 GiB.
    pub root: u64,
    /// The end of its stack, 16-byte aligned.
    pub stack_top: u64,
    /// The argument of `entry`.
    pub argument: u64,
    /// Where it goes: never returns.
    pub entry: extern "C" fn(u64) -> !,
}

impl ApStart {
    /// Publishes it for the CPU that is started next.
    pub fn publish(&self) {
        let words = [self.root, self.stack_top, self.argument, self.entry as usize as u64];
        for (word, value) in ap_start_block.iter().zip(words) {
            word.store(value, Ordering::Release);
        }
    }
}

/// The code that is to be copied to a page below [`TRAMPOLINE_END`].
#[cfg(target_os = "none")]
#[must_use]
pub fn trampoline() -> &'static [u8] {
    unsafe extern "C" {
        static ap_trampoline_start: u8;
        static ap_trampoline_end: u8;
    }
    let (start, end) = (&raw const ap_trampoline_start, &raw const ap_trampoline_end);
    // SAFETY: `ap.S` puts the end behind the start, in the image's constants, which the boot tables map at their own
    // addresses.
    unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
}
