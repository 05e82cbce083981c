//! Hardware that delivers interrupts out of a virtual local APIC.

use caisson_hwvirt::{ApicPlace, Event, Exit, InterruptWindow};
use caisson_irqchip::TriggerMode;
use caisson_types::GuestMemory;
use caisson_x86::{ApicPage, msr};

use super::{PROTECTION, vectors, with_virtual_apic};
use crate::Readiness;
use crate::testing::{Machine, Resumes};

const PPR: u8 = 0x0a;

/// A guest of one vCPU in x2APIC mode with interrupts on.
fn ready(test: impl FnOnce(&mut Machine<'_>)) {
    with_virtual_apic(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        assert!(m.settle(0));
        test(m);
    });
}

fn page<'a>(m: &'a mut Machine<'_>) -> &'a mut ApicPage {
    &mut m.hw().virtual_apic.as_mut().unwrap().page
}

fn place(m: &mut Machine<'_>) -> ApicPlace {
    m.hw().virtual_apic.as_ref().unwrap().place
}

fn post(m: &mut Machine<'_>, vector: u8) {
    let _ = m.domain.mailbox(0).post_vector(vector, TriggerMode::Edge);
}

#[test]
fn a_posted_vector_needs_no_window() {
    ready(|m| {
        m.interrupts(0, false);
        post(m, 0x41);
        assert!(m.settle(0));
        assert_eq!((m.hw().window, m.delivered(0).len()), (InterruptWindow::Closed, 0));
        // The guest opens interrupts, and the hardware delivers with no exit.
        m.interrupts(0, true);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        assert_eq!(vectors(&m.delivered(0)), [0x41]);
        assert_eq!(page(m).get(PPR), 0x40);
        assert_eq!(m.rdmsr(0, 0x80a), 0x40, "and the local APIC knows");
        assert_eq!(m.hw().end_of_interrupt(), Some(Exit::ExternalInterrupt), "its end does not exit");
        assert_eq!(m.rdmsr(0, 0x80a), 0);
    });
}

#[test]
fn what_the_hardware_did_meets_what_was_posted() {
    ready(|m| {
        // Without an exit: an interrupt to itself, delivered; another, held back by it.
        m.self_ipi(0, 0x61);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        m.self_ipi(0, 0x52);
        m.interrupts(0, true);
        post(m, 0x71);
        post(m, 0x33);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x61, 0x71]);
        for expected in [&[][..], &[0x52], &[0x33]] {
            m.eoi(0);
            m.hw().iret();
            assert!(m.settle(0));
            assert_eq!(vectors(&m.delivered(0)), expected);
        }
    });
}

/// A register that cannot be written: what the guest's hardware does to the page afterwards counts.
#[test]
fn a_refused_write_leaves_the_page_to_the_hardware() {
    ready(|m| {
        for register in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x820, 0x831, 0x839, 0x8ff] {
            m.wrmsr(0, register, 0).resumes();
            assert_eq!(m.hw().injected, PROTECTION, "{register:#x}");
            assert!(m.settle(0));
            let _ = m.delivered(0);
            m.hw().iret();
            // Without an exit: an interrupt comes and goes. It does not come back with the next one.
            m.self_ipi(0, 0x61);
            assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
            m.eoi(0);
            m.hw().iret();
            post(m, 0x51);
            assert!(m.settle(0));
            assert_eq!(vectors(&m.delivered(0)), [0x61, 0x51], "{register:#x}");
            m.eoi(0);
            m.hw().iret();
        }
    });
}

#[test]
fn task_priority_is_the_hardware_s() {
    ready(|m| {
        m.hw().move_to_cr8(5);
        post(m, 0x5f);
        assert!(m.settle(0));
        assert_eq!((m.hw().window, m.delivered(0).len()), (InterruptWindow::Closed, 0));
        assert_eq!(m.rdmsr(0, 0x808), 0x50);
        m.hw().move_to_cr8(4);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        assert_eq!(vectors(&m.delivered(0)), [0x5f]);
        // The low half of TPR survives an exchange.
        m.wrmsr(0, 0x808, 0x67).resumes();
        assert!(m.settle(0));
        assert_eq!((page(m).get(ApicPage::TPR), m.rdmsr(0, 0x808)), (0x67, 0x67));
    });
}

