//! The local sources: the timer, the LINT pins, the performance counters.

use super::*;

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
