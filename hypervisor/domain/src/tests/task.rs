//! Task switches, and the events that bring them about.

use caisson_hwvirt::{Event, Exit, TaskSwitch, TaskSwitchSource, Vcpu, VcpuState};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Attributes, DescriptorTable, Exception, ExceptionKind, Segment, SegmentRegister};

use super::with;
use crate::testing::{CODE, Machine, Resumes};
use crate::{Ended, Outcome};

const GDT: u64 = 0x5000;
const OLD: u64 = 0x5100;
const NEW: u64 = 0x5200;
const STACK: u64 = 0x6000;
const OLD_TASK: u16 = 0x18;
const NEW_TASK: u16 = 0x20;
const ENTRY: u64 = 0x900;

/// A machine whose vCPU runs a task, and another one in a TSS.
fn machine(test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        let memory = &m.domain.memory;
        let task = |base: u64, access: u64| 0x67 | base << 16 | access << 40;
        let descriptors = [0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, task(OLD, 0x8b), task(NEW, 0x89)];
        for (slot, descriptor) in (1..).zip(descriptors) {
            assert!(memory.write_u64(Gpa::new(GDT + 8 * slot), descriptor).is_ok());
        }
        for (offset, value) in [(0x20, ENTRY), (0x24, 2), (0x38, STACK), (0x4c, 8), (0x50, 0x10)] {
            assert!(memory.write_u32(Gpa::new(NEW + offset), value as u32).is_ok());
        }
        let hw = m.hw();
        hw.set_gdtr(DescriptorTable { base: GDT, limit: 0x27 });
        let tr = Segment { selector: OLD_TASK, attributes: Attributes::TSS_BUSY, limit: 0x67, base: OLD };
        hw.set_segment(SegmentRegister::Tr, tr);
        test(m);
    });
}

fn switch(m: &mut Machine<'_>, source: TaskSwitchSource, event: Option<Event>) -> Outcome {
    m.hw().interrupted = event;
    let next_rip = Some(CODE + 7);
    m.answer(0, Exit::TaskSwitch(TaskSwitch { selector: NEW_TASK, source, next_rip }))
}

fn call(m: &mut Machine<'_>, event: Option<Event>) -> Outcome {
    switch(m, TaskSwitchSource::Call, event)
}

fn saved_rip(m: &Machine<'_>) -> u64 {
    m.domain.memory.read_u32(Gpa::new(OLD + 0x20)).map_or(0, u64::from)
}

/// No segment of the new task's is good.
fn spoil(m: &Machine<'_>) {
    assert!(m.domain.memory.write_u32(Gpa::new(NEW + 0x50), 0).is_ok());
}

#[test]
fn an_instruction_goes_on_behind_itself() {
    // INTn is the instruction's own affair.
    let software = Event::SoftwareInterrupt { vector: 0x40, length: 2 };
    for event in [None, Some(software)] {
        machine(|m| {
            call(m, event).resumes();
            assert_eq!((m.hw().rip(), saved_rip(m)), (ENTRY, CODE + 7));
            assert!(m.settle(0) && m.delivered(0).is_empty());
        });
    }
    // Where the hardware does not tell the end: JMP 20H:0.
    machine(|m| {
        m.code(0, &[0xea, 0, 0, 0, 0, 0x20, 0]);
        let source = TaskSwitchSource::Jump;
        let exit = Exit::TaskSwitch(TaskSwitch { selector: NEW_TASK, source, next_rip: None });
        m.answer(0, exit).resumes();
        assert_eq!(saved_rip(m), CODE + 7);
    });
}

#[test]
fn an_exception_is_delivered_by_its_task() {
    machine(|m| {
        let fault = Exception { error_code: 0, ..Exception::plain(ExceptionKind::DoubleFault) };
        call(m, Some(Event::Exception(fault))).resumes();
        assert_eq!((m.hw().rip(), saved_rip(m)), (ENTRY, CODE));
        assert_eq!(m.hw().gpr(caisson_x86::Gpr::Rsp), STACK - 4);
        assert!(m.settle(0) && m.delivered(0).is_empty());
    });
}

#[test]
fn an_nmi_task_blocks_nmis_until_it_returns() {
    machine(|m| {
        call(m, Some(Event::Nmi)).resumes();
        assert!(m.hw().nmi_blocked());
        let back = TaskSwitch { selector: OLD_TASK, source: TaskSwitchSource::Return, next_rip: Some(0) };
        m.answer(0, Exit::TaskSwitch(back)).resumes();
        assert!(!m.hw().nmi_blocked());
        assert_eq!(m.hw().rip(), CODE);
    });
}

#[test]
fn a_fault_of_the_old_task_comes_before_the_event() {
    // The descriptor has changed since the CPU looked at it.
    let busy = |m: &Machine<'_>| {
        assert!(m.domain.memory.write(Gpa::new(GDT + 0x25), &[0x8b]).is_ok());
    };
    let protection = Exception { error_code: 0x21, ..Exception::GENERAL_PROTECTION };
    machine(|m| {
        busy(m);
        call(m, Some(Event::Interrupt(0x41))).resumes();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Exception(protection)]);
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x41)], "and the interrupt is not lost");
    });
    machine(|m| {
        busy(m);
        call(m, Some(Event::Exception(Exception::plain(ExceptionKind::StackFault)))).resumes();
        assert!(m.settle(0));
        let double = Exception::plain(ExceptionKind::DoubleFault);
        assert_eq!(m.delivered(0), [Event::Exception(double)]);
    });
    machine(|m| {
        busy(m);
        let double = Event::Exception(Exception::plain(ExceptionKind::DoubleFault));
        assert_eq!(call(m, Some(double)), Outcome::Ended);
        assert_eq!(m.vcpus[0].ended(), Some(Ended::TripleFault { rip: CODE }));
    });
}

#[test]
fn a_fault_of_the_new_task_is_its_own() {
    let invalid = |error_code| Exception { error_code, ..Exception::plain(ExceptionKind::InvalidTss) };
    machine(|m| {
        spoil(m);
        call(m, Some(Event::Interrupt(0x41))).resumes();
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Exception(invalid(1))], "the interrupt has been delivered");
        assert_eq!(m.hw().rip(), ENTRY);
    });
    machine(|m| {
        spoil(m);
        call(m, Some(Event::Exception(Exception::UNDEFINED))).resumes();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Exception(invalid(1))]);
    });
    machine(|m| {
        spoil(m);
        call(m, None).resumes();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Exception(invalid(0))]);
    });
}

#[test]
fn the_trap_flag_of_a_task() {
    machine(|m| {
        assert!(m.domain.memory.write(Gpa::new(NEW + 0x64), &[1]).is_ok());
        call(m, None).resumes();
        assert_eq!(m.hw().dr6() & 1 << 15, 1 << 15);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Exception(Exception::plain(ExceptionKind::Debug))]);
    });
}
