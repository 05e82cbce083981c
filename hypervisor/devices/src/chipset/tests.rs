use super::*;
use caisson_irqchip::{DeliveryMode, TriggerMode};
use proptest::prelude::*;

const T0: Instant = Instant::ZERO;

fn ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn fresh() -> Chipset {
    Chipset::new(1_700_000_000, 0, T0)
}

fn out(chipset: &mut Chipset, port: u16, value: u8) {
    assert_eq!(chipset.port_write(port, 1, u32::from(value), T0), Effect::None);
}

/// Sends `pin` as `entry` to the local APICs.
fn route(chipset: &mut Chipset, pin: u8, entry: u32, now: Instant) {
    chipset.ioapic_mmio_write(0, 0x10 + 2 * u32::from(pin), now);
    chipset.ioapic_mmio_write(0x10, entry, now);
}

/// Initialises the 8259 pair as Linux does and sets its masks.
fn start_pic(chipset: &mut Chipset, primary: u8, secondary: u8) {
    for (port, bytes) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xA0, [0x11, 0x38, 0x02, 0x01])] {
        for (i, byte) in bytes.into_iter().enumerate() {
            out(chipset, port + u16::from(i > 0), byte);
        }
    }
    out(chipset, 0x21, primary);
    out(chipset, 0xA1, secondary);
}

#[test]
fn an_empty_port_reads_all_ones_at_every_size() {
    let mut chipset = fresh();
    for port in [0x00, 0x2E, 0x44, 0x62, 0x2F8, 0x510, 0x60C, 0xCFC, 0xFFFF] {
        assert_eq!(chipset.port_read(port, 1, T0), 0xFF, "{port:#x}");
        assert_eq!(chipset.port_read(port, 2, T0) & 0xFF, 0xFF);
        assert_eq!(chipset.port_write(port, 1, 0x12, T0), Effect::None);
    }
    assert_eq!(chipset.port_read(0x300, 2, T0), 0xFFFF);
    assert_eq!(chipset.port_read(0x300, 4, T0), u32::MAX);
}

#[test]
fn a_host_bridge_is_read_in_any_width_and_survives_a_reset() {
    let mut chipset = fresh();
    chipset.add_host_bridge();
    for _ in 0..2 {
        let _ = chipset.port_write(0xCF8, 4, 0x8000_0008, T0);
        assert_eq!(chipset.port_read(0xCFC, 4, T0), 0x0600_0000);
        assert_eq!(chipset.port_read(0xCFE, 2, T0), 0x0600);
        assert_eq!(chipset.port_read(0xCFF, 1, T0), 6);
        chipset.reset(T0);
    }
}

#[test]
fn pci_ports_have_an_address_and_nothing_behind_it() {
    let mut chipset = fresh();
    for address in [0x8000_0000u32, 0x8000_FF08] {
        assert_eq!(chipset.port_write(0xCF8, 4, address, T0), Effect::None);
        assert_eq!(chipset.port_read(0xCF8, 4, T0), address);
        assert_eq!(chipset.port_read(0xCFC, 4, T0), u32::MAX);
        assert_eq!(chipset.port_read(0xCFE, 2, T0), 0xFFFF);
        assert_eq!(chipset.port_read(0xCFF, 1, T0), 0xFF);
    }
    assert_eq!(chipset.port_write(0xCFB, 1, 1, T0), Effect::None);
    assert_eq!(chipset.port_read(0xCF8, 4, T0), 0x8000_FF08, "narrow writes do not reach the address");
}

#[test]
fn console_bytes_go_out_and_wide_accesses_are_split() {
    let mut chipset = fresh();
    assert_eq!(chipset.port_write(COM1, 1, 0x1_41, T0), Effect::Console(b'A'));
    assert_eq!(chipset.port_write(COM1, 2, 0x0F42, T0), Effect::Console(b'B'));
    assert_eq!(chipset.port_read(COM1 + 1, 1, T0), 0x0F);
    assert_eq!(chipset.port_read(COM1 + 4, 2, T0), 0x6000);
    assert_eq!(chipset.port_write(COM1 - 1, 4, 0x43FF, T0), Effect::Console(b'C'));
}

/// Line 13: an edge at the first error, none before the guest has served it.
#[test]
fn x87_errors_are_latched_until_port_f0_is_written() {
    let mut chipset = fresh();
    start_pic(&mut chipset, 0xFB, 0xDF);
    chipset.coprocessor_error();
    assert!(chipset.pic_output());
    assert_eq!(chipset.pic_acknowledge(), 0x38 + COPROCESSOR_IRQ - 8);
    out(&mut chipset, 0xA0, 0x20);
    out(&mut chipset, 0x20, 0x20);
    chipset.coprocessor_error();
    assert!(!chipset.pic_output(), "no second edge");
    out(&mut chipset, 0xF0, 0);
    assert!(!chipset.pic_output());
    chipset.coprocessor_error();
    assert!(chipset.pic_output());
    chipset.reset(T0);
    start_pic(&mut chipset, 0xFB, 0xDF);
    assert!(!chipset.pic_output());
}

