//! Raw exits of VT-x as neutral ones (SDM vol. 3, chapter 28 and appendix C), and events both ways.
//!
//! The fields of an exit are asked for one by one through [`ExitFields`], because each costs the hardware a VMREAD.

mod entry;

use caisson_types::Gpa;
use caisson_x86::vmx::{EventInfo, EventType, ExitReason};
use caisson_x86::{Exception, ExceptionKind, Gpr, SegmentRegister};

use crate::{DebugAccess, Direction, Event, Exit, IoExit, NestedFault, TaskSwitch, TaskSwitchSource};

pub use entry::{EntryState, SegmentState, check_entry};

/// What the CPU wrote about an exit.
pub trait ExitFields {
    /// Exit reason.
    fn reason(&self) -> ExitReason;
    /// Exit qualification.
    fn qualification(&self) -> u64;
    /// Guest-physical address.
    fn guest_physical(&self) -> u64;
    /// The exception or NMI that exited.
    fn event(&self) -> EventInfo;
    /// Its error code.
    fn error_code(&self) -> u32;
    /// Instruction information of INS and OUTS; `None` where the CPU does not tell.
    fn string_io(&self) -> Option<u32>;
    /// The RIP behind the instruction that exited.
    fn next_rip(&self) -> u64;
}

/// Decodes a raw exit.
#[inline(always)]
#[must_use]
pub fn decode(raw: &impl ExitFields) -> Exit {
    let reason = raw.reason();
    if reason.entry_failed() {
        if reason.basic() == ExitReason::ENTRY_MACHINE_CHECK {
            // The machine's, not the guest's (section 27.9).
            let vector = ExceptionKind::MachineCheck as u8;
            return Exit::Exception { vector, error_code: 0, address: 0 };
        }
        return Exit::EntryFailure { reason: u64::from(reason.0), qualification: raw.qualification() };
    }
    match reason.basic() {
        ExitReason::CPUID => Exit::Cpuid,
        ExitReason::RDMSR => Exit::ReadMsr,
        ExitReason::WRMSR => Exit::WriteMsr,
        ExitReason::IO => Exit::Io(decode_io(raw)),
        ExitReason::VMCALL => Exit::Hypercall,
        // The preemption timer only gives the host a chance to take what is pending.
        ExitReason::EXTERNAL_INTERRUPT | ExitReason::PREEMPTION_TIMER => Exit::ExternalInterrupt,
        ExitReason::HLT => Exit::Halt,
        ExitReason::INTERRUPT_WINDOW | ExitReason::TPR_BELOW_THRESHOLD => Exit::InterruptWindow,
        ExitReason::NMI_WINDOW => Exit::NmiWindow,
        ExitReason::EPT_VIOLATION => Exit::NestedFault(decode_violation(raw)),
        ExitReason::APIC_ACCESS => Exit::NestedFault(decode_apic_access(raw.qualification())),
        ExitReason::VIRTUALIZED_EOI => Exit::EndOfInterrupt(raw.qualification() as u8),
        ExitReason::APIC_WRITE => Exit::ApicWrite { offset: (raw.qualification() & 0xfff) as u16 },
        ExitReason::LOG_FULL => Exit::LogFull,
        ExitReason::EXCEPTION_OR_NMI => decode_exception(raw),
        ExitReason::PAUSE => Exit::Pause,
        ExitReason::CONTROL_REGISTER => decode_control(raw),
        ExitReason::DEBUG_REGISTER => Exit::Debug(decode_debug(raw.qualification())),
        ExitReason::XSETBV => Exit::Xsetbv,
        ExitReason::INVD | ExitReason::WBINVD => Exit::CacheFlush,
        ExitReason::RDPMC => Exit::ReadCounter,
        ExitReason::TASK_SWITCH => Exit::TaskSwitch(decode_task_switch(raw)),
        ExitReason::TRIPLE_FAULT => Exit::TripleFault,
        ExitReason::INIT => Exit::Init,
        ExitReason::GETSEC
        | ExitReason::RSM
        | ExitReason::VMCLEAR..=ExitReason::VMXON
        | ExitReason::MWAIT
        | ExitReason::MONITOR
        | ExitReason::INVEPT
        | ExitReason::INVVPID
        | ExitReason::VMFUNC
        | ExitReason::ENCLS
        // Where the CPU has TDX, these exit whatever Caisson's controls say.
        | ExitReason::SEAMCALL
        | ExitReason::TDCALL => Exit::Unsupported,
        ExitReason::EPT_MISCONFIGURATION => {
            Exit::Unknown { reason: u64::from(reason.0), qualification: raw.guest_physical() }
        }
        _ => Exit::Unknown { reason: u64::from(reason.0), qualification: raw.qualification() },
    }
}

