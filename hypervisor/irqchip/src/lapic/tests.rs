//! The rules of the local APIC, by the manual's sections.

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

// ---- "Task and Processor Priorities", "Signaling Interrupt Servicing Completion"

#[test]
fn priorities_nest_by_class() {
    let mut apic = xapic();
    request(&mut apic, 0x41, TriggerMode::Edge);
    assert_eq!(apic.pending_vector(), Some(0x41));
    apic.acknowledge(0x41);
    assert_eq!((apic.ppr(), read(&mut apic, 0x120)), (0x40, 2));
    request(&mut apic, 0x4f, TriggerMode::Edge);
    assert_eq!((apic.pending_vector(), apic.highest_request()), (None, Some(0x4f)));
    request(&mut apic, 0x50, TriggerMode::Edge);
    apic.acknowledge(apic.pending_vector().unwrap());
    assert_eq!(apic.eoi(), Effect::None);
    assert_eq!((apic.ppr(), apic.pending_vector()), (0x40, None));
    assert_eq!(write(&mut apic, 0xb0, 0), Effect::None);
    assert_eq!(apic.pending_vector(), Some(0x4f));
    assert_eq!(apic.eoi(), Effect::None, "nothing in service");
    assert!(!apic.has_in_service());
}

#[test]
fn ppr_is_the_higher_of_tpr_and_service() {
    let mut apic = xapic();
    assert_eq!(write(&mut apic, 0x80, 0x35), Effect::TprChanged);
    assert_eq!((apic.ppr(), apic.cr8()), (0x35, 3));
    request(&mut apic, 0x3f, TriggerMode::Edge);
    assert_eq!(apic.pending_vector(), None);
    apic.set_cr8(2);
    assert_eq!(apic.pending_vector(), Some(0x3f));
    apic.acknowledge(0x3f);
    assert_eq!(apic.ppr(), 0x30);
    apic.set_tpr(0x38);
    assert_eq!(apic.ppr(), 0x38);
    apic.set_cr8(15);
    assert_eq!((apic.tpr(), apic.ppr()), (0xf0, 0xf0));
    apic.acknowledge(0x99);
    assert_eq!(apic.isr().len(), 1, "what is not requested cannot be acknowledged");
}

#[test]
fn the_eoi_of_a_level_is_broadcast() {
    let mut apic = xapic();
    for (vector, trigger) in [(0x60, TriggerMode::Level), (0x70, TriggerMode::Edge)] {
        request(&mut apic, vector, trigger);
        apic.acknowledge(vector);
    }
    assert_eq!(read(&mut apic, 0x1b0), 1);
    assert_eq!(apic.eoi(), Effect::None);
    assert_eq!(apic.eoi(), Effect::BroadcastEoi(0x60));
    set(&mut apic, 0xf0, 0xff | SVR_ENABLE | SVR_SUPPRESS_EOI_BROADCAST);
    request(&mut apic, 0x60, TriggerMode::Level);
    apic.acknowledge(0x60);
    assert_eq!(apic.eoi(), Effect::None);
    request(&mut apic, 0x60, TriggerMode::Edge);
    assert_eq!(read(&mut apic, 0x1b0), 0, "TMR is that of the last acceptance");
}

#[test]
fn a_lazy_eoi_needs_one_edge_and_nothing_else() {
    let mut apic = xapic();
    assert!(!apic.may_skip_eoi());
    request(&mut apic, 0x60, TriggerMode::Edge);
    apic.acknowledge(0x60);
    assert!(apic.may_skip_eoi());
    request(&mut apic, 0x30, TriggerMode::Edge);
    assert!(!apic.may_skip_eoi(), "another waits for the EOI");
    assert_eq!(apic.eoi_skipped(), Effect::None);
    apic.acknowledge(0x30);
    assert!(apic.may_skip_eoi());
    request(&mut apic, 0x61, TriggerMode::Level);
    apic.acknowledge(0x61);
    assert!(!apic.may_skip_eoi(), "two in service");
    let _ = apic.eoi();
    let _ = apic.eoi();
    request(&mut apic, 0x61, TriggerMode::Level);
    apic.acknowledge(0x61);
    assert!(!apic.may_skip_eoi(), "the I/O APIC waits for it");
}