#[test]
fn every_way_to_reset_and_to_power_off() {
    for (port, value) in [(0xCF9, 0x06), (0x92, 1), (0x64, 0xFE)] {
        assert_eq!(fresh().port_write(port, 1, value, T0), Effect::Reset, "{port:#x}");
    }
    let off = u32::from(pm::SLEEP_TYPE_S5) << 10 | 1 << 13;
    assert_eq!(fresh().port_write(pm::PM1A_CONTROL, 2, off, T0), Effect::PowerOff);
    assert_eq!(fresh().port_write(pm::PM1A_CONTROL, 4, off, T0), Effect::PowerOff);
}

#[test]
fn the_timer_reaches_pin_2_and_ir_0() {
    let mut chipset = fresh();
    assert_eq!(chipset.next_deadline(), Instant::NEVER, "masked everywhere, nobody is woken");
    start_pic(&mut chipset, 0xFE, 0xFF);
    let tick = chipset.next_deadline();
    assert!(tick < ms(56));
    chipset.advance(tick - 1);
    assert!(!chipset.pic_output());
    chipset.advance(tick);
    assert!(chipset.pic_output() && !chipset.has_messages());
    assert_eq!(chipset.pic_acknowledge(), 0x30);
    out(&mut chipset, 0x20, 0x20);
    out(&mut chipset, 0x21, 0xFF);
    assert_eq!(chipset.next_deadline(), Instant::NEVER);
    // A day later, through the I/O APIC: one tick, no flood.
    let day = ms(86_400_000);
    route(&mut chipset, PIT_PIN, 0x31, day);
    assert!(!chipset.has_messages());
    let next = chipset.next_deadline();
    assert!(next > day && next < day + 56_000_000);
    chipset.advance(next);
    let message = chipset.pop_message().unwrap();
    assert_eq!((message.vector, message.delivery), (0x31, DeliveryMode::Fixed));
    assert!(!chipset.has_messages());
}

#[test]
fn a_masked_tick_is_seen_in_the_request_register() {
    let mut chipset = fresh();
    start_pic(&mut chipset, 0xFF, 0xFF);
    out(&mut chipset, 0x20, 0x0A);
    assert_eq!(chipset.port_read(0x20, 1, T0) & 1, 0);
    assert_eq!(chipset.port_read(0x20, 1, ms(60)) & 1, 1);
}

#[test]
fn transmitting_by_interrupt_is_an_edge_for_each_request() {
    let mut chipset = fresh();
    route(&mut chipset, COM1_IRQ, 0x34, T0);
    out(&mut chipset, COM1 + 4, 0x08);
    out(&mut chipset, COM1 + 2, 0x01);
    out(&mut chipset, COM1 + 1, 0x02);
    assert_eq!(chipset.pop_message().map(|m| m.vector), Some(0x34));
    for _ in 0..2 {
        assert_eq!(chipset.port_read(COM1 + 2, 1, T0), 0xC2);
        for byte in 0..16 {
            assert_eq!(chipset.port_write(COM1, 1, byte, T0), Effect::Console(byte as u8));
        }
        assert!(chipset.pop_message().is_some());
        assert!(!chipset.has_messages(), "sixteen bytes are one interrupt");
    }
    // A handler that does not ask for the cause gets its next interrupt all the same.
    for byte in 0..4 {
        assert_eq!(chipset.port_write(COM1, 1, byte, T0), Effect::Console(byte as u8));
        assert!(chipset.pop_message().is_some());
    }
    assert_eq!(chipset.port_read(COM1 + 5, 1, T0), 0x60);
}

#[test]
fn console_input_interrupts_and_is_held_back_when_full() {
    let mut chipset = fresh();
    start_pic(&mut chipset, 0xEF, 0xFF);
    out(&mut chipset, COM1 + 4, 0x08);
    out(&mut chipset, COM1 + 1, 0x01);
    assert!(chipset.console_ready() && chipset.console_input(b'x'));
    assert!(!chipset.console_ready() && !chipset.console_input(b'y') && !chipset.console_break());
    assert!(chipset.pic_output());
    assert_eq!(chipset.pic_acknowledge(), 0x34);
    assert_eq!(chipset.port_read(COM1, 1, T0), u32::from(b'x'));
    assert!(chipset.console_ready());
}

#[test]
fn the_sci_is_a_level_that_comes_again_at_the_eoi() {
    let mut chipset = fresh();
    route(&mut chipset, pm::SCI_IRQ, 0x8039, T0);
    out(&mut chipset, pm::SMI_CMD, pm::ACPI_ENABLE);
    assert_eq!(chipset.port_write(pm::PM1A_EVENT + 2, 2, 1 << 8, T0), Effect::None);
    chipset.press_power_button();
    let message = chipset.pop_message().unwrap();
    assert_eq!((message.vector, message.trigger), (0x39, TriggerMode::Level));
    chipset.eoi(0x39);
    assert!(chipset.pop_message().is_some());
    assert_eq!(chipset.port_write(pm::PM1A_EVENT, 2, 1 << 8, T0), Effect::None);
    chipset.eoi(0x39);
    assert!(!chipset.has_messages());
}

