//! What is sent and received: ICR, errors, the mailbox, NMIs.

use super::*;

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
