//! Names of registers and bits.

pub(crate) const ID: u16 = 0x00;
pub(crate) const COMMAND: u16 = 0x04;
pub(crate) const STATUS: u16 = 0x06;
pub(crate) const CLASS: u16 = 0x08;
pub(crate) const HEADER_TYPE: u16 = 0x0e;
pub(crate) const BARS: u16 = 0x10;
/// Cache line size, latency, header type, built-in self-test.
pub(crate) const CACHE_LINE: u16 = 0x0c;
/// Of a bridge: the numbers of its buses.
pub(crate) const BUS_NUMBERS: u16 = 0x18;
pub(crate) const SECONDARY_BUS: u16 = 0x19;
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
pub(crate) const COMMAND_MASTER: u32 = 4;
pub(crate) const COMMAND_NO_INTX: u32 = 1 << 10;
/// Those of the command register, which shares its word with the status register.
pub(crate) const COMMAND_BITS: u32 = 0xffff;
pub(crate) const STATUS_CAPABILITIES: u32 = 1 << 4;
pub(crate) const MULTI_FUNCTION: u32 = 1 << 7;

pub(crate) const BAR_IO: u32 = 1;
pub(crate) const BAR_64: u32 = 2 << 1;
pub(crate) const BAR_TYPE: u32 = 3 << 1;
pub(crate) const BAR_PREFETCHABLE: u32 = 1 << 3;

pub(crate) mod capability {
    pub(crate) const POWER: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
    pub(crate) const ADVANCED: u8 = 0x13;
    /// Addresses beside the base address registers, which may be writable.
    pub(crate) const ALLOCATION: u8 = 0x14;

    /// Extended ones that reach beyond their function: address translation and page requests (a device that translates for
    /// itself goes around the IOMMU), access control between functions, virtual functions, process address spaces, base
    /// address registers that change their size.
    pub(crate) const HIDDEN: [u16; 8] = [0x000d, 0x000f, 0x0010, 0x0011, 0x0013, 0x0015, 0x001b, 0x0024];
}

/// The power management capability (PCI Power Management Interface Specification 1.2, section 3.2).
pub(crate) mod power {
    /// Control and status.
    pub(crate) const CONTROL: u16 = 4;
    pub(crate) const STATE: u32 = 3;
    /// The function keeps its registers from D3hot to D0.
    pub(crate) const NO_SOFT_RESET: u32 = 1 << 3;
}

/// The PCI Express capability (PCI Express Base Specification 4.0, section 7.5.3).
pub(crate) mod express {
    pub(crate) const CAPABILITIES: u16 = 0x02;
    pub(crate) const VERSION: u32 = 0xf;
    /// A slot whose device can be changed.
    pub(crate) const SLOT: u32 = 1 << 8;
    pub(crate) const DEVICE: u16 = 0x04;
    pub(crate) const CAN_RESET: u32 = 1 << 28;
    pub(crate) const CONTROL: u16 = 0x08;
    pub(crate) const PAYLOAD: u32 = 7 << 5;
    pub(crate) const RESET: u32 = 1 << 15;
    pub(crate) const STATUS: u16 = 0x0a;
    pub(crate) const PENDING: u32 = 1 << 5;
    /// Control registers that a reset forgets and the firmware has set: of the device and its link, and where the
    /// capability's version is 2, the second ones of both.
    pub(crate) const CONTROLS: [u16; 4] = [CONTROL, 0x10, 0x28, 0x30];
}

/// The advanced features capability (Advanced Capabilities for Conventional PCI ECN, section 3).
pub(crate) mod advanced {
    pub(crate) const CAPABILITIES: u16 = 3;
    /// It can be reset, and tells whether transactions are pending.
    pub(crate) const CAN_RESET: u32 = 3;
    pub(crate) const CONTROL: u16 = 4;
    pub(crate) const RESET: u32 = 1;
    pub(crate) const STATUS: u16 = 5;
    pub(crate) const PENDING: u32 = 1;
}

/// The bridge control register (PCI-to-PCI Bridge Architecture Specification 1.2, section 3.2.5.18).
pub(crate) mod bridge {
    pub(crate) const CONTROL: u16 = 0x3e;
    pub(crate) const RESET: u32 = 1 << 6;
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
    /// Of the word with id and control.
    pub(crate) const ENABLE: u32 = 1 << 31;
    pub(crate) const BAR: u32 = 7;
    /// Bytes of a table entry.
    pub(crate) const ENTRY: u64 = 16;
    /// Of its vector control word.
    pub(crate) const MASKED: u32 = 1;
}
