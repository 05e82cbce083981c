//! The hypervisor's leaves: KVM's interface at 40000000H (Linux `Documentation/virt/kvm/x86/cpuid.rst`), Caisson's own
//! at 40000100H.

use bitflags::bitflags;

use super::{CpuidResult, CpuidSetup};

/// Where the KVM interface starts.
pub const KVM_LEAF: u32 = 0x4000_0000;
/// The KVM interface's signature, in EBX, ECX, EDX.
pub const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// Where Caisson's own interface starts: signature, then features.
pub const CAISSON_LEAF: u32 = 0x4000_0100;
/// Caisson's signature, in EBX, ECX, EDX.
pub const CAISSON_SIGNATURE: [u8; 12] = *b"CaissonHV\0\0\0";
/// The version of Caisson's hypercall interface, in EAX of leaf 40000101H.
pub const ABI_VERSION: u32 = 1;

bitflags! {
    /// KVM's features, EAX of leaf 40000001H: those that Caisson has. Asynchronous page faults, halt polling control and
    /// the old clock MSRs are not among them: the first needs pages that come late, the second a host that polls, the
    /// third was replaced by [`Paravirt::CLOCKSOURCE2`]. No hint is given in EDX: `KVM_HINTS_REALTIME` would say that vCPUs
    /// are never preempted, and turn paravirtual spinlocks and TLB flushes off in the guest.
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
    pub struct Paravirt: u32 {
        /// No delay is needed between port accesses.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock, by MSRs 4B564D00H and 4B564D01H.
        const CLOCKSOURCE2 = 1 << 3;
        /// Stolen time, by MSR 4B564D03H.
        const STEAL_TIME = 1 << 5;
        /// End of interrupt without an exit, by MSR 4B564D04H.
        const PV_EOI = 1 << 6;
        /// Paravirtual spinlocks: a hypercall that ends another vCPU's HLT.
        const PV_UNHALT = 1 << 7;
        /// TLB flushes left for a vCPU that is not running; needs [`Paravirt::STEAL_TIME`].
        const PV_TLB_FLUSH = 1 << 9;
        /// The hypercall that sends one IPI to many vCPUs.
        const PV_SEND_IPI = 1 << 11;
        /// The hypercall that gives the CPU to a preempted vCPU.
        const PV_SCHED_YIELD = 1 << 13;
        /// The clock is the same on all vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}

impl Paravirt {
    /// A stable clock, PV EOI and no port delays: what every domain gets.
    pub const BASE: Self =
        Self::NOP_IO_DELAY.union(Self::CLOCKSOURCE2).union(Self::PV_EOI).union(Self::CLOCKSOURCE_STABLE);

    /// What only makes sense between vCPUs of one domain.
    const BETWEEN_VCPUS: Self =
        Self::PV_UNHALT.union(Self::PV_TLB_FLUSH).union(Self::PV_SEND_IPI).union(Self::PV_SCHED_YIELD);

    /// All that a domain of `vcpus` vCPUs has use for: with one there is nobody to send to or to wait for.
    ///
    /// The core must then call `VirtualCpu::scheduled_in` and `scheduled_out`, which keep the record of stolen time.
    #[must_use]
    pub const fn of(vcpus: usize) -> Self {
        let alone = Self::BASE.union(Self::STEAL_TIME);
        if vcpus > 1 { alone.union(Self::BETWEEN_VCPUS) } else { alone }
    }
}

fn signature(highest: u32, text: [u8; 12]) -> CpuidResult {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = text;
    CpuidResult::new(
        highest,
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
    )
}

/// The leaves and what they hold; all others of the range are zero.
pub(super) fn leaves(setup: &CpuidSetup) -> [(u32, CpuidResult); 5] {
    // The frequency leaf is VMware's; guests that know it under KVM's signature look at the highest leaf first.
    let timing = setup.tsc_khz != 0;
    let highest = if timing { KVM_LEAF + 0x10 } else { KVM_LEAF + 1 };
    let frequencies =
        if timing { CpuidResult::new(setup.tsc_khz, setup.apic_khz, 0, 0) } else { CpuidResult::ZERO };
    [
        (KVM_LEAF, signature(highest, KVM_SIGNATURE)),
        (KVM_LEAF + 1, CpuidResult::new(setup.paravirt.bits(), 0, 0, 0)),
        (KVM_LEAF + 0x10, frequencies),
        (CAISSON_LEAF, signature(CAISSON_LEAF + 1, CAISSON_SIGNATURE)),
        (CAISSON_LEAF + 1, CpuidResult::new(ABI_VERSION, 0, 0, 0)),
    ]
}
