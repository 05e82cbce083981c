//! The rules of the local APIC, by the manual's sections, in a file for each subject.

mod messages;
mod priorities;
mod registers;
mod sources;
mod state;

use super::registers::{SVR_ENABLE, SVR_SUPPRESS_EOI_BROADCAST};
use super::*;
use crate::{BROADCAST, DeliveryMode, DestinationMode, Shorthand};
use caisson_types::Gpa;

const T0: Instant = Instant::from_nanos(1_000);
const ENABLE: u64 = 0xfee0_0800;
const X2: u64 = 0xfee0_0c00;

fn at(ns: u64) -> Instant {
    Instant::from_nanos(ns)
}

/// Software enabled, in xAPIC mode.
fn xapic() -> LocalApic {
    let mut apic = LocalApic::new(ApicConfig::new(1));
    assert_eq!(write(&mut apic, 0xf0, 0x1ff), Effect::RoutingChanged);
    apic
}

/// Software enabled, in x2APIC mode.
fn x2apic() -> LocalApic {
    let mut apic = xapic();
    assert_eq!(apic.write_apic_base(X2), Ok(Effect::RoutingChanged));
    apic
}

fn read(apic: &mut LocalApic, offset: u64) -> u32 {
    apic.mmio_read(offset, 4, T0)
}

fn write(apic: &mut LocalApic, offset: u64, value: u32) -> Effect {
    apic.mmio_write(offset, 4, value, T0)
}

fn set(apic: &mut LocalApic, offset: u64, value: u32) {
    let _ = write(apic, offset, value);
}

fn request(apic: &mut LocalApic, vector: u8, trigger: TriggerMode) {
    apic.receive(&InterruptMessage { trigger, ..InterruptMessage::fixed(0, vector) });
}

fn errors(apic: &mut LocalApic) -> u32 {
    set(apic, 0x280, 0);
    read(apic, 0x280)
}

fn ipi(effect: Effect) -> Ipi {
    match effect {
        Effect::SendIpi(ipi) => ipi,
        other => panic!("no IPI but {other:?}"),
    }
}
