//! The differentiated system description table: devices that cannot be found by probing, in AML (ACPI 6.5, chapters
//! 19 and 20; sleep states: section 7.4.2).

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Package, Path, ResourceTemplate, Return,
    Scope,
};
use acpi_tables::gas::AddressSpace;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use caisson_devices::chipset::{COM1, COM1_IRQ, PIT_IRQ, RTC_IRQ};
use caisson_devices::{pm, reset};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::GuestLayout;
use crate::layout::{VIRTIO_ADDRESS, virtio_pin};

/// With this revision integers have 64 bits.
const REVISION: u8 = 2;
const HEADER: u32 = 36;
/// Bytes of a virtio device's registers.
const PAGE: u32 = 0x1000;

/// The name of what every processor's idle states are.
const IDLE_STATES: &str = "IDLE";
/// The idle state that every processor has; how long it takes to leave it, in microseconds: an exit, a look at the queue, an
/// entry; its power, in milliwatts, which only means something beside another state's.
const C1: u8 = 1;
const HALT_LATENCY: u8 = 10;
const HALT_POWER: u16 = 1000;

/// An ISA interrupt: edge-triggered, active high, not shared (section 6.4.2.1, the short form).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const IRQ_WITHOUT_FLAGS: u8 = 0x22;
        sink.byte(IRQ_WITHOUT_FLAGS);
        sink.word(1 << self.0);
    }
}

/// A register of functional fixed hardware, with nothing more to say (section 6.4.3.7).
struct FixedHardware;

impl Aml for FixedHardware {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const GENERIC_REGISTER: u8 = 0x82;
        const BYTES: u16 = 12;
        sink.byte(GENERIC_REGISTER);
        sink.word(BYTES);
        sink.byte(AddressSpace::FunctionalFixedHardware as u8);
        (0..BYTES - 1).for_each(|_| sink.byte(0));
    }
}

/// A range of ports.
fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// A device with the plug-and-play id `id` and its resources.
fn device(name: &str, id: &str, resources: Vec<&dyn Aml>) -> Vec<u8> {
    bytes_of(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// The processor with the id that the MADT gives it.
fn processor(uid: u32) -> Vec<u8> {
    let idle = Path::new(IDLE_STATES);
    let states = Return::new(&idle);
    bytes_of(&Device::new(
        format!("C{uid:03X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &uid),
            &Method::new("_CST".into(), 0, false, vec![&states]),
        ],
    ))
}

/// What every processor's `_CST` gives (section 8.4.1.1): one state, HLT. An operating system that is told nothing takes every
/// sleep for a long one, and sets its timer at each beginning and end, an exit each. One that knows what HLT costs expects how
/// long it will sleep, and leaves the timer alone where that is shorter than a tick.
fn idle_states() -> Vec<u8> {
    let halt = ResourceTemplate::new(vec![&FixedHardware]);
    let state = Package::new(vec![&halt, &C1, &HALT_LATENCY, &HALT_POWER]);
    bytes_of(&Name::new(IDLE_STATES.into(), &Package::new(vec![&1u8, &state])))
}

/// A virtio device, by the id under which Linux looks for virtio-mmio: its page, and an edge-triggered interrupt that it
/// may share.
fn virtio(index: usize) -> Vec<u8> {
    let address = VIRTIO_ADDRESS + PAGE * index as u32;
    let page = Memory32Fixed::new(true, address, PAGE);
    let interrupt = Interrupt::new(true, true, false, true, u32::from(virtio_pin(index)));
    let resources: Vec<&dyn Aml> = vec![&page, &interrupt];
    bytes_of(&Device::new(
        format!("VR{index:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            // Memory is coherent (section 6.2.17).
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

fn system_bus(layout: &GuestLayout<'_>) -> Vec<u8> {
    let mut devices = device("COM1", "PNP0501", vec![&ports(COM1, 8), &Irq(COM1_IRQ)]);
    devices.extend(device(
        "PIC0",
        "PNP0000",
        vec![&ports(0x20, 2), &ports(0xA0, 2), &ports(0x4D0, 2), &Irq(2)],
    ));
    devices.extend(device("TIMR", "PNP0100", vec![&ports(0x40, 4), &Irq(PIT_IRQ)]));
    devices.extend(device("RTC0", "PNP0B00", vec![&ports(0x70, 2), &Irq(RTC_IRQ)]));
    devices.extend(device("SPKR", "PNP0800", vec![&ports(0x61, 1)]));
    // Ports of the chipset's own.
    devices.extend(device(
        "SYSR",
        "PNP0C02",
        vec![&ports(0x92, 1), &ports(pm::SMI_CMD, 2), &ports(pm::BASE, 0x30), &ports(reset::CONTROL, 1)],
    ));
    for index in 0..layout.virtio {
        devices.extend(virtio(index));
    }
    devices.extend(idle_states());
    for uid in (0u32..).take(layout.apic_ids.len()) {
        devices.extend(processor(uid));
    }
    devices
}

pub(super) fn table(layout: &GuestLayout<'_>) -> Vec<u8> {
    let s5 = pm::SLEEP_TYPE_S5;
    let soft_off = Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8]));
    let mut table = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&bytes_of(&soft_off));
    table.append_slice(&Scope::raw("_SB_".into(), system_bus(layout)));
    bytes_of(&table)
}