// ---- "Spurious-Interrupt Vector Register", "Local APIC State After It Has Been Software Disabled"

#[test]
fn software_disabling_masks_and_keeps_requests() {
    let mut apic = xapic();
    set(&mut apic, 0x350, 0x700);
    request(&mut apic, 0x44, TriggerMode::Edge);
    assert!(apic.accepts_extint());
    assert_eq!(write(&mut apic, 0xf0, 0xff), Effect::RoutingChanged);
    assert!(!apic.accepts_extint());
    assert_eq!(read(&mut apic, 0x350), 0x1_0700);
    set(&mut apic, 0x350, 0x700);
    assert_eq!(read(&mut apic, 0x350), 0x1_0700, "the mask stays");
    assert_eq!(apic.pending_vector(), Some(0x44));
    request(&mut apic, 0x45, TriggerMode::Edge);
    assert_eq!(apic.pending_vector(), Some(0x44));
    apic.receive(&InterruptMessage { delivery: DeliveryMode::Nmi, ..InterruptMessage::fixed(0, 0) });
    assert!(apic.take_nmi() && !apic.nmi_pending());
}

// ---- "Interrupt Command Register (ICR)"

#[test]
fn xapic_icr_in_two_writes() {
    let mut apic = xapic();
    assert_eq!(write(&mut apic, 0x310, 0x0512_3456), Effect::None);
    assert_eq!(read(&mut apic, 0x310), 0x0500_0000);
    let sent = ipi(write(&mut apic, 0x300, 0x4841));
    assert_eq!(sent.shorthand, Shorthand::None);
    let expected =
        InterruptMessage { destination_mode: DestinationMode::Logical, ..InterruptMessage::fixed(5, 0x41) };
    assert_eq!(sent.message, expected);
    assert_eq!(read(&mut apic, 0x300), 0x4841);
    set(&mut apic, 0x310, 0xff00_0000);
    assert_eq!(ipi(write(&mut apic, 0x300, 0x4041)).message.destination, BROADCAST);
}

#[test]
fn icr_modes_and_shorthands() {
    let mut apic = x2apic();
    for (low, delivery) in [
        (0x0041, DeliveryMode::Fixed),
        (0x0141, DeliveryMode::LowestPriority),
        (0x0400, DeliveryMode::Nmi),
        (0x4500, DeliveryMode::Init),
        (0xc500, DeliveryMode::Init),
        (0x0600, DeliveryMode::Startup),
    ] {
        let sent = ipi(apic.write_icr(0xffu64 << 32 | low));
        assert_eq!((sent.message.delivery, sent.message.destination), (delivery, 0xff));
        assert_eq!((sent.message.trigger, sent.message.assert), (TriggerMode::Edge, true));
    }
    for ignored in [0x0241, 0x0341, 0x0741, 0x8500] {
        assert_eq!(apic.write_icr(ignored), Effect::None, "{ignored:#x}");
    }
    assert_eq!(ipi(apic.write_icr(0x8_0041)).shorthand, Shorthand::AllIncludingSelf);
    assert_eq!(ipi(apic.write_icr(0xc_0041)).shorthand, Shorthand::AllExcludingSelf);
    assert_eq!(ipi(apic.write_icr(0x4_0400)).shorthand, Shorthand::SelfOnly);
    assert_eq!(apic.write_icr(0x4_0077), Effect::None);
    assert_eq!(apic.pending_vector(), Some(0x77));
}

// ---- "Error Handling"; vector 0

