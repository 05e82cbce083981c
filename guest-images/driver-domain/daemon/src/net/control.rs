//! The control queue (section 5.1.6.5): the driver says how many pairs of queues it uses.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::device::{Fault, Progress};
use crate::ring::{Ring, RingError};
use crate::sys::Buffers;

/// Commands at a time.
const BATCH: usize = 16;

/// The control queue.
pub(super) struct Control {
    ring: Option<Ring>,
    /// How many pairs there are.
    pairs: usize,
}

impl Control {
    pub(super) const fn new(pairs: usize) -> Self {
        Self { ring: None, pairs }
    }

    pub(super) fn start(&mut self, ring: Ring) {
        self.ring = Some(ring);
    }

    pub(super) fn stop(&mut self) {
        self.ring = None;
    }

    pub(super) fn is_running(&self) -> bool {
        self.ring.is_some()
    }

    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        match &mut self.ring {
            Some(ring) => Ok(ring.arm()?),
            None => Ok(false),
        }
    }

    /// Answers commands. How many pairs are to be in use, if one said so.
    pub(super) fn work(&mut self, progress: &mut Progress) -> Result<Option<usize>, Fault> {
        let mut pairs = None;
        let Some(ring) = &mut self.ring else { return Ok(None) };
        for _ in 0..BATCH {
            let Some(chain) = ring.pop()? else { break };
            progress.any = true;
            let command = Buffers::guest(ring.memory(), &chain.readable).ok_or(RingError::NotRam)?;
            let answer = Buffers::guest(ring.memory(), &chain.writable).ok_or(RingError::NotRam)?;
            if answer.bytes() == 0 {
                return Err(Fault::Request("a command has no place for its answer"));
            }
            // Class and command, and the one that is known has a number behind them.
            let mut bytes = [0; 4];
            let said = command.read(0, &mut bytes);
            let [class, kind, low, high] = bytes;
            let wanted = usize::from(u16::from_le_bytes([low, high]));
            let known = said == bytes.len()
                && u32::from(class) == VIRTIO_NET_CTRL_MQ
                && u32::from(kind) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
                && (1..=self.pairs).contains(&wanted);
            if known {
                pairs = Some(wanted);
            }
            answer.write(0, &[if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8]);
            ring.give(chain.head, 1)?;
        }
        progress.interrupt |= ring.wants_interrupt()?;
        Ok(pairs)
    }
}
