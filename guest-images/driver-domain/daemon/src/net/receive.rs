//! Frames from the interface into the guest's buffers.
//!
//! Buffers that can hold the largest frame are taken from the ring before a frame is read, so that it is read into them at once;
//! what a smaller frame leaves over is for the next one. A guest that has not given so much gets its frames by a copy, which waits
//! here, one frame, until the guest has room for it; further ones wait in the interface, which drops what does not fit.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::HEADER;
use crate::device::{Fault, Progress};
use crate::ring::{Ring, RingError};
use crate::statistics::Counters;
use crate::sys::{Buffers, Pages, Tap};

/// Frames at a time, so that the other direction has its turn.
const BATCH: usize = 128;
/// The most pieces that are prepared: of `readv(2)`.
const MAX_PIECES: usize = 1024;
/// Where the header says of how many buffers the frame is.
const NUM_BUFFERS: usize = 10;
/// The most that comes before a frame's data: header, addresses, type, a tag.
const BEFORE: usize = HEADER + 14 + 4;
/// The largest frame of segments that are still one.
const MAX_SEGMENTS: usize = 65535 + BEFORE;

/// How large a frame can be, its header included.
pub(super) fn largest_frame(mtu: u16, segments: bool) -> usize {
    if segments { MAX_SEGMENTS } else { BEFORE + usize::from(mtu).max(1500) }
}

/// A chain that waits for a frame.
struct Prepared {
    head: u16,
    buffers: Buffers,
}