#[test]
fn illegal_vectors_are_errors_and_nothing_else() {
    let mut apic = xapic();
    set(&mut apic, 0x370, 0xfe);
    assert_eq!(ipi(write(&mut apic, 0x300, 0)).message.vector, 0);
    assert_eq!(apic.pending_vector(), Some(0xfe));
    apic.acknowledge(0xfe);
    assert_eq!(write(&mut apic, 0x300, 0x4_000f), Effect::None);
    assert_eq!((apic.pending_vector(), read(&mut apic, 0x280)), (None, 0), "not armed, not latched");
    assert_eq!(errors(&mut apic), 0x60);
    assert_eq!(errors(&mut apic), 0);
    request(&mut apic, 0, TriggerMode::Level);
    assert_eq!(apic.highest_request(), Some(0xfe));
    assert_eq!(errors(&mut apic), 0x40);
    assert_eq!(apic.irr().len(), 1);
}

#[test]
fn an_all_zero_lvt_does_no_harm() {
    let mut apic = xapic();
    for offset in (0x320..=0x370).step_by(16) {
        set(&mut apic, offset, 0);
    }
    set(&mut apic, 0x380, 1);
    apic.advance(at(10_000));
    apic.set_lint(LintPin::Lint0, true);
    apic.set_lint(LintPin::Lint1, true);
    apic.performance_interrupt();
    apic.thermal_interrupt();
    assert_eq!((apic.highest_request(), apic.nmi_pending(), apic.has_in_service()), (None, false, false));
    assert_eq!(errors(&mut apic), 0x40);
    assert_eq!(apic.eoi(), Effect::None);
}

// ---- mailbox

#[test]
fn the_mailbox_is_drained_whole() {
    let mailbox = Mailbox::new();
    let mut apic = xapic();
    assert!(!mailbox.has_work());
    assert!(mailbox.post_vector(0x33, TriggerMode::Edge), "the first one wakes");
    assert!(!mailbox.post_vector(0x80, TriggerMode::Level));
    assert!(!mailbox.post_vector(0x02, TriggerMode::Edge));
    for _ in 0..3 {
        assert!(!mailbox.post_nmi());
    }
    assert!(!mailbox.post_work(0x8001));
    assert!(mailbox.has_work());
    assert_eq!(apic.drain(&mailbox), Events { init: false, startup: None, work: 0x8001 });
    assert!(!mailbox.has_work());
    assert_eq!((apic.pending_vector(), apic.irr().len()), (Some(0x80), 2));
    assert!(apic.take_nmi() && apic.take_nmi() && !apic.take_nmi());
    assert_eq!(errors(&mut apic), 0x40);
    apic.acknowledge(0x80);
    assert_eq!(apic.eoi(), Effect::BroadcastEoi(0x80));
    assert!(mailbox.post_vector(0x80, TriggerMode::Edge));
    assert_eq!(apic.drain(&mailbox), Events::default());
    apic.acknowledge(0x80);
    assert_eq!(apic.eoi(), Effect::None);
}

#[test]
fn init_and_sipi_are_latched_in_order() {
    let mailbox = Mailbox::new();
    let mut apic = xapic();
    let post = |delivery, vector| {
        let _ = mailbox.post(&InterruptMessage { delivery, ..InterruptMessage::fixed(0, vector) });
    };
    post(DeliveryMode::Startup, 0);
    assert_eq!(apic.drain(&mailbox).startup, Some(0), "page 0 is a page");
    post(DeliveryMode::Startup, 7);
    post(DeliveryMode::Init, 0);
    assert_eq!(apic.drain(&mailbox), Events { init: true, startup: None, work: 0 });
    post(DeliveryMode::Init, 0);
    post(DeliveryMode::Startup, 0x9f);
    post(DeliveryMode::Startup, 0x10);
    assert_eq!(apic.drain(&mailbox), Events { init: true, startup: Some(0x10), work: 0 });
    post(DeliveryMode::Smi, 0);
    assert!(!mailbox.has_work());
    post(DeliveryMode::ExtInt, 0);
    assert_eq!(apic.drain(&mailbox), Events::default());
    assert!(apic.extint_pending() && apic.take_extint() && !apic.take_extint());
}

