//! PCI configuration mechanism #1 on a bus with nothing on it.
//!
//! The address register at port 0xCF8 exists only for accesses of four bytes and reads back what was written, so that
//! a guest finds the mechanism; every configuration space behind it is empty and reads all ones.
//!
//! Manual: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (configuration mechanism #1).

/// The address register.
pub const ADDRESS: u16 = 0xCF8;

/// Enable, bus, device, function, register; bits 30 to 24 and the lowest two are always zero.
const IMPLEMENTED: u32 = 0x80FF_FFFC;

/// The configuration ports of an empty bus.
#[derive(Clone, Debug, Default)]
pub struct PciConfig {
    address: u32,
}

impl PciConfig {
    /// The ports after reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { address: 0 }
    }

    /// Reads the address register with four bytes.
    #[must_use]
    pub fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the address register with four bytes.
    pub fn write_address(&mut self, value: u32) {
        self.address = value & IMPLEMENTED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_reads_back_what_is_implemented() {
        let mut pci = PciConfig::new();
        pci.write_address(0x8000_0000);
        assert_eq!(pci.read_address(), 0x8000_0000);
        pci.write_address(u32::MAX);
        assert_eq!(pci.read_address(), IMPLEMENTED);
    }
}
