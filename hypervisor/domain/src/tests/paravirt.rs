//! KVM's clock and its end of interrupt without an exit.

use caisson_types::{Gpa, GuestMemory};
use caisson_x86::msr;

use super::{vectors, with};
use crate::Outcome;
use crate::testing::{Machine, Resumes, TSC_HZ, WALL_CLOCK};

const WORD: u64 = 0x8004;

fn word(m: &Machine<'_>) -> u32 {
    m.domain.memory.read_u32(Gpa::new(WORD)).unwrap()
}

fn set_word(m: &Machine<'_>, value: u32) {
    m.domain.memory.write_u32(Gpa::new(WORD), value).unwrap();
}

/// A guest in x2APIC mode with interrupts on and a PV EOI word.
fn eoi(test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        m.wrmsr(0, msr::KVM_PV_EOI_EN, WORD | 1).resumes();
        assert_eq!(m.rdmsr(0, msr::KVM_PV_EOI_EN), WORD | 1);
        test(m);
    });
}

fn post(m: &mut Machine<'_>, vector: u8) {
    let _ = m.domain.mailbox(0).post_vector(vector, caisson_irqchip::TriggerMode::Edge);
}

#[test]
fn the_end_of_an_interrupt_without_an_exit() {
    eoi(|m| {
        for _ in 0..3 {
            post(m, 0x40);
            assert!(m.settle(0));
            assert_eq!((word(m), vectors(&m.delivered(0))), (1, [0x40].into()));
            set_word(m, 0);
            m.hw().iret();
        }
        assert!(m.settle(0));
        m.rdmsr(0, 0x80a);
        assert!(m.vcpus[0].apic.isr().is_empty());
    });
}

#[test]
fn the_offer_is_made_only_where_nothing_waits_for_the_end() {
    eoi(|m| {
        post(m, 0x40);
        post(m, 0x50);
        assert!(m.settle(0));
        assert_eq!((word(m), vectors(&m.delivered(0))), (0, [0x50].into()));
        m.wrmsr(0, 0x80b, 0).resumes();
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!((word(m), vectors(&m.delivered(0))), (1, [0x40].into()));
    });
}

#[test]
fn the_offer_is_taken_back_when_something_comes_to_wait() {
    eoi(|m| {
        post(m, 0x40);
        assert!(m.settle(0));
        assert_eq!(word(m), 1);
        post(m, 0x31);
        assert!(m.settle(0));
        assert_eq!(word(m), 0, "taken back");
        m.wrmsr(0, 0x80b, 0).resumes();
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x40, 0x31]);
    });
}

#[test]
fn the_offer_stands_while_nothing_changes() {
    eoi(|m| {
        post(m, 0x40);
        assert!(m.settle(0));
        let now = m.now();
        let Machine { domain, vcpus, host } = m;
        vcpus[0].advance(domain, host, now);
        assert!(m.settle(0));
        assert_eq!(word(m), 1);
    });
}

#[test]
fn an_accepted_offer_and_a_new_interrupt_meet() {
    eoi(|m| {
        post(m, 0x40);
        assert!(m.settle(0));
        set_word(m, 0);
        m.hw().iret();
        post(m, 0x40);
        assert!(m.settle(0));
        assert_eq!((word(m), vectors(&m.delivered(0))), (1, [0x40, 0x40].into()));
    });
}

#[test]
fn a_register_eoi_takes_the_offer_back() {
    eoi(|m| {
        post(m, 0x40);
        assert!(m.settle(0));
        m.wrmsr(0, 0x80b, 0).resumes();
        assert_eq!(word(m), 0);
        assert!(m.vcpus[0].apic.isr().is_empty());
        m.hw().iret();
        post(m, 0x41);
        assert!(m.settle(0));
        m.wrmsr(0, msr::KVM_PV_EOI_EN, 0).resumes();
        assert_eq!((word(m), m.rdmsr(0, msr::KVM_PV_EOI_EN)), (0, 0));
        assert!(!m.vcpus[0].apic.isr().is_empty());
    });
}

#[test]
fn a_level_that_takes_the_vector_over() {
    eoi(|m| {
        post(m, 0x40);
        assert!(m.settle(0));
        set_word(m, 0);
        m.hw().iret();
        let _ = m.domain.mailbox(0).post_vector(0x40, caisson_irqchip::TriggerMode::Level);
        assert!(m.settle(0));
        assert_eq!((word(m), vectors(&m.delivered(0))), (0, [0x40, 0x40].into()), "a level is never skipped");
    });
}

