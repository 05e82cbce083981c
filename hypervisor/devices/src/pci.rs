//! PCI configuration mechanism #1 on a bus with nothing on it, or nothing but its host bridge.
//!
//! The address register at port 0xCF8 exists only for accesses of four bytes and reads back what was written, so that
//! a guest finds the mechanism; every configuration space behind it is empty and reads all ones.
//!
//! A guest with private memory has a host bridge: it says who it is, and does nothing. Linux takes a machine without one for a
//! machine without PCI, and tells its drivers of soft-reserved memory only where there is PCI (`pcibios_resource_survey`).
//!
//! Manual: PCI Local Bus Specification 3.0, sections 3.2.2.3.2 (configuration mechanism #1) and 6.2.1 (identification).

/// The address register.
pub const ADDRESS: u16 = 0xCF8;
/// The first port of the data register.
pub const DATA: u16 = 0xCFC;
/// The last one.
pub const DATA_END: u16 = DATA + 3;

/// The host bridge's vendor and device id: numbers that the PCI-SIG has given to nobody.
pub const BRIDGE_ID: (u16, u16) = (0xCA15, 0x0002);
/// A host bridge.
const BRIDGE_CLASS: u32 = 0x06_00_00;
/// Its device is on bus 0, the first one, and so is its function: the address of its first register.
const BRIDGE: u32 = 1 << 31;
/// The bits of the address that name a register.
const REGISTER: u32 = 0xFC;

/// Enable, bus, device, function, register; bits 30 to 24 and the lowest two are always zero.
const IMPLEMENTED: u32 = 0x80FF_FFFC;

/// The configuration ports of an empty bus.
#[derive(Clone, Debug, Default)]
pub struct PciConfig {
    address: u32,
    has_bridge: bool,
}

impl PciConfig {
    /// The ports after reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { address: 0, has_bridge: false }
    }

    /// Back to the state after reset. What is on the bus stays.
    pub fn reset(&mut self) {
        self.address = 0;
    }

    /// There is a host bridge on the bus.
    pub fn add_bridge(&mut self) {
        self.has_bridge = true;
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

    /// Reads a byte of the data register, one of 4.
    #[must_use]
    pub fn read_data(&self, byte: u16) -> u8 {
        if !self.has_bridge || self.address & !REGISTER != BRIDGE {
            return 0xFF;
        }
        let register = match self.address & REGISTER {
            0x00 => u32::from(BRIDGE_ID.0) | u32::from(BRIDGE_ID.1) << 16,
            0x08 => BRIDGE_CLASS << 8,
            _ => 0,
        };
        register.to_le_bytes()[usize::from(byte & 3)]
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

    #[test]
    fn a_bridge_is_alone_on_its_bus() {
        let read = |pci: &mut PciConfig, address| {
            pci.write_address(address);
            u32::from_le_bytes([0, 1, 2, 3].map(|byte| pci.read_data(byte)))
        };
        let mut pci = PciConfig::new();
        assert_eq!(read(&mut pci, 0x8000_0000), u32::MAX);
        pci.add_bridge();
        for _ in 0..2 {
            assert_eq!(read(&mut pci, 0x8000_0000), 0x0002_CA15);
            assert_eq!(read(&mut pci, 0x8000_0008), 0x0600_0000);
            for zero in [0x8000_0004, 0x8000_000C, 0x8000_0010, 0x8000_00FC] {
                assert_eq!(read(&mut pci, zero), 0);
            }
            // Its other functions, other devices, another bus; and an address that is none.
            for none in [0x8000_0100, 0x8000_0800, 0x8000_F800, 0x8001_0000, 0] {
                assert_eq!(read(&mut pci, none), u32::MAX, "{none:#x}");
            }
            pci.reset();
            assert_eq!((pci.read_address(), pci.read_data(0)), (0, 0xFF));
        }
    }
}