#[test]
fn a_real_devices_line_is_low_from_the_eoi_until_the_device_says_otherwise() {
    let mut chipset = fresh();
    assert_eq!(chipset.wants_line(20), None);
    // Level-triggered, active low, vector 0x51; another pin has the vector as well.
    route(&mut chipset, 20, 0xa051, T0);
    route(&mut chipset, 21, 0x8051, T0);
    assert_eq!((chipset.wants_line(20), chipset.wants_line(21)), (Some((true, true)), Some((false, true))));
    chipset.hold_line(20);
    assert_eq!(chipset.pop_message().map(|message| message.vector), Some(0x51));
    chipset.eoi(0x52);
    assert_eq!(chipset.take_ended_lines(), 0, "another vector's end");
    chipset.eoi(0x51);
    assert_eq!(chipset.take_ended_lines(), 1 << 20);
    assert!(!chipset.has_messages() && chipset.take_ended_lines() == 0);
    chipset.hold_line(20);
    assert!(chipset.pop_message().is_some(), "it comes again");
    // The end by the I/O APIC's own register.
    chipset.ioapic_mmio_write(0x40, 0x51, T0);
    assert_eq!(chipset.take_ended_lines(), 1 << 20);
    assert!(!chipset.has_messages());
}

#[test]
fn the_clock_interrupts_by_line_8() {
    let mut chipset = fresh();
    start_pic(&mut chipset, 0xFB, 0xFE);
    out(&mut chipset, 0x70, 0x0B);
    out(&mut chipset, 0x71, 0x12);
    assert_eq!(chipset.next_deadline(), ms(1000));
    chipset.advance(ms(1000));
    assert!(chipset.pic_output());
    assert_eq!(chipset.pic_acknowledge(), 0x38);
    assert_eq!(chipset.next_deadline(), Instant::NEVER);
    out(&mut chipset, 0x70, 0x0C);
    assert_eq!(chipset.port_read(0x71, 1, ms(1100)) & 0x90, 0x90);
    assert_eq!(chipset.next_deadline(), ms(2000));
}

#[test]
fn lines_of_other_devices_reach_their_pins() {
    let mut chipset = fresh();
    route(&mut chipset, 20, 0x8051, T0);
    chipset.set_irq(20, true);
    assert_eq!(chipset.pop_message().map(|m| m.vector), Some(0x51));
    chipset.set_irq(20, true);
    chipset.set_irq(255, true);
    assert!(!chipset.has_messages());
    assert_eq!(chipset.ioapic_mmio_read(0, 4), 0x10 + 40);
}

#[test]
fn a_reset_keeps_the_clock_and_foreign_lines() {
    let mut chipset = fresh();
    route(&mut chipset, 20, 0x8051, T0);
    route(&mut chipset, COM1_IRQ, 0x34, T0);
    chipset.set_irq(20, true);
    for (port, value) in
        [(COM1 + 4, 0x08), (COM1 + 1, 0x02), (0x70, 0x40), (0x71, 0x77), (0x70, 0x0B), (0x71, 0x12)]
    {
        out(&mut chipset, port, value);
    }
    assert!(chipset.has_messages());
    chipset.reset(ms(500));
    assert!(!chipset.has_messages() && !chipset.pic_output());
    assert_eq!(chipset.next_deadline(), Instant::NEVER);
    assert_eq!(chipset.port_read(COM1 + 1, 1, ms(500)), 0);
    for (index, value) in [(0x40, 0x77), (0x0B, 0x02), (0x00, 0x20)] {
        out(&mut chipset, 0x70, index);
        assert_eq!(chipset.port_read(0x71, 1, ms(500)), value, "{index:#x}");
    }
    route(&mut chipset, 20, 0x8052, ms(500));
    assert_eq!(chipset.pop_message().map(|m| m.vector), Some(0x52));
}

#[test]
fn pages_and_post_codes_read_back() {
    let mut chipset = fresh();
    out(&mut chipset, 0x80, 0x42);
    out(&mut chipset, 0xED, 0x42);
    assert_eq!(chipset.port_read(0x80, 1, T0), 0x42);
    assert_eq!(chipset.port_read(0xED, 1, T0), 0xFF);
}

proptest! {
    #[test]
    fn no_guest_breaks_it(data in proptest::collection::vec(any::<u8>(), 0..1500)) {
        drive(&data);
    }

    #[test]
    fn no_port_and_size_breaks_it(ops in proptest::collection::vec((any::<u16>(), any::<u8>(), any::<u32>()), 0..100)) {
        let mut chipset = fresh();
        for (port, size, value) in ops {
            let _ = chipset.port_write(port, size, value, T0);
            chipset.port_read(port, size, T0);
        }
    }
}
