//! Several vCPUs: start-up, IPIs, mail, and what they share.

use caisson_hwvirt::{Event, VcpuState};
use caisson_types::{Gpa, GuestMemory, Instant, VcpuId};
use caisson_x86::{Attributes, SegmentRegister, msr};

use super::{vectors, with};
use crate::testing::{Machine, Resumes};
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

/// Waiting for SIPI is Caisson's own state: the vCPU is not entered, whatever arrives for it, so that no hardware (nested
/// KVM's, for one) needs an activity state for it.
#[test]
fn a_vcpu_that_waits_for_sipi_is_never_entered() {
    with(2, |m| {
        m.x2apic(0);
        for command in [0x55, 0x400, INIT, 0x55] {
            send(m, 0, TO_1 | command);
            assert_eq!(m.enter(1), Err(Readiness::Blocked), "{command:#x}");
            assert_eq!(m.vcpus[1].run_state(), RunState::WaitForSipi);
        }
        m.pass(1_000_000_000);
        m.timers();
        assert_eq!(m.enter(1), Err(Readiness::Blocked));
        send(m, 0, TO_1 | SIPI | 8);
        assert!(m.settle(1));
        assert_eq!((m.vcpus[1].run_state(), m.delivered(1)), (RunState::Running, [].into()));
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

// ---- many

/// Every vCPU but the first started by INIT and SIPI to all others, as old kernels do; then all in x2APIC mode.
#[test]
fn sixty_four_vcpus_start_and_reach_each_other() {
    with(64, |m| {
        m.x2apic(0);
        send(m, 0, 0x000c_0000 | INIT);
        send(m, 0, 0x000c_0000 | SIPI | 0x10);
        for index in 1..64 {
            assert!(m.settle(index), "{index}");
            assert_eq!(m.vcpus[index].hw.segment(SegmentRegister::Cs).base, 0x10000);
            m.x2apic(index);
            assert_eq!(m.rdmsr(index, 0x802), index as u64, "x2APIC id");
            let logical = (index as u64 >> 4) << 16 | 1 << (index & 15);
            assert_eq!(m.rdmsr(index, 0x80d), logical, "logical id");
            m.interrupts(index, true);
        }
        // To each of a cluster by one logical IPI, from the last vCPU.
        send(m, 63, 0x0002_8001 << 32 | 0x800 | 0x55);
        for index in 1..64 {
            assert!(m.settle(index));
            let expected: &[u8] = if [32, 47].contains(&index) { &[0x55] } else { &[] };
            assert_eq!(vectors(&m.delivered(index)), expected, "{index}");
        }
        send(m, 5, 63 << 32 | 0x66);
        assert!(m.settle(63));
        assert_eq!(vectors(&m.delivered(63)), [0x66]);
    });
}

// ---- the chipset, which is one for all

/// 8254: counter 0, mode 2, 1193 ticks, which is 1 ms less 152 ns; programmed by vCPU `index`.
fn program_pit(m: &mut Machine<'_>, index: usize) {
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        assert_eq!(m.out_on(index, port, 1, value), Outcome::Resume);
    }
}

/// Two vCPUs; the 8259 pair lets IRQ 0 through, by vector 0x20, to the first.
fn pic(test: impl FnOnce(&mut Machine<'_>)) {
    both(|m| {
        let Machine { domain, vcpus, .. } = m;
        vcpus[0].set_virtual_wire(domain);
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            assert_eq!(m.out(port, 1, value), Outcome::Resume);
        }
        assert!(m.settle(0) && m.settle(1));
        test(m);
    });
}

#[test]
fn the_boot_vcpu_hears_of_a_deadline_that_another_has_moved_nearer() {
    pic(|m| {
        let _ = m.vcpus[0].take_deadline_changed();
        let before = m.vcpus[0].next_deadline(&m.domain);
        let woken = m.host.woken[0];
        program_pit(m, 1);
        assert_eq!(m.vcpus[1].next_deadline(&m.domain), Instant::NEVER, "the chipset's time is the first's");
        assert_eq!(m.host.woken[0], woken + 1);
        assert!(m.domain.mailbox(0).has_work());
        assert!(m.settle(0));
        assert!(m.vcpus[0].take_deadline_changed());
        let due = m.vcpus[0].next_deadline(&m.domain);
        assert!(due < before && due < Instant::from_nanos(1_002_000), "{due:?}");
        // Another vCPU's timer leaves the chipset alone.
        m.pass(2_000_000);
        let now = m.now();
        let Machine { domain, vcpus, host } = m;
        vcpus[1].advance(domain, host, now);
        assert_eq!(vcpus[0].next_deadline(domain), due);
        assert!(m.settle(1));
        m.timers();
        assert!(m.settle(0) && m.settle(1));
        assert_eq!((m.delivered(0), m.delivered(1)), ([Event::Interrupt(0x20)].into(), [].into()));
        assert!(m.vcpus[0].next_deadline(&m.domain) > due);
    });
}

#[test]
fn a_deadline_that_another_has_moved_away_wakes_nobody() {
    pic(|m| {
        program_pit(m, 0);
        assert!(m.settle(0));
        let woken = m.host.woken[0];
        // Masked in the 8259: nobody waits for its ticks.
        assert_eq!(m.out_on(1, 0x21, 1, 0xff), Outcome::Resume);
        assert_eq!(m.host.woken[0], woken);
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), Instant::NEVER);
    });
}

