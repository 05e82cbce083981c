//! The I/O APIC: 24 pins, each with a redirection entry that says what message it sends.
//!
//! Intel 82093AA datasheet, chapter 3 "Register Description"; version 0x20 with the EOI register of later I/O APICs
//! (Intel ICH datasheets, "EOI Register"). Bits 55:49 of an entry are bits 14:8 of the destination, for guests that know
//! of the extended destination id (Linux with KVM's `KVM_FEATURE_MSI_EXT_DEST_ID`).
//!
//! What is decided where manuals leave room:
//!
//! - An edge on a masked pin is lost, as the 82093AA's description of the mask bit says; Linux expects no more and asks
//!   the 8259 pair about its legacy interrupts.
//! - `level` of [`IoApic::set_irq`] says whether the line is *asserted*; the polarity bit is stored and does not change that.
//! - Making an entry edge-triggered clears its remote IRR: Linux ends a stuck level interrupt in this way.
//! - NMI, INIT, SMI and ExtINT are edge-triggered whatever the entry says.
//!
//! Invariants: a level-triggered pin has at most one message under way (remote IRR), and sends again as long as its line is
//! asserted at the EOI; an edge-triggered pin sends one message for each rising edge.

use crate::message::extended_destination;
use crate::{DeliveryMode, DestinationMode, InterruptMessage, TriggerMode};

/// The number of pins.
pub const IOAPIC_PINS: usize = 24;

const VERSION: u32 = 0x20 | (IOAPIC_PINS as u32 - 1) << 16;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_TABLE: u8 = 0x10;

const LOGICAL: u64 = 1 << 11;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger, mask; destination with its extension.
const WRITABLE: u64 = 0x0001_afff | 0xfffe << 48;

/// An entry of the redirection table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry(u64);

impl Entry {
    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    const fn has_remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    /// Whether the pin's condition lasts until an EOI: the trigger bit counts for vectored modes alone.
    const fn is_level(self) -> bool {
        self.0 & LEVEL != 0 && matches!(self.0 >> 8 & 7, 0 | 1)
    }

    /// The message; `None` for a delivery mode that is reserved here.
    const fn message(self) -> Option<InterruptMessage> {
        let delivery = match DeliveryMode::from_bits((self.0 >> 8) as u32) {
            None | Some(DeliveryMode::Startup) => return None,
            Some(delivery) => delivery,
        };
        Some(InterruptMessage {
            destination: extended_destination((self.0 >> 56) as u32, (self.0 >> 49) as u32 & 0x7f),
            destination_mode: if self.0 & LOGICAL != 0 {
                DestinationMode::Logical
            } else {
                DestinationMode::Physical
            },
            delivery,
            vector: self.vector(),
            trigger: if self.is_level() { TriggerMode::Level } else { TriggerMode::Edge },
            assert: true,
        })
    }
}

/// An I/O APIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoApic {
    entries: [Entry; IOAPIC_PINS],
    /// The asserted lines, a bit a pin.
    lines: u32,
    select: u8,
    id: u8,
}

/// Messages to be delivered, at most one a pin. Dropping it loses them.
#[derive(Clone, Debug)]
#[must_use = "each message is an interrupt to deliver"]
pub struct Messages<'a> {
    entries: &'a [Entry; IOAPIC_PINS],
    pins: u32,
}

impl Iterator for Messages<'_> {
    type Item = InterruptMessage;

    fn next(&mut self) -> Option<InterruptMessage> {
        while self.pins != 0 {
            let pin = self.pins.trailing_zeros() as usize;
            self.pins &= self.pins - 1;
            if let Some(message) = self.entries.get(pin).and_then(|entry| entry.message()) {
                return Some(message);
            }
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.pins.count_ones() as usize))
    }
}

impl IoApic {
    /// One after reset, every pin masked, with the given id (0 to 15).
    #[must_use]
    pub const fn new(id: u8) -> Self {
        Self { entries: [Entry(MASKED); IOAPIC_PINS], lines: 0, select: 0, id: id & 0xf }
    }

    /// After a machine reset: as [`Self::new`], but lines stay as their devices drive them.
    pub fn reset(&mut self) {
        self.entries = [Entry(MASKED); IOAPIC_PINS];
        self.select = 0;
    }

    // ---- lines

