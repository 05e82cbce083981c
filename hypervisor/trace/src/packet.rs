//! Packets: what a line of the dump carries. The crate's text has the table.

use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use caisson_types::{DomainId, VcpuId};
use crc::{CRC_32_ISO_HDLC, Crc};

use crate::bytes::{Bytes, VARINT, varint, zigzag};
use crate::event::{TIME_BITS, TIME_MASK};
use crate::{Event, NOBODY, What};

/// The version of the format that this code writes and reads.
pub const VERSION: u16 = 1;

/// The longest packet: 480 characters in base64.
pub(crate) const PACKET_BYTES: usize = 360;
const CHECKSUM_BYTES: usize = 4;
/// Payload that fits behind type and number.
pub(crate) const PAYLOAD_BYTES: usize = PACKET_BYTES - CHECKSUM_BYTES - 3;
/// The longest event: tag, time, vCPU, class, argument.
const EVENT_BYTES: usize = 1 + VARINT + 3 + 3 + 1 + 5;

static CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

pub(crate) mod kind {
    pub(crate) const START: u8 = 1;
    pub(crate) const DOMAIN: u8 = 2;
    pub(crate) const CLASSES: u8 = 3;
    pub(crate) const EVENTS: u8 = 4;
    pub(crate) const END: u8 = 5;
}

/// Bit of an event's tag: of the same vCPU as the one before it.
const SAME_VCPU: u8 = 1 << 4;

/// What a dump says of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainName {
    /// Its number.
    pub id: DomainId,
    /// How many vCPUs it has.
    pub vcpus: u16,
    /// Its name.
    pub name: String,
}

/// A packet in the making.
pub(crate) struct PacketWriter(ArrayVec<u8, PACKET_BYTES>);

impl PacketWriter {
    pub(crate) fn new(kind: u8, number: u32) -> Self {
        let mut packet = Self(ArrayVec::new());
        packet.bytes(&[kind]);
        packet.bytes(&(number as u16).to_le_bytes());
        packet
    }

    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        (PACKET_BYTES - CHECKSUM_BYTES).saturating_sub(self.0.len())
    }

    /// Adds bytes; what does not fit is left out.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let room = self.room();
        self.0.extend(bytes.iter().copied().take(room));
    }

    pub(crate) fn varint(&mut self, value: u64) {
        let (bytes, len) = varint(value);
        self.bytes(bytes.get(..len).unwrap_or_default());
    }

    /// The packet with its checksum.
    pub(crate) fn finish(mut self) -> ArrayVec<u8, PACKET_BYTES> {
        let checksum = CHECKSUM.checksum(&self.0);
        self.0.extend(checksum.to_le_bytes());
        self.0
    }
}

/// A packet that is whole: its type, number and payload.
pub(crate) fn open(packet: &[u8]) -> Option<(u8, u16, Bytes<'_>)> {
    let (body, checksum) = packet.split_last_chunk::<CHECKSUM_BYTES>()?;
    if CHECKSUM.checksum(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let mut bytes = Bytes(body);
    Some((bytes.u8()?, bytes.u16()?, bytes))
}

/// Where the coding of events stands in a packet.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    time: u64,
    vcpu: VcpuId,
}

impl Position {
    /// At the packet's beginning, which says `time`.
    pub(crate) const fn new(time: u64) -> Self {
        Self { time: time & TIME_MASK, vcpu: NOBODY }
    }

    /// Adds an event; `false` where the packet is full.
    pub(crate) fn write(&mut self, packet: &mut PacketWriter, event: &Event) -> bool {
        if packet.room() < EVENT_BYTES {
            return false;
        }
        let (kind, argument) = event.what.pack();
        let same = event.vcpu == self.vcpu;
        packet.bytes(&[kind | if same { SAME_VCPU } else { 0 }]);
        let time = event.time & TIME_MASK;
        packet.varint(zigzag(time as i64 - self.time as i64));
        if !same {
            packet.varint(u64::from(event.vcpu.domain.0));
            packet.varint(u64::from(event.vcpu.index));
        }
        match event.what {
            What::Exit { class, .. } => {
                packet.bytes(&[class]);
                packet.varint(u64::from(argument >> 8));
            }
            _ if What::has_argument(kind) => packet.varint(u64::from(argument)),
            _ => {}
        }
        *self = Self { time, vcpu: event.vcpu };
        true
    }

    /// Reads an event.
    pub(crate) fn read(&mut self, bytes: &mut Bytes<'_>) -> Option<Event> {
        let tag = bytes.u8()?;
        if tag & !(SAME_VCPU | 0x0f) != 0 {
            return None;
        }
        let kind = tag & 0x0f;
        let time = self.time.checked_add_signed(bytes.signed()?).filter(|time| time >> TIME_BITS == 0)?;
        let vcpu = if tag & SAME_VCPU != 0 {
            self.vcpu
        } else {
            VcpuId { domain: DomainId(bytes.number()?), index: bytes.number()? }
        };
        let argument = match kind {
            3 => {
                let class = u32::from(bytes.u8()?);
                let ticks: u32 = bytes.number()?;
                if ticks >> 24 != 0 {
                    return None;
                }
                class | ticks << 8
            }
            _ if What::has_argument(kind) => bytes.number()?,
            _ => 0,
        };
        *self = Self { time, vcpu };
        Some(Event { time, vcpu, what: What::unpack(kind, argument)? })
    }
}

/// Reads the names of classes: the first one's index and the names.
pub(crate) fn classes(bytes: &mut Bytes<'_>) -> Option<(usize, Vec<String>)> {
    let first: u8 = bytes.number()?;
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(bytes.u8()?);
        names.push(core::str::from_utf8(bytes.take(len)?).ok()?.into());
    }
    Some((usize::from(first), names))
}
