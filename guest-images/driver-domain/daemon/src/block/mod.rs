//! virtio-blk (VIRTIO 1.2, section 5.2): a guest's disk.
//!
//! | file | what |
//! |---|---|
//! | `request.rs` | a chain of descriptors as a request, checked against the disk's extent |
//! | `storage.rs` | what a disk's data lies in |
//! | `raw.rs` | a file or block device, as it is |
//! | `limits.rs` | what one takes |
//! | `qcow2.rs` | an image in that format |
//!
//! Requests are taken as they come and work on them overlaps; they are given back in their order (`ring.rs` says why). A flush
//! begins when all that came before it has ended, so that it covers every write that the guest made before, whether or not the
//! guest has seen its end. Where the driver does not know of flushes, each write ends when it is on the medium.
//!
//! While many requests are under way, each side is told less often than something happens: the guest need not notify, because the
//! end of a request makes the ring looked at in any case, and is interrupted for several answers at once, or after a short while.

mod limits;
mod qcow2;
mod raw;
mod request;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::claims;
use crate::device::{Awaits, Description, Device, Fault, Progress};
use crate::parameters::Parameters;
use crate::ring::{QueueSetup, Ring};
use crate::statistics::Counters;
use crate::sys::Buffers;

pub use qcow2::Image;
pub use raw::Raw;
pub use request::{Action, MAX_BYTES, Request, SECTOR, Transfer};
pub use storage::{Done, Geometry, Storage};

/// Entries of the queue.
const QUEUE: u16 = 256;
/// Buffers of a request, besides its header and its status.
const SEGMENTS: u32 = QUEUE as u32 - 2;
/// The most sectors of one discard or of one write of zeroes: what a request costs has a bound.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// With so many requests under way, notifications are not asked for, and interrupts wait for so many answers, or so long.
const BUSY: usize = 8;
const ANSWERS: u16 = 4;
const DELAY: Duration = Duration::from_micros(200);
/// With so many bytes under way their end takes longer than a sleep costs.
const LARGE: usize = 256 << 10;
/// The bytes of a disk's serial number.
const SERIAL: usize = 20;

/// A disk.
pub struct Block {
    storage: Box<dyn Storage>,
    serial: [u8; SERIAL],
    ring: Option<Ring>,
    /// The driver flushes by itself.
    flushes: bool,
    /// What has been taken from the ring and not been given back, in its order.
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: u64,
    /// How many of them the storage works on, and how many bytes those move.
    under_way: usize,
    moving: usize,
    done: Vec<Done>,
    /// When the guest is to be told of answers at the latest.
    announce: Option<Instant>,
}

/// A request on its way.
struct Slot {
    head: u16,
    /// Where the guest looks for the status.
    status: Buffers,
    /// Bytes that the guest finds in its buffers when the request has gone well.
    bytes: u32,
    /// Bytes that the storage moves for it.
    moves: usize,
    stage: Stage,
}

enum Stage {
    /// Waits until all before it have ended.
    Flush,
    /// Under way.
    Started,
    /// With this status.
    Ended(u32),
}

/// Why a disk cannot be had.
pub type OpenError = Box<dyn std::error::Error>;

impl Block {
    /// The disk with this channel that the parameters describe.
    ///
    /// # Errors
    /// What is wrong with the parameters, or with the file.
    pub fn open(channel: u16, parameters: &Parameters) -> Result<Self, OpenError> {
        let path = parameters.text("path")?;
        let read_only = parameters.flag("read_only", false)?;
        let storage: Box<dyn Storage> = match parameters.get("format").unwrap_or("raw") {
            "raw" => {
                let claim = claims::path_of(channel);
                Box::new(Raw::open(path.as_ref(), read_only, usize::from(QUEUE), &claim)?)
            }
            "qcow2" => Box::new(Image::open(path.as_ref(), read_only)?),
            other => return Err(format!("parameter format: {other:?} is not raw or qcow2").into()),
        };
        Ok(Self::new(storage, parameters.get("serial").unwrap_or_default()))
    }

