//! Virtio devices as their guest sees them, by the OASIS specification "Virtual I/O Device (VIRTIO) Version 1.2"; section
//! numbers here are of that document.
//!
//! | part | is |
//! |---|---|
//! | [`Channel`] | a device's virtio-mmio transport (section 4.2), driven by the guest on one side and a backend on the other |
//! | [`Ring`] | a split virtqueue (section 2.7), read and written as a device does it |
//! | [`Entropy`] | the one device whose backend is in here: random numbers (section 5.4) |
//!
//! The transport's state belongs to Caisson and not to the backend, so that a backend can die and another one take its
//! place while the guest waits: [`Channel::attach`] tells it all that it needs, and which queues to look at.
//!
//! Invariants:
//! - The guest and its rings are hostile: any access at any time is legal input. Nothing panics or loops for longer than a
//!   chain may be, and the transport answers each access in constant time.
//! - Nothing is allocated once a device is made.
//! - A backend is told of a queue that it has been told of, and has not looked at yet, no second time.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod channel;
mod description;
mod entropy;
pub mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod ring;

pub use caisson_abi::io::{DeviceState, QueueState};
pub use channel::{Change, Channel, Effect, Interrupt, PageRef, Refusal, RegisterPage, Status, register};
pub use description::{Description, DescriptionError, MAX_CONFIG, MAX_QUEUE_SIZE, MAX_QUEUES};
pub use entropy::{ENTROPY, Entropy};
pub use ring::{Ring, RingError};