#[test]
fn the_pair_of_8259s_interrupts_the_boot_vcpu_alone() {
    pic(|m| {
        // The other one's APIC is disabled, and its INTR pin is not wired.
        let base = m.rdmsr(1, 0x1b);
        assert_eq!(m.wrmsr(1, 0x1b, base & !(3 << 10)), Outcome::Resume);
        program_pit(m, 1);
        m.pass(1_500_000);
        m.timers();
        assert!(m.settle(1) && m.settle(0));
        assert_eq!((m.delivered(1), m.delivered(0)), ([].into(), [Event::Interrupt(0x20)].into()));
        // It may end the interrupt and clear the mask all the same: the pair hangs on the bus of all.
        m.hw().iret();
        assert_eq!(m.out_on(1, 0x20, 1, 0x20), Outcome::Resume);
        m.pass(1_000_000);
        m.timers();
        let base = m.rdmsr(1, 0x1b);
        assert_eq!(m.wrmsr(1, 0x1b, base | 1 << 11), Outcome::Resume);
        assert!(m.settle(1) && m.settle(0));
        assert_eq!((m.delivered(1), m.delivered(0)), ([].into(), [Event::Interrupt(0x20)].into()));
    });
}

#[test]
fn a_cpu_whose_clock_is_behind_does_not_turn_the_chipsets_time_back() {
    pic(|m| {
        program_pit(m, 0);
        m.pass(600_000);
        let read = |m: &mut Machine<'_>| {
            m.out(0x43, 1, 0).resumes();
            m.inp(0x40, 1) | m.inp(0x40, 1) << 8
        };
        let count = read(m);
        m.host.tsc.set(m.host.tsc.get() - 300_000);
        assert!(read(m) <= count);
        program_pit(m, 1);
        m.pass(1_400_000);
        m.timers();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0x20)]);
    });
}

// ---- time-stamp counters

#[test]
fn tscs_are_equal_after_what_linux_writes() {
    both(|m| {
        let tscs = |m: &mut Machine<'_>| (m.rdmsr(0, msr::TSC), m.rdmsr(1, msr::TSC));
        let (a, b) = tscs(m);
        assert_eq!(a, b);
        // The boot CPU's TSC_ADJUST is cleared or kept, the others' are set to it.
        for value in [0, 30_000, 5_000_u64.wrapping_neg()] {
            for index in 0..2 {
                m.wrmsr(index, msr::TSC_ADJUST, value).resumes();
            }
            let (a, b) = tscs(m);
            assert_eq!(a, b);
        }
        // INIT leaves the TSC and its adjustment alone.
        send(m, 0, TO_1 | INIT);
        assert!(!m.settle(1));
        send(m, 0, TO_1 | SIPI | 8);
        assert!(m.settle(1));
        let (a, b) = tscs(m);
        assert_eq!(a, b);
    });
}

#[test]
fn clocks_are_stable_while_the_tscs_are_equal() {
    both(|m| {
        let pages = [0x9000, 0xa000];
        for (index, page) in (0..).zip(pages) {
            m.wrmsr(index, msr::KVM_SYSTEM_TIME_NEW, page | 1).resumes();
        }
        let stable = |m: &mut Machine<'_>| {
            assert!(m.settle(0) && m.settle(1));
            pages.map(|page| m.domain.memory.read_u16(Gpa::new(page + 28)).unwrap() >> 8)
        };
        assert_eq!(stable(m), [1, 1]);
        m.wrmsr(1, msr::TSC_ADJUST, 1000).resumes();
        assert!(m.domain.mailbox(0).has_work());
        assert_eq!(stable(m), [0, 0]);
        // Right each for its own vCPU still: the page's TSC at time zero is the adjustment.
        let zero = |page: u64| m.domain.memory.read_u64(Gpa::new(page + 8)).unwrap();
        assert_eq!(pages.map(zero), [0, 1000]);
        m.wrmsr(1, msr::TSC_ADJUST, 2000).resumes();
        assert!(!m.domain.mailbox(0).has_work(), "nothing new");
        m.wrmsr(0, msr::TSC_ADJUST, 2000).resumes();
        assert_eq!(stable(m), [1, 1]);
        send(m, 0, TO_1 | INIT);
        assert!(!m.settle(1));
        assert_eq!(m.rdmsr(1, msr::KVM_SYSTEM_TIME_NEW), 0, "INIT forgets the page");
    });
}