    /// A disk on `storage`.
    #[must_use]
    pub fn new(storage: Box<dyn Storage>, serial: &str) -> Self {
        let mut id = [0; SERIAL];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self {
            storage,
            serial: id,
            ring: None,
            flushes: true,
            slots: VecDeque::new(),
            first: 0,
            under_way: 0,
            moving: 0,
            done: Vec::new(),
            announce: None,
        }
    }

    /// Takes requests from the ring as long as there are some and there is room for them: whether there were any.
    fn take(&mut self, counters: &Counters) -> Result<bool, Fault> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let mut any = false;
        while self.storage.has_room() && self.slots.len() < usize::from(ring.size()) {
            if !any {
                ring.disarm()?;
            }
            let Some(chain) = ring.pop()? else { break };
            any = true;
            counters.requests.add(1);
            let geometry = self.storage.geometry();
            let Request { head, status, bytes, action } = Request::read(&chain, ring.memory(), &geometry)?;
            let token = self.first.wrapping_add(self.slots.len() as u64);
            let mut moves = 0;
            let stage = match action {
                Action::Transfer(Transfer::Flush) => Stage::Flush,
                Action::Transfer(transfer) => {
                    moves = count(&transfer, counters);
                    self.moving += moves;
                    self.storage.start(token, transfer, !self.flushes);
                    self.under_way += 1;
                    Stage::Started
                }
                Action::Identify(into) => {
                    into.write(0, &self.serial);
                    Stage::Ended(VIRTIO_BLK_S_OK)
                }
                Action::Unsupported => Stage::Ended(VIRTIO_BLK_S_UNSUPP),
                Action::Refused => Stage::Ended(VIRTIO_BLK_S_IOERR),
            };
            self.slots.push_back(Slot { head, status, bytes, moves, stage });
        }
        Ok(any)
    }

    /// Notes what has ended: whether anything has.
    fn collect(&mut self) -> bool {
        self.storage.collect(&mut self.done);
        let any = !self.done.is_empty();
        for Done { token, result } in self.done.drain(..) {
            self.under_way = self.under_way.saturating_sub(1);
            let index = usize::try_from(token.wrapping_sub(self.first)).unwrap_or(usize::MAX);
            if let Some(slot) = self.slots.get_mut(index) {
                self.moving = self.moving.saturating_sub(std::mem::take(&mut slot.moves));
                slot.stage = Stage::Ended(if result.is_ok() { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR });
            }
        }
        any
    }

    /// Gives back what has ended and has nothing before it: whether there was any. Begins a flush that has come to the front.
    fn give(&mut self, counters: &Counters) -> Result<bool, Fault> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let mut any = false;
        while let Some(slot) = self.slots.front_mut() {
            match slot.stage {
                Stage::Started => break,
                Stage::Flush => {
                    if self.storage.has_room() {
                        self.storage.start(self.first, Transfer::Flush, false);
                        self.under_way += 1;
                        slot.stage = Stage::Started;
                        any = true;
                    }
                    break;
                }
                Stage::Ended(status) => {
                    let good = status == VIRTIO_BLK_S_OK;
                    counters.errors.add(u64::from(!good));
                    slot.status.write(0, &[status as u8]);
                    ring.give(slot.head, if good { slot.bytes + 1 } else { 1 })?;
                    self.slots.pop_front();
                    self.first = self.first.wrapping_add(1);
                    any = true;
                }
            }
        }
        Ok(any)
    }

    /// Shows the guest what has been given back. Whether it is to be interrupted.
    fn announce(&mut self) -> Result<bool, Fault> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let count = ring.unannounced();
        if count > 0 && count < ANSWERS && self.under_way >= BUSY {
            let now = Instant::now();
            if *self.announce.get_or_insert(now + DELAY) > now {
                ring.show()?;
                return Ok(false);
            }
        }
        self.announce = None;
        Ok(ring.wants_interrupt()?)
    }
}

