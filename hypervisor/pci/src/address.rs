//! Where a function is, and how its configuration space is reached.

use core::fmt;

/// A function of the machine: segment group, bus, device and function number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// The segment group; 0 on a machine without several.
    pub segment: u16,
    /// Bus in bits 15:8, device in bits 7:3, function in bits 2:0: the requester id.
    pub routing: u16,
}

impl Address {
    /// The function with these numbers; of the device number five bits count, of the function number three.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        let routing = (bus as u16) << 8 | (device as u16 & 31) << 3 | (function as u16 & 7);
        Self { segment, routing }
    }

    /// Its bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.routing >> 8) as u8
    }

    /// Its device number.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.routing >> 3) as u8 & 31
    }

    /// Its function number.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.routing as u8 & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, bus, device, function) = (self.segment, self.bus(), self.device(), self.function());
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// Configuration spaces of the machine.
///
/// Accesses are naturally aligned, of 1, 2 or 4 bytes, within the first 256 bytes or, where the machine has memory-mapped
/// configuration space, the first 4096. What nobody answers reads as all ones.
pub trait ConfigSpace {
    /// Reads `size` bytes at `offset`.
    fn read(&mut self, at: Address, offset: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, at: Address, offset: u16, size: u8, value: u32);
}
