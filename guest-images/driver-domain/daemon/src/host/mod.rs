//! What Caisson is to the daemon.
//!
//! | file | what |
//! |---|---|
//! | `door.rs` | the real one: Caisson's PCI function, by UIO and DAX |
//! | `dax.rs` | machine addresses mapped by `/dev/daxX.Y` |
//! | `calls.rs` | Caisson's calls with names and types |
//! | `fake.rs` | one for tests, with a guest's devices behind it |

mod calls;
mod dax;
mod door;
#[cfg(test)]
pub mod fake;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use caisson_abi::events::PAGE_WORDS;
use caisson_abi::io::MemoryRange;
use caisson_abi::{CallError, CallResult, Number};

use crate::sys::Memory;

pub(crate) use calls::records;
pub use calls::{Caisson, Refusal, State};
pub use door::{Door, DoorError};

/// The most bytes that a call's argument can point to.
pub const MAX_DATA: usize = 16 * 4096;

/// A call of Caisson's.
#[derive(Debug)]
pub struct Call {
    /// Which.
    pub number: Number,
    /// Its arguments. The address of its data is filled in when it is made.
    pub arguments: [u64; 4],
    /// The argument that is the address of `data`.
    pub address: Option<usize>,
    /// What that points to, before the call and after it: whole words, at most [`MAX_DATA`] bytes in all of a list.
    pub data: Vec<u8>,
    /// What came of it.
    pub answer: CallResult,
}

impl Call {
    /// A call with these arguments.
    #[must_use]
    pub fn new(number: Number, arguments: &[u64]) -> Self {
        let mut all = [0; 4];
        all.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
        Self { number, arguments: all, address: None, data: Vec::new(), answer: Err(CallError::NoSuchCall) }
    }

    /// The same, whose argument `address` points to `data`.
    #[must_use]
    pub fn with_data(mut self, address: usize, mut data: Vec<u8>) -> Self {
        data.resize(data.len().next_multiple_of(8), 0);
        self.address = Some(address);
        self.data = data;
        self
    }
}

/// Caisson, as a program in a domain reaches it.
pub trait Host: Send + Sync {
    /// Makes calls, in their order, by one list.
    fn calls(&self, calls: &mut [Call]);
    /// Tells the guest of `channel` that buffers have been used. Costs one write.
    fn interrupt(&self, channel: u16);
    /// The shared page of events.
    fn events(&self) -> &[AtomicU64; PAGE_WORDS];
    /// Where that page is, for [`Number::EventConnect`].
    fn events_address(&self) -> u64;
    /// Becomes readable when Caisson interrupts.
    fn interrupt_fd(&self) -> BorrowedFd<'_>;
    /// Takes the interrupt, and lets the next one through. To be called before the shared page is looked at.
    ///
    /// # Errors
    /// The kernel's; the daemon cannot go on then.
    fn take_interrupt(&self) -> io::Result<()>;
    /// About what it costs a thread to sleep and to be woken by an event.
    fn cost_of_sleep(&self) -> Duration;
    /// Maps a guest's memory.
    ///
    /// # Errors
    /// The kernel's, or why it is not to be found.
    fn map(&self, ranges: &[MemoryRange]) -> io::Result<Memory>;
}
