//! Accesses where no RAM is: the local APIC, the I/O APIC, nothing; and faults that must not be.

use caisson_hwvirt::{Event, Exit, NestedFault, VcpuState};
use caisson_irqchip::ApicMode;
use caisson_types::Gpa;
use caisson_x86::{Exception, Gpr, Rflags};

use super::{STEP, UNDEFINED, with};
use crate::testing::{CODE, Resumes, fault};
use crate::{Ended, KillReason, Outcome};

#[test]
fn the_local_apics_page() {
    with(2, |m| {
        assert_eq!(m.load(0, 0xfee0_0030), 0x0105_0014, "version");
        assert_eq!(m.load(1, 0xfee0_0020), 1 << 24, "id");
        m.store(0, 0xfee0_00f0, 0x1ff).resumes();
        assert!(m.vcpus[0].apic.is_software_enabled());
        assert_eq!(m.hw().rip(), CODE + 5);
        m.store(0, 0xfee0_0080, 0x7f).resumes();
        assert_eq!((m.hw().cr8, m.load(0, 0xfee0_0080)), (7, 0x7f));
        m.hw().cr8 = 9;
        assert_eq!(
            (m.load(0, 0xfee0_0080), m.load(0, 0xfee0_00a0)),
            (0x90, 0x90),
            "CR8 moves it without an exit"
        );
    });
}

#[test]
fn the_page_moves_and_goes() {
    with(1, |m| {
        m.wrmsr(0, 0x1b, 0xfe00_0900).resumes();
        assert_eq!(m.load(0, 0xfe00_0030), 0x0105_0014);
        assert_eq!(m.load(0, 0xfee0_0030), u32::MAX);
        m.wrmsr(0, 0x1b, 0xfe00_0100).resumes();
        assert_eq!(m.vcpus[0].apic.mode(), ApicMode::Disabled);
        assert_eq!(m.load(0, 0xfe00_0030), u32::MAX);
        m.wrmsr(0, 0x1b, 0xfee0_0900).resumes();
        m.x2apic(0);
        assert_eq!(m.load(0, 0xfee0_0030), u32::MAX, "no page in x2APIC mode");
    });
}

#[test]
fn the_ioapics_page() {
    with(1, |m| {
        m.store(0, 0xfec0_0000, 1).resumes();
        assert_eq!(m.load(0, 0xfec0_0010), 0x0017_0020);
        assert_eq!(m.load(0, 0xfec0_0000), 1);
    });
}

#[test]
fn nothing_reads_all_ones() {
    with(1, |m| {
        for address in [0xfed0_0000, super::RAM as u32, 0xffff_fffc, 0xfec0_1000, 0xfee0_1000] {
            assert_eq!(m.load(0, address), u32::MAX);
            m.store(0, address, 0).resumes();
        }
        assert_eq!(m.hw().injected, None);
    });
}

#[test]
fn a_string_over_registers_leaves_the_chip_consistent() {
    with(1, |m| {
        m.store(0, 0xfee0_00f0, 0x1ff).resumes();
        // REP STOSD over the whole page: ids, priorities, EOI, SVR, ICR and timer among it.
        m.hw().set_rip(CODE);
        m.code(0, &[0xf3, 0xab]);
        m.hw().set_gpr(Gpr::Rdi, 0xfee0_0000);
        m.hw().set_gpr(Gpr::Rcx, 1024);
        m.hw().set_gpr(Gpr::Rax, 0x0004_4041);
        while m.hw().rip() == CODE {
            m.answer(0, fault(0xfee0_0000, true)).resumes();
            let _ = m.settle(0);
        }
        assert_eq!(m.hw().gpr(Gpr::Rcx), 0);
    });
}

#[test]
fn a_stepped_access_traps() {
    with(1, |m| {
        m.hw().set_rflags((Rflags::FIXED | Rflags::TF).bits());
        m.store(0, 0xfee0_0080, 0).resumes();
        assert_eq!((m.hw().injected, m.hw().dr6() & 1 << 14), (STEP, 1 << 14));
    });
}

