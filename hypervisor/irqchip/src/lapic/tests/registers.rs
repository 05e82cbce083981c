//! The register map, by MMIO and by MSR.

use super::*;

// ---- the register map

#[test]
fn accesses_of_other_sizes_and_places() {
    let mut apic = xapic();
    assert_eq!(apic.mmio_read(0x30, 1, T0), 0x14);
    assert_eq!(apic.mmio_read(0x32, 2, T0), 0x0105);
    for (offset, size) in [(0x32, 4), (0x34, 4), (0x3c, 1), (0x30, 8), (0x30, 0), (0x30, 3), (0x1030, 4)] {
        assert_eq!(apic.mmio_read(offset, size, T0), 0, "{offset:#x} {size}");
    }
    for (offset, size) in [(0x81, 4), (0x80, 1), (0x80, 8), (0x1080, 4), (u64::MAX, 4)] {
        assert_eq!(apic.mmio_write(offset, size, 0x50, T0), Effect::None);
        assert_eq!(apic.tpr(), 0);
    }
    assert_eq!(errors(&mut apic), 0);
}

#[test]
fn reserved_registers_are_an_error_and_read_only_ones_are_not() {
    let mut apic = xapic();
    for offset in [0x00, 0x40, 0x90, 0xc0, 0x290, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0] {
        assert_eq!(read(&mut apic, offset), 0);
        assert_eq!(errors(&mut apic), 0x80, "{offset:#x}");
        set(&mut apic, offset, 1);
        assert_eq!(errors(&mut apic), 0x80, "{offset:#x}");
    }
    for offset in [0x20, 0x30, 0xa0, 0x100, 0x1f0, 0x270, 0x390] {
        let before = read(&mut apic, offset);
        assert_eq!(write(&mut apic, offset, u32::MAX), Effect::None);
        assert_eq!(read(&mut apic, offset), before);
    }
    assert_eq!((read(&mut apic, 0xb0), errors(&mut apic)), (0, 0));
}

#[test]
fn lvt_entries_store_what_they_have() {
    let mut apic = xapic();
    for (offset, stored) in [
        (0x320, 0x7_00ff),
        (0x330, 0x1_07ff),
        (0x340, 0x1_07ff),
        (0x350, 0x1_a7ff),
        (0x360, 0x1_a7ff),
        (0x370, 0x1_00ff),
    ] {
        set(&mut apic, offset, u32::MAX);
        assert_eq!(read(&mut apic, offset), stored, "{offset:#x}");
    }
    set(&mut apic, 0x3e0, u32::MAX);
    assert_eq!(read(&mut apic, 0x3e0), 0b1011);
    set(&mut apic, 0xe0, 0);
    assert_eq!(read(&mut apic, 0xe0), 0x0fff_ffff);
    assert_eq!(apic.routing().model, LogicalModel::Cluster);
}

// ---- "x2APIC Register Availability", "Reserved Bit Checking"

#[test]
fn x2apic_registers_need_x2apic_mode() {
    let mut apic = xapic();
    assert_eq!(apic.read_x2apic(0x803, T0), Err(GeneralProtection));
    assert_eq!(apic.write_x2apic(0x80b, 0, T0), Err(GeneralProtection));
    let mut apic = x2apic();
    assert_eq!(apic.mmio_base(), None);
    assert_eq!(read(&mut apic, 0x30), u32::MAX);
    assert_eq!(apic.read_x2apic(0x803, T0), Ok(0x0105_0014));
    assert_eq!(apic.read_x2apic(0x7ff, T0), Err(GeneralProtection));
    assert_eq!(apic.read_x2apic(0x900, T0), Err(GeneralProtection));
}

#[test]
fn x2apic_registers_that_fault() {
    let mut apic = x2apic();
    for msr in [0x800, 0x804, 0x809, 0x80b, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x83a, 0x83f, 0x840, 0x8ff] {
        assert_eq!(apic.read_x2apic(msr, T0), Err(GeneralProtection), "{msr:#x}");
    }
    for msr in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x827, 0x82f, 0x831, 0x839, 0x840, 0x8ff] {
        assert_eq!(apic.write_x2apic(msr, 0, T0), Err(GeneralProtection), "{msr:#x}");
    }
    for (msr, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 8),
        (0x832, 1 << 19),
        (0x835, 1 << 11),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(apic.write_x2apic(msr, value, T0), Err(GeneralProtection), "{msr:#x} {value:#x}");
    }
    assert_eq!(apic.write_x2apic(0x828, 0, T0), Ok(Effect::None));
    assert_eq!(apic.read_x2apic(0x828, T0), Ok(0), "reserved registers are no error in ESR");
    assert_eq!(apic.write_x2apic(0x830, 1 << 12 | 0x41, T0).map(ipi).unwrap().message.vector, 0x41);
    assert_eq!(apic.read_x2apic(0x830, T0), Ok(0x41));
}

#[test]
fn x2apic_ids_and_self_ipi() {
    let mut apic = LocalApic::new(ApicConfig { bsp: false, ..ApicConfig::new(0x123) });
    assert_eq!(read(&mut apic, 0x20), 0x23 << 24);
    assert_eq!(apic.write_apic_base(X2), Ok(Effect::RoutingChanged));
    assert_eq!(apic.read_x2apic(0x802, T0), Ok(0x123));
    assert_eq!(apic.read_x2apic(0x80d, T0), Ok(0x12_0008));
    assert_eq!(apic.write_x2apic(0x80f, 0x1ff, T0), Ok(Effect::RoutingChanged));
    assert_eq!(apic.write_x2apic(0x83f, 0x55, T0), Ok(Effect::None));
    assert_eq!(apic.pending_vector(), Some(0x55));
}
