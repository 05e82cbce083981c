//! The dump: what is in the rings, as lines of text.

use alloc::vec::Vec;

use arrayvec::{ArrayString, ArrayVec};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use caisson_hwvirt::ExitClass;

use crate::packet::{DomainName, PACKET_BYTES, PAYLOAD_BYTES, PacketWriter, Position, VERSION, kind};
use crate::{Read, Ring};

/// What a line of a dump begins with.
pub const MARK: &str = "%trace ";
/// The longest line: the mark and a packet in base64.
pub const LINE_BYTES: usize = MARK.len() + PACKET_BYTES / 3 * 4;

/// A line of a dump, without its end.
pub type Line = ArrayString<LINE_BYTES>;

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Start,
    Domain(usize),
    Classes(usize),
    Events { ring: usize, next: u64, end: u64 },
    End,
    Done,
}

/// A dump that is being written. Recording is off for as long as it lives.
#[derive(Debug)]
pub struct Dump<'a> {
    tsc_hz: u64,
    now: u64,
    domains: Vec<DomainName>,
    rings: Vec<&'a Ring>,
    /// How each ring was.
    were_on: Vec<bool>,
    stage: Stage,
    packets: u32,
}

impl<'a> Dump<'a> {
    /// Begins a dump of `rings`, in the order of their CPUs, at `now`. Turns their recording off. `tsc_hz` are the ticks
    /// of events' times in a second.
    #[must_use]
    pub fn new(tsc_hz: u64, now: u64, domains: Vec<DomainName>, rings: Vec<&'a Ring>) -> Self {
        let were_on = rings.iter().map(|ring| ring.set_on(false)).collect();
        Self { tsc_hz, now, domains, rings, were_on, stage: Stage::Start, packets: 0 }
    }

    /// The next line, at most [`LINE_BYTES`] of ASCII without an end; `None` when there is no more. Takes the time of
    /// some hundred events at most.
    pub fn next_line(&mut self) -> Option<Line> {
        let packet = self.next_packet()?;
        let mut text = [0; PACKET_BYTES / 3 * 4];
        let len = STANDARD.encode_slice(&packet, &mut text).ok()?;
        let mut line = Line::new();
        line.try_push_str(MARK).ok()?;
        line.try_push_str(core::str::from_utf8(text.get(..len)?).ok()?).ok()?;
        Some(line)
    }

    /// The next packet.
    fn next_packet(&mut self) -> Option<ArrayVec<u8, PACKET_BYTES>> {
        let packet = loop {
            match self.stage {
                Stage::Start => {
                    self.stage = Stage::Domain(0);
                    break self.start();
                }
                Stage::Domain(at) => match self.domains.get(at) {
                    Some(domain) => {
                        self.stage = Stage::Domain(at + 1);
                        break self.domain(domain);
                    }
                    None => self.stage = Stage::Classes(0),
                },
                Stage::Classes(ExitClass::COUNT) => self.stage = self.events_of(0),
                Stage::Classes(first) => {
                    let (packet, next) = self.classes(first);
                    self.stage = Stage::Classes(next);
                    break packet;
                }
                Stage::Events { ring, next, end } => {
                    if let Some((packet, next)) = self.events(ring, next, end) {
                        self.stage = Stage::Events { ring, next, end };
                        break packet;
                    }
                    self.stage = self.events_of(ring + 1);
                }
                Stage::End => {
                    self.stage = Stage::Done;
                    let mut packet = PacketWriter::new(kind::END, self.packets);
                    packet.varint(u64::from(self.packets));
                    break packet;
                }
                Stage::Done => return None,
            }
        };
        self.packets = self.packets.wrapping_add(1);
        Some(packet.finish())
    }

    fn start(&self) -> PacketWriter {
        let mut packet = PacketWriter::new(kind::START, self.packets);
        packet.bytes(&VERSION.to_le_bytes());
        packet.bytes(&self.tsc_hz.to_le_bytes());
        packet.bytes(&self.now.to_le_bytes());
        packet.varint(self.rings.len() as u64);
        packet
    }

    fn domain(&self, domain: &DomainName) -> PacketWriter {
        let mut packet = PacketWriter::new(kind::DOMAIN, self.packets);
        packet.varint(u64::from(domain.id.0));
        packet.varint(u64::from(domain.vcpus));
        let mut room = packet.room().min(domain.name.len());
        while !domain.name.is_char_boundary(room) {
            room -= 1;
        }
        packet.bytes(domain.name.get(..room).unwrap_or_default().as_bytes());
        packet
    }

    /// The names of classes from `first` on, as many as fit, and the index of the next one.
    fn classes(&self, first: usize) -> (PacketWriter, usize) {
        let mut packet = PacketWriter::new(kind::CLASSES, self.packets);
        packet.varint(first as u64);
        let mut next = first;
        for class in ExitClass::ALL.get(first..).unwrap_or_default() {
            let name = class.name();
            if packet.room() <= name.len() {
                break;
            }
            packet.bytes(&[name.len() as u8]);
            packet.bytes(name.as_bytes());
            next += 1;
        }
        // A packet always has room for a name.
        (packet, next.max(first + 1))
    }

    /// Begins with a ring's events; those after the last ring are the end.
    fn events_of(&self, ring: usize) -> Stage {
        match self.rings.get(ring) {
            // What is lost before the oldest one is told with the first packet.
            Some(events) => Stage::Events { ring, next: 0, end: events.count() },
            None => Stage::End,
        }
    }

    /// Events of a ring from `next` on, as many as fit, and the number of the next one; `None` at the `end`.
    fn events(&self, at: usize, mut next: u64, end: u64) -> Option<(PacketWriter, u64)> {
        let ring = self.rings.get(at)?;
        let from = next;
        // What has been overwritten is passed over; the count may have moved on since.
        let first = loop {
            next = next.max(ring.oldest());
            if next >= end {
                return None;
            }
            match ring.read(next) {
                Read::Event(event) => break event,
                Read::Overwritten => next += 1,
                Read::NotYet => return None,
            }
        };
        let mut packet = PacketWriter::new(kind::EVENTS, self.packets);
        packet.varint(at as u64);
        packet.varint(next - from);
        packet.bytes(&first.time.to_le_bytes());
        let mut position = Position::new(first.time);
        while next < end
            && let Read::Event(event) = ring.read(next)
            && position.write(&mut packet, &event)
        {
            next += 1;
        }
        Some((packet, next))
    }
}

impl Drop for Dump<'_> {
    /// Goes on recording where it was on.
    fn drop(&mut self) {
        for (ring, was_on) in self.rings.iter().zip(&self.were_on) {
            ring.set_on(*was_on);
        }
    }
}

const _: () = assert!(PAYLOAD_BYTES > 256 && PACKET_BYTES.is_multiple_of(3));
