//! KVM's hypercalls between vCPUs: kicks, IPIs to many, directed yields.

use caisson_abi::{answer, kvm};
use caisson_hwvirt::{Event, VcpuState};
use caisson_x86::{Attributes, Efer, Segment, SegmentRegister};
use proptest::prelude::*;

use super::{vectors, with};
use crate::testing::{Machine, Resumes};
use crate::{Outcome, RunState};

/// `vcpus` running vCPUs in x2APIC mode with interrupts on.
fn started(vcpus: usize, test: impl FnOnce(&mut Machine<'_>)) {
    with(vcpus, |m| {
        for index in 0..vcpus {
            if index > 0 {
                let _ = m.domain.mailbox(index).post_sipi(8);
            }
            assert!(m.settle(index));
            m.x2apic(index);
            m.interrupts(index, true);
        }
        test(m);
    });
}

/// vCPU `index` in 64-bit mode.
pub(super) fn long(m: &mut Machine<'_>, index: usize) {
    let hw = &mut m.vcpus[index].hw;
    hw.set_efer((Efer::LME | Efer::LMA).bits());
    let code = Segment { selector: 8, attributes: Attributes::CODE64, limit: u32::MAX, base: 0 };
    hw.set_segment(SegmentRegister::Cs, code);
}

fn kick(m: &mut Machine<'_>, from: usize, apic_id: u64) {
    assert_eq!(m.hypercall(from, kvm::KICK_CPU, [0, apic_id, 0, 0]), (Outcome::Resume, 0));
}

fn ipi(m: &mut Machine<'_>, arguments: [u64; 4]) -> u64 {
    let (outcome, answer) = m.hypercall(0, kvm::SEND_IPI, arguments);
    assert_eq!(outcome, Outcome::Resume);
    answer
}

// ---- kicks

#[test]
fn a_kick_ends_a_halt_with_interrupts_off() {
    started(2, |m| {
        m.interrupts(1, false);
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1));
        let woken = m.host.woken[1];
        kick(m, 0, 1);
        assert_eq!(m.host.woken[1], woken + 1);
        assert!(m.settle(1));
        assert_eq!((m.vcpus[1].run_state(), m.delivered(1)), (RunState::Running, [].into()));
        // It has served its purpose.
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1));
    });
}

#[test]
fn a_kick_before_the_halt_is_kept() {
    started(2, |m| {
        kick(m, 0, 1);
        kick(m, 0, 1);
        assert!(m.settle(1), "taken while it runs");
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(m.settle(1), "not lost");
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1), "two are one");
        kick(m, 0, 1);
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(m.settle(1));
    });
}

#[test]
fn an_interrupt_that_ends_the_halt_uses_the_kick_up() {
    started(2, |m| {
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1));
        let _ = m.domain.mailbox(1).post_vector(0x55, caisson_irqchip::TriggerMode::Edge);
        kick(m, 0, 1);
        assert!(m.settle(1));
        assert_eq!(vectors(&m.delivered(1)), [0x55]);
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1));
    });
}

#[test]
fn a_kick_starts_nothing_and_reaches_nobody_absent() {
    with(2, |m| {
        for id in [1, 2, 63, 64, 255, u64::from(u32::MAX), u64::MAX, 1 << 40 | 7] {
            kick(m, 0, id);
        }
        assert!(!m.settle(1));
        assert_eq!(m.vcpus[1].run_state(), RunState::WaitForSipi);
        let _ = m.domain.mailbox(1).post_sipi(8);
        assert!(m.settle(1));
        assert_eq!(m.halt(1), Outcome::Halted);
        assert!(!m.settle(1), "what came before the start is forgotten");
        // Oneself: the next HLT does not wait.
        kick(m, 0, 0);
        assert_eq!(m.halt(0), Outcome::Halted);
        assert!(m.settle(0));
    });
}

// ---- IPIs

#[test]
fn one_ipi_to_many() {
    started(64, |m| {
        long(m, 0);
        assert_eq!(ipi(m, [0b110 | 1 << 63, 1, 0, 0xf3]), 3, "the 65th vCPU is not there");
        assert_eq!(ipi(m, [1, 1 << 31, 32, 0x400]), 1, "an NMI");
        for index in 1..64 {
            assert!(m.settle(index));
            let expected: &[Event] = match index {
                1 | 2 | 63 => &[Event::Interrupt(0xf3)],
                32 => &[Event::Nmi],
                _ => &[],
            };
            assert_eq!(m.delivered(index), expected, "{index}");
            assert!(!expected.is_empty() || m.host.woken[index] == 0, "{index}");
        }
        assert_eq!(ipi(m, [u64::MAX, u64::MAX, 0, 0xf4]), 64, "the sender too");
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0xf4]);
    });
}

