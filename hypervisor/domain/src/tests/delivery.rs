//! Interrupts from the local APIC, the I/O APIC and the 8259 pair into the guest.

use alloc::vec::Vec;

use caisson_hwvirt::{Event, Exit, InterruptWindow, VcpuState};
use caisson_irqchip::TriggerMode;

use super::{vectors, with};
use crate::Outcome;
use crate::testing::{Machine, Resumes};

const SELF_IPI: u32 = 0x83f;
const EOI: u32 = 0x80b;
const TPR: u32 = 0x808;

/// A guest of one vCPU in x2APIC mode with interrupts on.
fn ready(test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        assert!(m.settle(0));
        test(m);
    });
}

fn request(m: &mut Machine<'_>, vector: u64) {
    assert_eq!(m.wrmsr(0, SELF_IPI, vector), Outcome::Resume);
}

/// The handler ends: EOI, then IRET.
fn finish(m: &mut Machine<'_>) {
    assert_eq!(m.wrmsr(0, EOI, 0), Outcome::Resume);
    m.hw().iret();
}

#[test]
fn the_highest_vector_first_and_each_once() {
    ready(|m| {
        for vector in [0x31, 0x99, 0x45, 0x99, 0x9a] {
            request(m, vector);
        }
        let mut seen = Vec::new();
        while m.settle(0) {
            let events = vectors(&m.delivered(0));
            if events.is_empty() {
                break;
            }
            seen.extend(events);
            finish(m);
        }
        assert_eq!(seen, [0x9a, 0x99, 0x45, 0x31]);
        assert!(m.vcpus[0].apic.isr().is_empty() && m.vcpus[0].apic.irr().is_empty());
    });
}

#[test]
fn a_higher_class_nests_and_its_own_does_not() {
    ready(|m| {
        request(m, 0x41);
        assert!(m.settle(0));
        m.interrupts(0, true);
        request(m, 0x42);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x41]);
        request(m, 0x51);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x51]);
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [], "0x42 waits for the end of 0x41");
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x42]);
    });
}

#[test]
fn an_end_of_interrupt_uncovers_a_lower_vector() {
    ready(|m| {
        request(m, 0x81);
        assert!(m.settle(0));
        request(m, 0x31);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x81]);
        // With no other exit than this.
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x31]);
    });
}

#[test]
fn the_same_by_mmio() {
    with(1, |m| {
        m.store(0, 0xfee0_00f0, 0x1ff).resumes();
        m.interrupts(0, true);
        // A self-IPI by the shorthand of the ICR.
        m.store(0, 0xfee0_0300, 0x0004_0081).resumes();
        assert!(m.settle(0));
        m.store(0, 0xfee0_0300, 0x0004_0031).resumes();
        assert!(m.settle(0));
        m.store(0, 0xfee0_00b0, 0).resumes();
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x81, 0x31]);
    });
}

#[test]
fn a_window_opens_with_interrupts() {
    ready(|m| {
        m.interrupts(0, false);
        request(m, 0x40);
        assert!(m.settle(0));
        assert_eq!((m.hw().window, vectors(&m.delivered(0)).len()), (InterruptWindow::Any, 0));
        m.interrupts(0, true);
        m.hw().set_interrupt_shadow(true);
        assert!(m.settle(0), "in the shadow of STI");
        assert_eq!(vectors(&m.delivered(0)), []);
        m.hw().set_interrupt_shadow(false);
        assert_eq!(m.enter(0), Ok(Exit::InterruptWindow));
        assert_eq!(m.answer(0, Exit::InterruptWindow), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!((m.hw().window, vectors(&m.delivered(0))), (InterruptWindow::Closed, [0x40].into()));
    });
}

#[test]
fn an_interrupt_waits_for_an_exception_on_its_way() {
    ready(|m| {
        assert_eq!(m.answer(0, Exit::Unsupported), Outcome::Resume);
        request(m, 0x40);
        assert!(m.settle(0));
        assert_eq!(m.hw().window, InterruptWindow::Any);
        assert_eq!(m.delivered(0).len(), 1);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x40)]);
    });
}

#[test]
fn an_interrupted_interrupt_comes_again_before_a_higher_one() {
    ready(|m| {
        request(m, 0x40);
        m.hw().obstacle = Some(Exit::ExternalInterrupt);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        assert!(m.domain.mailbox(0).post_vector(0x90, TriggerMode::Edge));
        assert_eq!(m.answer(0, Exit::ExternalInterrupt), Outcome::HostEvent);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x40)]);
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x90)]);
    });
}

