//! The course of a domain's end, and whether the domain lives again.
//!
//! | file | what |
//! |---|---|
//! | `end.rs` | what is done, in which order, to what a domain leaves behind: its devices, its memory, the guests that it served |
//! | `lives.rs` | what is kept from life to life: whether it is to come again, when, and whether it may |
//!
//! ```text
//!   used ──► let go ──► functions stopped ──► kept out by the IOMMU ──► reset ──► its guests told ──► scrubbed ──► freed
//!    ▲  │                                        │                                     │
//!    └──┘ others use something of it             └─ it does not answer ─► kept         └─ somebody's devices reach it ─► kept
//! ```
//!
//! Invariants, of which the tests have a model of a machine with several domains:
//! - Memory is freed once, scrubbed, and only when no device and no other domain reaches it. What may be reached for ever is kept: it
//!   is *lost*, and given to nobody until the machine restarts.
//! - Who was served by the domain is told once, when its devices do nothing any more, or may do something for ever.
//! - A domain that has lost memory does not come again.
//! - Every step ends the end, brings it on, or waits for a time that comes, or for somebody who has been asked.
//!
//! Nothing here touches a machine: that is what [`Course`] is for. What has to go from step to step is moved, so that nothing is
//! freed twice or forgotten: the memory is in [`End`], or has been given to [`Course::free`] or [`Course::keep`].

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod end;
mod lives;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use end::{Course, End, Hold, Outcome, Reach, Step};
pub use lives::{Cause, Lives, Next, Verdict};
