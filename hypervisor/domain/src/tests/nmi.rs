//! NMIs: taken, blocked, latched.

use caisson_hwvirt::{Event, Exit, InterruptWindow, Vcpu, VcpuState};

use super::with;
use crate::testing::Machine;
use crate::{Outcome, RunState};

fn post(m: &mut Machine<'_>) {
    let _ = m.domain.mailbox(0).post_nmi();
}

#[test]
fn an_nmi_does_not_ask_for_if() {
    with(1, |m| {
        post(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
        assert!(!m.hw().nmi_window);
    });
}

#[test]
fn an_nmi_goes_before_an_interrupt() {
    with(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        post(m);
        assert_eq!(m.wrmsr(0, 0x83f, 0xf0), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Interrupt(0xf0)]);
    });
}

#[test]
fn one_waits_for_the_handlers_return_and_further_ones_are_lost() {
    with(1, |m| {
        post(m);
        assert!(m.settle(0));
        for _ in 0..5 {
            post(m);
            assert!(m.settle(0));
        }
        assert_eq!(m.delivered(0), [Event::Nmi]);
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi], "one was latched");
        m.hw().iret();
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
    });
}

#[test]
fn two_at_once_are_two() {
    with(1, |m| {
        post(m);
        post(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
        m.hw().iret();
        assert!(m.settle(0), "the second has its window");
        assert_eq!(m.delivered(0), [Event::Nmi]);
    });
}

#[test]
fn an_nmi_waits_for_the_shadow_and_for_another_event() {
    with(1, |m| {
        m.hw().set_interrupt_shadow(true);
        post(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), []);
        m.hw().set_interrupt_shadow(false);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
        m.hw().iret();
        assert_eq!(m.answer(0, Exit::Unsupported), Outcome::Resume);
        post(m);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0)[1..], [Event::Nmi]);
    });
}

/// Not every hardware has a window for NMIs: the one for interrupts opens right behind the shadow of STI.
#[test]
fn the_end_of_a_shadow_is_an_exit() {
    with(1, |m| {
        m.hw().has_nmi_window = false;
        m.interrupts(0, true);
        m.hw().set_interrupt_shadow(true);
        post(m);
        assert_eq!((m.enter(0), m.delivered(0)), (Ok(Exit::ExternalInterrupt), [].into()), "one instruction");
        m.hw().set_interrupt_shadow(false);
        assert_eq!(m.hw().run(), Exit::InterruptWindow);
        assert_eq!(m.answer(0, Exit::InterruptWindow), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
        assert_eq!(m.hw().window, InterruptWindow::Closed);
    });
}

/// Where it does not, and interrupts are off or another event goes first, a look comes soon.
#[test]
fn an_nmi_that_no_window_announces_is_looked_for() {
    let obstacles: [fn(&mut Machine<'_>); 2] = [
        |m| m.hw().set_interrupt_shadow(true),
        |m| assert_eq!(m.answer(0, Exit::Unsupported), Outcome::Resume),
    ];
    for obstacle in obstacles {
        with(1, |m| {
            m.hw().has_nmi_window = false;
            obstacle(m);
            post(m);
            assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
            assert!(!m.delivered(0).contains(&Event::Nmi));
            assert!(m.vcpus[0].take_deadline_changed(), "the core must arm its timer");
            let wait = m.vcpus[0].next_deadline(&m.domain).since(m.now());
            assert!((1_000..100_000).contains(&wait), "{wait} ns");
            m.hw().set_interrupt_shadow(false);
            m.pass(wait);
            m.timers();
            assert!(m.settle(0));
            assert_eq!(m.delivered(0), [Event::Nmi]);
            assert!(m.vcpus[0].next_deadline(&m.domain) > m.now(), "no further look");
        });
    }
}

#[test]
fn an_interrupted_nmi_is_delivered_again_although_it_blocks() {
    with(1, |m| {
        post(m);
        m.hw().obstacle = Some(Exit::ExternalInterrupt);
        assert_eq!(m.enter(0), Ok(Exit::ExternalInterrupt));
        assert_eq!(m.answer(0, Exit::ExternalInterrupt), Outcome::HostEvent);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [Event::Nmi]);
    });
}

#[test]
fn a_blocked_nmi_does_not_wake() {
    with(1, |m| {
        post(m);
        assert!(m.settle(0));
        assert_eq!(m.halt(0), Outcome::Halted);
        post(m);
        assert!(!m.settle(0), "HLT in the handler");
        assert_eq!(m.vcpus[0].run_state(), RunState::Halted);
    });
}