#[test]
fn task_priority_by_cr8() {
    ready(|m| {
        m.hw().cr8 = 5;
        request(m, 0x5f);
        assert!(m.settle(0));
        assert_eq!((m.hw().window, m.delivered(0).len()), (InterruptWindow::Above(5), 0));
        request(m, 0x61);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x61]);
        finish(m);
        m.hw().cr8 = 4;
        assert!(m.settle(0), "by the window alone");
        assert_eq!(vectors(&m.delivered(0)), [0x5f]);
        assert_eq!(m.rdmsr(0, TPR), 0x40, "TPR is CR8");
    });
}

#[test]
fn task_priority_by_register() {
    ready(|m| {
        assert_eq!(m.wrmsr(0, TPR, 0x5a), Outcome::Resume);
        assert_eq!(m.hw().cr8, 5);
        request(m, 0x58);
        assert!(m.settle(0));
        assert_eq!(m.rdmsr(0, TPR), 0x5a, "its low half stays");
        assert_eq!(m.delivered(0), []);
        m.hw().cr8 = 6;
        assert_eq!(m.rdmsr(0, 0x80a), 0x60, "PPR follows CR8 without an entry");
        assert_eq!(m.wrmsr(0, TPR, 0), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!((vectors(&m.delivered(0)), m.hw().cr8), ([0x58].into(), 0));
    });
}

// ---- the 8259 pair

/// Initialises the pair at vectors 0x20 and 0x28, all lines masked but `open`.
fn pics(m: &mut Machine<'_>, open: u8) {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, !open),
        (0xa1, 0xff),
    ] {
        m.out(port, 1, u32::from(value)).resumes();
    }
}

/// Turns the UART's transmitter interrupt (line 4) on, which is pending at once.
fn uart(m: &mut Machine<'_>) {
    m.out(0x3fc, 1, 0x0b).resumes();
    m.out(0x3f9, 1, 2).resumes();
}

#[test]
fn the_pair_through_the_virtual_wire() {
    with(1, |m| {
        let Machine { domain, vcpus, .. } = m;
        vcpus[0].set_virtual_wire(domain);
        pics(m, 1 << 4);
        m.interrupts(0, true);
        m.hw().cr8 = 15;
        uart(m);
        assert!(m.settle(0), "task priority holds no ExtINT back");
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
        assert!(m.vcpus[0].apic.isr().is_empty(), "no business of the local APIC's");
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [], "in service");
        // Reading IIR ends the UART's request; another byte makes it again.
        assert_eq!(m.inp(0x3fa, 1) & 0xf, 2);
        m.out(0x20, 1, 0x20).resumes();
        m.out(0x3f8, 1, 0x41).resumes();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
    });
}

#[test]
fn the_pair_waits_for_lint0() {
    with(1, |m| {
        m.x2apic(0);
        pics(m, 1 << 4);
        m.interrupts(0, true);
        uart(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
        assert_eq!(m.wrmsr(0, 0x835, 0x700), Outcome::Resume);
        assert!(m.settle(0), "unmasking LINT0 is enough");
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
    });
}

#[test]
fn the_pair_reaches_a_guest_that_turned_its_apic_off() {
    with(1, |m| {
        assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0000), Outcome::Resume);
        pics(m, 1 << 4);
        m.interrupts(0, true);
        uart(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
    });
}

#[test]
fn a_request_that_is_gone_before_its_time() {
    with(1, |m| {
        let Machine { domain, vcpus, .. } = m;
        vcpus[0].set_virtual_wire(domain);
        pics(m, 1 << 4);
        uart(m);
        assert!(m.settle(0));
        assert_eq!(m.hw().window, InterruptWindow::Any);
        m.out(0x21, 1, 0xff).resumes();
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!((m.delivered(0).as_slice(), m.hw().window), ([].as_slice(), InterruptWindow::Closed));
        m.out(0x21, 1, 0xef).resumes();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
    });
}

// ---- the I/O APIC

/// Writes a register of the I/O APIC.
fn ioapic(m: &mut Machine<'_>, register: u32, value: u32) {
    m.store(0, 0xfec0_0000, register).resumes();
    m.store(0, 0xfec0_0010, value).resumes();
}

fn ioapic_read(m: &mut Machine<'_>, register: u32) -> u32 {
    m.store(0, 0xfec0_0000, register).resumes();
    m.load(0, 0xfec0_0010)
}

