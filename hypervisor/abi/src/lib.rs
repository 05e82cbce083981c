//! What guests and Caisson say to each other.
//!
//! A hypercall is `VMMCALL` (AMD) or `VMCALL` (Intel) in ring 0, its number in RAX, arguments in RBX, RCX, RDX and RSI, its
//! answer in RAX: the registers of KVM's hypercalls (Linux `Documentation/virt/kvm/x86/hypercalls.rst`). Outside of 64-bit
//! mode they are EAX to ESI. Numbers below [`hypercall::FIRST`] are KVM's ([`kvm`]). A call that does not exist, or that
//! CPUID does not announce, answers [`answer::NO_SUCH_CALL`]; one from user mode [`answer::NOT_PERMITTED`], as KVM does.
//!
//! Caisson's own calls have 63-bit numbers, so that only 64-bit mode reaches them. `docs/abi.md` lists them for who writes
//! a guest; a test holds that page against [`Number`].
//!
//! | file | what |
//! |---|---|
//! | `number.rs` | the calls: number, name, arguments, privilege, errors |
//! | `call.rs` | registers to a typed [`Call`], or the error to answer |
//! | `batch.rs` | a list of calls in guest memory |
//! | `events.rs` | the shared page of pending events, sources, the status of a port |
//! | `io.rs` | what is known of a device and its guest to who serves it |
//! | `control.rs` | calls about domains, and what is known of them to who controls them |
//! | `door.rs` | the registers and pages by which a program in user space makes calls |
//!
//! Invariants. Decoding has no effect and cannot fail but by a [`CallError`]. Whether the caller may make a call is decided
//! by its number alone, before an argument is looked at. Nothing here panics, allocates or loops longer than
//! [`BATCH_MAX`].

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fuzzing"))]
extern crate alloc;

mod batch;
mod call;
pub mod control;
pub mod door;
mod error;
pub mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod io;
mod number;

pub use batch::{BATCH_ENTRY_BYTES, BATCH_MAX, Batch, List};
pub use call::{Buffer, Call, ChannelCall, EventCall, Operation, decode};
pub use error::{CallError, CallResult, answer_of};
pub use number::{Number, Privileges};

/// The version of this interface; CPUID leaf 0x40000101 EAX tells it as well.
pub const VERSION: u64 = 1;

