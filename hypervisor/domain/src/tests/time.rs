//! Timers and the guest's TSC.

use alloc::vec::Vec;

use caisson_hwvirt::Event;
use caisson_types::Instant;
use caisson_x86::msr;

use super::{vectors, with};
use crate::testing::{Machine, START};
use crate::{DomainClock, Host as _, Outcome};

const LVT_TIMER: u32 = 0x832;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;
const VECTOR: u64 = 0xec;
const TSC_DEADLINE_MODE: u64 = 2 << 17;
const PERIODIC: u64 = 1 << 17;

fn at(ns: u64) -> Instant {
    Instant::from_nanos(ns)
}

/// A guest of one vCPU in x2APIC mode with interrupts on and its timer in `mode`.
fn timer(mode: u64, test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        assert_eq!(m.wrmsr(0, LVT_TIMER, mode | VECTOR), Outcome::Resume);
        assert_eq!(m.wrmsr(0, DIVIDE, 0xb), Outcome::Resume);
        test(m);
    });
}

/// Lets `ns` pass, with everything that comes due, and answers the interrupts that came.
fn pass(m: &mut Machine<'_>, ns: u64) -> Vec<u8> {
    m.pass(ns);
    m.timers();
    assert!(m.settle(0));
    let events = vectors(&m.delivered(0));
    for _ in &events {
        assert_eq!(m.wrmsr(0, 0x80b, 0), Outcome::Resume);
        m.hw().iret();
    }
    events
}

#[test]
fn one_shot() {
    timer(0, |m| {
        let _ = m.vcpus[0].take_deadline_changed();
        assert_eq!(m.wrmsr(0, INITIAL_COUNT, 1000), Outcome::Resume);
        assert!(m.vcpus[0].take_deadline_changed());
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), at(1000));
        assert_eq!(pass(m, 400), []);
        assert_eq!(m.rdmsr(0, 0x839), 600);
        assert_eq!(pass(m, 599), []);
        assert_eq!(pass(m, 1), [VECTOR as u8]);
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), Instant::NEVER);
        assert_eq!(pass(m, 100_000), []);
    });
}

#[test]
fn periodic_keeps_its_phase() {
    timer(PERIODIC, |m| {
        assert_eq!(m.wrmsr(0, INITIAL_COUNT, 100_000), Outcome::Resume);
        for _ in 0..3 {
            assert_eq!(pass(m, 100_000), [VECTOR as u8]);
        }
        assert_eq!(pass(m, 250_000), [VECTOR as u8], "however late, once");
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), at(600_000));
    });
}

#[test]
fn a_timer_wakes_a_halted_vcpu() {
    timer(0, |m| {
        assert_eq!(m.wrmsr(0, INITIAL_COUNT, 5000), Outcome::Resume);
        assert_eq!(m.halt(0), Outcome::Halted);
        assert!(!m.settle(0));
        m.pass(4999);
        m.timers();
        assert!(!m.settle(0));
        m.pass(1);
        m.timers();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(VECTOR as u8)]);
    });
}

#[test]
fn tsc_deadline() {
    timer(TSC_DEADLINE_MODE, |m| {
        let now = m.rdmsr(0, msr::TSC);
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, now + 7000), Outcome::Resume);
        assert_eq!(m.rdmsr(0, msr::TSC_DEADLINE), now + 7000);
        assert_eq!(pass(m, 6999), []);
        assert_eq!(pass(m, 1), [VECTOR as u8]);
        assert_eq!(m.rdmsr(0, msr::TSC_DEADLINE), 0);
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, now + 9000), Outcome::Resume);
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, 0), Outcome::Resume);
        assert_eq!(pass(m, 9000), []);
    });
}

#[test]
fn a_deadline_that_has_passed_fires_at_once() {
    timer(TSC_DEADLINE_MODE, |m| {
        m.pass(1_000_000);
        assert!(m.settle(0));
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, 5), Outcome::Resume);
        assert!(m.settle(0), "without anybody looking at a clock");
        assert_eq!(vectors(&m.delivered(0)), [VECTOR as u8]);
    });
}

#[test]
fn reading_a_timer_that_has_expired_delivers_it() {
    timer(TSC_DEADLINE_MODE, |m| {
        let now = m.rdmsr(0, msr::TSC);
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, now + 500), Outcome::Resume);
        assert!(m.settle(0));
        m.pass(500);
        assert_eq!(m.rdmsr(0, msr::TSC_DEADLINE), 0);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR as u8]);
    });
}

