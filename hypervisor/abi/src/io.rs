//! What is known of a guest's device, and of the guest, to the domain that serves it.
//!
//! A device's *channel* has a number, [`channel_of`], which is the device's for good. The guest behind it comes and goes: each of
//! its lives has a number of its own.
//!
//! A backend's course: it lists its channels, reads their parameters, *describes* each device, and *attaches* to those whose guest
//! lives; a guest is started when all its devices have been described. While it is attached, the guest's memory is in the backend's
//! domain at its machine address ([`MemoryRange`]). Events come from
//! [`Source::Channel`](crate::events::Source::Channel) for each queue and, under the queue number [`CHANGES`], for changes
//! of the state; and from [`Source::Backend`](crate::events::Source::Backend) when a guest has come or has ended and the list
//! is to be read again. A guest that has ended is not gone before its devices' backends have detached.
//!
//! All numbers are little-endian; structures keep their layout, and what is added goes behind.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use caisson_types::DomainId;

/// Devices that a domain can have.
pub const MAX_DEVICES: u16 = 32;
/// The number of the queue under which a channel's events of changes are bound.
pub const CHANGES: u16 = 0xffff;
/// The most queues of a device.
pub const MAX_QUEUES: usize = 64;
/// The most bytes of a device's configuration.
pub const MAX_CONFIG: usize = 256;

/// The channel of a domain's device.
#[must_use]
pub const fn channel_of(domain: DomainId, slot: u16) -> Option<u16> {
    match domain.0.checked_mul(MAX_DEVICES) {
        Some(first) if slot < MAX_DEVICES => first.checked_add(slot),
        _ => None,
    }
}

/// The domain and slot of a channel.
#[must_use]
pub const fn device_of(channel: u16) -> (DomainId, u16) {
    (DomainId(channel / MAX_DEVICES), channel % MAX_DEVICES)
}

/// A device that the caller serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelRecord {
    /// Its channel.
    pub channel: u16,
    /// Whose it is.
    pub domain: u16,
    /// The virtio device type: 1 network, 2 block, 3 console, 26 file system.
    pub kind: u32,
    /// The number of the guest's life; 0 while it does not live.
    pub life: u32,
    /// [`record`]'s bits.
    pub state: u32,
    /// Bytes of its parameters.
    pub parameters: u32,
    /// Always 0.
    pub reserved: u32,
    /// The guest's name, in zeroes.
    pub name: [u8; 32],
    /// Always 0.
    pub reserved2: u64,
}

/// Bits of [`ChannelRecord::state`].
pub mod record {
    /// It has been described.
    pub const DESCRIBED: u32 = 1 << 0;
    /// The caller is attached to it.
    pub const ATTACHED: u32 = 1 << 1;
    /// Its guest has ended, and waits for the caller to detach.
    pub const ENDED: u32 = 1 << 2;
    /// Its guest has ended for good.
    pub const GONE: u32 = 1 << 3;
}

/// A device, as its backend says it is (`caisson_virtio::Description`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelDescription {
    /// The virtio features that are offered.
    pub features: u64,
    /// The virtio device type, as configured.
    pub device: u32,
    /// How many queues it has: 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// How many bytes of configuration.
    pub config_bytes: u16,
    /// The most entries of each queue: powers of two.
    pub queue_sizes: [u16; MAX_QUEUES],
    /// The configuration to begin with.
    pub config: [u8; MAX_CONFIG],
    /// The bits of it that the guest can write.
    pub writable: [u8; MAX_CONFIG],
}

/// A range of the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRange {
    /// Where the guest has it.
    pub guest: u64,
    /// Where the caller has it: the machine's address.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A device's transport (`caisson_virtio::DeviceState`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceState {
    /// The features that the driver has taken; 0 until FEATURES_OK is set.
    pub features: u64,
    /// The queues to look at, a bit each; they have been taken with this answer.
    pub pending: u64,
    /// The device type.
    pub device: u32,
    /// The device status (VIRTIO 1.2, section 2.1).
    pub status: u32,
    /// The number of the last change that is to be acknowledged.
    pub change: u32,
    /// How many queues there are.
    pub queues: u32,
    /// Bytes of configuration.
    pub config: u32,
    /// 1 while the guest waits for the acknowledgement of [`DeviceState::change`].
    pub waiting: u32,
}

/// One of its queues (`caisson_virtio::QueueState`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueueState {
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

/// Reasons of [`Number::ChannelInterrupt`](crate::Number::ChannelInterrupt).
pub mod reason {
    /// Buffers have been used.
    pub const USED: u64 = 1;
    /// The configuration has changed.
    pub const CONFIG: u64 = 2;
}

const _: () = assert!(size_of::<ChannelRecord>() == 64 && size_of::<ChannelDescription>() == 656);
const _: () = assert!(size_of::<MemoryRange>() == 24);
const _: () = assert!(size_of::<DeviceState>() == 40 && size_of::<QueueState>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_lead_back_to_their_devices() {
        for domain in [0, 1, 77, 2047] {
            for slot in 0..MAX_DEVICES {
                let channel = channel_of(DomainId(domain), slot).unwrap();
                assert_eq!(device_of(channel), (DomainId(domain), slot));
            }
        }
        assert_eq!(channel_of(DomainId(2048), 0), None);
        assert_eq!(channel_of(DomainId(1), 32), None);
    }
}
