//! What belongs to one physical CPU.
//!
//! The pending word is the only part that interrupt handlers, and later other CPUs, write.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use caisson_types::{DomainId, VcpuId};

/// A bit of the pending word.
pub mod pending {
    /// The one-shot timer ran out.
    pub const TIMER: u32 = 1 << 0;
    /// The serial line has input, or room for output.
    pub const SERIAL: u32 = 1 << 1;
    /// An NMI arrived.
    pub const NMI: u32 = 1 << 2;
}

/// Raw exits that are kept for a crash record.
pub const KEPT_EXITS: usize = 16;

/// One line of the exit history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptExit {
    /// Whose exit it was.
    pub vcpu: VcpuId,
    /// The vendor's exit code.
    pub code: u64,
    /// The guest's RIP.
    pub rip: u64,
}

/// One place of the ring. Written by its CPU alone, word by word: a crash record that reads it half-written shows a
/// wrong line and no more.
struct Slot {
    vcpu: AtomicU32,
    code: AtomicU64,
    rip: AtomicU64,
}

/// A physical CPU's data that others may touch.
pub struct PerCpu {
    pending: AtomicU32,
    exits: [Slot; KEPT_EXITS],
    /// Exits so far.
    count: AtomicUsize,
    /// Its number among the CPUs in use; the boot CPU's is 0.
    index: u32,
    /// The domain whose vCPU ran here last, or [`NO_DOMAIN`].
    domain: AtomicU32,
}

/// What no [`DomainId`] is.
const NO_DOMAIN: u32 = u32::MAX;

/// The boot CPU's.
static BOOT_CPU: PerCpu = PerCpu {
    pending: AtomicU32::new(0),
    exits: [const { Slot { vcpu: AtomicU32::new(0), code: AtomicU64::new(0), rip: AtomicU64::new(0) } };
        KEPT_EXITS],
    count: AtomicUsize::new(0),
    index: 0,
    domain: AtomicU32::new(NO_DOMAIN),
};

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

    /// Its number among the CPUs in use; the boot CPU's is 0.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// A vCPU of `domain` is about to run here: whether the last one was another domain's, or there was none. For the CPU
    /// itself.
    #[inline]
    #[must_use]
    pub fn begin_domain(&self, domain: DomainId) -> bool {
        let domain = u32::from(domain.0);
        let before = self.domain.load(Ordering::Relaxed);
        self.domain.store(domain, Ordering::Relaxed);
        before != domain
    }

    /// Keeps an exit in place of the oldest. For the CPU itself.
    #[inline]
    pub fn record_exit(&self, vcpu: VcpuId, code: u64, rip: u64) {
        let count = self.count.load(Ordering::Relaxed);
        let slot = &self.exits[count % KEPT_EXITS];
        slot.vcpu.store(u32::from(vcpu.domain.0) << 16 | u32::from(vcpu.index), Ordering::Relaxed);
        slot.code.store(code, Ordering::Relaxed);
        slot.rip.store(rip, Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// The kept exits, oldest first.
    #[must_use]
    pub fn recent_exits(&self) -> ArrayVec<KeptExit, KEPT_EXITS> {
        let count = self.count.load(Ordering::Relaxed);
        let kept = count.min(KEPT_EXITS);
        (count - kept..count)
            .map(|at| {
                let slot = &self.exits[at % KEPT_EXITS];
                let vcpu = slot.vcpu.load(Ordering::Relaxed);
                KeptExit {
                    vcpu: VcpuId { domain: DomainId((vcpu >> 16) as u16), index: vcpu as u16 },
                    code: slot.code.load(Ordering::Relaxed),
                    rip: slot.rip.load(Ordering::Relaxed),
                }
            })
            .collect()
    }
}