#[test]
fn a_disabled_apic_drops_what_was_under_way() {
    let mailbox = Mailbox::new();
    let mut apic = xapic();
    let _ = mailbox.post_vector(0x40, TriggerMode::Edge);
    let _ = mailbox.post_nmi();
    let _ = apic.write_apic_base(0xfee0_0000);
    assert_eq!(apic.drain(&mailbox), Events::default());
    assert_eq!((apic.highest_request(), apic.nmi_pending()), (None, false));
}

// ---- "APIC Timer"

#[test]
fn one_shot_and_periodic_by_registers() {
    let mut apic = xapic();
    set(&mut apic, 0x3e0, 0b1011);
    set(&mut apic, 0x320, 0x40);
    assert_eq!(write(&mut apic, 0x380, 50_000), Effect::TimerChanged);
    assert_eq!(apic.next_deadline(), at(51_000));
    assert_eq!(apic.mmio_read(0x390, 4, at(21_000)), 30_000);
    apic.advance(at(50_999));
    assert_eq!(apic.pending_vector(), None);
    apic.advance(at(51_000));
    assert_eq!((apic.pending_vector(), apic.next_deadline()), (Some(0x40), Instant::NEVER));
    apic.acknowledge(0x40);
    let _ = apic.eoi();
    set(&mut apic, 0x320, 0x2_0041);
    set(&mut apic, 0x380, 50_000);
    apic.advance(at(520_000));
    assert_eq!((apic.pending_vector(), apic.next_deadline()), (Some(0x41), at(551_000)));
}

#[test]
fn a_masked_timer_runs_but_does_not_interrupt() {
    let mut apic = xapic();
    set(&mut apic, 0x3e0, 0b1011);
    set(&mut apic, 0x380, 1000);
    assert_eq!(apic.next_deadline(), Instant::NEVER);
    assert_eq!(apic.mmio_read(0x390, 4, at(1_400)), 600);
    assert_eq!(apic.mmio_write(0x320, 4, 0x40, at(9_000)), Effect::TimerChanged);
    apic.advance(at(9_000));
    assert_eq!((apic.pending_vector(), apic.next_deadline()), (None, Instant::NEVER));
    let _ = apic.mmio_write(0x380, 4, 1000, at(9_000));
    let _ = apic.mmio_write(0x320, 4, 0x1_0040, at(10_000));
    assert_eq!(apic.pending_vector(), Some(0x40), "due before it was masked");
}

#[test]
fn tsc_deadline_by_registers() {
    let clock = TscClock { now: T0, tsc: 1 << 40, hz: 2_000_000_000 };
    let mut apic = x2apic();
    assert_eq!(apic.write_tsc_deadline(u64::MAX, &clock), Ok(Effect::TimerChanged));
    assert_eq!(apic.read_tsc_deadline(T0), Ok(0), "another mode");
    assert_eq!(apic.write_x2apic(0x832, 0x4_0040, T0), Ok(Effect::TimerChanged));
    let _ = apic.write_tsc_deadline((1 << 40) + 2001, &clock);
    assert_eq!(apic.next_deadline(), at(2_001));
    assert_eq!(apic.read_tsc_deadline(at(2_000)), Ok((1 << 40) + 2001));
    assert_eq!(apic.read_tsc_deadline(at(2_001)), Ok(0));
    assert_eq!(apic.pending_vector(), Some(0x40));
    apic.acknowledge(0x40);
    let _ = apic.eoi();
    let _ = apic.write_tsc_deadline(1, &clock);
    assert_eq!(apic.pending_vector(), Some(0x40), "a deadline in the past");
    let _ = apic.write_tsc_deadline((1 << 40) + 100, &clock);
    assert_eq!(apic.retime_tsc_deadline(&TscClock { tsc: 0, ..clock }), Effect::TimerChanged);
    assert_eq!(apic.next_deadline(), at(1_000 + (1 << 39) + 50));
    let _ = apic.write_tsc_deadline(0, &clock);
    assert_eq!(apic.next_deadline(), Instant::NEVER);
    assert_eq!(apic.retime_tsc_deadline(&clock), Effect::None);
    let mut without = LocalApic::new(ApicConfig { tsc_deadline: false, ..ApicConfig::new(0) });
    assert_eq!(without.read_tsc_deadline(T0), Err(GeneralProtection));
    assert_eq!(without.write_tsc_deadline(0, &clock), Err(GeneralProtection));
}

