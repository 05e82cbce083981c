//! The two cascaded 8259A interrupt controllers of a PC.
//!
//! Intel 8259A datasheet ("Initialization Command Words", "Operation Command Words", "Special Fully Nested Mode", "Poll
//! Command") and the edge/level control registers of PC chipsets (Intel 82371 datasheet, "ELCR1, ELCR2"). The second
//! chip's output is the first one's IR2 at every moment, so line 2 has no device.
//!
//! What is decided where manuals leave room: an edge stays requested although its line falls before it is acknowledged
//! (a real 8259A would answer with the spurious IR7). Devices on virtual time raise and lower their lines while the guest
//! does not run, and no interrupt shall be lost by it. LTIM of ICW1 has no effect: chipsets with an ELCR ignore it.

mod chip;

use chip::Chip;

const PRIMARY: u16 = 0x20;
const SECONDARY: u16 = 0xa0;
const ELCR: u16 = 0x4d0;
/// The primary's input from the secondary.
const CASCADE: u8 = 2;

/// The pair: lines 0 to 7 and 8 to 15.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PicPair {
    primary: Chip,
    secondary: Chip,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// The pair after power-up: not initialised, all lines masked and low.
    #[must_use]
    pub const fn new() -> Self {
        // Lines 0 to 2, and 8 and 13, are edge-triggered for good.
        Self { primary: Chip::new(0xf8, 1 << CASCADE), secondary: Chip::new(0xde, 0) }
    }

    /// After a machine reset: as [`Self::new`], but lines stay as their devices drive them.
    pub fn reset(&mut self) {
        self.primary.reset();
        self.secondary.reset();
    }

    /// Whether `port` is one of the pair's six.
    #[must_use]
    pub const fn owns(port: u16) -> bool {
        matches!(port & !1, PRIMARY | SECONDARY | ELCR)
    }

    /// Drives a line (0 to 15): `level` is whether it is high. No effect for line 2 and lines past the last.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        match line {
            CASCADE => {}
            0..=7 => self.primary.set_line(line, level),
            8..=15 => self.secondary.set_line(line - 8, level),
            _ => {}
        }
        self.cascade();
    }

    /// Whether INTR is asserted.
    #[inline]
    #[must_use]
    pub fn output(&self) -> bool {
        self.primary.output()
    }

    /// The CPU's interrupt acknowledge: the vector. When there is nothing to acknowledge any more, the answer is the
    /// spurious IR7 of the chip that was asked, without a trace in its ISR.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.primary.acknowledge() {
            Some(CASCADE) => match self.secondary.acknowledge() {
                Some(ir) => self.secondary.vector(ir),
                None => self.secondary.vector(7),
            },
            Some(ir) => self.primary.vector(ir),
            None => self.primary.vector(7),
        };
        self.cascade();
        vector
    }

    /// Reads a byte from one of the pair's ports; other ports read 0xFF.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 | 0x21 => self.primary.read(port & 1 != 0),
            0xa0 | 0xa1 => self.secondary.read(port & 1 != 0),
            0x4d0 => self.primary.elcr(),
            0x4d1 => self.secondary.elcr(),
            _ => return 0xff,
        };
        // A poll acknowledges.
        self.cascade();
        value
    }

    /// Writes a byte to one of the pair's ports; no effect on other ports.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 => self.primary.write(port & 1 != 0, value),
            0xa0 | 0xa1 => self.secondary.write(port & 1 != 0, value),
            0x4d0 => self.primary.set_elcr(value),
            0x4d1 => self.secondary.set_elcr(value),
            _ => {}
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let output = self.secondary.output();
        self.primary.set_cascade(output);
    }
}

#[cfg(test)]
mod tests;