/// A queue of frames for the guest.
pub(super) struct Receiver {
    ring: Option<Ring>,
    /// A frame may fill several chains.
    merges: bool,
    /// The largest frame.
    largest: usize,
    prepared: VecDeque<Prepared>,
    /// What they hold, and of how many pieces they are.
    room: usize,
    pieces: usize,
    /// A frame that waits for room: its bytes.
    waiting: Option<usize>,
    copy: Option<Buffers>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            ring: None,
            merges: false,
            largest: MAX_SEGMENTS,
            prepared: VecDeque::new(),
            room: 0,
            pieces: 0,
            waiting: None,
            copy: None,
        }
    }

    /// A new life of the device.
    pub(super) fn begin(&mut self, merges: bool, largest: usize) {
        self.stop();
        (self.merges, self.largest) = (merges, largest);
    }

    pub(super) fn start(&mut self, ring: Ring) {
        self.ring = Some(ring);
    }

    pub(super) fn stop(&mut self) {
        self.ring = None;
        self.prepared.clear();
        (self.room, self.pieces, self.waiting) = (0, 0, None);
    }

    pub(super) fn is_running(&self) -> bool {
        self.ring.is_some()
    }

    /// Whether a frame could be taken.
    pub(super) fn wants_frames(&self) -> bool {
        self.ring.is_some() && self.waiting.is_none() && !self.prepared.is_empty()
    }

    /// Whether the prepared chains can hold any frame. Where frames are not merged, the next chain has to.
    fn has_room_for(&self, bytes: usize) -> bool {
        if self.merges {
            self.room >= bytes
        } else {
            self.prepared.front().is_some_and(|prepared| prepared.buffers.bytes() >= bytes)
        }
    }

    /// Whether no more chains are taken now.
    fn is_prepared(&self) -> bool {
        let room = if self.merges { self.room >= self.largest } else { !self.prepared.is_empty() };
        room || self.pieces >= MAX_PIECES
    }

    /// Takes chains until they hold the largest frame, or there are no more.
    fn prepare(&mut self) -> Result<(), Fault> {
        while !self.is_prepared() {
            let Some(ring) = &mut self.ring else { break };
            let Some(chain) = ring.pop()? else { break };
            let buffers = Buffers::guest(ring.memory(), &chain.writable).ok_or(RingError::NotRam)?;
            if buffers.bytes() < HEADER || !chain.readable.is_empty() {
                return Err(Fault::Request(
                    "a buffer for frames cannot hold a header, or is not to be written",
                ));
            }
            if self.pieces + buffers.pieces() > MAX_PIECES && !self.prepared.is_empty() {
                return Err(Fault::Request("buffers for frames are of too many pieces"));
            }
            self.room += buffers.bytes();
            self.pieces += buffers.pieces();
            self.prepared.push_back(Prepared { head: chain.head, buffers });
        }
        Ok(())
    }

    /// Takes frames in.
    pub(super) fn work(
        &mut self,
        tap: &Tap,
        counters: &Counters,
        progress: &mut Progress,
    ) -> Result<(), Fault> {
        if self.ring.is_none() {
            return Ok(());
        }
        for _ in 0..BATCH {
            self.prepare()?;
            let done = if let Some(bytes) = self.waiting {
                self.place(bytes, counters)?
            } else if self.prepared.is_empty() {
                false
            } else if self.has_room_for(self.largest) {
                self.read_straight(tap, counters)?
            } else {
                self.read_copy(tap, counters)?
            };
            if !done {
                break;
            }
            progress.any = true;
        }
        if let Some(ring) = &mut self.ring {
            progress.interrupt |= ring.wants_interrupt()?;
        }
        Ok(())
    }

    /// Reads a frame into the guest's buffers: whether there was one.
    fn read_straight(&mut self, tap: &Tap, counters: &Counters) -> Result<bool, Fault> {
        let count = if self.merges { self.prepared.len() } else { 1 };
        let buffers = self.prepared.iter().take(count).map(|prepared| &prepared.buffers);
        match frame(Buffers::fill(buffers, tap.as_fd()), counters)? {
            Read::Nothing => Ok(false),
            Read::Lost => Ok(true),
            Read::Frame(bytes) => self.hand_over(bytes, counters).map(|()| true),
        }
    }

    /// Reads a frame to wait here: whether there was one.
    fn read_copy(&mut self, tap: &Tap, counters: &Counters) -> Result<bool, Fault> {
        let copy = self.copy.get_or_insert_with(|| Buffers::own(Pages::new(MAX_SEGMENTS), MAX_SEGMENTS));
        match frame(Buffers::fill([&*copy], tap.as_fd()), counters)? {
            Read::Nothing => Ok(false),
            Read::Lost => Ok(true),
            Read::Frame(bytes) => {
                self.waiting = Some(bytes);
                Ok(true)
            }
        }
    }

    /// Gives the guest the frame that waits here, if there is room: whether there was.
    fn place(&mut self, bytes: usize, counters: &Counters) -> Result<bool, Fault> {
        if !self.has_room_for(bytes) {
            if !self.merges && !self.prepared.is_empty() {
                // It never fits.
                counters.dropped.add(1);
                self.waiting = None;
                return Ok(true);
            }
            return Ok(false);
        }
        self.waiting = None;
        let Some(copy) = &self.copy else { return Ok(true) };
        let mut done = 0;
        let mut part = [0; 2048];
        for prepared in &self.prepared {
            let mut place = 0;
            while place < prepared.buffers.bytes() && done < bytes {
                let wanted = part.len().min(bytes - done);
                let there = copy.read(done, part.get_mut(..wanted).unwrap_or_default());
                let written = prepared.buffers.write(place, part.get(..there).unwrap_or_default());
                if written == 0 {
                    break;
                }
                (place, done) = (place + written, done + written);
            }
        }
        self.hand_over(bytes, counters).map(|()| true)
    }

    /// The first `bytes` bytes of the prepared chains are a frame with its header.
    fn hand_over(&mut self, bytes: usize, counters: &Counters) -> Result<(), Fault> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let mut left = bytes;
        let mut count = 0_u16;
        // The header says how many chains there are, and lies in the first one.
        for prepared in &self.prepared {
            count = count.saturating_add(1);
            if prepared.buffers.bytes() >= left {
                break;
            }
            left -= prepared.buffers.bytes();
        }
        if let Some(prepared) = self.prepared.front() {
            prepared.buffers.write(NUM_BUFFERS, &count.to_le_bytes());
        }
        left = bytes;
        for _ in 0..count {
            let Some(prepared) = self.prepared.pop_front() else { break };
            let part = left.min(prepared.buffers.bytes());
            left -= part;
            self.room -= prepared.buffers.bytes();
            self.pieces -= prepared.buffers.pieces();
            ring.give(prepared.head, part as u32)?;
        }
        debug_assert!(left == 0);
        ring.show()?;
        counters.requests.add(1);
        counters.bytes_to_guest.add((bytes - HEADER) as u64);
        Ok(())
    }

    /// Asks to be told of room, where there is little; whether there is more already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        let enough = self.is_prepared();
        match &mut self.ring {
            Some(ring) if !enough => Ok(ring.arm()?),
            Some(ring) => {
                ring.disarm()?;
                Ok(false)
            }
            None => Ok(false),
        }
    }
}

/// What came of a read.
enum Read {
    Nothing,
    /// One that is not to be used.
    Lost,
    /// With so many bytes, its header among them.
    Frame(usize),
}

fn frame(result: io::Result<usize>, counters: &Counters) -> Result<Read, Fault> {
    match result {
        Ok(bytes) if bytes > HEADER => Ok(Read::Frame(bytes)),
        Ok(_) => {
            counters.dropped.add(1);
            Ok(Read::Lost)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Read::Nothing),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Read::Nothing),
        Err(error) => Err(Fault::Backend(error)),
    }
}
