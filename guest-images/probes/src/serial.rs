//! COM1, by polling.

use core::fmt::{self, Write as _};

use crate::cpu::{inb, outb};

const COM1: u16 = 0x3f8;
/// Transmitter holding register empty.
const READY: u8 = 1 << 5;

/// 115200 baud, 8 data bits, no parity, one stop bit; FIFOs on; DTR, RTS and OUT2.
pub(crate) fn start() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        outb(COM1 + register, value);
    }
}

struct Line;

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    while inb(COM1 + 5) & READY == 0 {}
    outb(COM1, byte);
}

/// Prints on COM1.
pub fn write(text: fmt::Arguments<'_>) {
    // The line accepts everything.
    let _ = Line.write_fmt(text);
}