    /// Drives a pin's line: `level` is whether it is asserted. Answers the message that this sends. No effect for a pin
    /// past the last.
    ///
    #[must_use = "the message is an interrupt to deliver"]
    pub fn set_irq(&mut self, pin: usize, level: bool) -> Option<InterruptMessage> {
        let entry = *self.entries.get(pin)?;
        let bit = 1 << pin;
        if !level {
            self.lines &= !bit;
            return None;
        }
        let rises = self.lines & bit == 0;
        self.lines |= bit;
        if entry.is_level() {
            return self.send_level(pin).then(|| entry.message()).flatten();
        }
        if rises && !entry.is_masked() { entry.message() } else { None }
    }

    /// Whether `pin`'s line is asserted.
    #[must_use]
    pub const fn is_asserted(&self, pin: usize) -> bool {
        pin < IOAPIC_PINS && self.lines & (1 << pin) != 0
    }

    /// Whether a level-triggered message of `pin` is under way: it has been accepted, and its service has not ended.
    #[must_use]
    pub fn is_under_way(&self, pin: usize) -> bool {
        self.entries.get(pin).is_some_and(|entry| entry.has_remote_irr())
    }

    /// How a pin is to signal: whether it is unmasked, and then whether it is active low, and level-triggered.
    #[must_use]
    pub fn wants(&self, pin: usize) -> Option<(bool, bool)> {
        let entry = self.entries.get(pin).filter(|entry| !entry.is_masked())?;
        Some((entry.0 & ACTIVE_LOW != 0, entry.is_level()))
    }

    /// Whether the end of `vector` ends the service of `pin`.
    #[must_use]
    pub fn is_served_by(&self, pin: usize, vector: u8) -> bool {
        self.entries.get(pin).is_some_and(|entry| entry.has_remote_irr() && entry.vector() == vector)
    }

    /// Whether a level-triggered pin has a message to send now; sets its remote IRR when it has.
    fn send_level(&mut self, pin: usize) -> bool {
        let asserted = self.is_asserted(pin);
        let Some(entry) = self.entries.get_mut(pin) else { return false };
        if !asserted || !entry.is_level() || entry.is_masked() || entry.has_remote_irr() {
            return false;
        }
        entry.0 |= REMOTE_IRR;
        true
    }

