//! Raw exits of AMD-V as neutral ones (APM vol. 2, appendix C and the sections named at each arm).

use caisson_types::Gpa;
use caisson_x86::svm::{EventInjection, EventKind, ExitCode, SvmFeatures};
use caisson_x86::{Exception, ExceptionKind, Gpr, SegmentRegister};

use crate::{DebugAccess, Direction, Event, Exit, IoExit, NestedFault, TaskSwitch, TaskSwitchSource};

/// What the CPU wrote about an exit.
#[derive(Clone, Copy, Debug)]
pub struct RawExit {
    /// EXITCODE.
    pub code: ExitCode,
    /// EXITINFO1.
    pub info_1: u64,
    /// EXITINFO2.
    pub info_2: u64,
}

/// Decodes a raw exit. `features` tells which optional details the CPU fills in.
#[inline(always)]
#[must_use]
pub fn decode(raw: RawExit, features: SvmFeatures) -> Exit {
    match raw.code {
        ExitCode::CPUID => Exit::Cpuid,
        ExitCode::MSR if raw.info_1 == 0 => Exit::ReadMsr,
        ExitCode::MSR => Exit::WriteMsr,
        ExitCode::IOIO => Exit::Io(decode_io(raw, features)),
        ExitCode::VMMCALL => Exit::Hypercall,
        ExitCode::INTR => Exit::ExternalInterrupt,
        ExitCode::HLT | ExitCode::IDLE_HLT => Exit::Halt,
        ExitCode::VINTR => Exit::InterruptWindow,
        ExitCode::NPF => Exit::NestedFault(decode_npf(raw)),
        ExitCode::PAUSE => Exit::Pause,
        ExitCode::NMI => Exit::Nmi,
        ExitCode::IRET => Exit::NmiWindow,
        ExitCode::CR4_WRITE => Exit::WriteCr4(decode_gpr(raw, features)),
        ExitCode::CR0_WRITE | ExitCode::CR0_SELECTIVE_WRITE => Exit::WriteCr0(decode_gpr(raw, features)),
        ExitCode::CR8_WRITE => Exit::WriteCr8(decode_gpr(raw, features)),
        ExitCode(code @ 0x20..=0x3f) => Exit::Debug(DebugAccess {
            register: (code & 15) as u8,
            write: code >= ExitCode::DR0_WRITE.0,
            gpr: features.contains(SvmFeatures::DECODE_ASSISTS).then(|| Gpr::from_encoding(raw.info_1 as u8)),
        }),
        ExitCode(code @ 0x40..=0x5f) => Exit::Exception {
            vector: (code - ExitCode::EXCEPTION_0.0) as u8,
            error_code: raw.info_1 as u32,
            address: raw.info_2,
        },
        ExitCode::TASK_SWITCH => Exit::TaskSwitch(decode_task_switch(raw)),
        ExitCode::SHUTDOWN => Exit::TripleFault,
        ExitCode::INIT => Exit::Init,
        ExitCode::FERR_FREEZE => Exit::X87Error,
        ExitCode::XSETBV => Exit::Xsetbv,
        ExitCode::INVD | ExitCode::WBINVD => Exit::CacheFlush,
        ExitCode::RDPMC => Exit::ReadCounter,
        ExitCode::RSM
        | ExitCode::INVLPGA
        | ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::SKINIT
        | ExitCode::MONITOR
        | ExitCode::MWAIT
        | ExitCode::MWAIT_CONDITIONAL
        | ExitCode::RDPRU
        | ExitCode::INVLPGB
        | ExitCode::INVLPGB_ILLEGAL
        | ExitCode::TLBSYNC
        | ExitCode::MCOMMIT => Exit::Unsupported,
        ExitCode::INVALID | ExitCode::INVALID_LOWER_HALF | ExitCode::BUSY => {
            Exit::EntryFailure { reason: raw.code.0, qualification: raw.info_1 }
        }
        ExitCode(reason) => Exit::Unknown { reason, qualification: raw.info_1 },
    }
}

/// EXITINFO1 of a port access (section 15.10.2).
fn decode_io(raw: RawExit, features: SvmFeatures) -> IoExit {
    let info = raw.info_1;
    let string = info & 1 << 2 != 0;
    IoExit {
        port: (info >> 16) as u16,
        size: (info >> 4 & 7) as u8,
        direction: if info & 1 != 0 { Direction::In } else { Direction::Out },
        string,
        repeat: info & 1 << 3 != 0,
        address_bits: (info >> 7 & 7) as u8 * 16,
        segment: (string && features.contains(SvmFeatures::DECODE_ASSISTS)).then(|| segment(info >> 10 & 7)),
        next_rip: Some(raw.info_2),
    }
}