#[test]
fn the_bitmap_is_as_wide_as_the_mode() {
    started(64, |m| {
        // 32-bit mode, with garbage in the upper halves of the registers.
        let garbage = 0xdead_beef_u64 << 32;
        let number = garbage | kvm::SEND_IPI;
        let arguments = [garbage | 1 << 3, garbage | 1 << 3, garbage, garbage | 0xf3];
        assert_eq!(m.hypercall(0, number, arguments), (Outcome::Resume, 2));
        for index in 1..64 {
            assert!(m.settle(index));
            let expected: &[u8] = if [3, 35].contains(&index) { &[0xf3] } else { &[] };
            assert_eq!(vectors(&m.delivered(index)), expected, "{index}");
        }
        long(m, 0);
        assert_eq!(m.hypercall(0, number, arguments).1, answer::NO_SUCH_CALL);
    });
}

#[test]
fn what_an_ipi_may_be() {
    started(3, |m| {
        long(m, 0);
        for command in [0x0800, 0x4_0000, 0x8_0000, 0xc_0000, 0x200, 0x300, 0x700] {
            assert_eq!(ipi(m, [6, 0, 0, command | 0xf3]), answer::INVALID, "{command:#x}");
        }
        assert_eq!(ipi(m, [6, 0, 0, 0x8500]), 0, "INIT level de-assert is none");
        assert_eq!(ipi(m, [0, 0, 0, 0xf3]), 0);
        assert_eq!(ipi(m, [u64::MAX, u64::MAX, 3, 0xf3]), 0);
        assert_eq!(ipi(m, [u64::MAX, u64::MAX, 0xffff_ffff, 0xf3]), 0);
        // An illegal vector is its receivers' error.
        assert_eq!(ipi(m, [2, 0, 0, 5]), 1);
        assert!(m.settle(1));
        assert_eq!(m.delivered(1), []);
        m.wrmsr(1, 0x828, 0).resumes();
        assert_eq!(m.rdmsr(1, 0x828), 1 << 6);
        // One that is software disabled takes NMIs, and INIT.
        m.wrmsr(1, 0x80f, 0xff).resumes();
        assert_eq!(ipi(m, [6, 0, 0, 0xf3]), 1);
        assert_eq!(ipi(m, [6, 0, 0, 0x400]), 2);
        assert_eq!(ipi(m, [2, 0, 0, 0x4500]), 1);
        assert!(!m.settle(1) && m.settle(2));
        assert_eq!(m.vcpus[1].run_state(), RunState::WaitForSipi);
    });
}

// ---- yields

#[test]
fn a_yield_names_another_vcpu_that_is_there() {
    started(3, |m| {
        let to = |m: &mut Machine<'_>, id| m.hypercall(0, kvm::SCHED_YIELD, [id, 0, 0, 0]);
        let rip = m.hw().rip();
        assert_eq!(to(m, 2), (Outcome::YieldTo(2), 0));
        assert_eq!(m.hw().rip(), rip + 3);
        for id in [0, 3, 64, u64::MAX] {
            assert_eq!(to(m, id), (Outcome::Resume, 0), "{id}");
        }
    });
}

// ---- who may

#[test]
fn calls_that_are_not_announced_do_not_exist() {
    with(1, |m| {
        long(m, 0);
        for number in [kvm::KICK_CPU, kvm::SEND_IPI, kvm::SCHED_YIELD, 0, 1, 9, 12, u64::MAX] {
            assert_eq!(m.hypercall(0, number, [0; 4]), (Outcome::Resume, answer::NO_SUCH_CALL), "{number}");
        }
        let (_, version) = m.hypercall(0, caisson_abi::hypercall::VERSION, [0; 4]);
        assert_eq!(version, caisson_abi::VERSION);
    });
}

#[test]
fn user_mode_may_not() {
    started(2, |m| {
        m.hw().set_cpl(3);
        for number in [kvm::KICK_CPU, kvm::SEND_IPI, kvm::SCHED_YIELD, caisson_abi::hypercall::VERSION, 77] {
            assert_eq!(m.hypercall(0, number, [1; 4]), (Outcome::Resume, answer::NOT_PERMITTED));
        }
        assert!(!m.domain.mailbox(1).has_work());
    });
}

proptest! {
    /// Whatever the arguments: an answer that is known, and mail for vCPUs of the domain alone.
    #[test]
    fn hostile_arguments(wide: bool, number in 0_u64..16, arguments: [u64; 4], small: [u8; 4], use_small: [bool; 4]) {
        started(3, |m| {
            if wide {
                long(m, 0);
            }
            let mut values = arguments;
            for (value, (small, used)) in values.iter_mut().zip(small.into_iter().zip(use_small)) {
                if used {
                    *value = u64::from(small);
                }
            }
            let (outcome, answer) = m.hypercall(0, number, values);
            assert!(matches!(outcome, Outcome::Resume | Outcome::YieldTo(1..=2)), "{outcome:?}");
            assert!(answer <= 3 || [answer::INVALID, answer::NO_SUCH_CALL].contains(&answer), "{answer:#x}");
            for index in 0..3 {
                let _ = m.enter(index);
            }
        });
    }
}
