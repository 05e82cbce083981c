//! Feature bits that belong to the transport and the rings (chapter 6). Bits 0 to 23 and 50 on are the device type's.

/// Descriptors may refer to tables of descriptors (section 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Each side says by an index when it wants to be told next (section 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// The device is not a legacy one.
pub const VERSION_1: u64 = 1 << 32;
/// The driver can reset one queue (section 2.6.1).
pub const RING_RESET: u64 = 1 << 40;

/// The bits that are not a device type's (section 2.2).
pub const RESERVED: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

/// Those of [`RESERVED`] that a device here can offer. Left out on purpose:
///
/// | bit | feature | why |
/// |---|---|---|
/// | 33 | `ACCESS_PLATFORM` | rings hold guest-physical addresses; no guest has an IOMMU |
/// | 34 | `RING_PACKED` | rings are split |
/// | 35 | `IN_ORDER` | would bind a backend to an order of completion |
/// | 36 | `ORDER_PLATFORM` | memory is coherent |
/// | 37 | `SR_IOV` | of PCI |
/// | 38, 39 | `NOTIFICATION_DATA`, `NOTIF_CONFIG_DATA` | a notification is its queue's number, no more |
pub const SUPPORTED: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
