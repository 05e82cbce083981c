//! Resets, and the modes of `IA32_APIC_BASE`.

use super::*;

// ---- "Local APIC State After Power-Up or Reset"

#[test]
fn registers_after_power_up() {
    let mut apic = LocalApic::new(ApicConfig::new(3));
    for (offset, value) in [
        (0x20, 3 << 24),
        (0x30, 0x0105_0014),
        (0x80, 0),
        (0xa0, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x300, 0),
        (0x310, 0),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(read(&mut apic, offset), value, "{offset:#x}");
    }
    for offset in (0x320..=0x370).step_by(16) {
        assert_eq!(read(&mut apic, offset), 1 << 16);
    }
    for offset in (0x100..0x280).step_by(16) {
        assert_eq!(read(&mut apic, offset), 0);
    }
    assert_eq!(errors(&mut apic), 0);
    assert_eq!(apic.apic_base(), ENABLE);
    assert_eq!(LocalApic::new(ApicConfig::new(0)).apic_base(), ENABLE | 0x100);
}

#[test]
fn an_init_keeps_mode_address_and_id() {
    let mut apic = x2apic();
    request(&mut apic, 0x40, TriggerMode::Edge);
    apic.set_tpr(0x20);
    apic.init_reset();
    assert_eq!((apic.mode(), apic.apic_base(), apic.id()), (ApicMode::X2Apic, X2, 1));
    assert_eq!((apic.pending_vector(), apic.tpr(), apic.is_software_enabled()), (None, 0, false));
    apic.power_on_reset();
    assert_eq!((apic.mode(), apic.apic_base()), (ApicMode::XApic, ENABLE));
}

// ---- "x2APIC State Transitions", "Local APIC Status and Location"

#[test]
fn apic_base_transitions() {
    let disabled = 0xfee0_0000;
    let invalid = 0xfee0_0400;
    let in_state = |base: u64| {
        let mut apic = xapic();
        let _ = apic.write_apic_base(base);
        assert_eq!(apic.apic_base(), base);
        apic
    };
    for (from, to, ok) in [
        (ENABLE, ENABLE, true),
        (ENABLE, X2, true),
        (ENABLE, disabled, true),
        (ENABLE, invalid, false),
        (X2, X2, true),
        (X2, ENABLE, false),
        (X2, disabled, true),
        (X2, invalid, false),
        (disabled, disabled, true),
        (disabled, ENABLE, true),
        (disabled, X2, false),
        (disabled, invalid, false),
    ] {
        assert_eq!(in_state(from).write_apic_base(to).is_ok(), ok, "{from:#x} to {to:#x}");
    }
}

#[test]
fn apic_base_reserved_bits_and_bsp() {
    let mut apic = xapic();
    for bit in (0..8).chain([9]).chain(48..64) {
        assert_eq!(apic.write_apic_base(ENABLE | 1 << bit), Err(GeneralProtection), "bit {bit}");
    }
    assert_eq!(apic.write_apic_base(ENABLE | 0x100), Ok(Effect::None));
    assert!(!apic.is_bsp() && apic.apic_base() & 0x100 == 0);
    let mut plain = LocalApic::new(ApicConfig { x2apic: false, ..ApicConfig::new(0) });
    assert_eq!(plain.write_apic_base(X2), Err(GeneralProtection));
    assert_eq!(plain.write_apic_base(0x1234_5800), Ok(Effect::RoutingChanged));
    assert_eq!(plain.mmio_base(), Some(Gpa::new(0x1234_5000)));
}

#[test]
fn disabling_loses_the_state_and_the_registers() {
    let mut apic = xapic();
    request(&mut apic, 0x40, TriggerMode::Edge);
    set(&mut apic, 0xd0, 0x0200_0000);
    assert_eq!(apic.write_apic_base(0xfee0_0000), Ok(Effect::RoutingChanged));
    assert_eq!((apic.pending_vector(), apic.mmio_base()), (None, None));
    assert_eq!((read(&mut apic, 0x30), apic.mmio_read(0x34, 2, T0)), (u32::MAX, 0xffff));
    request(&mut apic, 0x41, TriggerMode::Edge);
    assert_eq!(write(&mut apic, 0xf0, 0x1ff), Effect::None);
    assert_eq!(apic.write_apic_base(ENABLE), Ok(Effect::RoutingChanged));
    assert_eq!((apic.pending_vector(), read(&mut apic, 0xf0), read(&mut apic, 0xd0)), (None, 0xff, 0));
}