    fn messages(&self, pins: u32) -> Messages<'_> {
        Messages { entries: &self.entries, pins }
    }

    /// A local APIC has ended the service of `vector` (or software wrote the EOI register): level-triggered pins with
    /// this vector whose line is still asserted send again.
    pub fn eoi(&mut self, vector: u8) -> Messages<'_> {
        let mut pins = 0;
        for pin in 0..IOAPIC_PINS {
            if self.clear_remote_irr(pin, vector) && self.send_level(pin) {
                pins |= 1 << pin;
            }
        }
        self.messages(pins)
    }

    fn clear_remote_irr(&mut self, pin: usize, vector: u8) -> bool {
        match self.entries.get_mut(pin) {
            Some(entry) if entry.has_remote_irr() && entry.vector() == vector => {
                entry.0 &= !REMOTE_IRR;
                true
            }
            _ => false,
        }
    }

    /// No local APIC has accepted this level-triggered message, so no EOI will come: the pins that send it may send again,
    /// at [`Self::resend`], at a new assertion of their lines or at a write to their entries.
    pub fn rejected(&mut self, message: &InterruptMessage) {
        for entry in &mut self.entries {
            if entry.is_level() && entry.message().as_ref() == Some(message) {
                entry.0 &= !REMOTE_IRR;
            }
        }
    }

    /// A local APIC may now accept what none did: level-triggered pins whose line is asserted and that have no message
    /// under way send again.
    pub fn resend(&mut self) -> Messages<'_> {
        let mut pins = 0;
        for pin in 0..IOAPIC_PINS {
            if self.send_level(pin) {
                pins |= 1 << pin;
            }
        }
        self.messages(pins)
    }

    // ---- registers

    /// Reads `size` bytes at `offset` of the register page. Registers are 32 bits wide; a narrower read gives their low
    /// bytes. What is not there reads 0.
    #[must_use]
    pub fn mmio_read(&self, offset: u64, size: u8) -> u32 {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_register(),
            _ => 0,
        };
        match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value,
            _ => 0,
        }
    }

    /// Writes `value` (zero-extended from the access's size) at `offset` of the register page. Answers what this sends:
    /// unmasking or EOI of a level-triggered pin whose line is asserted.
    pub fn mmio_write(&mut self, offset: u64, value: u32) -> Messages<'_> {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => {
                let pins = self.write_register(value);
                return self.messages(pins);
            }
            EOI => return self.eoi(value as u8),
            _ => {}
        }
        self.messages(0)
    }

    /// The pin of the selected register, and the place of its half of the entry.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let register = self.select.checked_sub(REG_TABLE)?;
        let pin = usize::from(register / 2);
        (pin < IOAPIC_PINS).then_some((pin, u32::from(register % 2) * 32))
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            _ => match self.selected_entry() {
                Some((pin, shift)) => self.entries.get(pin).map_or(0, |entry| (entry.0 >> shift) as u32),
                None => 0,
            },
        }
    }

    /// Writes the selected register; answers the pins that send.
    fn write_register(&mut self, value: u32) -> u32 {
        if self.select == REG_ID {
            self.id = (value >> 24) as u8 & 0xf;
            return 0;
        }
        let Some((pin, shift)) = self.selected_entry() else { return 0 };
        if let Some(entry) = self.entries.get_mut(pin) {
            let half = 0xffff_ffff << shift & WRITABLE;
            entry.0 = entry.0 & !half | u64::from(value) << shift & half;
            if !entry.is_level() {
                entry.0 &= !REMOTE_IRR;
            }
        }
        if self.send_level(pin) { 1 << pin } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BROADCAST;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn write(io: &mut IoApic, register: u8, value: u32) -> Vec<InterruptMessage> {
        assert_eq!(io.mmio_write(IOREGSEL, u32::from(register)).count(), 0);
        io.mmio_write(IOWIN, value).collect()
    }

    fn read(io: &mut IoApic, register: u8) -> u32 {
        assert_eq!(io.mmio_write(IOREGSEL, u32::from(register)).count(), 0);
        io.mmio_read(IOWIN, 4)
    }

    fn program(io: &mut IoApic, pin: u8, low: u32) -> Vec<InterruptMessage> {
        write(io, REG_TABLE + 2 * pin, low)
    }

    #[test]
    fn registers_after_reset() {
        let mut io = IoApic::new(2);
        assert_eq!(read(&mut io, 0), 2 << 24);
        assert_eq!(read(&mut io, 1), 0x0017_0020);
        for register in REG_TABLE..REG_TABLE + 48 {
            assert_eq!(read(&mut io, register), if register % 2 == 0 { 1 << 16 } else { 0 });
        }
        assert_eq!(read(&mut io, 0x40), 0);
        assert_eq!(read(&mut io, 0xff), 0);
        assert_eq!(io.mmio_read(0x14, 4), 0);
        assert!(write(&mut io, 0, u32::MAX).is_empty());
        assert_eq!(read(&mut io, 0), 0xf << 24);
    }

    #[test]
    fn read_only_bits_ignore_writes() {
        let mut io = IoApic::new(0);
        program(&mut io, 3, u32::MAX);
        assert_eq!(read(&mut io, REG_TABLE + 6), 0x1_afff);
        write(&mut io, REG_TABLE + 7, u32::MAX);
        assert_eq!(read(&mut io, REG_TABLE + 7), 0xfffe_0000);
        write(&mut io, REG_VERSION, 0);
        assert_eq!(read(&mut io, REG_VERSION), 0x0017_0020);
    }

    #[test]
    fn one_message_for_an_edge() {
        let mut io = IoApic::new(0);
        assert_eq!(io.set_irq(4, true), None, "masked");
        assert!(program(&mut io, 4, 0x34).is_empty(), "an edge on a masked pin is lost");
        assert_eq!(io.set_irq(4, true), None, "no edge");
        assert_eq!(io.set_irq(4, false), None);
        assert_eq!(io.set_irq(4, true), Some(InterruptMessage::fixed(0, 0x34)));
        assert_eq!(io.set_irq(4, true), None);
        assert_eq!(io.eoi(0x34).count(), 0);
        assert_eq!(io.set_irq(24, true), None);
    }

    #[test]
    fn a_level_is_sent_again_until_it_is_withdrawn() {
        let mut io = IoApic::new(0);
        assert_eq!(io.set_irq(10, true), None);
        let sent = program(&mut io, 10, 0x8050);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].trigger, TriggerMode::Level);
        assert_eq!(read(&mut io, REG_TABLE + 20), 0xc050);
        assert_eq!(io.set_irq(10, true), None, "remote IRR");
        assert!(io.is_under_way(10) && !io.is_under_way(11) && !io.is_under_way(24));
        assert_eq!(io.eoi(0x51).count(), 0);
        assert_eq!(io.eoi(0x50).count(), 1);
        assert_eq!(io.set_irq(10, false), None);
        assert_eq!(io.mmio_write(EOI, 0x50).count(), 0);
        assert_eq!(read(&mut io, REG_TABLE + 20), 0x8050);
        assert!(!io.is_under_way(10));
        assert!(io.set_irq(10, true).is_some());
        program(&mut io, 10, 0x1_8050);
        assert_eq!(io.eoi(0x50).count(), 0, "masked meanwhile");
        assert_eq!(program(&mut io, 10, 0x8050).len(), 1);
    }

    #[test]
    fn an_eoi_serves_every_pin_of_the_vector() {
        let mut io = IoApic::new(0);
        for pin in 0..24 {
            program(&mut io, pin, 0x8060);
            assert!(io.set_irq(usize::from(pin), true).is_some());
        }
        assert_eq!(io.eoi(0x60).count(), 24);
    }

    #[test]
    fn edge_mode_clears_remote_irr_and_a_rejected_level_can_be_sent_again() {
        let mut io = IoApic::new(0);
        program(&mut io, 1, 0x8050);
        assert!(io.set_irq(1, true).is_some());
        program(&mut io, 1, 0x1_0050);
        assert_eq!(read(&mut io, REG_TABLE + 2), 0x1_0050);
        assert_eq!(program(&mut io, 1, 0x8050).len(), 1);
        io.rejected(&InterruptMessage { trigger: TriggerMode::Level, ..InterruptMessage::fixed(0, 0x50) });
        assert!(io.set_irq(1, true).is_some());
    }

    #[test]
    fn what_was_rejected_and_nothing_else_is_sent_again() {
        let mut io = IoApic::new(0);
        // Two pins of one vector for different APICs, an edge, and a masked level.
        write(&mut io, REG_TABLE + 3, 3 << 24);
        for (pin, low) in [(0, 0x8050), (1, 0x8050), (2, 0x51), (3, 0x1_8052)] {
            program(&mut io, pin, low);
            let _ = io.set_irq(usize::from(pin), true);
        }
        assert_eq!(io.resend().count(), 0, "all are under way");
        let rejected = InterruptMessage { trigger: TriggerMode::Level, ..InterruptMessage::fixed(3, 0x50) };
        io.rejected(&rejected);
        assert_eq!(io.resend().collect::<Vec<_>>(), [rejected]);
        assert_eq!(io.resend().count(), 0, "once");
        io.rejected(&rejected);
        assert_eq!(io.set_irq(1, false), None);
        assert_eq!(io.resend().count(), 0, "withdrawn");
    }

    #[test]
    fn entries_name_their_destination_and_mode() {
        let mut io = IoApic::new(0);
        write(&mut io, REG_TABLE + 1, 0x12 << 24 | 0x03 << 17);
        program(&mut io, 0, 0x0930);
        let m = io.set_irq(0, true).unwrap();
        assert_eq!((m.destination, m.destination_mode), (0x312, DestinationMode::Logical));
        assert_eq!(m.delivery, DeliveryMode::LowestPriority);
        write(&mut io, REG_TABLE + 3, 0xff << 24);
        program(&mut io, 1, 0x8400);
        let m = io.set_irq(1, true).unwrap();
        assert_eq!((m.delivery, m.trigger, m.destination), (DeliveryMode::Nmi, TriggerMode::Edge, BROADCAST));
        for reserved in [0x300, 0x600] {
            program(&mut io, 2, reserved);
            assert_eq!(io.set_irq(2, false), None);
            assert_eq!(io.set_irq(2, true), None);
        }
    }

    proptest! {
        /// A level-triggered pin never has two messages under way, and never stays silent with its line asserted.
        #[test]
        fn levels_are_neither_lost_nor_doubled(
            ops in proptest::collection::vec((0u8..5, any::<bool>()), 0..200),
        ) {
            let mut io = IoApic::new(0);
            program(&mut io, 5, 0x8070);
            let (mut line, mut masked, mut under_way) = (false, false, false);
            for (op, on) in ops {
                let sent = match op {
                    0 | 1 => { line = on; io.set_irq(5, on).is_some() }
                    2 => { masked = on; !program(&mut io, 5, if on { 0x1_8070 } else { 0x8070 }).is_empty() }
                    _ if under_way => { under_way = false; io.eoi(0x70).count() == 1 }
                    _ => false,
                };
                prop_assert!(!(sent && under_way));
                under_way |= sent;
                prop_assert!(under_way || masked || !line);
            }
        }
    }
}
