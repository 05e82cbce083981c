//! The registers' offsets in the device's page (section 4.2.2, table 4.1).

#![allow(missing_docs, reason = "each has the specification's name")]

pub const MAGIC_VALUE: u64 = 0x000;
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const VENDOR_ID: u64 = 0x00c;
pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_NUM_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC_LOW: u64 = 0x080;
pub const QUEUE_DESC_HIGH: u64 = 0x084;
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub const SHM_SEL: u64 = 0x0ac;
pub const SHM_LEN_LOW: u64 = 0x0b0;
pub const SHM_LEN_HIGH: u64 = 0x0b4;
pub const SHM_BASE_LOW: u64 = 0x0b8;
pub const SHM_BASE_HIGH: u64 = 0x0bc;
pub const QUEUE_RESET: u64 = 0x0c0;
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// The first byte of the device's configuration.
pub const CONFIG: u64 = 0x100;

/// The registers that may read otherwise after a write, but for [`INTERRUPT_STATUS`].
pub(super) const CHANGING: [u64; 6] =
    [DEVICE_FEATURES, QUEUE_NUM_MAX, QUEUE_READY, STATUS, QUEUE_RESET, CONFIG_GENERATION];

/// What [`MAGIC_VALUE`] reads: "virt".
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What [`VERSION`] reads: no legacy device.
pub const MODERN: u32 = 2;
/// What [`VENDOR_ID`] reads.
pub const VENDOR: u32 = u32::from_le_bytes(*b"CSSN");
