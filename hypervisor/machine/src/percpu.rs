//! What belongs to one physical CPU. GS points to it: the first word is its own address, so that one load finds it.
//!
//! Private to the CPU: the exit history, which domain it ran last, and which locks it holds. Others see its number and its local APIC's id, and
//! write the pending word: bits first, then an interrupt ([`crate::ipi`]) that has the CPU look at them.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use caisson_locks::Held;
use caisson_smp::Pending;
use caisson_types::{DomainId, VcpuId};

use crate::acpi::MAX_CPUS;
use crate::cpu::tsc;

pub use caisson_smp::pending;

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

/// A physical CPU's data.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Its own address: what [`current`] loads.
    this: AtomicPtr<Self>,
    /// Its number among the CPUs in use; the boot CPU's is 0.
    index: u32,
    /// The domain whose vCPU ran here last, or [`NO_DOMAIN`].
    domain: AtomicU32,
    /// Exits so far.
    count: AtomicUsize,
    /// The TSC at the last one.
    exited: AtomicU64,
    exits: [Slot; KEPT_EXITS],
    /// The locks that it holds.
    held: Held,
    /// Vectors of functions' interrupts that have arrived.
    functions: [AtomicU64; 4],
    remote: Remote,
}

/// What other CPUs read and write, on a cache line of its own.
#[repr(align(64))]
struct Remote {
    pending: Pending,
    /// Its local APIC's id.
    apic_id: AtomicU32,
}

/// What no [`DomainId`] is.
const NO_DOMAIN: u32 = u32::MAX;

impl PerCpu {
    const fn new(index: u32, apic_id: u32) -> Self {
        Self {
            this: AtomicPtr::new(ptr::null_mut()),
            index,
            domain: AtomicU32::new(NO_DOMAIN),
            count: AtomicUsize::new(0),
            exited: AtomicU64::new(0),
            exits: [const { Slot { vcpu: AtomicU32::new(0), code: AtomicU64::new(0), rip: AtomicU64::new(0) } };
                KEPT_EXITS],
            held: Held::new(),
            functions: [const { AtomicU64::new(0) }; 4],
            remote: Remote { pending: Pending::new(), apic_id: AtomicU32::new(apic_id) },
        }
    }
}

/// The boot CPU's.
static BOOT_CPU: PerCpu = PerCpu::new(0, 0);
/// Those in use, by number: filled in order while the machine starts, and never taken back.
static ALL: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// This CPU's data.
#[inline]
#[must_use]
pub fn current() -> &'static PerCpu {
    #[cfg(target_os = "none")]
    {
        let this: *const PerCpu;
        // SAFETY: the entry code of each CPU has set GS to its data before anything else, by `load`; the first word is the
        // data's own address, which never changes, and the data is never freed.
        unsafe {
            core::arch::asm!("mov {}, gs:[0]", out(reg) this, options(pure, readonly, nostack, preserves_flags));
            &*this
        }
    }
    #[cfg(not(target_os = "none"))]
    &BOOT_CPU
}

/// Sets the boot CPU's data up: before traps are possible.
///
/// # Safety
/// Once, on the boot CPU.
pub unsafe fn init() {
    // SAFETY: promised by the caller.
    unsafe { load(&BOOT_CPU) };
    publish(&BOOT_CPU);
    // From here on the order of locks is checked.
    caisson_locks::find_held_by(|| &current().held);
}

/// Points GS of this CPU to its data.
///
/// # Safety
/// On the CPU that `cpu` is the data of, once, before anything there asks for it.
pub(crate) unsafe fn load(cpu: &'static PerCpu) {
    cpu.this.store(ptr::from_ref(cpu).cast_mut(), Ordering::Relaxed);
    // SAFETY: GS is Caisson's, and used for this alone.
    #[cfg(target_os = "none")]
    unsafe {
        crate::cpu::write_msr(caisson_x86::msr::GS_BASE, ptr::from_ref(cpu) as u64);
    }
}

/// Makes the data of the CPU that is started next, with the number after the last one in use.
pub(crate) fn create(apic_id: u32) -> &'static PerCpu {
    Box::leak(Box::new(PerCpu::new(count(), apic_id)))
}

/// The CPU is in use from now on.
pub(crate) fn publish(cpu: &'static PerCpu) {
    if let Some(place) = ALL.get(cpu.index as usize) {
        place.store(ptr::from_ref(cpu).cast_mut(), Ordering::Release);
        COUNT.store(cpu.index + 1, Ordering::Release);
    }
}

/// How many CPUs are in use.
#[inline]
#[must_use]
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// The data of the CPU with this number.
#[inline]
#[must_use]
pub fn get(index: u32) -> Option<&'static PerCpu> {
    let cpu = ALL.get(index as usize)?.load(Ordering::Acquire);
    // SAFETY: null, or data that lives for ever.
    unsafe { cpu.as_ref() }
}

/// The data of all CPUs in use.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(get)
}

impl PerCpu {
    /// The pending word.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> &Pending {
        &self.remote.pending
    }

    /// Its number among the CPUs in use; the boot CPU's is 0.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its local APIC's id.
    #[inline]
    #[must_use]
    pub fn apic_id(&self) -> u32 {
        self.remote.apic_id.load(Ordering::Relaxed)
    }

    /// Sets what [`PerCpu::apic_id`] tells, once the boot CPU can ask its local APIC.
    pub(crate) fn set_apic_id(&self, id: u32) {
        self.remote.apic_id.store(id, Ordering::Relaxed);
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

    /// An interrupt of a function's has arrived with `vector`. For the CPU itself.
    pub(crate) fn note_function(&self, vector: u8) {
        self.functions[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Relaxed);
    }

    /// Takes the vectors of functions' interrupts that have arrived since the last time, the most urgent first, and ends each
    /// after `each` has had it. For the CPU itself.
    pub fn take_functions(&self, mut each: impl FnMut(u8)) {
        for (index, word) in [3, 2, 1, 0].into_iter().zip(self.functions.iter().rev()) {
            let mut word = word.swap(0, Ordering::Relaxed);
            while word != 0 {
                let bit = 63 - word.leading_zeros() as u8;
                each(index * 64 + bit);
                // The most urgent in service is what this ends.
                crate::apic::end_of_interrupt();
                word &= !(1 << bit);
            }
        }
    }

    /// Keeps an exit in place of the oldest, and the time. For the CPU itself, right after each exit.
    #[inline]
    pub fn record_exit(&self, vcpu: VcpuId, code: u64, rip: u64) {
        self.set_exited(tsc());
        let count = self.count.load(Ordering::Relaxed);
        let slot = &self.exits[count % KEPT_EXITS];
        slot.vcpu.store(u32::from(vcpu.domain.0) | u32::from(vcpu.index) << 16, Ordering::Relaxed);
        slot.code.store(code, Ordering::Relaxed);
        slot.rip.store(rip, Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// The TSC at the last exit, or what [`PerCpu::set_exited`] has said since. For the CPU itself.
    #[inline]
    #[must_use]
    pub fn exited(&self) -> u64 {
        self.exited.load(Ordering::Relaxed)
    }

    /// The CPU is outside of guests since `now`: where that is not an exit's doing.
    #[inline]
    pub fn set_exited(&self, now: u64) {
        self.exited.store(now, Ordering::Relaxed);
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
                    vcpu: VcpuId { domain: DomainId(vcpu as u16), index: (vcpu >> 16) as u16 },
                    code: slot.code.load(Ordering::Relaxed),
                    rip: slot.rip.load(Ordering::Relaxed),
                }
            })
            .collect()
    }
}
