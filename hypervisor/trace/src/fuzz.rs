//! What the fuzz target calls; a property test drives the same.

use alloc::string::String;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::packet::PacketWriter;
use crate::{MARK, Reader};

/// Reads `data` as a log, and as packets whose checksums are right, so that what is behind them is reached: each is one
/// byte of length, then type, number and payload.
pub fn read(data: &[u8]) {
    let mut reader = Reader::new();
    String::from_utf8_lossy(data).lines().for_each(|line| reader.line(line));
    check(reader, data.len());
    let mut reader = Reader::new();
    let mut rest = data;
    while let Some((&len, behind)) = rest.split_first() {
        let (body, behind) = behind.split_at(usize::from(len).min(behind.len()));
        rest = behind;
        let [kind, low, high, payload @ ..] = body else { continue };
        let mut packet = PacketWriter::new(*kind, u32::from(u16::from_le_bytes([*low, *high])));
        packet.bytes(payload);
        let line = [MARK, &STANDARD.encode(packet.finish())].concat();
        reader.line(&line);
    }
    check(reader, data.len());
}

/// What is promised of any input.
fn check(reader: Reader, len: usize) {
    let Ok(trace) = reader.finish() else { return };
    // An event has two bytes at least.
    assert!(trace.events.len() <= len / 2 && trace.domains.len() <= len && trace.classes.len() <= 256);
    assert!(trace.tsc_hz > 0 && trace.lost.len() == trace.cpus);
    assert!(trace.events.iter().all(|record| record.cpu < trace.cpus && record.event.time >> 56 == 0));
}
