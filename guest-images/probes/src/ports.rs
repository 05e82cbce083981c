//! The legacy devices' ports.

use crate::cpu::{inb, outb};

/// First 8259: command.
pub const PIC1: u16 = 0x20;
/// Second 8259: command.
pub const PIC2: u16 = 0xa0;
/// 8254: counter 0.
pub const PIT: u16 = 0x40;
/// Port 0x61: gates and outputs of the 8254's counter 2, speaker.
pub const SYSTEM_B: u16 = 0x61;

/// Starts the pair of 8259s with `base` and `base + 8` as first vectors; all lines masked (8259A data sheet, ICW1 to ICW4).
pub fn pic_start(base: u8) {
    for (port, value) in [
        (PIC1, 0x11),
        (PIC2, 0x11),
        (PIC1 + 1, base),
        (PIC2 + 1, base + 8),
        (PIC1 + 1, 4),
        (PIC2 + 1, 2),
        (PIC1 + 1, 1),
        (PIC2 + 1, 1),
        (PIC1 + 1, 0xff),
        (PIC2 + 1, 0xff),
    ] {
        outb(port, value);
    }
}

/// Masks (or unmasks) lines: a bit each, 0 to 15.
pub fn pic_mask(mask: u16) {
    outb(PIC1 + 1, mask as u8);
    outb(PIC2 + 1, (mask >> 8) as u8);
}

/// A CMOS register.
pub fn cmos_read(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}

/// Writes a CMOS register.
pub fn cmos_write(index: u8, value: u8) {
    outb(0x70, index);
    outb(0x71, value);
}