#[test]
fn a_halted_guest_wakes_for_what_its_priority_lets_through() {
    ready(|m| {
        m.hw().move_to_cr8(5);
        assert_eq!(m.halt(0), crate::Outcome::Halted);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        post(m, 0x51);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        post(m, 0x61);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        assert_eq!(vectors(&m.delivered(0)), [0x61]);
        m.eoi(0);
        m.hw().iret();
        // With interrupts off it sleeps on.
        m.hw().move_to_cr8(0);
        m.interrupts(0, false);
        assert_eq!(m.halt(0), crate::Outcome::Halted);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
    });
}

#[test]
fn the_timer_goes_through_the_page() {
    ready(|m| {
        m.wrmsr(0, 0x832, 2 << 17 | 0x45).resumes();
        m.pass(1000);
        // One that has passed already, one that the core notices.
        m.wrmsr(0, msr::TSC_DEADLINE, 1).resumes();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x45]);
        m.eoi(0);
        m.hw().iret();
        let tsc = m.rdmsr(0, msr::TSC);
        m.wrmsr(0, msr::TSC_DEADLINE, tsc + 100).resumes();
        m.self_ipi(0, 0x31);
        m.pass(100);
        m.timers();
        assert!(m.settle(0));
        m.eoi(0);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x45, 0x31], "none is lost");
    });
}

#[test]
fn the_end_of_a_level_exits() {
    ready(|m| {
        m.store(0, 0xfec0_0000, 0x10 + 2 * 18).resumes();
        m.store(0, 0xfec0_0010, 0x8000 | 0x61).resumes();
        let line = |m: &mut Machine<'_>, level| {
            let mut chipset = m.domain.chipset();
            chipset.set_irq(18, level);
            let _ = m.domain.settle(&mut chipset);
        };
        line(m, true);
        for _ in 0..3 {
            assert!(m.settle(0));
            assert_eq!(vectors(&m.delivered(0)), [0x61], "as long as its line is high");
            assert_eq!(m.hw().end_of_interrupt(), Some(Exit::EndOfInterrupt(0x61)));
            m.answer(0, Exit::EndOfInterrupt(0x61)).resumes();
            m.hw().iret();
        }
        line(m, false);
        assert!(m.settle(0));
        m.eoi(0);
        m.hw().iret();
        assert!(m.settle(0));
        // One more had been sent before the line fell; it was the last.
        let _ = m.delivered(0);
        assert!(m.vcpus[0].apic.irr().is_empty());
    });
}

#[test]
fn an_interrupted_delivery_is_injected_and_stays_in_service() {
    ready(|m| {
        post(m, 0x40);
        m.hw().obstacle = Some(Exit::Exception { vector: 17, error_code: 0, address: 0 });
        let exit = m.enter(0).unwrap();
        assert_eq!(m.hw().interrupted, Some(Event::Interrupt(0x40)));
        m.answer(0, exit).resumes();
        assert!(m.settle(0));
        // The exception, and when its handler returns the interrupt, by a window.
        assert_eq!((m.delivered(0).len(), m.hw().window), (1, InterruptWindow::Any));
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(
            (m.delivered(0), m.hw().window),
            ([Event::Interrupt(0x40)].into(), InterruptWindow::Closed)
        );
        assert_eq!(m.rdmsr(0, 0x812), 1, "in service once");
        m.eoi(0);
        assert_eq!(m.rdmsr(0, 0x812), 0);
    });
}