/// The line of a device outside of the chipset.
fn line(m: &mut Machine<'_>, line: u8, level: bool) {
    let Machine { domain, host, .. } = m;
    let mut chipset = domain.chipset();
    chipset.set_irq(line, level);
    let wake = domain.settle(&mut chipset);
    drop(chipset);
    crate::Host::wake(host, wake);
}

#[test]
fn a_level_comes_again_until_its_line_falls() {
    ready(|m| {
        ioapic(m, 0x10 + 2 * 18, 0x8000 | 0x61);
        line(m, 18, true);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x61]);
        assert_ne!(ioapic_read(m, 0x10 + 2 * 18) & 1 << 14, 0, "remote IRR");
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x61], "its line is still high");
        line(m, 18, false);
        finish(m);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
        assert_eq!(ioapic_read(m, 0x10 + 2 * 18) & 1 << 14, 0);
    });
}

#[test]
fn an_edge_needs_no_broadcast() {
    ready(|m| {
        ioapic(m, 0x10 + 2 * 19, 0x62);
        for _ in 0..3 {
            line(m, 19, true);
            line(m, 19, false);
            assert!(m.settle(0));
            assert_eq!(vectors(&m.delivered(0)), [0x62]);
            finish(m);
        }
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
    });
}

#[test]
fn an_extint_pin_asks_the_pair() {
    ready(|m| {
        pics(m, 1 << 4);
        ioapic(m, 0x10 + 2 * 18, 0x700);
        uart(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
        line(m, 18, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x24)]);
    });
}

#[test]
fn unmasking_a_level_pin_by_mmio_delivers() {
    ready(|m| {
        line(m, 20, true);
        assert!(m.settle(0));
        ioapic(m, 0x10 + 2 * 20, 0x8000 | 0x63);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x63]);
    });
}

#[test]
fn a_level_that_nobody_accepted_comes_when_somebody_does() {
    const SVR: u32 = 0x80f;
    ready(|m| {
        ioapic(m, 0x10 + 2 * 21, 0x8000 | 0x64);
        m.wrmsr(0, SVR, 0xff).resumes();
        line(m, 21, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [], "the APIC is software disabled");
        assert_eq!(ioapic_read(m, 0x10 + 2 * 21) & 1 << 14, 0, "remote IRR");
        m.wrmsr(0, SVR, 0x1ff).resumes();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x64]);
        assert_ne!(ioapic_read(m, 0x10 + 2 * 21) & 1 << 14, 0, "remote IRR");
        m.wrmsr(0, SVR, 0x1ff).resumes();
        line(m, 21, false);
        finish(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [], "once");
    });
}

#[test]
fn a_level_for_another_cpu_comes_when_that_one_is_ready() {
    with(2, |m| {
        m.x2apic(0);
        ioapic(m, 0x11 + 2 * 21, 1 << 24);
        ioapic(m, 0x10 + 2 * 21, 0x8000 | 0x64);
        line(m, 21, true);
        assert_eq!(m.host.woken[1], 0, "software disabled");
        let _ = m.domain.mailbox(1).post_init();
        let _ = m.domain.mailbox(1).post_sipi(2);
        assert!(m.settle(1));
        m.x2apic(1);
        assert!(m.settle(1));
        assert_eq!(m.delivered(1), [], "interrupts are off");
        m.interrupts(1, true);
        assert!(m.settle(1));
        assert_eq!(vectors(&m.delivered(1)), [0x64]);
    });
}

/// x87 errors as a PC reports them: line 13, until port 0xF0 is written.
#[test]
fn an_x87_error_is_interrupt_13() {
    with(1, |m| {
        for (port, value) in [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1), (0xa1, 0)] {
            m.out(port, 1, value).resumes();
        }
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            m.out(port, 1, value).resumes();
        }
        let Machine { domain, vcpus, .. } = m;
        vcpus[0].set_virtual_wire(domain);
        for _ in 0..3 {
            assert_eq!(m.answer(0, Exit::X87Error), Outcome::Yield, "interrupts are off");
            assert!(m.settle(0));
        }
        assert_eq!(m.delivered(0), []);
        m.interrupts(0, true);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x2d)]);
        m.out(0xf0, 1, 0).resumes();
        m.out(0xa0, 1, 0x20).resumes();
        m.out(0x20, 1, 0x20).resumes();
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
        assert_eq!(m.answer(0, Exit::X87Error), Outcome::Yield);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x2d)]);
    });
}
