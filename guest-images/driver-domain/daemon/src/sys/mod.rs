//! What the kernel offers only through pointers: mappings, transfers from and to guests' memory, requests of interfaces. All
//! `unsafe` code of the daemon is here, behind functions that any safe code can call with anything.
//!
//! | file | what |
//! |---|---|
//! | `map.rs` | mappings: the door's registers, words shared with Caisson, a guest's memory |
//! | `buffers.rs` | pieces of memory that the kernel reads or writes, and what keeps them alive |
//! | `tap.rs` | network interfaces whose other end is a file |
//! | `uring.rs` | asynchronous work on a file |
//!
//! Guests' memory changes at any time. It is reached through `vm_memory`'s volatile accesses, through atomics, or by the kernel;
//! no reference to it as plain bytes is ever made.

#![allow(unsafe_code)]

mod buffers;
mod map;
mod tap;
mod uring;

pub use buffers::{Buffers, Pages};
pub use map::{Mapping, Memory, MemoryError, Piece, Region, Shared};
pub use tap::{Offloads, Tap};
pub use uring::{Completion, Uring, Work};

/// The descriptor of an event.
#[must_use]
pub fn event_fd(event: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the event keeps its descriptor open as long as it is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) }
}