/// Hypercall numbers. [`Number`] says what each does.
pub mod hypercall {
    /// The first of Caisson's own: `CAIS` in ASCII, above all of KVM's.
    pub const FIRST: u64 = 0x4341_4953_0000_0000;
    /// [`Number::Version`](super::Number::Version).
    pub const VERSION: u64 = FIRST;
    /// [`Number::Batch`](super::Number::Batch).
    pub const BATCH: u64 = FIRST + 1;
    /// [`Number::EventAllocate`](super::Number::EventAllocate).
    pub const EVENT_ALLOCATE: u64 = FIRST + 0x10;
    /// [`Number::EventBind`](super::Number::EventBind).
    pub const EVENT_BIND: u64 = FIRST + 0x11;
    /// [`Number::EventClose`](super::Number::EventClose).
    pub const EVENT_CLOSE: u64 = FIRST + 0x12;
    /// [`Number::EventSend`](super::Number::EventSend).
    pub const EVENT_SEND: u64 = FIRST + 0x13;
    /// [`Number::EventMask`](super::Number::EventMask).
    pub const EVENT_MASK: u64 = FIRST + 0x14;
    /// [`Number::EventUnmask`](super::Number::EventUnmask).
    pub const EVENT_UNMASK: u64 = FIRST + 0x15;
    /// [`Number::EventStatus`](super::Number::EventStatus).
    pub const EVENT_STATUS: u64 = FIRST + 0x16;
    /// [`Number::EventConnect`](super::Number::EventConnect).
    pub const EVENT_CONNECT: u64 = FIRST + 0x17;
    /// [`Number::EventBindBackend`](super::Number::EventBindBackend).
    pub const EVENT_BIND_BACKEND: u64 = FIRST + 0x18;
    /// [`Number::EventBindDomain`](super::Number::EventBindDomain).
    pub const EVENT_BIND_DOMAIN: u64 = FIRST + 0x19;
    /// [`Number::EventBindConsole`](super::Number::EventBindConsole).
    pub const EVENT_BIND_CONSOLE: u64 = FIRST + 0x1a;
    /// [`Number::EventBindChannel`](super::Number::EventBindChannel).
    pub const EVENT_BIND_CHANNEL: u64 = FIRST + 0x1b;
    /// [`Number::ChannelList`](super::Number::ChannelList).
    pub const CHANNEL_LIST: u64 = FIRST + 0x20;
    /// [`Number::ChannelParameters`](super::Number::ChannelParameters).
    pub const CHANNEL_PARAMETERS: u64 = FIRST + 0x21;
    /// [`Number::ChannelDescribe`](super::Number::ChannelDescribe).
    pub const CHANNEL_DESCRIBE: u64 = FIRST + 0x22;
    /// [`Number::ChannelAttach`](super::Number::ChannelAttach).
    pub const CHANNEL_ATTACH: u64 = FIRST + 0x23;
    /// [`Number::ChannelDetach`](super::Number::ChannelDetach).
    pub const CHANNEL_DETACH: u64 = FIRST + 0x24;
    /// [`Number::ChannelMemory`](super::Number::ChannelMemory).
    pub const CHANNEL_MEMORY: u64 = FIRST + 0x25;
    /// [`Number::ChannelState`](super::Number::ChannelState).
    pub const CHANNEL_STATE: u64 = FIRST + 0x26;
    /// [`Number::ChannelAcknowledge`](super::Number::ChannelAcknowledge).
    pub const CHANNEL_ACKNOWLEDGE: u64 = FIRST + 0x27;
    /// [`Number::ChannelInterrupt`](super::Number::ChannelInterrupt).
    pub const CHANNEL_INTERRUPT: u64 = FIRST + 0x28;
    /// [`Number::ChannelConfig`](super::Number::ChannelConfig).
    pub const CHANNEL_CONFIG: u64 = FIRST + 0x29;
    /// [`Number::ChannelSetConfig`](super::Number::ChannelSetConfig).
    pub const CHANNEL_SET_CONFIG: u64 = FIRST + 0x2a;
    /// [`Number::ChannelFail`](super::Number::ChannelFail).
    pub const CHANNEL_FAIL: u64 = FIRST + 0x2b;
    /// [`Number::MachineInfo`](super::Number::MachineInfo).
    pub const MACHINE_INFO: u64 = FIRST + 0x30;
    /// [`Number::DomainList`](super::Number::DomainList).
    pub const DOMAIN_LIST: u64 = FIRST + 0x31;
    /// [`Number::VcpuList`](super::Number::VcpuList).
    pub const VCPU_LIST: u64 = FIRST + 0x32;
    /// [`Number::DomainStart`](super::Number::DomainStart).
    pub const DOMAIN_START: u64 = FIRST + 0x33;
    /// [`Number::DomainShutdown`](super::Number::DomainShutdown).
    pub const DOMAIN_SHUTDOWN: u64 = FIRST + 0x34;
    /// [`Number::DomainReset`](super::Number::DomainReset).
    pub const DOMAIN_RESET: u64 = FIRST + 0x35;
    /// [`Number::DomainDestroy`](super::Number::DomainDestroy).
    pub const DOMAIN_DESTROY: u64 = FIRST + 0x36;
    /// [`Number::DomainPause`](super::Number::DomainPause).
    pub const DOMAIN_PAUSE: u64 = FIRST + 0x37;
    /// [`Number::DomainResume`](super::Number::DomainResume).
    pub const DOMAIN_RESUME: u64 = FIRST + 0x38;
    /// [`Number::ConsoleRead`](super::Number::ConsoleRead).
    pub const CONSOLE_READ: u64 = FIRST + 0x39;
    /// [`Number::ConsoleWrite`](super::Number::ConsoleWrite).
    pub const CONSOLE_WRITE: u64 = FIRST + 0x3a;
    /// [`Number::BlobBegin`](super::Number::BlobBegin).
    pub const BLOB_BEGIN: u64 = FIRST + 0x3b;
    /// [`Number::BlobWrite`](super::Number::BlobWrite).
    pub const BLOB_WRITE: u64 = FIRST + 0x3c;
    /// [`Number::BlobEnd`](super::Number::BlobEnd).
    pub const BLOB_END: u64 = FIRST + 0x3d;
    /// [`Number::DomainCreate`](super::Number::DomainCreate).
    pub const DOMAIN_CREATE: u64 = FIRST + 0x3e;
    /// [`Number::DomainForget`](super::Number::DomainForget).
    pub const DOMAIN_FORGET: u64 = FIRST + 0x3f;
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

/// Answers that say no to any hypercall. [`CallError`] has all that Caisson's own calls give.
pub mod answer {
    use crate::CallError;

    /// `-EPERM`: the call comes from user mode, or from a domain without the privilege for it.
    pub const NOT_PERMITTED: u64 = CallError::NotPermitted.answer();
    /// `-EINVAL`: an argument is out of range.
    pub const INVALID: u64 = CallError::Invalid.answer();
    /// `-KVM_ENOSYS`: there is no such call.
    pub const NO_SUCH_CALL: u64 = CallError::NoSuchCall.answer();
}
