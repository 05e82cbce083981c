//! Stacks of CPUs that start later: in a window of their own, each with an unmapped page below it.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_frames::{FrameBlock, Owner};
use caisson_types::PAGE_SIZE;

use super::{TableFrames, frames};
use crate::paging;

/// Where the window starts.
const WINDOW: u64 = 0xffff_d000_0000_0000;
/// The window's size in bytes.
const WINDOW_BYTES: u64 = 1 << 30;

/// The end of the window's part in use.
static NEXT: AtomicU64 = AtomicU64::new(WINDOW);

/// A stack. It stays for ever, because a CPU that was given one may use it at any time.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    top: u64,
}

impl Stack {
    /// A stack of `bytes`, rounded up to pages; `None` without memory.
    #[must_use]
    pub fn new(bytes: usize) -> Option<Self> {
        let pages = (bytes as u64).div_ceil(PAGE_SIZE);
        let start = NEXT.fetch_add(PAGE_SIZE * (pages + 1), Ordering::Relaxed);
        // The first page stays out.
        let (bottom, top) = (start + PAGE_SIZE, start + PAGE_SIZE * (pages + 1));
        if top > WINDOW + WINDOW_BYTES {
            return None;
        }
        for at in (bottom..top).step_by(PAGE_SIZE as usize) {
            let frame = frames().allocate(0, Owner::Hypervisor).map(FrameBlock::into_start)?;
            // SAFETY: the page of the window is unused, and the frame is this stack's for ever.
            unsafe { paging::map_data_page(at, frame, &mut TableFrames)? };
        }
        Some(Self { top })
    }

    /// The address behind its last byte.
    #[must_use]
    pub fn top(self) -> u64 {
        self.top
    }
}

/// Whether an address lies where [`Stack`]s do.
#[must_use]
pub(crate) fn contains(at: u64) -> bool {
    (WINDOW..NEXT.load(Ordering::Relaxed)).contains(&at)
}