/// The segment number of EXITINFO1 (section 15.10.2).
fn segment(number: u64) -> SegmentRegister {
    match number {
        0 => SegmentRegister::Es,
        1 => SegmentRegister::Cs,
        2 => SegmentRegister::Ss,
        4 => SegmentRegister::Fs,
        5 => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// EXITINFO1 of a nested page fault (section 15.25.6): the error code, with bits 32 and 33 for final and walk.
fn decode_npf(raw: RawExit) -> NestedFault {
    NestedFault {
        gpa: Gpa::new(raw.info_2),
        write: raw.info_1 & 1 << 1 != 0,
        fetch: raw.info_1 & 1 << 4 != 0,
        present: raw.info_1 & 1 != 0,
        page_walk: raw.info_1 & 1 << 33 != 0,
    }
}

/// EXITINFO1 and EXITINFO2 of a task switch (section 15.14.1).
fn decode_task_switch(raw: RawExit) -> TaskSwitch {
    const RETURN: u64 = 1 << 36;
    const JUMP: u64 = 1 << 38;
    let source = match raw.info_2 & (RETURN | JUMP) {
        0 => TaskSwitchSource::Call,
        JUMP => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::Return,
    };
    TaskSwitch { selector: raw.info_1 as u16, source, next_rip: None }
}

/// EXITINFO1 of a MOV to a control register (section 15.8.1): bit 63 tells MOV from LMSW and CLTS.
fn decode_gpr(raw: RawExit, features: SvmFeatures) -> Option<Gpr> {
    (features.contains(SvmFeatures::DECODE_ASSISTS) && raw.info_1 & 1 << 63 != 0)
        .then(|| Gpr::from_encoding(raw.info_1 as u8))
}

/// The event whose delivery an exit interrupted (section 15.7.2). What an instruction raised is delivered again by that
/// instruction, to which RIP still points: `None`.
#[must_use]
pub fn decode_interrupted(info: EventInjection, cr2: u64) -> Option<Event> {
    if !info.is_valid() {
        return None;
    }
    match info.kind()? {
        EventKind::Interrupt => Some(Event::Interrupt(info.vector())),
        EventKind::Nmi => Some(Event::Nmi),
        // INT3 and INTO: the CPU does not tell them from other exceptions.
        EventKind::Exception if matches!(info.vector(), 3 | 4) => None,
        EventKind::Exception => {
            let kind = ExceptionKind::from_vector(info.vector())?;
            Some(Event::Exception(Exception {
                kind,
                error_code: info.error_code().unwrap_or(0),
                address: if kind == ExceptionKind::PageFault { cr2 } else { 0 },
            }))
        }
        EventKind::SoftwareInterrupt => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SvmFeatures = SvmFeatures::NESTED_PAGING;
    const ASSISTS: SvmFeatures = SvmFeatures::DECODE_ASSISTS;

    fn raw(code: u64, info_1: u64, info_2: u64) -> RawExit {
        RawExit { code: ExitCode(code), info_1, info_2 }
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
        let switch = |source| Exit::TaskSwitch(TaskSwitch { selector: 0x28, source, next_rip: None });
        let table = [
            (raw(0x72, 0, 0), NONE, Exit::Cpuid),
            (raw(0x7c, 0, 0), NONE, Exit::ReadMsr),
            (raw(0x7c, 1, 0), NONE, Exit::WriteMsr),
            (raw(0x7b, 0x03f8_0010, 0x1002), NONE, Exit::Io(io(0x3f8, 1, Direction::Out))),
            (raw(0x7b, 0x0cfc_0041, 0x1002), NONE, Exit::Io(io(0xcfc, 4, Direction::In))),
            (
                raw(0x7b, 0x0080_0000 | 0x10 | 1 << 2 | 1 << 3 | 1 << 8 | 4 << 10, 0x1002),
                ASSISTS,
                Exit::Io(IoExit {
                    string: true,
                    repeat: true,
                    address_bits: 32,
                    segment: Some(SegmentRegister::Fs),
                    ..io(0x80, 1, Direction::Out)
                }),
            ),
            (
                raw(0x400, 0x1_0000_0006, 0xfee0_00b0),
                NONE,
                Exit::NestedFault(NestedFault {
                    gpa: Gpa::new(0xfee0_00b0),
                    write: true,
                    fetch: false,
                    present: false,
                    page_walk: false,
                }),
            ),
            (raw(0x14, 1 << 63 | 3, 0), ASSISTS, Exit::WriteCr4(Some(Gpr::Rbx))),
            (raw(0x14, 0, 0), NONE, Exit::WriteCr4(None)),
            (raw(0x18, 1 << 63 | 1, 0), ASSISTS, Exit::WriteCr8(Some(Gpr::Rcx))),
            (raw(0x37, 2, 0), NONE, Exit::Debug(DebugAccess { register: 7, write: true, gpr: None })),
            (raw(0x4e, 2, 0x55), NONE, Exit::Exception { vector: 14, error_code: 2, address: 0x55 }),
            (raw(0x60, 0, 0), NONE, Exit::ExternalInterrupt),
            (raw(0x61, 0, 0), NONE, Exit::Nmi),
            (raw(0x64, 0, 0), NONE, Exit::InterruptWindow),
            (raw(0x74, 0, 0), NONE, Exit::NmiWindow),
            (raw(0x63, 0, 0), NONE, Exit::Init),
            (raw(0x7d, 0x28, 0), NONE, switch(TaskSwitchSource::Call)),
            (raw(0x7d, 0x28, 1 << 36), NONE, switch(TaskSwitchSource::Return)),
            (raw(0x7d, 0x28, 1 << 38), NONE, switch(TaskSwitchSource::Jump)),
            (raw(0x7e, 0, 0), NONE, Exit::X87Error),
            (raw(0x7f, 0, 0), NONE, Exit::TripleFault),
            (raw(0x80, 0, 0), NONE, Exit::Unsupported),
            (raw(0x8d, 0, 0), NONE, Exit::Xsetbv),
            (raw(u64::MAX, 0, 0), NONE, Exit::EntryFailure { reason: u64::MAX, qualification: 0 }),
            (raw(0x999, 7, 0), NONE, Exit::Unknown { reason: 0x999, qualification: 7 }),
        ];
        for (raw, features, exit) in table {
            assert_eq!(decode(raw, features), exit, "{raw:?}");
        }
    }
}
