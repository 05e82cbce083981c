//! Scheduling: who runs on one CPU, and until when.
//!
//! A [`RunQueue`] holds the *entities* (vCPUs) of one CPU, each in a *group* (its domain), and answers
//! [`RunQueue::pick`]. The policy is a parameter: [`Bvt`] shares the CPU out by weight, [`Sedf`] by reservations. The
//! cap of a group holds under either. `docs/scheduling.md` has the definitions, their sources and what differs from
//! them.
//!
//! # Time
//!
//! Time is a parameter: a `u64` count of ticks of any constant rate (the hypervisor gives its TSC), that never goes
//! back. The queue learns what an entity used by [`RunQueue::charge`] alone. *Charge what runs before anything else
//! is told of the same moment*: a wake is placed by what the others have used so far.
//!
//! # Invariants
//!
//! - All memory is taken in [`RunQueue::new`]; no operation allocates, and none can panic or loop without bound.
//! - Every operation is O(log n) in the entities of the queue. Caps add O(log n) for each entity that is parked, once
//!   in a window of its cap.
//! - Arithmetic is on integers and exact: what rounding leaves is carried over, so that nothing drifts.
//! - An id that is not (or no longer) in the queue is ignored.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bvt;
mod cap;
mod error;
mod heap;
mod policy;
mod queue;
mod sedf;

#[cfg(test)]
mod tests;

pub use bvt::{Bvt, BvtParameters, BvtSettings, DEFAULT_WEIGHT};
pub use cap::{Cap, GroupId};
pub use error::{AddError, ParameterError};
pub use policy::Policy;
pub use queue::{Decision, EntityId, RunQueue};
pub use sedf::{Sedf, SedfParameters, SedfSettings};

/// The longest period of a reservation and window of a cap, in ticks (2^40: minutes of a TSC).
pub const MAX_PERIOD: u64 = 1 << 40;

/// The moment that never comes.
pub const NEVER: u64 = u64::MAX;
