//! Acceptance, priorities, the end of service, and the software enable.

use super::*;

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
