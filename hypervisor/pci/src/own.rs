//! Caisson's own function, on the bus of a domain that owns real ones: a device with a page of registers and an interrupt
//! pin, as a driver in user space can use it (Linux's `uio_pci_generic` needs what PCI 2.3 has: an interrupt status and an
//! interrupt disable bit).
//!
//! It masks its pin by itself when its interrupt is on its way ([`Own::sent`]): what such a driver does first is to look whether the
//! function wants an interrupt and is not masked, and to mask it where it is not; each access to configuration space is two exits.
//! Whoever acknowledges the interrupt at the function's own registers ends the mask with it ([`Own::acknowledge`]).

use crate::registers::{BARS, CLASS, COMMAND, COMMAND_MEMORY, ID, INTERRUPT_LINE};

/// Vendor and device id: numbers that the PCI-SIG has given to nobody.
pub const OWN_ID: (u16, u16) = (0xca15, 0x0001);
/// Bytes of its registers.
pub const OWN_BYTES: u64 = 0x1000;

/// A system peripheral of no other kind.
const OWN_CLASS: u32 = 0x08_80_00;
const SUBSYSTEM: u16 = 0x2c;
const INTERRUPT_DISABLE: u32 = 1 << 10;
const INTERRUPT_STATUS: u32 = 1 << 19;
const WRITABLE_COMMAND: u32 = COMMAND_MEMORY | INTERRUPT_DISABLE;
const PIN_A: u32 = 1 << 8;

/// The function.
#[derive(Clone, Debug, Default)]
pub struct Own {
    command: u32,
    bar: u32,
    line: u8,
    asserted: bool,
}

impl Own {
    /// After reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { command: 0, bar: 0, line: 0, asserted: false }
    }

    /// Where in its registers `gpa` is, if it decodes them there.
    #[must_use]
    pub fn register(&self, gpa: u64) -> Option<u16> {
        let start = u64::from(self.bar);
        let on = self.command & COMMAND_MEMORY != 0 && start != 0;
        let offset = gpa.checked_sub(start).filter(|&offset| on && offset < OWN_BYTES)?;
        u16::try_from(offset).ok()
    }

    /// It wants its interrupt.
    pub fn assert(&mut self) {
        self.asserted = true;
    }

    /// Its interrupt has been taken and will be delivered: it masks its pin, as who handles it would.
    pub fn sent(&mut self) {
        self.command |= INTERRUPT_DISABLE;
    }

    /// Its interrupt has been seen: it does not want it any longer, and its pin is not masked.
    pub fn acknowledge(&mut self) {
        self.asserted = false;
        self.command &= !INTERRUPT_DISABLE;
    }

    /// Whether it wants it.
    #[must_use]
    pub const fn asserted(&self) -> bool {
        self.asserted
    }

    /// Whether its pin is asserted.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.asserted && self.command & INTERRUPT_DISABLE == 0
    }

    /// The word at `offset`.
    #[must_use]
    pub fn read(&self, offset: u16) -> u32 {
        let id = u32::from(OWN_ID.0) | u32::from(OWN_ID.1) << 16;
        match offset & !3 {
            ID | SUBSYSTEM => id,
            COMMAND => self.command | if self.asserted { INTERRUPT_STATUS } else { 0 },
            CLASS => OWN_CLASS << 8 | 1,
            BARS => self.bar,
            INTERRUPT_LINE => PIN_A | u32::from(self.line),
            _ => 0,
        }
    }

    /// Writes the bits of `mask` in the word at `offset`.
    pub fn write(&mut self, offset: u16, value: u32, mask: u32) {
        let merge = |old: u32| old & !mask | value & mask;
        match offset & !3 {
            COMMAND => self.command = merge(self.command) & WRITABLE_COMMAND,
            BARS => self.bar = merge(self.bar) & !(OWN_BYTES as u32 - 1),
            INTERRUPT_LINE => self.line = merge(self.line.into()) as u8,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_placed_by_software() {
        let mut own = Own::new();
        assert_eq!(own.read(0), 0x0001_ca15);
        own.write(0x10, u32::MAX, u32::MAX);
        assert_eq!(own.read(0x10), 0xffff_f000);
        own.write(0x10, 0xc000_0000, u32::MAX);
        assert_eq!(own.register(0xc000_0010), None, "memory is not on");
        own.write(4, 2, 0xffff);
        assert_eq!(own.register(0xc000_0010), Some(0x10));
        assert_eq!(own.register(0xc000_1000), None);
        assert_eq!(own.register(0xbfff_ffff), None);
    }

    #[test]
    fn it_masks_what_has_been_sent() {
        let mut own = Own::new();
        own.write(4, 2, 0xffff);
        own.assert();
        own.sent();
        assert!(!own.pin());
        assert_eq!(own.read(4), 1 << 19 | 1 << 10 | 2, "a driver finds it wanted, and masked");
        own.assert();
        assert!(!own.pin(), "more of it is the same interrupt");
        own.acknowledge();
        assert_eq!(own.read(4), 2);
        own.assert();
        assert!(own.pin());
    }

    #[test]
    fn its_interrupt_can_be_masked_where_it_is_seen() {
        let mut own = Own::new();
        own.assert();
        assert!(own.pin());
        assert_eq!(own.read(4) >> 19 & 1, 1);
        own.write(4, 0x400, 0xffff);
        assert!(!own.pin());
        assert_eq!(own.read(4) >> 19 & 1, 1, "its status is there nevertheless");
        own.write(4, 0, 0xffff);
        assert!(own.pin());
        own.acknowledge();
        assert!(!own.pin());
        own.write(0x3c, 0xffff_ff0b, 0xff);
        assert_eq!(own.read(0x3c), 0x010b);
    }
}
