//! The MP configuration table, for kernels that do not read ACPI.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. CPUs with ids that its one byte cannot hold are left out.

use alloc::vec::Vec;

use caisson_devices::chipset::{PIT_IRQ, PIT_PIN};
use caisson_devices::pm::SCI_IRQ;

use crate::tables::checksum;
use crate::{GuestLayout, IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS};

/// Versions that the APICs' registers show.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;

/// Family 6, and a floating-point unit and an APIC; a kernel that needs to know more asks CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 0 | 1 << 9;

const ISA_BUS: u8 = 0;
/// All local APICs.
const ALL: u8 = 0xFF;

/// Polarity active high, trigger mode level (section 4.3.4); 0 means as usual on the bus.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;

/// Entry types (section 4.3, table 4-3).
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IOAPIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (table 4-10).
mod interrupt {
    pub(super) const VECTORED: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXTINT: u8 = 3;
}

/// The floating pointer structure for a configuration table at `table` (section 4.1). Virtual wire mode: no IMCR.
pub(crate) fn floating_pointer(table: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(b"_MP_");
    bytes.extend(table.to_le_bytes());
    // Length in 16-byte units, revision 1.4, checksum, five feature bytes: a configuration table is there.
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table (sections 4.2 and 4.3).
pub(crate) fn configuration_table(layout: &GuestLayout<'_>) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for (index, &id) in layout.apic_ids.iter().enumerate() {
        let Some(id) = u8::try_from(id).ok().filter(|&id| id != ALL) else { continue };
        let usable = 1;
        let boot = u8::from(index == 0) << 1;
        let [s0, s1, s2, s3] = CPU_SIGNATURE.to_le_bytes();
        let [f0, f1, f2, f3] = CPU_FEATURES.to_le_bytes();
        let fixed = [entry::PROCESSOR, id, LOCAL_APIC_VERSION, usable | boot, s0, s1, s2, s3, f0, f1, f2, f3];
        let mut processor = [0; 20];
        processor[..12].copy_from_slice(&fixed);
        add(&processor);
    }
    add(&[entry::BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a0, a1, a2, a3] = IOAPIC_ADDRESS.to_le_bytes();
    add(&[entry::IOAPIC, layout.ioapic_id, IOAPIC_VERSION, 1, a0, a1, a2, a3]);
    // IRQ 2 is the cascade; its pin is the timer's.
    for irq in (0..16).filter(|&irq| irq != PIT_PIN) {
        let pin = if irq == PIT_IRQ { PIT_PIN } else { irq };
        let [flags, _] = if irq == SCI_IRQ { ACTIVE_HIGH_LEVEL } else { 0 }.to_le_bytes();
        add(&[entry::IO_INTERRUPT, interrupt::VECTORED, flags, 0, ISA_BUS, irq, layout.ioapic_id, pin]);
    }
    for (kind, lint) in [(interrupt::EXTINT, 0), (interrupt::NMI, 1)] {
        add(&[entry::LOCAL_INTERRUPT, kind, 0, 0, ISA_BUS, 0, ALL, lint]);
    }
    header(&entries, count)
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    const LENGTH: usize = 44;
    let mut bytes = Vec::with_capacity(LENGTH + entries.len());
    bytes.extend(b"PCMP");
    bytes.extend(((LENGTH + entries.len()) as u16).to_le_bytes());
    // Revision 1.4, checksum.
    bytes.extend([4, 0]);
    bytes.extend(b"CAISSON ");
    bytes.extend(b"Caisson VM  ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    // No extended table.
    bytes.extend([0; 4]);
    bytes.extend_from_slice(entries);
    bytes[7] = checksum(&bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn floating_pointer_is_sealed() {
        let bytes = floating_pointer(0xF_0010);
        assert_eq!((bytes.len(), sum(&bytes)), (16, 0));
        assert_eq!(bytes[4..8], [0x10, 0x00, 0x0F, 0x00]);
    }

    #[test]
    fn entries_are_as_long_as_their_types_say_and_as_many_as_the_header_says() {
        let ids: Vec<u32> = (0..300).collect();
        let table = configuration_table(&GuestLayout::new(64 << 20, &ids));
        assert_eq!(sum(&table), 0);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        let (mut at, mut count, mut cpus, mut boot) = (44, 0, 0, 0);
        while at < table.len() {
            count += 1;
            if table[at] == 0 {
                cpus += 1;
                boot += usize::from(table[at + 3] & 2 != 0);
            }
            at += if table[at] == 0 { 20 } else { 8 };
        }
        assert_eq!(at, table.len());
        assert_eq!(count, u16::from_le_bytes([table[34], table[35]]));
        assert_eq!((cpus, boot), (255, 1));
    }
}
