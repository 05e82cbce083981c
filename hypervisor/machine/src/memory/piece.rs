//! Memory of Caisson's own in one piece, of any size: what comes in from outside at run time and is read for long.

use caisson_frames::{FrameChain, Owner};
use caisson_types::{Hpa, PAGE_SIZE};

use super::{direct, frames, scrub};

/// Bytes that are scrubbed at a time, so that nobody waits long.
const SCRUB_STEP: u64 = 2 << 20;

/// Bytes in frames of Caisson's own that follow each other.
///
/// What has been scrubbed of it before it is dropped ([`Piece::scrub_step`]) the drop does not have to do: for a large piece that is
/// the part that takes long.
pub struct Piece {
    chain: Option<FrameChain>,
    start: *mut u8,
    bytes: usize,
    /// From this byte of the frames on they have not been scrubbed.
    scrubbed: u64,
}

// SAFETY: the piece owns its frames.
unsafe impl Send for Piece {}
// SAFETY: a shared piece gives shared references to its bytes, and no more.
unsafe impl Sync for Piece {}

impl Piece {
    /// `bytes` of zeros. `None` for none, for more than 1 GiB, or where no free memory is as large.
    #[must_use]
    pub fn zeroed(bytes: u64) -> Option<Self> {
        let mut frames = frames();
        let chain = frames.allocate_piece(bytes, Owner::Hypervisor)?;
        let (start, _) = frames.blocks_of(&chain).next()?;
        Some(Self {
            chain: Some(chain),
            start: direct(start),
            bytes: usize::try_from(bytes).ok()?,
            scrubbed: 0,
        })
    }

    /// What it takes of the machine's memory, in bytes.
    #[must_use]
    pub fn footprint(&self) -> u64 {
        (self.bytes as u64).next_multiple_of(PAGE_SIZE)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the frames are the piece's, contiguous in the direct map, initialised as zeros, and borrowed as it is.
        unsafe { core::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Its bytes, to write.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the piece is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// Scrubs the next part, before the piece is dropped: what it held is gone. `true` when nothing is left.
    pub fn scrub_step(&mut self) -> bool {
        let step = SCRUB_STEP.min(self.footprint() - self.scrubbed);
        let at = Hpa::new(self.start as u64 - super::DIRECT_MAP + self.scrubbed);
        // SAFETY: the frames are the piece's, which is borrowed mutably.
        unsafe { scrub(at, step) };
        self.scrubbed += step;
        self.scrubbed == self.footprint()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        while !self.scrub_step() {}
        if let Some(chain) = self.chain.take()
            && let Err(error) = frames().free_range(chain)
        {
            log::error!("memory could not be freed: {error}");
        }
    }
}
