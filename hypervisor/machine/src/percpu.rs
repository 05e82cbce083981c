//! What belongs to one physical CPU.
//!
//! The pending word is the only part that interrupt handlers, and later other CPUs, write.

use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;

/// A bit of the pending word.
pub mod pending {
    /// The one-shot timer ran out.
    pub const TIMER: u32 = 1 << 0;
    /// The serial line has input.
    pub const SERIAL: u32 = 1 << 1;
    /// An NMI arrived.
    pub const NMI: u32 = 1 << 2;
    /// A corrected machine check was seen.
    pub const MACHINE_CHECK: u32 = 1 << 3;
}

/// Raw exits that are kept for a crash record.
pub const KEPT_EXITS: usize = 16;

/// One line of the exit history.
#[derive(Clone, Copy, Default, Debug)]
pub struct KeptExit {
    /// The vendor's exit code.
    pub code: u64,
    /// The guest's RIP.
    pub rip: u64,
}

/// A physical CPU's data that others may touch.
pub struct PerCpu {
    pending: AtomicU32,
}

/// The boot CPU's.
static BOOT_CPU: PerCpu = PerCpu { pending: AtomicU32::new(0) };

/// This CPU's data.
#[inline]
#[must_use]
pub fn current() -> &'static PerCpu {
    &BOOT_CPU
}

impl PerCpu {
    /// Sets bits of the pending word.
    #[inline]
    pub fn set_pending(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::Release);
    }

    /// The pending word, one plain load: looked at just before a guest is entered.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
    }

    /// Takes the pending word, leaving 0.
    #[inline]
    #[must_use]
    pub fn take_pending(&self) -> u32 {
        self.pending.swap(0, Ordering::AcqRel)
    }
}

/// A ring of the last exits of this CPU.
pub struct ExitHistory {
    ring: [KeptExit; KEPT_EXITS],
    next: usize,
}

impl ExitHistory {
    /// An empty history.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: [KeptExit { code: 0, rip: 0 }; KEPT_EXITS], next: 0 }
    }

    /// Keeps an exit in place of the oldest.
    #[inline]
    pub fn record(&mut self, code: u64, rip: u64) {
        self.ring[self.next % KEPT_EXITS] = KeptExit { code, rip };
        self.next = self.next.wrapping_add(1);
    }

    /// The kept exits, oldest first.
    #[must_use]
    pub fn recent(&self) -> ArrayVec<KeptExit, KEPT_EXITS> {
        let kept = self.next.min(KEPT_EXITS);
        (0..kept).map(|i| self.ring[(self.next - kept + i) % KEPT_EXITS]).collect()
    }
}

impl Default for ExitHistory {
    fn default() -> Self {
        Self::new()
    }
}
