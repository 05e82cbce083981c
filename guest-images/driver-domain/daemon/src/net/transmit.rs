//! Frames from the guest to its interface.

use std::os::fd::AsFd;

use super::HEADER;
use super::filter::{Filter, LEAST, LONGEST, LOOKED_AT};
use crate::device::{Fault, Progress};
use crate::ring::{Ring, RingError};
use crate::statistics::Counters;
use crate::sys::{Buffers, Tap};

/// Frames at a time, so that the other direction has its turn.
const BATCH: usize = 128;

/// The beginning of a frame, with its header.
fn copied<'a>(frame: &Buffers, into: &'a mut [u8]) -> &'a [u8] {
    let count = frame.read(0, into);
    into.get(..count).unwrap_or_default()
}

/// Sends what is in the ring.
///
/// The beginning of a frame is copied, judged, and sent from the copy: what the guest changes meanwhile has no effect. The rest
/// goes from the guest's memory to the kernel.
pub(super) fn work(
    ring: &mut Ring,
    tap: &Tap,
    filter: &Filter,
    counters: &Counters,
    progress: &mut Progress,
) -> Result<(), Fault> {
    for turn in 0..BATCH {
        if turn == 0 {
            ring.disarm()?;
        }
        let Some(chain) = ring.pop()? else { break };
        progress.any = true;
        counters.requests.add(1);
        let mut frame = Buffers::guest(ring.memory(), &chain.readable).ok_or(RingError::NotRam)?;
        if frame.bytes() < HEADER {
            return Err(Fault::Request("a frame has no header"));
        }
        let (mut short, mut long) = ([0; HEADER + LOOKED_AT], None);
        let mut start = copied(&frame, &mut short);
        if filter.reads_on(start) {
            start = copied(&frame, long.insert([0; HEADER + LONGEST]));
        }
        let bytes = frame.bytes() - HEADER;
        frame.skip(start.len());
        if !filter.allows(start) {
            counters.refused.add(1);
        } else if bytes < LEAST || frame.write_to(start, tap.as_fd()).is_err() {
            // A header that contradicts its frame, or an interface without room, or that is down.
            counters.dropped.add(1);
        } else {
            counters.bytes_from_guest.add(bytes as u64);
        }
        ring.give(chain.head, 0)?;
    }
    progress.interrupt |= ring.wants_interrupt()?;
    Ok(())
}
