//! The interrupt chips of the virtual PC, as pure state machines on virtual time.
//!
//! | part | is | shared by |
//! |---|---|---|
//! | [`LocalApic`] | xAPIC and x2APIC with its timer | nobody: private to one vCPU's run loop |
//! | [`Mailbox`] | what others post to a vCPU: vectors, NMI, INIT, SIPI, work | everyone, lock-free |
//! | [`ApicMap`] | which vCPUs a message is for | everyone, lock-free |
//! | [`IoApic`] | 24 pins, 82093AA with an EOI register | the domain's devices, behind their lock |
//! | [`PicPair`] | two cascaded 8259A with ELCR | the domain's devices, behind their lock |
//!
//! The way of an interrupt: a device raises a pin of the [`IoApic`] (or writes an MSI, or a vCPU writes its ICR), which
//! makes an [`InterruptMessage`]; [`ApicMap`] resolves it to a [`VcpuSet`]; [`Mailbox::post`] leaves it with each of
//! them; and before the next entry [`LocalApic::drain`] takes it in.
//!
//! Register accesses answer an [`Effect`]: the one thing that is left to do outside of the chip. Manuals: Intel SDM
//! volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)"; AMD APM volume 2, chapter "Advanced
//! Programmable Interrupt Controller (APIC)"; Intel 82093AA and 8259A datasheets.
//!
//! Pure: no `unsafe`, no hardware, no allocation; no input can make it panic.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod ioapic;
mod lapic;
mod mailbox;
mod map;
mod message;
mod pic;
#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
mod vcpu_set;
mod vectors;

pub use ioapic::{IOAPIC_PINS, IoApic, Messages};
pub use lapic::{
    APIC_DEFAULT_BASE, ApicConfig, ApicMode, Effect, Events, GeneralProtection, LintPin, LocalApic,
    MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST, TscClock,
};
pub use mailbox::Mailbox;
pub use map::{ApicMap, LogicalModel, Routing};
pub use message::{
    BROADCAST, DeliveryMode, DestinationMode, InterruptMessage, Ipi, MSI_WINDOW, Shorthand, TriggerMode,
};
pub use pic::PicPair;
pub use vcpu_set::{MAX_VCPUS, VcpuSet};
pub use vectors::VectorSet;
