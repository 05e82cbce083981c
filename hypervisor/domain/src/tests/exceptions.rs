//! Exceptions that meet: SDM vol. 3, tables 7-4 and 7-5; APM vol. 2, section 8.2.9.

use caisson_hwvirt::{Event, Exit, VcpuState};
use caisson_x86::{Exception, ExceptionKind, Rflags};

use super::with;
use crate::{Ended, KillReason, Outcome};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// Every exception that can be in delivery, with its class by the manual's table.
const CLASSES: [(ExceptionKind, Class); 16] = [
    (ExceptionKind::DivideError, Class::Contributory),
    (ExceptionKind::Debug, Class::Benign),
    (ExceptionKind::Breakpoint, Class::Benign),
    (ExceptionKind::Overflow, Class::Benign),
    (ExceptionKind::BoundRange, Class::Benign),
    (ExceptionKind::InvalidOpcode, Class::Benign),
    (ExceptionKind::DeviceNotAvailable, Class::Benign),
    (ExceptionKind::DoubleFault, Class::DoubleFault),
    (ExceptionKind::InvalidTss, Class::Contributory),
    (ExceptionKind::SegmentNotPresent, Class::Contributory),
    (ExceptionKind::StackFault, Class::Contributory),
    (ExceptionKind::GeneralProtection, Class::Contributory),
    (ExceptionKind::PageFault, Class::PageFault),
    (ExceptionKind::X87, Class::Benign),
    (ExceptionKind::AlignmentCheck, Class::Benign),
    (ExceptionKind::Simd, Class::Benign),
];

#[test]
fn the_table_of_double_faults() {
    for (first, first_class) in CLASSES {
        for (second, second_class) in CLASSES {
            if second_class == Class::DoubleFault {
                continue;
            }
            with(1, |m| {
                m.vcpus[0].interrupted = Some(Event::Exception(Exception::plain(first)));
                let exception = Exception { error_code: 5, ..Exception::plain(second) };
                let outcome = m.vcpus[0].raise(exception);
                let serious = matches!(second_class, Class::Contributory | Class::PageFault);
                let case = (first, second);
                match first_class {
                    Class::DoubleFault if serious => {
                        assert_eq!(outcome, Outcome::Ended, "{case:?}");
                        let ended = m.vcpus[0].ended();
                        assert!(matches!(ended, Some(Ended::TripleFault { .. })), "{case:?}");
                        return;
                    }
                    Class::PageFault if serious => {
                        let double = Exception::plain(ExceptionKind::DoubleFault);
                        assert_eq!(m.hw().injected, Some(Event::Exception(double)), "{case:?}");
                    }
                    Class::Contributory if second_class == Class::Contributory => {
                        let double = Exception::plain(ExceptionKind::DoubleFault);
                        assert_eq!(m.hw().injected, Some(Event::Exception(double)), "{case:?}");
                    }
                    _ => assert_eq!(m.hw().injected, Some(Event::Exception(exception)), "{case:?}"),
                }
                assert_eq!(outcome, Outcome::Resume);
                assert_eq!(m.vcpus[0].interrupted, None, "the first is given up");
            });
        }
    }
}

#[test]
fn intercepted_exceptions_are_the_guests() {
    with(1, |m| {
        let exit = |vector, error_code| Exit::Exception { vector, error_code, address: 0 };
        assert_eq!(m.answer(0, exit(1, 0)), Outcome::Resume);
        assert_eq!(m.hw().injected.take(), super::STEP);
        assert_eq!(m.answer(0, exit(17, 0)), Outcome::Resume);
        let alignment = Exception::plain(ExceptionKind::AlignmentCheck);
        assert_eq!(m.hw().injected.take(), Some(Event::Exception(alignment)));
        assert_eq!(m.answer(0, exit(18, 0)), Outcome::MachineCheck);
        let page_fault = Exit::Exception { vector: 14, error_code: 3, address: 0x1234 };
        assert_eq!(m.answer(0, page_fault), Outcome::Resume);
        assert_eq!(m.hw().injected.take(), Some(Event::Exception(Exception::page_fault(3, 0x1234))));
        let reason = KillReason::UnknownExit { reason: 15, qualification: 3 };
        assert_eq!(m.end_by(0, exit(15, 3)), Ended::Killed(reason));
    });
}

