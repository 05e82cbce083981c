//! KVM's record of stolen time: who is preempted, what was stolen, and the TLB flushes that were left for later.

use alloc::vec;

use caisson_types::{Gpa, GuestMemory};
use caisson_x86::msr;
use proptest::prelude::*;

use super::{PROTECTION, RAM, with};
use crate::Outcome;
use crate::testing::{Machine, Resumes};

const RECORD: u64 = 0x8040;

fn steal(m: &Machine<'_>) -> u64 {
    m.domain.memory.read_u64(Gpa::new(RECORD)).unwrap()
}

fn version(m: &Machine<'_>) -> u32 {
    m.domain.memory.read_u32(Gpa::new(RECORD + 8)).unwrap()
}

fn preempted(m: &Machine<'_>) -> u64 {
    m.domain.memory.read_u64(Gpa::new(RECORD + 16)).unwrap()
}

fn scheduled_in(m: &mut Machine<'_>, stolen: u64) {
    let Machine { domain, vcpus, .. } = m;
    vcpus[0].scheduled_in(domain, stolen);
}

fn scheduled_out(m: &mut Machine<'_>, preempted: bool) {
    let Machine { domain, vcpus, .. } = m;
    vcpus[0].scheduled_out(domain, preempted);
}

#[test]
fn stolen_time_is_told() {
    with(1, |m| {
        scheduled_in(m, 700);
        assert_eq!(m.rdmsr(0, msr::KVM_STEAL_TIME), 0);
        m.wrmsr(0, msr::KVM_STEAL_TIME, RECORD | 1).resumes();
        assert_eq!(m.rdmsr(0, msr::KVM_STEAL_TIME), RECORD | 1);
        assert_eq!((steal(m), version(m), preempted(m)), (700, 2, 0), "at once");
        for (stolen, expected) in [(700, 2), (900, 4), (u64::MAX, 6)] {
            scheduled_out(m, true);
            scheduled_in(m, stolen);
            assert_eq!((steal(m), version(m)), (stolen, expected));
        }
        m.wrmsr(0, msr::KVM_STEAL_TIME, 0).resumes();
        scheduled_out(m, true);
        scheduled_in(m, 5);
        assert_eq!((steal(m), preempted(m), m.rdmsr(0, msr::KVM_STEAL_TIME)), (u64::MAX, 0, 0), "left alone");
    });
}

#[test]
fn the_byte_says_who_could_go_on() {
    with(1, |m| {
        m.wrmsr(0, msr::KVM_STEAL_TIME, RECORD | 1).resumes();
        scheduled_out(m, false);
        assert_eq!(preempted(m), 0, "it halted");
        scheduled_in(m, 0);
        scheduled_out(m, true);
        assert_eq!(preempted(m), 1);
        scheduled_in(m, 0);
        assert_eq!((preempted(m), m.hw().flushes), (0, 0));
    });
}

#[test]
fn a_flush_that_was_left_is_done_before_the_entry() {
    with(1, |m| {
        m.wrmsr(0, msr::KVM_STEAL_TIME, RECORD | 1).resumes();
        scheduled_out(m, true);
        // Another vCPU: a locked compare-and-exchange of the byte.
        assert_eq!(m.domain.memory.swap_u8(Gpa::new(RECORD + 16), 3), Ok(1));
        scheduled_in(m, 0);
        assert_eq!((preempted(m), m.hw().flushes), (0, 1));
        scheduled_out(m, true);
        scheduled_in(m, 0);
        assert_eq!(m.hw().flushes, 1);
    });
}

#[test]
fn values_that_no_record_can_have() {
    with(1, |m| {
        for bits in [2, 4, 8, 16, 32, 3, 0x21] {
            assert_eq!(m.wrmsr(0, msr::KVM_STEAL_TIME, RECORD | bits), Outcome::Resume);
            assert_eq!(m.hw().injected.take(), PROTECTION, "{bits:#x}");
        }
        for at in [RAM as u64, 0xfee0_0000, !63, 1 << 63] {
            m.wrmsr(0, msr::KVM_STEAL_TIME, at | 1).resumes();
            scheduled_out(m, true);
            scheduled_in(m, 77);
            assert_eq!((m.rdmsr(0, msr::KVM_STEAL_TIME), m.hw().injected), (at | 1, None));
        }
        m.wrmsr(0, msr::KVM_STEAL_TIME, (RAM as u64 - 64) | 1).resumes();
        assert_eq!(m.domain.memory.read_u64(Gpa::new(RAM as u64 - 64)), Ok(77), "the last one that fits");
    });
}

#[test]
fn init_forgets_the_record() {
    with(2, |m| {
        let _ = m.domain.mailbox(1).post_sipi(8);
        assert!(m.settle(1));
        m.wrmsr(1, msr::KVM_STEAL_TIME, RECORD | 1).resumes();
        let _ = m.domain.mailbox(1).post_init();
        assert!(!m.settle(1));
        let Machine { domain, vcpus, .. } = m;
        vcpus[1].scheduled_out(domain, true);
        assert_eq!((preempted(m), m.rdmsr(1, msr::KVM_STEAL_TIME)), (0, 0));
    });
}

/// RAM of the guest that leaves whatever it likes there.
const LITTLE: u64 = 0x4000;

proptest! {
    /// Whatever the guest names and leaves there: nothing outside of the record is touched, and the version ends even.
    #[test]
    fn hostile_records(value: u64, near in 0..LITTLE + 256, use_near: bool, junk: u8, stolen: u64) {
        let mut memory = vec![junk; LITTLE as usize];
        let at = if use_near { near } else { value } & !63;
        {
            let m = &mut Machine::new(&mut memory, 1);
            m.wrmsr(0, msr::KVM_STEAL_TIME, at | 1).resumes();
            for preempted in [true, false, true] {
                scheduled_out(m, preempted);
                scheduled_in(m, stolen);
            }
        }
        for (line, bytes) in (0..).step_by(64).zip(memory.chunks(64)) {
            if line == at {
                prop_assert_eq!(&bytes[..8], stolen.to_le_bytes());
                prop_assert!(bytes[8] % 2 == 0 && bytes[16] == 0);
            } else {
                prop_assert!(bytes.iter().all(|&byte| byte == junk));
            }
        }
    }
}