#[test]
fn a_word_outside_of_memory_is_no_offer() {
    eoi(|m| {
        m.wrmsr(0, msr::KVM_PV_EOI_EN, 0xfee0_0001).resumes();
        post(m, 0x40);
        assert!(m.settle(0));
        assert!(!m.vcpus[0].pv_eoi_armed);
        m.wrmsr(0, 0x80b, 0).resumes();
        assert!(m.vcpus[0].apic.isr().is_empty());
    });
}

#[test]
fn init_forgets_the_word() {
    with(2, |m| {
        m.x2apic(0);
        m.wrmsr(0, 0x830, 1 << 32 | 0x4500).resumes();
        assert!(!m.settle(1));
        m.wrmsr(0, 0x830, 1 << 32 | 0x4608).resumes();
        assert!(m.settle(1));
        m.wrmsr(1, msr::KVM_PV_EOI_EN, WORD | 1).resumes();
        m.wrmsr(0, 0x830, 1 << 32 | 0x4500).resumes();
        assert!(!m.settle(1));
        assert_eq!(m.rdmsr(1, msr::KVM_PV_EOI_EN), 0);
    });
}

// ---- the clock

/// What the guest computes from the structure at `at` when its TSC reads `tsc`, word by word as Linux does.
fn guest_time(m: &Machine<'_>, at: u64, tsc: u64) -> u64 {
    let memory = &m.domain.memory;
    let long = |offset| memory.read_u64(Gpa::new(at + offset)).unwrap();
    let [mul, flags] = [24, 28].map(|offset| memory.read_u32(Gpa::new(at + offset)).unwrap());
    let shift = flags as u8 as i8;
    let delta = tsc.wrapping_sub(long(8));
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    long(16) + ((u128::from(delta) * u128::from(mul)) >> 32) as u64
}

#[test]
fn the_clocks_page() {
    with(1, |m| {
        let at = 0x9010;
        m.pass(5_000_000);
        m.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, at | 1).resumes();
        assert_eq!(m.rdmsr(0, msr::KVM_SYSTEM_TIME_NEW), at | 1);
        let version = m.domain.memory.read_u32(Gpa::new(at)).unwrap();
        assert!(version != 0 && version % 2 == 0);
        let mut flags = [0];
        m.domain.memory.read(Gpa::new(at + 29), &mut flags).unwrap();
        assert_eq!(flags, [1], "stable");
        for _ in 0..3 {
            let tsc = m.rdmsr(0, msr::TSC);
            let now = m.now().as_nanos();
            assert_eq!(guest_time(m, at, tsc), now);
            m.pass(TSC_HZ);
        }
        m.wrmsr(0, msr::TSC_ADJUST, 123_456_789).resumes();
        let tsc = m.rdmsr(0, msr::TSC);
        assert_eq!(guest_time(m, at, tsc), m.now().as_nanos(), "a moved TSC");
        assert!(m.domain.memory.read_u32(Gpa::new(at)).unwrap() > version);
        // Turned off, it is left alone.
        m.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, 0).resumes();
        m.domain.memory.write(Gpa::new(at), &[0; 32]).unwrap();
        m.wrmsr(0, msr::TSC_ADJUST, 0).resumes();
        assert_eq!(m.domain.memory.read_u32(Gpa::new(at)), Ok(0));
    });
}

#[test]
fn the_wall_clock() {
    with(1, |m| {
        m.wrmsr(0, msr::KVM_WALL_CLOCK_NEW, 0xa000).resumes();
        let read = |offset: u64| m.domain.memory.read_u32(Gpa::new(0xa000 + offset)).unwrap();
        assert_eq!([read(0), read(4), read(8)], [2, WALL_CLOCK as u32, 0]);
        assert_eq!(m.rdmsr(0, msr::KVM_WALL_CLOCK_NEW), 0xa000);
    });
}

#[test]
fn clocks_outside_of_memory_are_no_clocks() {
    with(1, |m| {
        for at in [0xfee0_0000, !3, super::RAM as u64 - 8] {
            m.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, at | 1).resumes();
            m.wrmsr(0, msr::KVM_WALL_CLOCK_NEW, at).resumes();
            m.wrmsr(0, msr::TSC_ADJUST, at).resumes();
        }
        assert_eq!(m.hw().injected, None);
        assert_eq!(m.wrmsr(0, msr::KVM_SYSTEM_TIME_NEW, 3), Outcome::Resume);
        assert_eq!(m.hw().injected.take(), super::PROTECTION);
    });
}