/// Counts a transfer that begins: how many bytes it moves.
fn count(transfer: &Transfer, counters: &Counters) -> usize {
    let (counter, bytes) = match transfer {
        Transfer::Read { into, .. } => (&counters.bytes_to_guest, into.bytes()),
        Transfer::Write { from, .. } => (&counters.bytes_from_guest, from.bytes()),
        _ => return 0,
    };
    counter.add(bytes as u64);
    bytes
}

impl Device for Block {
    fn description(&self) -> Description {
        let geometry = self.storage.geometry();
        let mut features = [
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ]
        .iter()
        .fold(0, |features, bit| features | 1_u64 << bit);
        if geometry.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        Description { kind: VIRTIO_ID_BLOCK, features, queues: vec![QUEUE], config: config(&geometry) }
    }

    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault> {
        self.flushes = setup.features >> VIRTIO_BLK_F_FLUSH & 1 != 0;
        self.ring = Some(Ring::new(setup)?);
        Ok(())
    }

    fn stop(&mut self, _queue: u16) {
        self.storage.give_up();
        self.storage.submit();
        while self.under_way > 0 {
            self.storage.wait();
            self.collect();
        }
        self.first = self.first.wrapping_add(self.slots.len() as u64);
        self.slots.clear();
        self.moving = 0;
        self.announce = None;
        self.ring = None;
    }

    fn work(&mut self, _told: u64, counters: &Counters) -> Result<Progress, Fault> {
        let mut any = self.collect();
        any |= self.take(counters)?;
        any |= self.give(counters)?;
        self.storage.submit();
        let interrupt = self.announce()?;
        Ok(Progress { any, interrupt })
    }

    fn arm(&mut self) -> Result<bool, Fault> {
        match &mut self.ring {
            // What is under way ends soon, and then the ring is looked at.
            _ if self.under_way >= BUSY => Ok(false),
            // Without room nothing can be taken before something has ended.
            Some(ring) if self.storage.has_room() && self.slots.len() < usize::from(ring.size()) => {
                Ok(ring.arm()?)
            }
            _ => Ok(false),
        }
    }

    fn awaits(&self) -> Awaits {
        match self.under_way {
            0 => Awaits::Guest,
            1..BUSY if self.moving < LARGE => Awaits::End,
            _ => Awaits::Ends,
        }
    }

    fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        into.push(PollFd::from_borrowed_fd(self.storage.fd(), PollFlags::IN));
    }

    fn deadline(&self) -> Option<Instant> {
        self.announce
    }
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config(geometry: &Geometry) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    let mut put = |bytes: &[u8]| config.extend_from_slice(bytes);
    let range = if geometry.read_only { 0 } else { MAX_RANGE_SECTORS };
    let block_sectors = geometry.block / SECTOR as u32;
    put(&(geometry.bytes / SECTOR).to_le_bytes()); // capacity
    put(&0_u32.to_le_bytes()); // size_max: not offered
    put(&SEGMENTS.to_le_bytes()); // seg_max
    put(&[0; 4]); // geometry: not offered
    put(&geometry.block.to_le_bytes()); // blk_size
    put(&[0, 0]); // physical_block_exp, alignment_offset
    put(&1_u16.to_le_bytes()); // min_io_size, in blocks
    put(&0_u32.to_le_bytes()); // opt_io_size: unknown
    put(&[0, 0]); // writeback: not offered; unused
    put(&1_u16.to_le_bytes()); // num_queues
    put(&range.to_le_bytes()); // max_discard_sectors
    put(&1_u32.to_le_bytes()); // max_discard_seg
    put(&block_sectors.to_le_bytes()); // discard_sector_alignment
    put(&range.to_le_bytes()); // max_write_zeroes_sectors
    put(&1_u32.to_le_bytes()); // max_write_zeroes_seg
    put(&[1, 0, 0, 0]); // write_zeroes_may_unmap
    config
}
