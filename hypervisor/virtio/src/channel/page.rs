//! What a guest reads at a device's page.
//!
//! The registers lie in one page as they read, so that the guest can be given it to read without an exit; its writes exit, and
//! what they change is shown at once. InterruptStatus lives here alone.

use core::ops::Deref;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use zerocopy::FromZeros;

use super::register;
use super::state::State;

/// Words of a page.
const WORDS: usize = 1024;

/// A device's page, as a guest may read it at any time.
#[derive(FromZeros)]
#[repr(C, align(4096))]
pub struct RegisterPage([AtomicU32; WORDS]);

/// Where a device's page is kept: on the heap, or in a frame that the guest has mapped for reading.
pub type PageRef = Box<dyn Deref<Target = RegisterPage> + Send + Sync>;

impl RegisterPage {
    /// One on the heap.
    #[must_use]
    pub fn boxed() -> PageRef {
        Box::new(Box::new(Self([const { AtomicU32::new(0) }; WORDS])))
    }

    /// The word at `offset`, which the module has: a multiple of 4 below the page's end.
    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        self.0.get(usize::try_from(offset / 4).ok()?)
    }

    /// What the register at `offset` reads.
    pub(super) fn read(&self, offset: u64) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// `size` bytes (1 to 8) from `offset` on, of the configuration.
    pub(super) fn read_bytes(&self, offset: u64, size: u8) -> u64 {
        let byte = |at: u64| u64::from(self.read(at & !3) >> (8 * (at & 3)) & 0xff);
        (0..u64::from(size.min(8)))
            .fold(0, |value, index| value | byte(offset.saturating_add(index)) << (8 * index))
    }

    pub(super) fn interrupt_status(&self) -> &AtomicU32 {
        &self.0[register::INTERRUPT_STATUS as usize / 4]
    }

    /// Shows the state.
    pub(super) fn show(&self, state: &State) {
        let set = |offset, value| {
            if let Some(word) = self.word(offset) {
                word.store(value, Ordering::Release);
            }
        };
        for offset in register::CHANGING {
            set(offset, state.read(offset));
        }
    }

    /// Shows what never changes, and the configuration.
    pub(super) fn show_all(&self, state: &State) {
        for offset in (0..register::CONFIG).step_by(4).filter(|&offset| offset != register::INTERRUPT_STATUS)
        {
            if let Some(word) = self.word(offset) {
                word.store(state.read(offset), Ordering::Release);
            }
        }
        self.show_config(state);
    }

    /// Shows the configuration.
    pub(super) fn show_config(&self, state: &State) {
        let words = (register::CONFIG..).step_by(4).zip(state.config.chunks(4));
        for (offset, bytes) in words {
            let value =
                (0..).zip(bytes).fold(0, |value, (index, &byte)| value | u32::from(byte) << (8 * index));
            if let Some(word) = self.word(offset) {
                word.store(value, Ordering::Release);
            }
        }
    }
}

impl core::fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RegisterPage(interrupt status {:#x})", self.interrupt_status().load(Ordering::Relaxed))
    }
}
