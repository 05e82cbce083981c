//! What guests and Caisson say to each other.
//!
//! A hypercall is `VMMCALL` (AMD) or `VMCALL` (Intel) in ring 0, its number in RAX, arguments in RBX, RCX, RDX and RSI, its
//! answer in RAX: the registers of KVM's hypercalls (Linux `Documentation/virt/kvm/x86/hypercalls.rst`). Outside of 64-bit
//! mode they are EAX to ESI. Numbers below [`hypercall::FIRST`] are KVM's ([`kvm`]). A call that does not exist, or that
//! CPUID does not announce, answers [`answer::NO_SUCH_CALL`]; one from user mode [`answer::NOT_PERMITTED`], as KVM does.

#![no_std]
#![forbid(unsafe_code)]

/// The version of this interface; CPUID leaf 0x40000101 EAX tells it as well.
pub const VERSION: u64 = 1;

/// Hypercall numbers.
pub mod hypercall {
    /// The first of Caisson's own: `CAIS` in ASCII, above all of KVM's.
    pub const FIRST: u64 = 0x4341_4953_0000_0000;
    /// Answers [`super::VERSION`]. No arguments. From 64-bit mode only: its number has 63 bits.
    pub const VERSION: u64 = FIRST;
}

/// Those of KVM's hypercalls that Caisson has.
pub mod kvm {
    /// `KVM_HC_KICK_CPU`, with CPUID's PV_UNHALT: ends the HLT of the vCPU with the APIC id in the second argument (the
    /// first is 0), or else its next one. Answers 0, also where there is no such vCPU.
    pub const KICK_CPU: u64 = 5;
    /// `KVM_HC_SEND_IPI`, with CPUID's PV_SEND_IPI: sends an IPI to the vCPUs of a bitmap. The first two arguments are
    /// the bitmap's low and high words, of 64 bits each in 64-bit mode and of 32 otherwise; the third is the APIC id that
    /// bit 0 stands for; the fourth is the low word of an ICR without shorthand and logical destination. Answers how many
    /// vCPUs the IPI was delivered to.
    pub const SEND_IPI: u64 = 10;
    /// `KVM_HC_SCHED_YIELD`, with CPUID's PV_SCHED_YIELD: gives the CPU up in favour of the vCPU with the APIC id in the
    /// first argument. Answers 0, also where there is no such vCPU.
    pub const SCHED_YIELD: u64 = 11;
}

/// Answers that say no.
pub mod answer {
    /// `-EPERM`: the call comes from user mode.
    pub const NOT_PERMITTED: u64 = -1_i64 as u64;
    /// `-EINVAL`: an argument is out of range.
    pub const INVALID: u64 = -22_i64 as u64;
    /// `-KVM_ENOSYS`: there is no such call.
    pub const NO_SUCH_CALL: u64 = -1000_i64 as u64;
}
