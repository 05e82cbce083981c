//! Two vCPUs: start-up, IPIs, mail.

use caisson_hwvirt::{Event, VcpuState};
use caisson_types::VcpuId;
use caisson_x86::{Attributes, SegmentRegister};

use super::{vectors, with};
use crate::testing::Machine;
use crate::{Ended, Outcome, Readiness, RunState};

const ICR: u32 = 0x830;
const INIT: u64 = 0x4500;
const SIPI: u64 = 0x4600;
const TO_1: u64 = 1 << 32;
const TO_0: u64 = 0;

fn send(m: &mut Machine<'_>, from: usize, icr: u64) {
    assert_eq!(m.wrmsr(from, ICR, icr), Outcome::Resume);
}

/// Both vCPUs in x2APIC mode with interrupts on.
fn both(test: impl FnOnce(&mut Machine<'_>)) {
    with(2, |m| {
        m.x2apic(0);
        send(m, 0, TO_1 | INIT);
        assert!(!m.settle(1));
        send(m, 0, TO_1 | SIPI | 8);
        assert!(m.settle(1));
        m.x2apic(1);
        for index in 0..2 {
            m.interrupts(index, true);
        }
        test(m);
    });
}

#[test]
fn a_vcpu_waits_for_its_start_up() {
    with(2, |m| {
        assert_eq!(m.vcpus[1].id, VcpuId { index: 1, ..m.vcpus[0].id });
        assert!(!m.settle(1));
        m.x2apic(0);
        let _ = m.domain.mailbox(1).post_nmi();
        assert!(!m.settle(1), "an NMI starts nothing");
        send(m, 0, TO_1 | INIT);
        assert!(!m.settle(1));
        assert_eq!(m.vcpus[1].hw.resets, [true]);
        assert_eq!(m.host.woken[1], 1);
        send(m, 0, TO_1 | SIPI | 0x9a);
        assert!(m.settle(1));
        let hw = &m.vcpus[1].hw;
        let cs = hw.segment(SegmentRegister::Cs);
        assert_eq!((cs.selector, cs.base, cs.limit), (0x9a00, 0x9a000, 0xffff));
        assert_eq!((cs.attributes, hw.rip()), (Attributes::CODE16, 0));
        assert_eq!(m.delivered(1), []);
        // Linux sends a second one.
        m.vcpus[1].hw.set_rip(0x55);
        send(m, 0, TO_1 | SIPI | 0x10);
        assert!(m.settle(1));
        assert_eq!(m.vcpus[1].hw.rip(), 0x55);
    });
}

#[test]
fn page_zero_is_a_page() {
    with(2, |m| {
        m.x2apic(0);
        send(m, 0, TO_1 | INIT);
        send(m, 0, TO_1 | SIPI);
        assert!(m.settle(1));
        assert_eq!(m.vcpus[1].hw.segment(SegmentRegister::Cs).base, 0);
        assert_eq!(m.vcpus[1].run_state(), RunState::Running);
    });
}

#[test]
fn init_takes_a_running_vcpu_back() {
    both(|m| {
        send(m, 0, TO_1 | 0x55);
        m.vcpus[1].hw.cr8 = 9;
        send(m, 0, TO_1 | INIT);
        assert!(!m.settle(1));
        assert_eq!(m.vcpus[1].run_state(), RunState::WaitForSipi);
        assert!(m.vcpus[1].apic.irr().is_empty());
        send(m, 0, TO_1 | 0x55);
        assert!(!m.settle(1));
        send(m, 0, TO_1 | SIPI | 1);
        assert!(m.settle(1));
        assert_eq!(m.delivered(1), [], "its APIC is software disabled again");
    });
}

#[test]
fn init_of_the_boot_vcpu_resets_the_machine() {
    both(|m| {
        assert!(m.settle(0));
        send(m, 1, TO_0 | INIT);
        assert_eq!(m.enter(0), Err(Readiness::Ended(Ended::Reset)));
    });
}

#[test]
fn ipis_between_vcpus() {
    both(|m| {
        send(m, 0, TO_1 | 0x71);
        assert!(m.settle(1));
        assert_eq!(vectors(&m.delivered(1)), [0x71]);
        send(m, 1, 0x000c_0072);
        assert!(m.settle(0) && m.settle(1));
        assert_eq!((vectors(&m.delivered(0)), vectors(&m.delivered(1))), ([0x72].into(), [].into()));
        m.interrupts(0, true);
        m.interrupts(1, true);
        send(m, 0, 0x0008_0083);
        assert!(m.settle(0) && m.settle(1));
        assert_eq!((vectors(&m.delivered(0)), vectors(&m.delivered(1))), ([0x83].into(), [0x83].into()));
        send(m, 0, TO_1 | 0x400);
        assert!(m.settle(1));
        assert_eq!(m.delivered(1), [Event::Nmi]);
    });
}

#[test]
fn mail_wakes_a_halted_vcpu_once() {
    both(|m| {
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1));
        let before = m.host.woken[1];
        send(m, 0, TO_1 | 0x71);
        send(m, 0, TO_1 | 0x72);
        assert_eq!(m.host.woken[1], before + 1, "it is awake already");
        assert!(m.settle(1));
        assert_eq!(vectors(&m.delivered(1)), [0x72]);
        assert_eq!(m.wrmsr(1, 0x80b, 0), Outcome::Resume);
        m.vcpus[1].hw.iret();
        assert!(m.settle(1));
        assert_eq!(vectors(&m.delivered(1)), [0x71]);
    });
}

#[test]
fn an_ipi_to_oneself_by_destination() {
    both(|m| {
        send(m, 0, TO_0 | 0x44);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x44]);
    });
}