/// A fault's frame says RF, so that a breakpoint on its instruction does not come twice; a trap's says what RFLAGS said.
#[test]
fn faults_push_rf() {
    for (kind, _) in CLASSES {
        with(1, |m| {
            let aborts = kind == ExceptionKind::DoubleFault;
            let traps =
                matches!(kind, ExceptionKind::Debug | ExceptionKind::Breakpoint | ExceptionKind::Overflow);
            assert_eq!(m.vcpus[0].raise(Exception::plain(kind)), Outcome::Resume);
            assert_eq!(m.hw().rflags() & Rflags::RF.bits() != 0, !aborts && !traps, "{kind:?}");
        });
    }
}

#[test]
fn an_instruction_behind_its_breakpoint_ends_rf() {
    with(1, |m| {
        // #DB for a breakpoint on CPUID: a fault whose frame does not say RF.
        let debug = Exit::Exception { vector: 1, error_code: 0, address: 0 };
        assert_eq!(m.answer(0, debug), Outcome::Resume);
        assert_eq!((m.hw().injected.take(), m.hw().rflags() & Rflags::RF.bits()), (super::STEP, 0));
        // The handler's IRET sets it, the CPU goes on to the intercept, and the next instruction has its breakpoint.
        let rflags = m.hw().rflags() | Rflags::RF.bits();
        m.hw().set_rflags(rflags);
        m.hw().ends_after(2);
        assert_eq!(m.answer(0, Exit::Cpuid), Outcome::Resume);
        assert_eq!(m.hw().rflags() & Rflags::RF.bits(), 0);
    });
}

#[test]
fn an_interrupted_fault_says_rf_when_it_is_delivered_again() {
    with(1, |m| {
        m.hw().interrupted = Some(Event::Exception(Exception::GENERAL_PROTECTION));
        assert_eq!(m.answer(0, Exit::ExternalInterrupt), Outcome::HostEvent);
        assert!(m.settle(0));
        m.hw().iret();
        assert_ne!(m.hw().rflags() & Rflags::RF.bits(), 0);
    });
}

/// The loop of CVE-2015-5307: an exception that is raised again by its own delivery goes on, one at an entry.
#[test]
fn an_exception_that_raises_itself_leaves_the_host_in_control() {
    with(1, |m| {
        let again = Exit::Exception { vector: 17, error_code: 0, address: 0 };
        assert_eq!(m.answer(0, again), Outcome::Resume);
        for _ in 0..100 {
            m.hw().obstacle = Some(again);
            let exit = m.enter(0).unwrap();
            assert_eq!(m.answer(0, exit), Outcome::Resume);
        }
        assert!(m.settle(0));
        assert_eq!(m.delivered(0).len(), 1);
    });
}

#[test]
fn an_interrupted_exception_is_delivered_again_with_its_code() {
    with(1, |m| {
        let fault = Event::Exception(Exception::page_fault(7, 0xdead_b000));
        m.hw().interrupted = Some(fault);
        assert_eq!(m.answer(0, Exit::ExternalInterrupt), Outcome::HostEvent);
        assert!(m.settle(0));
        assert_eq!((m.delivered(0).as_slice(), m.hw().regs.cr2), ([fault].as_slice(), 0xdead_b000));
    });
}

/// An exception met on an interrupt's way goes first, and the interrupt comes when its handler lets it.
#[test]
fn an_exception_on_an_interrupts_way() {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        assert_eq!(m.wrmsr(0, 0x83f, 0x55), Outcome::Resume);
        m.hw().obstacle = Some(Exit::Exception { vector: 17, error_code: 0, address: 0 });
        let exit = m.enter(0).unwrap();
        assert_eq!(m.answer(0, exit), Outcome::Resume);
        let alignment = Event::Exception(Exception::plain(ExceptionKind::AlignmentCheck));
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [alignment]);
        // The handler exits with interrupts off; nothing may come of that.
        m.hw().ends_after(2);
        assert_eq!(m.answer(0, Exit::Cpuid), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x55)]);
    });
}

/// ... even if that exception's own delivery is interrupted.
#[test]
fn two_interrupted_deliveries() {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        assert_eq!(m.wrmsr(0, 0x83f, 0x55), Outcome::Resume);
        m.hw().obstacle = Some(Exit::Exception { vector: 17, error_code: 0, address: 0 });
        let exit = m.enter(0).unwrap();
        assert_eq!(m.answer(0, exit), Outcome::Resume);
        m.hw().obstacle = Some(Exit::ExternalInterrupt);
        let exit = m.enter(0).unwrap();
        assert_eq!(m.answer(0, exit), Outcome::HostEvent);
        assert!(m.settle(0));
        let alignment = Event::Exception(Exception::plain(ExceptionKind::AlignmentCheck));
        assert_eq!(m.delivered(0), [alignment]);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x55)]);
    });
}
