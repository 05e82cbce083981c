//! A chain of descriptors as a request of virtio-blk (section 5.2.6).
//!
//! What is malformed, so that there is not even a place for a status, is a [`Fault`]. What is well-formed and asks for something
//! that cannot be gets an error as its status.

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Geometry, MAX_RANGE_SECTORS};
use crate::device::Fault;
use crate::ring::{Chain, Range, RingError, bytes_of, split};
use crate::sys::{Buffers, Memory};

/// What a request counts in.
pub const SECTOR: u64 = 512;

/// The most bytes that one request moves, many times what drivers ask for: who waits for the end of what is under way waits for so
/// much at most for each entry of the queue.
pub const MAX_BYTES: usize = 64 << 20;

/// `struct virtio_blk_req` without its data.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct Segment {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// Work for the storage, within its extent.
#[derive(Debug)]
pub enum Transfer {
    /// From the storage to the guest.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// To where.
        into: Buffers,
    },
    /// From the guest to the storage.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// From where.
        from: Buffers,
    },
    /// What has been written is on the medium.
    Flush,
    /// The guest does not need these bytes any more.
    Discard {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// These bytes are zero.
    Zero {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// They may become a hole.
        unmap: bool,
    },
}

/// What a request asks for.
#[derive(Debug)]
pub enum Action {
    /// This.
    Transfer(Transfer),
    /// The serial number.
    Identify(Buffers),
    /// Something that this device does not know.
    Unsupported,
    /// Something beyond the disk, or in parts of blocks, or too much, or that a disk which is only read does not do.
    Refused,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// The chain that it came as.
    pub head: u16,
    /// Where its status goes: one byte.
    pub status: Buffers,
    /// Bytes that are written to the guest beside the status, if all goes well.
    pub bytes: u32,
    /// What it asks for.
    pub action: Action,
}

impl Request {
    /// Reads the request in `chain`, for a disk of this geometry.
    ///
    /// # Errors
    /// [`Fault`] where it is none.
    pub fn read(chain: &Chain, memory: &Arc<Memory>, geometry: &Geometry) -> Result<Self, Fault> {
        let (header, out) =
            split(&chain.readable, size_of::<Header>()).ok_or(Fault::Request("it has no header"))?;
        let room =
            bytes_of(&chain.writable).checked_sub(1).ok_or(Fault::Request("it has no place for a status"))?;
        let (into, status) = split(&chain.writable, room).ok_or(RingError::Cut)?;
        let mut place = Header::default();
        take(memory, &header)?.read(0, place.as_mut_bytes());
        let offset = place.sector.get().checked_mul(SECTOR);
        let mut bytes = 0;
        let action = match place.kind.get() {
            VIRTIO_BLK_T_IN => {
                let into = take(memory, &into)?;
                bytes = into.bytes() as u32;
                let allowed =
                    |&offset: &u64| into.bytes() <= MAX_BYTES && geometry.allows(offset, bytes.into());
                match offset.filter(allowed) {
                    Some(offset) => Action::Transfer(Transfer::Read { offset, into }),
                    None => Action::Refused,
                }
            }
            VIRTIO_BLK_T_OUT => {
                let from = take(memory, &out)?;
                let count = from.bytes();
                let allowed =
                    |&offset: &u64| count <= MAX_BYTES && geometry.allows_change(offset, count as u64);
                match offset.filter(allowed) {
                    Some(offset) => Action::Transfer(Transfer::Write { offset, from }),
                    None => Action::Refused,
                }
            }
            VIRTIO_BLK_T_FLUSH => Action::Transfer(Transfer::Flush),
            VIRTIO_BLK_T_GET_ID => {
                let into = take(memory, &into)?;
                bytes = into.bytes().min(super::SERIAL) as u32;
                Action::Identify(into)
            }
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => range(memory, &out, kind, geometry)?,
            _ => Action::Unsupported,
        };
        Ok(Self { head: chain.head, status: take(memory, &status)?, bytes, action })
    }
}

fn take(memory: &Arc<Memory>, ranges: &[Range]) -> Result<Buffers, Fault> {
    Ok(Buffers::guest(memory, ranges).ok_or(RingError::NotRam)?)
}

/// A discard or a write of zeroes: one range, as the configuration says (section 5.2.6.2).
fn range(memory: &Arc<Memory>, out: &[Range], kind: u32, geometry: &Geometry) -> Result<Action, Fault> {
    let data = take(memory, out)?;
    let mut segment = Segment::default();
    if data.bytes() != size_of::<Segment>() {
        return Ok(Action::Refused);
    }
    data.read(0, segment.as_mut_bytes());
    let (sectors, flags) = (segment.sectors.get(), segment.flags.get());
    let allowed = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
    if flags & !allowed != 0 {
        return Ok(Action::Unsupported);
    }
    let bytes = u64::from(sectors) * SECTOR;
    let offset =
        segment.sector.get().checked_mul(SECTOR).filter(|&offset| geometry.allows_change(offset, bytes));
    Ok(match offset {
        Some(offset) if sectors <= MAX_RANGE_SECTORS => Action::Transfer(if kind == VIRTIO_BLK_T_DISCARD {
            Transfer::Discard { offset, bytes }
        } else {
            Transfer::Zero { offset, bytes, unmap: flags != 0 }
        }),
        _ => Action::Refused,
    })
}