#[test]
fn an_instruction_that_cannot_reach_a_device() {
    with(1, |m| {
        // MOVUPS from the APIC.
        let code = [0x0f, 0x10, 0x05, 0xb0, 0x00, 0xe0, 0xfe];
        m.code(0, &code);
        let ended = m.end_by(0, fault(0xfee0_00b0, false));
        let Ended::Killed(KillReason::UnknownInstruction { rip, gpa, bytes }) = ended else {
            unreachable!("{ended:?}")
        };
        assert_eq!((rip, gpa, &bytes[..7]), (CODE, Gpa::new(0xfee0_00b0), code.as_slice()));
    });
}

#[test]
fn code_outside_of_memory_is_undefined() {
    with(1, |m| {
        m.hw().set_rip(0xfed0_0000);
        let exit = Exit::NestedFault(NestedFault {
            gpa: Gpa::new(0xfed0_0000),
            write: false,
            fetch: true,
            present: false,
            page_walk: false,
        });
        m.answer(0, exit).resumes();
        assert_eq!((m.hw().injected, m.hw().rip()), (UNDEFINED, 0xfed0_0000));
    });
}

#[test]
fn a_fault_on_ram_is_caissons_and_costs_the_guest() {
    with(1, |m| {
        let ended = m.end_by(0, fault(0x5000, true));
        let reason = KillReason::LostMemory { gpa: Gpa::new(0x5000) };
        assert_eq!(ended, Ended::Killed(reason));
    });
}

/// Stage 2 may hold RAM without the right to write, whatever the CPU was delivering: who knows why is asked.
#[test]
fn a_protected_page_is_told() {
    for event in [None, Some(Event::Interrupt(0x40))] {
        with(1, |m| {
            m.hw().interrupted = event;
            let Exit::NestedFault(fault) = fault(0x5008, true) else { return };
            for (write, present) in [(true, true), (false, true), (true, false)] {
                let outcome = m.answer(0, Exit::NestedFault(NestedFault { write, present, ..fault }));
                assert_eq!(outcome == Outcome::Protected(Gpa::new(0x5008)), write && present);
            }
            assert_eq!(m.vcpus[0].interrupted, event);
        });
    }
}

/// An event that the exit interrupted is delivered once there is room in the log.
#[test]
fn a_full_log_costs_no_event() {
    with(1, |m| {
        m.hw().interrupted = Some(Event::Interrupt(0x40));
        assert_eq!(m.answer(0, Exit::LogFull), Outcome::LogFull);
        assert_eq!(m.vcpus[0].interrupted, Some(Event::Interrupt(0x40)));
        assert!(m.vcpus[0].attention);
    });
}

#[test]
fn a_delivery_without_a_stack() {
    let event = Event::Exception(Exception::page_fault(0, 0x1234));
    for event in [event, Event::Interrupt(0x40), Event::Nmi] {
        with(1, |m| {
            m.code(0, &[0xa1, 0, 0, 0xe0, 0xfe]);
            m.hw().interrupted = Some(event);
            let ended = m.end_by(0, fault(0xfee0_0000, true));
            let reason = KillReason::LostDelivery { gpa: Gpa::new(0xfee0_0000) };
            assert_eq!(ended, Ended::Killed(reason));
            assert_eq!(m.hw().rip(), CODE);
        });
    }
}

#[test]
fn an_access_to_ram_beside_the_device_is_the_cpus() {
    with(1, |m| {
        // The fault says the APIC, the instruction names RAM: another vCPU has changed it.
        m.code(0, &[0xf0, 0x01, 0x05, 0x00, 0x80, 0x00, 0x00]);
        m.answer(0, fault(0xfee0_00b0, true)).resumes();
        assert_eq!((m.hw().rip(), m.hw().flushes), (CODE, 1));
    });
}
