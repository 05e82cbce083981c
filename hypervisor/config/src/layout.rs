//! The records of the blob as they lie in the file. The tables in the crate's documentation describe the same layout.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of every blob. The last is the DOS end-of-file mark, so that showing a blob on a terminal
/// stops there.
pub const MAGIC: [u8; 8] = *b"CAISSON\x1A";

/// The format version that this code reads and writes.
pub const VERSION: u32 = 6;

/// [`DomainRecord::max_restarts`] when there is no limit.
pub(crate) const NO_RESTART_LIMIT: u32 = u32::MAX;

/// [`DeviceRecord::backend`] when the domain that serves the device is told by its name.
pub(crate) const NAMED_BACKEND: u32 = u32::MAX;

/// A piece of the text section.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Text {
    pub(crate) offset: U32,
    pub(crate) len: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: [u8; 8],
    pub(crate) version: U32,
    pub(crate) pools: U32,
    pub(crate) total_len: U64,
    pub(crate) meta_len: U64,
    pub(crate) domains: U32,
    pub(crate) modules: U32,
    pub(crate) payloads: U32,
    pub(crate) text_len: U32,
    pub(crate) console: u8,
    pub(crate) log_level: u8,
    pub(crate) reserved1: U16,
    pub(crate) console_domain: U32,
    pub(crate) devices: U32,
    pub(crate) reserved2: U32,
    pub(crate) sha256: [u8; 32],
}

/// Where [`Header::sha256`] lies.
pub(crate) const HEADER_SHA256: core::ops::Range<usize> = 64..96;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DomainRecord {
    pub(crate) name: Text,
    pub(crate) cmdline: Text,
    pub(crate) memory: U64,
    pub(crate) vcpus: U16,
    pub(crate) loader: u8,
    pub(crate) console: u8,
    pub(crate) on_poweroff: u8,
    pub(crate) on_reboot: u8,
    pub(crate) on_crash: u8,
    pub(crate) entropy: u8,
    pub(crate) max_restarts: U32,
    pub(crate) kernel: U32,
    pub(crate) first_module: U32,
    pub(crate) modules: U32,
    pub(crate) cpus: Text,
    pub(crate) prefer: Text,
    pub(crate) weight: U32,
    pub(crate) cap: U32,
    pub(crate) warp: U32,
    pub(crate) warp_limit: U32,
    pub(crate) period: U32,
    pub(crate) slice: U32,
    pub(crate) pool: U16,
    pub(crate) extra: u8,
    pub(crate) reserved: u8,
    pub(crate) tsc_khz: U32,
    pub(crate) privileges: U32,
    pub(crate) first_device: U32,
    pub(crate) virtio_devices: U32,
    pub(crate) functions: Text,
    pub(crate) private: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ModuleRecord {
    pub(crate) payload: U32,
    pub(crate) reserved: U32,
    pub(crate) cmdline: Text,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct PayloadRecord {
    pub(crate) offset: U64,
    pub(crate) len: U64,
    pub(crate) name: Text,
    pub(crate) reserved: U64,
    pub(crate) sha256: [u8; 32],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct PoolRecord {
    pub(crate) name: Text,
    pub(crate) cpus: Text,
    pub(crate) quantum: U32,
    pub(crate) policy: u8,
    pub(crate) reserved: [u8; 11],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DeviceRecord {
    pub(crate) kind: U32,
    pub(crate) backend: U32,
    pub(crate) parameters: Text,
    pub(crate) backend_name: Text,
}

const _: () = {
    assert!(size_of::<Header>() == 96);
    assert!(core::mem::offset_of!(Header, sha256) == HEADER_SHA256.start);
    assert!(size_of::<DomainRecord>() == 124);
    assert!(size_of::<ModuleRecord>() == 16);
    assert!(size_of::<PayloadRecord>() == 64);
    assert!(size_of::<PoolRecord>() == 32);
    assert!(size_of::<DeviceRecord>() == 24);
};