/// The qualification of a port access (table 28-5).
fn decode_io(raw: &impl ExitFields) -> IoExit {
    let qualification = raw.qualification();
    let string = qualification & 1 << 4 != 0;
    let direction = if qualification & 1 << 3 != 0 { Direction::In } else { Direction::Out };
    let information = if string { raw.string_io() } else { None };
    IoExit {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        direction,
        string,
        repeat: qualification & 1 << 5 != 0,
        // Table 28-9: bits 9:7 the address size, bits 17:15 the segment.
        address_bits: information.map_or(0, |word| 16 << (word >> 7 & 3).min(2)),
        segment: match (information, direction) {
            (Some(word), Direction::Out) => Some(segment(word >> 15 & 7)),
            _ => None,
        },
        next_rip: Some(raw.next_rip()),
    }
}

/// A segment register by its encoding.
fn segment(number: u32) -> SegmentRegister {
    match number {
        0 => SegmentRegister::Es,
        1 => SegmentRegister::Cs,
        2 => SegmentRegister::Ss,
        4 => SegmentRegister::Fs,
        5 => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// The qualification of an EPT violation (table 28-7).
fn decode_violation(raw: &impl ExitFields) -> NestedFault {
    const LINEAR_ADDRESS_VALID: u64 = 1 << 7;
    const FINAL_ACCESS: u64 = 1 << 8;
    let qualification = raw.qualification();
    NestedFault {
        gpa: Gpa::new(raw.guest_physical()),
        write: qualification & 1 << 1 != 0,
        fetch: qualification & 1 << 2 != 0,
        present: qualification & 7 << 3 != 0,
        page_walk: qualification & LINEAR_ADDRESS_VALID != 0 && qualification & FINAL_ACCESS == 0,
    }
}

/// The qualification of a task switch (table 28-2).
fn decode_task_switch(raw: &impl ExitFields) -> TaskSwitch {
    let qualification = raw.qualification();
    let source = match qualification >> 30 & 3 {
        1 => TaskSwitchSource::Return,
        2 => TaskSwitchSource::Jump,
        // CALL, and a task gate in the IDT.
        _ => TaskSwitchSource::Call,
    };
    TaskSwitch { selector: qualification as u16, source, next_rip: Some(raw.next_rip()) }
}

/// The qualification of an access to the APIC-access page (table 28-6), which stands where a local APIC is after reset.
fn decode_apic_access(qualification: u64) -> NestedFault {
    const APIC: u64 = 0xfee0_0000;
    let kind = qualification >> 12 & 15;
    NestedFault {
        gpa: Gpa::new(APIC | qualification & 0xfff),
        write: kind == 1,
        fetch: kind == 2,
        present: false,
        // 10 and 15 are guest-physical accesses, whose offset means nothing: those of the walk.
        page_walk: matches!(kind, 10 | 15),
    }
}

fn decode_exception(raw: &impl ExitFields) -> Exit {
    let event = raw.event();
    if event.kind() == Some(EventType::Nmi) {
        return Exit::Nmi;
    }
    // #MF exits for guests with CR0.NE clear only, for whom it is an interrupt.
    if event.vector() == ExceptionKind::X87 as u8 {
        return Exit::X87Error;
    }
    Exit::Exception {
        vector: event.vector(),
        error_code: if event.has_error_code() { raw.error_code() } else { 0 },
        address: raw.qualification(),
    }
}

/// The qualification of an access to a control register (table 28-3).
fn decode_control(raw: &impl ExitFields) -> Exit {
    let qualification = raw.qualification();
    let gpr = Gpr::from_encoding((qualification >> 8) as u8);
    match (qualification & 15, qualification >> 4 & 3) {
        (0, 0) => Exit::WriteCr0(Some(gpr)),
        // CLTS and LMSW.
        (0, 2 | 3) => Exit::WriteCr0(None),
        (4, 0) => Exit::WriteCr4(Some(gpr)),
        (8, 0) => Exit::WriteCr8(Some(gpr)),
        (8, 1) => Exit::ReadCr8(gpr),
        _ => Exit::Unknown { reason: u64::from(raw.reason().0), qualification },
    }
}

/// The qualification of a MOV to or from a debug register (table 28-4).
fn decode_debug(qualification: u64) -> DebugAccess {
    DebugAccess {
        register: (qualification & 7) as u8,
        write: qualification & 1 << 4 == 0,
        gpr: Some(Gpr::from_encoding((qualification >> 8) as u8)),
    }
}

/// What an entry is told to deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// The event.
    pub info: EventInfo,
    /// Its error code, where `info` says that it has one.
    pub error_code: u32,
    /// The length of the instruction that raises it, for software events; 0 for the others.
    pub length: u32,
}

/// An event as an entry takes it (section 25.8.3). `protected` is CR0.PE: real mode pushes no error codes.
#[must_use]
pub fn encode_event(event: Event, protected: bool) -> Injection {
    let plain =
        |kind, vector, length| Injection { info: EventInfo::new(kind, vector, false), error_code: 0, length };
    match event {
        Event::Interrupt(vector) => plain(EventType::Interrupt, vector, 0),
        Event::Nmi => plain(EventType::Nmi, 2, 0),
        Event::Exception(exception) => {
            let pushes = protected && exception.kind.has_error_code();
            Injection {
                info: EventInfo::new(EventType::Exception, exception.kind as u8, pushes),
                // Bits 31:16 must be 0 (section 27.2.1.3); bit 15 is SGX's, of page faults.
                error_code: if pushes { exception.error_code & 0xffff } else { 0 },
                length: 0,
            }
        }
        // INT3 and INTO are one byte long.
        Event::SoftwareException(vector) => plain(EventType::SoftwareException, vector, 1),
        // INTn has two bytes where nothing says otherwise.
        Event::SoftwareInterrupt { vector, length } => {
            let length = if length == 0 { 2 } else { u32::from(length) };
            plain(EventType::SoftwareInterrupt, vector, length)
        }
    }
}

/// The event whose delivery an exit interrupted (section 25.9.3). What an instruction raised is delivered again by that
/// instruction, to which RIP still points: `None`.
#[must_use]
pub fn decode_interrupted(info: EventInfo, error_code: u32, cr2: u64) -> Option<Event> {
    if !info.is_valid() {
        return None;
    }
    match info.kind()? {
        EventType::Interrupt => Some(Event::Interrupt(info.vector())),
        EventType::Nmi => Some(Event::Nmi),
        EventType::Exception => {
            let kind = ExceptionKind::from_vector(info.vector())?;
            Some(Event::Exception(Exception {
                kind,
                error_code: if info.has_error_code() { error_code } else { 0 },
                address: if kind == ExceptionKind::PageFault { cr2 } else { 0 },
            }))
        }
        EventType::SoftwareInterrupt
        | EventType::SoftwareException
        | EventType::PrivilegedSoftwareException => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An exit as the CPU would describe it.
    #[derive(Clone, Copy, Default, Debug)]
    struct Raw {
        reason: u32,
        qualification: u64,
        gpa: u64,
        event: u32,
        error_code: u32,
        string_io: Option<u32>,
    }

    impl ExitFields for Raw {
        fn reason(&self) -> ExitReason {
            ExitReason(self.reason)
        }
        fn qualification(&self) -> u64 {
            self.qualification
        }
        fn guest_physical(&self) -> u64 {
            self.gpa
        }
        fn event(&self) -> EventInfo {
            EventInfo(self.event)
        }
        fn error_code(&self) -> u32 {
            self.error_code
        }
        fn string_io(&self) -> Option<u32> {
            self.string_io
        }
        fn next_rip(&self) -> u64 {
            0x1002
        }
    }

    fn raw(reason: u32, qualification: u64) -> Raw {
        Raw { reason, qualification, ..Raw::default() }
    }

    #[test]
    fn golden_exits() {
        let io = |port, size, direction| IoExit {
            port,
            size,
            direction,
            string: false,
            repeat: false,
            address_bits: 0,
            segment: None,
            next_rip: Some(0x1002),
        };
        let fault = NestedFault {
            gpa: Gpa::new(0xfee0_00b0),
            write: true,
            fetch: false,
            present: false,
            page_walk: false,
        };
        let switch = |source| Exit::TaskSwitch(TaskSwitch { selector: 0x28, source, next_rip: Some(0x1002) });
        let debug = |register, write, gpr| Exit::Debug(DebugAccess { register, write, gpr: Some(gpr) });
        let table = [
            (raw(10, 0), Exit::Cpuid),
            (raw(31, 0), Exit::ReadMsr),
            (raw(32, 0), Exit::WriteMsr),
            (raw(30, 0x03f8_0000), Exit::Io(io(0x3f8, 1, Direction::Out))),
            (raw(30, 0x0cfc_000b), Exit::Io(io(0xcfc, 4, Direction::In))),
            (raw(30, 0x0060_0041), Exit::Io(io(0x60, 2, Direction::Out))),
            (
                // REP OUTSB through FS with 32-bit addresses.
                Raw { string_io: Some(1 << 7 | 4 << 15), ..raw(30, 0x0080_0030) },
                Exit::Io(IoExit {
                    string: true,
                    repeat: true,
                    address_bits: 32,
                    segment: Some(SegmentRegister::Fs),
                    ..io(0x80, 1, Direction::Out)
                }),
            ),
            (
                Raw { string_io: Some(2 << 7), ..raw(30, 0x0080_0019) },
                Exit::Io(IoExit { string: true, address_bits: 64, ..io(0x80, 2, Direction::In) }),
            ),
            (raw(30, 0x0080_0019), Exit::Io(IoExit { string: true, ..io(0x80, 2, Direction::In) })),
            (raw(18, 0), Exit::Hypercall),
            (raw(1, 0), Exit::ExternalInterrupt),
            (raw(52, 0), Exit::ExternalInterrupt),
            (raw(12, 0), Exit::Halt),
            (raw(7, 0), Exit::InterruptWindow),
            (raw(43, 0), Exit::InterruptWindow),
            (raw(8, 0), Exit::NmiWindow),
            (Raw { gpa: 0xfee0_00b0, ..raw(48, 0x182) }, Exit::NestedFault(fault)),
            (
                // The walk's own update of an accessed bit.
                Raw { gpa: 0xfee0_00b0, ..raw(48, 0x083) },
                Exit::NestedFault(NestedFault { page_walk: true, ..fault }),
            ),
            (
                Raw { gpa: 0xfee0_00b0, ..raw(48, 0x18c) },
                Exit::NestedFault(NestedFault { write: false, fetch: true, present: true, ..fault }),
            ),
            (raw(44, 0x1300), Exit::NestedFault(NestedFault { gpa: Gpa::new(0xfee0_0300), ..fault })),
            (
                raw(44, 0x0390),
                Exit::NestedFault(NestedFault { gpa: Gpa::new(0xfee0_0390), write: false, ..fault }),
            ),
            (
                raw(44, 0x2000),
                Exit::NestedFault(NestedFault {
                    gpa: Gpa::new(0xfee0_0000),
                    write: false,
                    fetch: true,
                    ..fault
                }),
            ),
            (
                // The guest's page tables are there.
                raw(44, 0xf300),
                Exit::NestedFault(NestedFault {
                    gpa: Gpa::new(0xfee0_0300),
                    write: false,
                    page_walk: true,
                    ..fault
                }),
            ),
            (raw(45, 0x61), Exit::EndOfInterrupt(0x61)),
            (raw(56, 0x300), Exit::ApicWrite { offset: 0x300 }),
            (Raw { gpa: 0x5000, ..raw(49, 0) }, Exit::Unknown { reason: 49, qualification: 0x5000 }),
            (Raw { event: 0x8000_0202, ..raw(0, 0) }, Exit::Nmi),
            (
                Raw { event: 0x8000_0b0e, error_code: 2, ..raw(0, 0x55) },
                Exit::Exception { vector: 14, error_code: 2, address: 0x55 },
            ),
            (
                Raw { event: 0x8000_0301, error_code: 7, ..raw(0, 0x4000) },
                Exit::Exception { vector: 1, error_code: 0, address: 0x4000 },
            ),
            (Raw { event: 0x8000_0310, ..raw(0, 0) }, Exit::X87Error),
            (raw(40, 0), Exit::Pause),
            (raw(28, 0x0300), Exit::WriteCr0(Some(Gpr::Rbx))),
            (raw(28, 0x0020), Exit::WriteCr0(None)),
            (raw(28, 0x1234_0030), Exit::WriteCr0(None)),
            (raw(28, 0x0f04), Exit::WriteCr4(Some(Gpr::R15))),
            (raw(28, 0x0108), Exit::WriteCr8(Some(Gpr::Rcx))),
            (raw(28, 0x0018), Exit::ReadCr8(Gpr::Rax)),
            (raw(28, 0x0003), Exit::Unknown { reason: 28, qualification: 3 }),
            (raw(29, 0x0107), debug(7, true, Gpr::Rcx)),
            (raw(29, 0x0016), debug(6, false, Gpr::Rax)),
            (raw(55, 0), Exit::Xsetbv),
            (raw(13, 0), Exit::CacheFlush),
            (raw(54, 0), Exit::CacheFlush),
            (raw(15, 0), Exit::ReadCounter),
            (raw(9, 0x0028), switch(TaskSwitchSource::Call)),
            (raw(9, 0x4000_0028), switch(TaskSwitchSource::Return)),
            (raw(9, 0x8000_0028), switch(TaskSwitchSource::Jump)),
            (raw(9, 0xc000_0028), switch(TaskSwitchSource::Call)),
            (raw(2, 0), Exit::TripleFault),
            (raw(3, 0), Exit::Init),
            (raw(11, 0), Exit::Unsupported),
            (raw(20, 0), Exit::Unsupported),
            (raw(27, 0), Exit::Unsupported),
            (raw(36, 0), Exit::Unsupported),
            (raw(53, 0), Exit::Unsupported),
            (raw(76, 0), Exit::Unsupported),
            (raw(77, 0), Exit::Unsupported),
            (raw(1 << 31 | 41, 0), Exit::Exception { vector: 18, error_code: 0, address: 0 }),
            (raw(1 << 31 | 33, 0), Exit::EntryFailure { reason: 0x8000_0021, qualification: 0 }),
            (raw(1 << 31 | 34, 3), Exit::EntryFailure { reason: 0x8000_0022, qualification: 3 }),
            (raw(37, 9), Exit::Unknown { reason: 37, qualification: 9 }),
        ];
        for (raw, exit) in table {
            assert_eq!(decode(&raw), exit, "{raw:?}");
        }
    }

    #[test]
    fn events_go_in_as_the_manual_asks() {
        let fault = Event::Exception(Exception::page_fault(0x1_0007, 0x1234));
        let table = [
            (Event::Interrupt(0x41), true, 0x8000_0041, 0, 0),
            (Event::Nmi, true, 0x8000_0202, 0, 0),
            (fault, true, 0x8000_0b0e, 7, 0),
            (fault, false, 0x8000_030e, 0, 0),
            (Event::Exception(Exception::UNDEFINED), true, 0x8000_0306, 0, 0),
            (Event::SoftwareException(3), true, 0x8000_0603, 0, 1),
            (Event::SoftwareInterrupt { vector: 0x80, length: 3 }, true, 0x8000_0480, 0, 3),
            (Event::SoftwareInterrupt { vector: 0x80, length: 0 }, true, 0x8000_0480, 0, 2),
        ];
        for (event, protected, info, error_code, length) in table {
            let expected = Injection { info: EventInfo(info), error_code, length };
            assert_eq!(encode_event(event, protected), expected, "{event:?}");
        }
    }

    #[test]
    fn interrupted_events_come_back() {
        let table = [
            (0, None),
            (0x8000_0041, Some(Event::Interrupt(0x41))),
            (0x8000_0202, Some(Event::Nmi)),
            (0x8000_0b0e, Some(Event::Exception(Exception::page_fault(6, 0x7000)))),
            (0x8000_0306, Some(Event::Exception(Exception::UNDEFINED))),
            (0x8000_0480, None),
            (0x8000_0603, None),
            (0x8000_0501, None),
            (0x8000_0700, None),
            // A vector that is no exception.
            (0x8000_0309, None),
        ];
        for (info, event) in table {
            assert_eq!(decode_interrupted(EventInfo(info), 6, 0x7000), event, "{info:#x}");
        }
    }
}
