//! The same thing happening to a guest is the same neutral exit, and the same event, whoever made the CPU.

use caisson_hwvirt::svm::{self, RawExit};
use caisson_hwvirt::vmx::{self, ExitFields};
use caisson_hwvirt::{Direction, Event, Exit, IoExit, NestedFault, TaskSwitch, TaskSwitchSource};
use caisson_types::Gpa;
use caisson_x86::svm::{EventInjection, ExitCode, SvmFeatures};
use caisson_x86::vmx::{EventInfo, ExitReason};
use caisson_x86::{Exception, ExceptionKind, Gpr};

const NEXT_RIP: u64 = 0x1002;

/// What VT-x writes about an exit.
#[derive(Clone, Copy, Default, Debug)]
struct Intel {
    reason: u32,
    qualification: u64,
    gpa: u64,
    event: u32,
    error_code: u32,
}

impl ExitFields for Intel {
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
        None
    }
    fn next_rip(&self) -> u64 {
        NEXT_RIP
    }
}

const fn amd(code: u64, info_1: u64, info_2: u64) -> RawExit {
    RawExit { code: ExitCode(code), info_1, info_2 }
}

const fn intel(reason: u32, qualification: u64) -> Intel {
    Intel { reason, qualification, gpa: 0, event: 0, error_code: 0 }
}

const fn exception(event: u32, error_code: u32, address: u64) -> Intel {
    Intel { event, error_code, ..intel(0, address) }
}

/// Page-modification logging is VT-x's alone. Its exit may come while an event is delivered, which is then delivered again,
/// and its qualification says no more than that an IRET had unblocked NMIs.
#[test]
fn a_full_log_is_an_exit() {
    for qualification in [0, 1 << 12] {
        assert_eq!(vmx::decode(&intel(62, qualification)), Exit::LogFull);
    }
    assert!(ExitReason(62).may_interrupt_delivery() && !ExitReason(62).is_instruction());
}

#[test]
fn golden_exits_of_both_vendors() {
    let device = |write, fetch| {
        let gpa = Gpa::new(0xfee0_00b0);
        Exit::NestedFault(NestedFault { gpa, write, fetch, present: false, page_walk: false })
    };
    let fault = |qualification| Intel { gpa: 0xfee0_00b0, ..intel(48, qualification) };
    let port = IoExit {
        port: 0x3f8,
        size: 1,
        direction: Direction::Out,
        string: false,
        repeat: false,
        address_bits: 0,
        segment: None,
        next_rip: Some(NEXT_RIP),
    };
    let table = [
        (amd(0x72, 0, 0), intel(10, 0), Exit::Cpuid),
        (amd(0x7c, 0, 0), intel(31, 0), Exit::ReadMsr),
        (amd(0x7c, 1, 0), intel(32, 0), Exit::WriteMsr),
        (amd(0x7b, 0x03f8_0010, NEXT_RIP), intel(30, 0x03f8_0000), Exit::Io(port)),
        (amd(0x81, 0, 0), intel(18, 0), Exit::Hypercall),
        (amd(0x78, 0, 0), intel(12, 0), Exit::Halt),
        (amd(0x77, 0, 0), intel(40, 0), Exit::Pause),
        (amd(0x400, 1 << 32 | 6, 0xfee0_00b0), fault(0x182), device(true, false)),
        (amd(0x400, 1 << 32 | 0x14, 0xfee0_00b0), fault(0x184), device(false, true)),
        (amd(0x60, 0, 0), intel(1, 0), Exit::ExternalInterrupt),
        (amd(0x61, 0, 0), exception(0x8000_0202, 0, 0), Exit::Nmi),
        (amd(0x64, 0, 0), intel(7, 0), Exit::InterruptWindow),
        (amd(0x74, 0, 0), intel(8, 0), Exit::NmiWindow),
        (amd(0x14, 1 << 63 | 3, 0), intel(28, 0x304), Exit::WriteCr4(Some(Gpr::Rbx))),
        (amd(0x18, 1 << 63 | 1, 0), intel(28, 0x108), Exit::WriteCr8(Some(Gpr::Rcx))),
        (amd(0x8d, 0, 0), intel(55, 0), Exit::Xsetbv),
        (amd(0x89, 0, 0), intel(54, 0), Exit::CacheFlush),
        (amd(0x8b, 0, 0), intel(36, 0), Exit::Unsupported),
        (amd(0x6f, 0, 0), intel(15, 0), Exit::ReadCounter),
        (
            amd(0x51, 0, 0),
            exception(0x8000_0b11, 0, 0),
            Exit::Exception { vector: 17, error_code: 0, address: 0 },
        ),
        (
            amd(0x4e, 2, 0x55),
            exception(0x8000_0b0e, 2, 0x55),
            Exit::Exception { vector: 14, error_code: 2, address: 0x55 },
        ),
        (amd(0x7f, 0, 0), intel(2, 0), Exit::TripleFault),
        (amd(0x63, 0, 0), intel(3, 0), Exit::Init),
    ];
    for (amd, intel, exit) in table {
        assert_eq!(svm::decode(amd, SvmFeatures::DECODE_ASSISTS), exit, "{amd:?}");
        assert_eq!(vmx::decode(&intel), exit, "{intel:?}");
    }
}

