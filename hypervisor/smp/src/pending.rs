//! A CPU's pending word: what others, and its own interrupt handlers, want it to look at.
//!
//! A bit is set first, then the CPU is interrupted. The interrupt ends a guest's run or a sleep; while the CPU is in
//! Caisson, with interrupts off, it stays pending, and the word is looked at just before the next guest or sleep. So:
//!
//! - a bit that is set before the CPU's last look is seen by it;
//! - one that is set later has its interrupt sent later, which ends the guest's run or the sleep at once.
//!
//! Who finds its bits set already need not interrupt: they have not been taken since whoever set them, who has
//! interrupted or is about to. A CPU that sets bits of its own word without an interrupt must therefore look at it before
//! it enters a guest or sleeps, and does: that look is the last thing before either.

use crate::sync::{AtomicU32, Ordering, constructor};

/// The one-shot timer ran out.
pub const TIMER: u32 = 1 << 0;
/// The serial line has input, or room for output; or there is output for it.
pub const SERIAL: u32 = 1 << 1;
/// An NMI arrived.
pub const NMI: u32 = 1 << 2;
/// Another CPU has changed what this one should run.
pub const RESCHEDULE: u32 = 1 << 3;
/// Another CPU has left mail for what this one runs.
pub const MAIL: u32 = 1 << 4;
/// Another CPU waits for [`Calls::serve`](crate::Calls::serve).
pub const CALL: u32 = 1 << 5;
/// Interrupts of functions that guests own have arrived.
pub const FUNCTIONS: u32 = 1 << 6;
/// An IOMMU has stopped a device.
pub const DMA_FAULT: u32 = 1 << 7;

/// The pending word of one CPU.
#[derive(Debug)]
pub struct Pending(AtomicU32);

impl Pending {
    constructor! {
        /// An empty one.
        pub fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Sets bits. Whether all of them were set before.
    #[inline]
    pub fn set(&self, bits: u32) -> bool {
        self.0.fetch_or(bits, Ordering::AcqRel) & bits == bits
    }

    /// Sets bits of another CPU's word, and has it look: one interrupt is enough for all that are set before it does.
    #[inline]
    pub fn poke(&self, bits: u32, interrupt: impl FnOnce()) {
        if !self.set(bits) {
            interrupt();
        }
    }

    /// The word, by one plain load.
    #[inline]
    #[must_use]
    pub fn look(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Takes the word, leaving 0.
    #[inline]
    #[must_use]
    pub fn take_all(&self) -> u32 {
        self.0.swap(0, Ordering::AcqRel)
    }

    /// Takes some bits; which of them were set.
    #[inline]
    #[must_use]
    pub fn take(&self, bits: u32) -> u32 {
        self.0.fetch_and(!bits, Ordering::AcqRel) & bits
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_interrupt_is_sent_for_a_bit_until_it_is_taken() {
        let pending = Pending::new();
        let mut sent = 0;
        pending.poke(MAIL, || sent += 1);
        pending.poke(MAIL, || sent += 1);
        assert_eq!(sent, 1);
        pending.poke(MAIL | RESCHEDULE, || sent += 1);
        assert_eq!((sent, pending.look()), (2, MAIL | RESCHEDULE));
        assert_eq!(pending.take(MAIL | CALL), MAIL);
        pending.poke(MAIL, || sent += 1);
        assert_eq!((sent, pending.take_all(), pending.look()), (3, MAIL | RESCHEDULE, 0));
    }
}
