//! A domain without hardware: each class of exit, the delivery of interrupts, time, the paravirtual interface; and random
//! guests.

mod control;
mod control_model;
mod delivery;
mod exceptions;
mod functions;
mod hypercalls;
mod instructions;
mod io;
mod mmio;
mod msr;
mod nmi;
mod paravirt;
mod random;
mod served;
mod smp;
mod steal;
mod task;
mod time;
mod virtio;
mod virtual_apic;

use alloc::vec;
use alloc::vec::Vec;

use caisson_hwvirt::Event;
use caisson_x86::{Exception, ExceptionKind};

use crate::testing::Machine;

/// RAM of the tests' guests.
const RAM: usize = 1 << 20;

/// Runs `test` on a domain of `vcpus` vCPUs.
fn with(vcpus: usize, test: impl FnOnce(&mut Machine<'_>)) {
    let mut memory = vec![0; RAM];
    test(&mut Machine::new(&mut memory, vcpus));
}

/// The same on hardware with a virtual local APIC.
fn with_virtual_apic(vcpus: usize, test: impl FnOnce(&mut Machine<'_>)) {
    let mut memory = vec![0; RAM];
    test(&mut Machine::on(&mut memory, vcpus, crate::testing::FakeHw::with_virtual_apic));
}

const UNDEFINED: Option<Event> = Some(Event::Exception(Exception::UNDEFINED));
const PROTECTION: Option<Event> = Some(Event::Exception(Exception::GENERAL_PROTECTION));
const STEP: Option<Event> = Some(Event::Exception(Exception::plain(ExceptionKind::Debug)));

/// The maskable interrupts among `events`.
fn vectors(events: &[Event]) -> Vec<u8> {
    let vector = |event: &Event| match event {
        Event::Interrupt(vector) => Some(*vector),
        _ => None,
    };
    events.iter().filter_map(vector).collect()
}