#[test]
fn the_tsc_can_be_moved_and_deadlines_move_with_it() {
    timer(TSC_DEADLINE_MODE, |m| {
        m.pass(10_000);
        assert_eq!(m.rdmsr(0, msr::TSC), 10_000);
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, 50_000), Outcome::Resume);
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), at(50_000));
        assert_eq!(m.wrmsr(0, msr::TSC_ADJUST, 30_000), Outcome::Resume);
        assert_eq!(m.rdmsr(0, msr::TSC), 40_000);
        assert_eq!(m.hw().tsc_offset, 30_000_u64.wrapping_sub(START));
        assert!(m.vcpus[0].take_deadline_changed());
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), at(20_000));
        assert_eq!(m.wrmsr(0, msr::TSC, 0), Outcome::Resume);
        assert_eq!(m.rdmsr(0, msr::TSC_ADJUST), 10_000_u64.wrapping_neg());
        assert_eq!(m.vcpus[0].next_deadline(&m.domain), at(60_000));
        assert_eq!(pass(m, 49_999), []);
        assert_eq!(pass(m, 1), [VECTOR as u8]);
        assert_eq!(m.rdmsr(0, msr::TSC), 50_000);
        // Only this vCPU's: virtual time goes on.
        assert_eq!(m.now(), at(60_000));
    });
}

#[test]
fn moving_the_tsc_past_a_deadline() {
    timer(TSC_DEADLINE_MODE, |m| {
        assert_eq!(m.wrmsr(0, msr::TSC_DEADLINE, 50_000), Outcome::Resume);
        assert_eq!(m.wrmsr(0, msr::TSC_ADJUST, 60_000), Outcome::Resume);
        assert_eq!(pass(m, 0), [VECTOR as u8]);
    });
}

#[test]
fn the_boot_vcpu_keeps_the_chipsets_time_and_gets_its_interrupts() {
    with(1, |m| {
        let Machine { domain, vcpus, .. } = m;
        vcpus[0].set_virtual_wire(domain);
        assert_eq!(vcpus[0].next_deadline(domain), Instant::NEVER);
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            assert_eq!(m.out(port, 1, value), Outcome::Resume);
        }
        let _ = m.vcpus[0].take_deadline_changed();
        // 8254: counter 0, mode 2, 1193 ticks: 1 ms less 152 ns.
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            assert_eq!(m.out(port, 1, value), Outcome::Resume);
        }
        assert!(m.vcpus[0].take_deadline_changed(), "the core must hear of it");
        let due = m.vcpus[0].next_deadline(&m.domain);
        assert!(due > at(999_000) && due < at(1_002_000), "{due:?}");
        m.interrupts(0, true);
        for _ in 0..3 {
            m.pass(1_000_000);
            m.timers();
            assert!(m.settle(0));
            assert_eq!(m.delivered(0), [Event::Interrupt(0x20)]);
            assert_eq!(m.out(0x20, 1, 0x20), Outcome::Resume);
            m.hw().iret();
        }
    });
}

#[test]
fn clocks_of_any_speed_are_never_early() {
    for hz in [1_000_000_000, 2_494_123_456, 3_999_999_999, 999_999_937, 1_000_000] {
        for start in [0, 77, 1 << 40, 1 << 62] {
            let clock = DomainClock::starting_at(start, hz);
            assert_eq!(clock.at(start), Instant::ZERO);
            assert_eq!(clock.tsc_offset(), start.wrapping_neg());
            for ns in [1, 999, 1_000_000, 123_456_789_012_345] {
                let tsc = clock.host_tsc_of(at(ns));
                assert!(clock.at(tsc) >= at(ns), "{hz} {start} {ns}");
                assert!(clock.at(tsc.wrapping_sub(1)) < at(ns), "{hz} {start} {ns}: late");
            }
            assert_eq!(clock.host_tsc_of(Instant::NEVER), u64::MAX);
            assert_eq!(clock.tsc_clock(start.wrapping_add(10), 5).tsc, 15);
        }
    }
}

/// The time in which a guest stood still is not there for it: neither for its TSC, nor for its timers.
#[test]
fn a_pause_moves_the_tsc_and_no_timer_is_late() {
    timer(0, |m| {
        assert_eq!(m.wrmsr(0, msr::TSC_ADJUST, 77), Outcome::Resume);
        assert_eq!(m.wrmsr(0, INITIAL_COUNT, 1000), Outcome::Resume);
        assert_eq!(pass(m, 400), []);
        let _ = m.vcpus[0].take_deadline_changed();
        let stopped = m.host.tsc();
        let before = m.domain.clock.guest_tsc(stopped);
        let offset = m.hw().tsc_offset;
        m.vcpus[0].follow_clock(&m.domain);
        assert_eq!(m.hw().tsc_offset, offset, "it has not been paused");
        assert!(!m.vcpus[0].take_deadline_changed());
        // Ten seconds of the host's.
        m.pass(10_000_000_000);
        let now = m.host.tsc();
        m.domain.clock.stood_still(stopped, now);
        m.vcpus[0].follow_clock(&m.domain);
        assert!(m.vcpus[0].take_deadline_changed());
        assert_eq!(m.hw().tsc_offset, offset.wrapping_sub(now - stopped));
        assert_eq!(m.domain.clock.guest_tsc(now), before);
        assert_eq!(pass(m, 599), []);
        assert_eq!(pass(m, 1), [VECTOR as u8]);
    });
}