/// AMD-V, where Caisson does not intercept task switches, does not tell where the instruction ends.
#[test]
fn task_switches_of_both_vendors() {
    let table = [
        (amd(0x7d, 0x28, 0), intel(9, 0x28), TaskSwitchSource::Call),
        // A task gate in the IDT.
        (amd(0x7d, 0x28, 1 << 44 | 7), intel(9, 0xc000_0028), TaskSwitchSource::Call),
        (amd(0x7d, 0x28, 1 << 36), intel(9, 0x4000_0028), TaskSwitchSource::Return),
        (amd(0x7d, 0x28, 1 << 38), intel(9, 0x8000_0028), TaskSwitchSource::Jump),
    ];
    for (amd, intel, source) in table {
        let exit = |next_rip| Exit::TaskSwitch(TaskSwitch { selector: 0x28, source, next_rip });
        assert_eq!(svm::decode(amd, SvmFeatures::empty()), exit(None), "{amd:?}");
        assert_eq!(vmx::decode(&intel), exit(Some(NEXT_RIP)), "{intel:?}");
    }
}

/// The raw reason differs, which is for the log; that it is a refused entry does not.
#[test]
fn refused_entries_of_both_vendors() {
    for raw in [amd(u64::MAX, 0, 0), amd(0xffff_ffff, 0, 0)] {
        assert!(matches!(svm::decode(raw, SvmFeatures::empty()), Exit::EntryFailure { .. }), "{raw:?}");
    }
    for reason in [33, 34] {
        let raw = intel(1 << 31 | reason, 0);
        assert!(matches!(vmx::decode(&raw), Exit::EntryFailure { .. }), "{raw:?}");
    }
}

#[test]
fn interrupted_deliveries_of_both_vendors() {
    const CR2: u64 = 0x7000;
    let double_fault = Event::Exception(Exception::plain(ExceptionKind::DoubleFault));
    let table = [
        (0, 0, None),
        (0x8000_0041, 0, Some(Event::Interrupt(0x41))),
        (0x8000_0202, 0, Some(Event::Nmi)),
        (0x8000_0b0e, 6, Some(Event::Exception(Exception::page_fault(6, CR2)))),
        (0x8000_0b08, 0, Some(double_fault)),
        (0x8000_0306, 0, Some(Event::Exception(Exception::UNDEFINED))),
        // INTn is executed again; a reserved type, and a vector that is no exception, are nothing.
        (0x8000_0480, 0, None),
        (0x8000_0700, 0, None),
        (0x8000_0309, 0, None),
    ];
    for (info, code, event) in table {
        let injection = EventInjection(u64::from(code) << 32 | u64::from(info));
        assert_eq!(svm::decode_interrupted(injection, CR2), event, "AMD-V {info:#x}");
        assert_eq!(vmx::decode_interrupted(EventInfo(info), code, CR2), event, "VT-x {info:#x}");
    }
    // INT3: the vendors encode it apart.
    assert_eq!(svm::decode_interrupted(EventInjection(0x8000_0303), CR2), None);
    assert_eq!(vmx::decode_interrupted(EventInfo(0x8000_0603), 0, CR2), None);
}
