//! Names of registers and bits.

pub(crate) const ID: u16 = 0x00;
pub(crate) const COMMAND: u16 = 0x04;
pub(crate) const STATUS: u16 = 0x06;
pub(crate) const CLASS: u16 = 0x08;
pub(crate) const HEADER_TYPE: u16 = 0x0e;
pub(crate) const BARS: u16 = 0x10;
pub(crate) const SECONDARY_BUS: u16 = 0x19;
/// Of a bridge: bus numbers, windows, up to what is behind them.
pub(crate) const BRIDGE_NUMBERS: u16 = 0x18;
pub(crate) const BRIDGE_WINDOWS_END: u16 = 0x34;
pub(crate) const ROM: u16 = 0x30;
pub(crate) const CAPABILITIES: u16 = 0x34;
pub(crate) const INTERRUPT_LINE: u16 = 0x3c;
pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
/// Where the header ends and capabilities begin.
pub(crate) const HEADER_END: u16 = 0x40;
/// Where extended capabilities begin.
pub(crate) const EXTENDED: u16 = 0x100;
/// Bytes of a function's configuration space.
pub(crate) const SPACE: u16 = 0x1000;

pub(crate) const COMMAND_IO: u32 = 1;
pub(crate) const COMMAND_MEMORY: u32 = 2;
pub(crate) const STATUS_CAPABILITIES: u32 = 1 << 4;
pub(crate) const MULTI_FUNCTION: u32 = 1 << 7;

pub(crate) const BAR_IO: u32 = 1;
pub(crate) const BAR_64: u32 = 2 << 1;
pub(crate) const BAR_TYPE: u32 = 3 << 1;
pub(crate) const BAR_PREFETCHABLE: u32 = 1 << 3;

pub(crate) mod capability {
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;

    /// Extended ones that reach beyond their function: address translation and page requests (a device that translates for
    /// itself goes around the IOMMU), virtual functions, process address spaces, BARs that change their size.
    pub(crate) const HIDDEN: [u16; 6] = [0x000f, 0x0010, 0x0011, 0x0013, 0x0015, 0x001b];
}

pub(crate) mod msi {
    pub(crate) const ENABLE: u16 = 1;
    /// How many messages the function can send: hidden, so that it is one.
    pub(crate) const MULTIPLE: u16 = 0x7e;
    pub(crate) const WIDE: u16 = 1 << 7;
    pub(crate) const MASKABLE: u16 = 1 << 8;
}

pub(crate) mod msix {
    pub(crate) const SIZE: u16 = 0x7ff;
    pub(crate) const BAR: u32 = 7;
    /// Bytes of a table entry.
    pub(crate) const ENTRY: u64 = 16;
    /// Of its vector control word.
    pub(crate) const MASKED: u32 = 1;
}
