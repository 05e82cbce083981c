//! The multiple APIC description table: which CPUs and interrupt controllers there are (ACPI 6.5, section 5.2.12).

use alloc::vec::Vec;

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use caisson_devices::chipset::{PIT_IRQ, PIT_PIN};
use caisson_devices::pm::SCI_IRQ;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of, seal};
use crate::{GuestLayout, IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS};

/// The first id that needs an x2APIC structure: 255 means "all" in the other one.
const FIRST_X2APIC: u32 = 255;

/// The revision that ACPI 6.5 names.
const REVISION: u8 = 6;
const REVISION_OFFSET: usize = 8;

/// The table's flags: the 8259 pair is there, too.
const FLAGS_OFFSET: usize = 40;
const PCAT_COMPAT: u8 = 1;

/// Structure types.
mod kind {
    pub(super) const SOURCE_OVERRIDE: u8 = 2;
    pub(super) const LOCAL_APIC_NMI: u8 = 4;
    pub(super) const LOCAL_X2APIC: u8 = 9;
    pub(super) const LOCAL_X2APIC_NMI: u8 = 10;
}

/// MPS INTI flags (table 5.26): active high and level; 0 means as usual on the bus.
const ACTIVE_HIGH_LEVEL: u8 = 0b1101;

/// The local interrupt pin of the NMI.
const NMI_LINT: u8 = 1;

pub(super) fn table(layout: &GuestLayout<'_>) -> Vec<u8> {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC_ADDRESS));
    let mut more = Vec::new();
    let mut has_x2apic = false;
    for (uid, &id) in (0u32..).zip(layout.apic_ids) {
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if u32::from(id) < FIRST_X2APIC && uid < 255 => {
                madt.add_structure(ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
            }
            _ => {
                has_x2apic = true;
                more.extend([kind::LOCAL_X2APIC, 16, 0, 0]);
                let enabled = 1u32;
                [id, enabled, uid].iter().for_each(|word| more.extend(word.to_le_bytes()));
            }
        }
    }
    madt.add_structure(IoApic::new(layout.ioapic_id, IOAPIC_ADDRESS, 0));
    more.extend(source_override(PIT_IRQ, PIT_PIN, 0));
    more.extend(source_override(SCI_IRQ, SCI_IRQ, ACTIVE_HIGH_LEVEL));
    // Those of timer and SCI are the virtual machine's.
    let real = layout.real.map_or(&[][..], |real| real.overrides);
    for line in real.iter().filter(|line| ![PIT_IRQ, SCI_IRQ].contains(&line.irq)) {
        if let Ok(pin) = u8::try_from(line.gsi) {
            more.extend(source_override(line.irq, pin, line.flags as u8));
        }
    }
    // To every CPU's LINT1, edge-triggered and active high as NMIs are.
    more.extend([kind::LOCAL_APIC_NMI, 6, 0xFF, 0, 0, NMI_LINT]);
    if has_x2apic {
        more.extend([kind::LOCAL_X2APIC_NMI, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NMI_LINT, 0, 0, 0]);
    }
    let mut bytes = bytes_of(&madt);
    bytes.append(&mut more);
    bytes[REVISION_OFFSET] = REVISION;
    bytes[FLAGS_OFFSET] = PCAT_COMPAT;
    seal(bytes)
}

/// An ISA interrupt that is not on the pin of its number, or not of the usual kind (section 5.2.12.5).
fn source_override(irq: u8, pin: u8, flags: u8) -> [u8; 10] {
    const ISA: u8 = 0;
    [kind::SOURCE_OVERRIDE, 10, ISA, irq, pin, 0, 0, 0, flags, 0]
}
