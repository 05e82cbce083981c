//! What guests and Caisson say to each other.
//!
//! A hypercall is `VMMCALL` (AMD) or `VMCALL` (Intel) in ring 0, its number in RAX, arguments in RBX, RCX, RDX and RSI, its
//! answer in RAX: the registers of KVM's hypercalls (Linux `Documentation/virt/kvm/x86/hypercalls.rst`). Numbers below
//! [`hypercall::FIRST`] are KVM's; a call that does not exist answers -1000, one from user mode -1, as KVM does.

#![no_std]
#![forbid(unsafe_code)]

/// The version of this interface; CPUID leaf 0x40000101 EAX tells it as well.
pub const VERSION: u64 = 1;

/// Hypercall numbers.
pub mod hypercall {
    /// The first of Caisson's own: `CAIS` in ASCII, above all of KVM's.
    pub const FIRST: u64 = 0x4341_4953_0000_0000;
    /// Answers [`super::VERSION`]. No arguments.
    pub const VERSION: u64 = FIRST;
}
