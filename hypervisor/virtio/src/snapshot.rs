//! What a backend must know of a device to serve it: the layouts that are shared with backends outside of Caisson.
//!
//! Numbers are little-endian, as the machine's. Both structures keep their layout for good; what is added goes behind.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A device as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceSnapshot {
    /// The features that the driver has taken; 0 until FEATURES_OK is set.
    pub features: u64,
    /// The queues to look at, a bit each.
    pub pending: u64,
    /// The device type.
    pub device: u32,
    /// The device status ([`Status`](crate::Status)).
    pub status: u32,
    /// The number of the last change that the backend has to acknowledge.
    pub change: u32,
    /// How many queues there are.
    pub queues: u32,
    /// Bytes of configuration.
    pub config: u32,
    /// 1 while the guest waits for the acknowledgement of [`DeviceSnapshot::change`].
    pub waiting: u32,
}

/// One of its queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueueSnapshot {
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the driver's area: the available ring.
    pub driver: u64,
    /// Guest-physical address of the device's area: the used ring.
    pub device: u64,
    /// Entries: a power of two where the queue is ready.
    pub size: u16,
    /// 1 when the queue can be used: the three areas then lie in the guest's RAM.
    pub ready: u16,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DeviceSnapshot>() == 40 && size_of::<QueueSnapshot>() == 32);
