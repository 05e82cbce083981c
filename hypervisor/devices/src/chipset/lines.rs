//! Interrupt lines, and the two chips that they lead to.

use caisson_irqchip::{IoApic, PicPair};

use super::outbox::Outbox;
use super::{PIT_IRQ, PIT_PIN};

/// The low half of a pin's redirection entry, as a register number (82093AA data sheet, "I/O Redirection Table").
const fn redirection(pin: u8) -> u32 {
    0x10 + 2 * pin as u32
}

/// The mask bit of a redirection entry.
const REDIRECTION_MASKED: u32 = 1 << 16;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Both interrupt chips, and the level of every line.
#[derive(Clone, Debug)]
pub(super) struct Interrupts {
    pub(super) pic: PicPair,
    pub(super) ioapic: IoApic,
    pub(super) outbox: Outbox,
    /// The lines that are high, a bit each: those that are driven or held.
    high: u32,
    /// Those that a virtual device drives.
    driven: u32,
    /// Those that a real device holds, and those whose service has ended since somebody asked.
    held: u32,
    ended: u32,
    pit_in_pic: bool,
    pit_in_ioapic: bool,
}

impl Interrupts {
    pub(super) fn new(ioapic_id: u8) -> Self {
        let mut interrupts = Self {
            pic: PicPair::new(),
            ioapic: IoApic::new(ioapic_id),
            outbox: Outbox::new(),
            high: 0,
            driven: 0,
            held: 0,
            ended: 0,
            pit_in_pic: false,
            pit_in_ioapic: false,
        };
        interrupts.look_at_masks();
        interrupts
    }

    /// Resets both chips; lines stay as they are driven.
    pub(super) fn reset(&mut self) {
        self.pic.reset();
        self.ioapic.reset();
        self.outbox = Outbox::new();
        self.look_at_masks();
    }

    /// Whether some chip lets the timer's line through.
    #[inline]
    pub(super) fn pit_visible(&self) -> bool {
        self.pit_in_pic || self.pit_in_ioapic
    }

    /// Drives a line; a level that it has already costs nothing.
    #[inline]
    pub(super) fn set(&mut self, line: u8, level: bool) {
        if self.driven >> (line & 31) & 1 != u32::from(level) {
            self.driven ^= 1 << (line & 31);
            self.join(line & 31);
        }
    }

    /// A line is high while anybody drives or holds it.
    fn join(&mut self, line: u8) {
        let level = (self.driven | self.held) >> line & 1;
        if self.high >> line & 1 != level {
            self.change(line, level != 0);
        }
    }

    fn change(&mut self, line: u8, level: bool) {
        self.high ^= 1 << line;
        if line < 16 {
            self.pic.set_irq(line, level);
        }
        let pin = match line {
            PIT_IRQ => PIT_PIN,
            // The cascade of the 8259 pair is no interrupt, and the timer has its pin.
            PIT_PIN => return,
            other => other,
        };
        if let Some(message) = self.ioapic.set_irq(usize::from(pin), level) {
            self.outbox.push(message);
        }
    }

    /// A real device has raised a line, which is masked there until [`Interrupts::take_ended`] tells of it.
    pub(super) fn hold(&mut self, line: u8) {
        self.held |= 1 << (line & 31);
        self.join(line & 31);
    }

    /// The lines of real devices whose service has ended: each is low here until the device raises it again.
    pub(super) fn take_ended(&mut self) -> u32 {
        core::mem::take(&mut self.ended)
    }

    /// Lowers the lines of real devices whose service the end of `vector` ends.
    fn end_held(&mut self, vector: u8) {
        let mut held = self.held;
        while held != 0 {
            let line = held.trailing_zeros() as u8;
            held &= held - 1;
            if self.ioapic.is_served_by(usize::from(line), vector) {
                self.held &= !(1 << line);
                self.ended |= 1 << line;
                self.join(line);
            }
        }
    }

    pub(super) fn ioapic_write(&mut self, offset: u64, value: u32) {
        if offset == EOI {
            self.end_held(value as u8);
        }
        let Self { ioapic, outbox, .. } = self;
        ioapic.mmio_write(offset, value).for_each(|message| outbox.push(message));
        if offset == WINDOW {
            self.look_at_masks();
        }
    }

    pub(super) fn pic_write(&mut self, port: u16, value: u8) {
        self.pic.write(port, value);
        if port & !1 == 0x20 {
            self.look_at_masks();
        }
    }

    /// Finds out whether the guest masks the timer's line, in the one way that a guest can, too: by the registers.
    fn look_at_masks(&mut self) {
        let mut pic = self.pic.clone();
        // After a poll command the first read is its answer and the second one the mask.
        let _ = pic.read(0x21);
        self.pit_in_pic = pic.read(0x21) & 1 << PIT_IRQ == 0;
        let select = self.ioapic.mmio_read(SELECT, 4);
        self.select(redirection(PIT_PIN));
        self.pit_in_ioapic = self.ioapic.mmio_read(WINDOW, 4) & REDIRECTION_MASKED == 0;
        self.select(select);
    }

    fn select(&mut self, register: u32) {
        // Selecting a register sends nothing.
        let _ = self.ioapic.mmio_write(SELECT, register);
    }

    pub(super) fn resend(&mut self) {
        let Self { ioapic, outbox, .. } = self;
        ioapic.resend().for_each(|message| outbox.push(message));
    }

    pub(super) fn eoi(&mut self, vector: u8) {
        self.end_held(vector);
        let Self { ioapic, outbox, .. } = self;
        ioapic.eoi(vector).for_each(|message| outbox.push(message));
    }
}