#[test]
fn the_8259_pair_has_its_window_and_the_page_waits() {
    ready(|m| {
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xef)] {
            m.out(port, 1, value).resumes();
        }
        m.wrmsr(0, 0x835, 0x700).resumes();
        m.interrupts(0, false);
        m.out(0x3fc, 1, 0x0b).resumes();
        m.out(0x3f9, 1, 2).resumes();
        post(m, 0x81);
        assert!(m.settle(0));
        assert_eq!(m.hw().window, InterruptWindow::Any);
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x81)]);
    });
}

#[test]
fn writes_that_the_hardware_stored_reach_the_model() {
    with_virtual_apic(1, |m| {
        m.store(0, 0xfee0_00f0, 0x1ff).resumes();
        assert_eq!(place(m), ApicPlace::Memory);
        m.interrupts(0, true);
        assert!(m.settle(0));
        // A one-shot timer: divisor, vector, count.
        for (register, value) in [(0x3e, 0xb), (0x32, 0x45), (0x38, 1000)] {
            page(m).set(register, value);
            m.answer(0, Exit::ApicWrite { offset: u16::from(register) << 4 }).resumes();
            assert!(m.settle(0));
        }
        m.pass(1000);
        m.timers();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x45]);
        // An IPI to itself by its id, with the upper half written before without an exit.
        page(m).set(0x31, 0);
        page(m).set(0x30, 0x4051);
        m.answer(0, Exit::ApicWrite { offset: 0x300 }).resumes();
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x51]);
        // A register that cannot be written shows what it is.
        page(m).set(0x03, 0);
        m.answer(0, Exit::ApicWrite { offset: 0x30 }).resumes();
        assert!(m.settle(0));
        assert_eq!(page(m).get(0x03) & 0xff, 0x14);
    });
}

#[test]
fn the_hardware_knows_where_the_apic_is() {
    with_virtual_apic(1, |m| {
        assert_eq!(place(m), ApicPlace::Software, "off by software");
        m.store(0, 0xfee0_00f0, 0x1ff).resumes();
        assert_eq!(place(m), ApicPlace::Memory);
        m.wrmsr(0, msr::APIC_BASE, 0xd000_0900).resumes();
        assert_eq!(place(m), ApicPlace::Software, "moved");
        m.wrmsr(0, msr::APIC_BASE, 0xfee0_0900).resumes();
        assert_eq!(place(m), ApicPlace::Memory);
        m.wrmsr(0, msr::APIC_BASE, 0xfee0_0d00).resumes();
        assert_eq!(place(m), ApicPlace::Msrs);
        m.wrmsr(0, 0x80f, 0xff).resumes();
        assert_eq!(place(m), ApicPlace::Software);
        m.wrmsr(0, msr::APIC_BASE, 0xfee0_0100).resumes();
        assert_eq!(place(m), ApicPlace::Software, "disabled");
        post(m, 0x41);
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [], "a disabled APIC takes nothing");
    });
}

#[test]
fn init_empties_the_page() {
    with_virtual_apic(2, |m| {
        m.x2apic(0);
        m.wrmsr(0, 0x830, 1 << 32 | 0x4608).resumes();
        assert!(m.settle(1));
        m.x2apic(1);
        m.interrupts(1, true);
        m.self_ipi(1, 0x61);
        assert!(m.settle(1));
        m.self_ipi(1, 0x51);
        assert!(m.settle(1));
        m.wrmsr(0, 0x830, 1 << 32 | 0x4500).resumes();
        assert_eq!(m.enter(1), Err(Readiness::Blocked));
        m.wrmsr(0, 0x830, 1 << 32 | 0x4608).resumes();
        assert!(m.settle(1));
        assert!(m.vcpus[1].apic.irr().is_empty() && m.vcpus[1].apic.isr().is_empty());
    });
}

#[test]
fn pv_eoi_is_never_offered() {
    ready(|m| {
        m.wrmsr(0, msr::KVM_PV_EOI_EN, 0x8001).resumes();
        post(m, 0x41);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x41]);
        let mut word = [0];
        m.domain.memory.read(caisson_types::Gpa::new(0x8000), &mut word).unwrap();
        assert_eq!(word, [0]);
    });
}