// ---- LINT pins

#[test]
fn virtual_wire_takes_the_8259() {
    let mut apic = LocalApic::new(ApicConfig::new(0));
    assert!(!apic.accepts_extint());
    apic.set_virtual_wire();
    assert!(apic.accepts_extint() && apic.is_software_enabled());
    apic.set_lint(LintPin::Lint0, true);
    assert_eq!((apic.highest_request(), apic.has_in_service()), (None, false));
    apic.set_lint(LintPin::Lint1, true);
    assert!(apic.take_nmi());
    apic.set_lint(LintPin::Lint1, true);
    assert!(!apic.take_nmi(), "no edge");
    let _ = apic.write_apic_base(0xfee0_0100);
    assert!(apic.accepts_extint(), "LINT0 is INTR");
    apic.set_lint(LintPin::Lint1, false);
    apic.set_lint(LintPin::Lint1, true);
    assert!(apic.take_nmi(), "LINT1 is NMI");
}

#[test]
fn fixed_pins_by_edge_and_level() {
    let mut apic = xapic();
    set(&mut apic, 0x350, 0x52);
    apic.set_lint(LintPin::Lint0, true);
    assert_eq!(apic.pending_vector(), Some(0x52));
    apic.acknowledge(0x52);
    assert_eq!(apic.eoi(), Effect::None);
    set(&mut apic, 0x350, 0x8053);
    assert_eq!(apic.pending_vector(), Some(0x53), "the line is still asserted");
    assert_eq!(read(&mut apic, 0x350), 0xc053);
    apic.acknowledge(0x53);
    assert_eq!(apic.eoi(), Effect::BroadcastEoi(0x53));
    assert_eq!(apic.pending_vector(), Some(0x53));
    apic.set_lint(LintPin::Lint0, false);
    apic.acknowledge(0x53);
    let _ = apic.eoi();
    assert_eq!((apic.pending_vector(), read(&mut apic, 0x350)), (None, 0x8053));
}

#[test]
fn a_performance_interrupt_masks_its_entry() {
    let mut apic = xapic();
    set(&mut apic, 0x340, 0x400);
    apic.performance_interrupt();
    assert!(apic.take_nmi());
    assert_eq!(read(&mut apic, 0x340), 0x1_0400);
    apic.performance_interrupt();
    assert!(!apic.nmi_pending());
}

// ---- "Handling Multiple NMIs"

#[test]
fn a_blocked_cpu_latches_one_nmi() {
    let mailbox = Mailbox::new();
    let mut apic = xapic();
    for _ in 0..2 {
        let _ = mailbox.post_nmi();
        let _ = mailbox.post_nmi();
        let _ = apic.drain(&mailbox);
    }
    assert!(apic.take_nmi());
    apic.receive(&InterruptMessage { delivery: DeliveryMode::Nmi, ..InterruptMessage::fixed(0, 0) });
    apic.latch_nmis();
    assert!(apic.take_nmi() && !apic.take_nmi());
    apic.latch_nmis();
    assert!(!apic.nmi_pending());
}
