//! Why a guest stopped running, in words of neither vendor.

use caisson_types::Gpa;
use caisson_x86::{Gpr, SegmentRegister, Vector};

/// The direction of a port access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the device to the guest.
    In,
    /// From the guest to the device.
    Out,
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoExit {
    /// The port.
    pub port: u16,
    /// Bytes of one access: 1, 2 or 4.
    pub size: u8,
    /// In or out.
    pub direction: Direction,
    /// INS or OUTS.
    pub string: bool,
    /// A REP prefix.
    pub repeat: bool,
    /// Bits of the address size of a string access: 16, 32 or 64; 0 where the hardware does not tell.
    pub address_bits: u8,
    /// The segment of OUTS, where the hardware tells it (DECODE_ASSISTS on AMD).
    pub segment: Option<SegmentRegister>,
    /// The RIP behind the instruction.
    pub next_rip: Option<u64>,
}

/// A guest-physical access that the stage-2 tables did not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFault {
    /// What was accessed.
    pub gpa: Gpa,
    /// The access was a write.
    pub write: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
    /// The page was mapped, but not for this access.
    pub present: bool,
    /// The access was made by the guest's page walk, not by its instruction.
    pub page_walk: bool,
}

/// An access to a debug register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugAccess {
    /// DR0 to DR15.
    pub register: u8,
    /// A write.
    pub write: bool,
    /// The general-purpose register, where the hardware tells it.
    pub gpr: Option<Gpr>,
}

/// What asks for a task switch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TaskSwitchSource {
    /// A far CALL, or an event that takes a task gate in the IDT: the new task is to return. The event, where no
    /// instruction raised it, is [`crate::Vcpu::take_interrupted_event`]'s.
    Call,
    /// IRET with RFLAGS.NT set.
    Return,
    /// A far JMP.
    Jump,
}

/// A task switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskSwitch {
    /// The selector of the new task's TSS.
    pub selector: u16,
    /// What asks for it.
    pub source: TaskSwitchSource,
    /// The RIP behind the instruction that asks for it, where the hardware tells; means nothing where an event does that no
    /// instruction raised.
    pub next_rip: Option<u64>,
}

/// Why a guest stopped running.
///
/// Instruction exits leave the guest's RIP at the instruction; [`crate::VcpuState::next_rip`] tells where the next one
/// starts, when the hardware knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// CPUID.
    Cpuid,
    /// RDMSR of the register in ECX.
    ReadMsr,
    /// WRMSR of the register in ECX.
    WriteMsr,
    /// A port access.
    Io(IoExit),
    /// VMMCALL or VMCALL.
    Hypercall,
    /// HLT.
    Halt,
    /// PAUSE, when its filter ran out.
    Pause,
    /// An access that stage 2 did not allow.
    NestedFault(NestedFault),
    /// The log of pages that the guest has written is full ([`crate::Vcpu::take_written`]).
    LogFull,
    /// A physical interrupt arrived; the host takes it when it opens its own.
    ExternalInterrupt,
    /// A physical NMI arrived.
    Nmi,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// The guest is about to leave its NMI handler.
    NmiWindow,
    /// A write to CR4 that the policy wants to see. The register is `None` where the hardware does not tell.
    WriteCr4(Option<Gpr>),
    /// A write to CR0 that the policy wants to see.
    WriteCr0(Option<Gpr>),
    /// A write to CR8: while an interrupt waits for it, or where the hardware does not keep it for the guest.
    WriteCr8(Option<Gpr>),
    /// A read of CR8 where the hardware does not keep it for the guest: the register that takes it.
    ReadCr8(Gpr),
    /// The guest has ended the service of an interrupt, of which the core wants to know
    /// ([`crate::Vcpu::set_level_vectors`]). The hardware has done what it does by itself; RIP is behind the instruction, and
    /// its debug trap, if any, is being injected.
    EndOfInterrupt(Vector),
    /// The guest has written a register of its local APIC, whose new value is in the page ([`crate::Vcpu::apic_page`]);
    /// RIP is behind the instruction, and its debug trap, if any, is being injected.
    ApicWrite {
        /// Offset in the page; not that of a register's first byte where the guest wrote a part.
        offset: u16,
    },
    /// A debug register, while the guest's are not loaded.
    Debug(DebugAccess),
    /// XSETBV.
    Xsetbv,
    /// INVD, WBINVD or WBNOINVD.
    CacheFlush,
    /// An instruction that this virtual machine does not have: MONITOR, MWAIT, RDPRU, RSM, and the virtualisation
    /// instructions of both vendors.
    Unsupported,
    /// RDPMC.
    ReadCounter,
    /// An intercepted exception.
    Exception {
        /// Its vector.
        vector: Vector,
        /// The error code, 0 where it has none.
        error_code: u32,
        /// The faulting address of a page fault.
        address: u64,
    },
    /// An x87 instruction waits for an earlier one's error to be served, which the guest takes by interrupt (CR0.NE is
    /// clear): a PC's coprocessor line.
    X87Error,
    /// A task switch through a task gate or a TSS, which VT-x leaves to software. Privileges, the gate and the new task's
    /// descriptor have been checked.
    TaskSwitch(TaskSwitch),
    /// A triple fault.
    TripleFault,
    /// A physical INIT.
    Init,
    /// The CPU refused to enter: a bug of Caisson's or a state that the guest brought about. The raw reason is for
    /// the log.
    EntryFailure {
        /// Exit code or VM-instruction error.
        reason: u64,
        /// What the hardware says beside it.
        qualification: u64,
    },
    /// Something the backend has no name for.
    Unknown {
        /// Exit code.
        reason: u64,
        /// EXITINFO1 or the exit qualification.
        qualification: u64,
    },
}
