//! Scheduling: who runs on which CPU, and until when.
//!
//! A [`CpuQueue`] holds the *entities* (vCPUs) of one CPU, each in a *group* (its domain), and answers
//! [`CpuQueue::pick`]. The queues of a [`Pool`] share one virtual time, so that entities can move between them and
//! gain or lose nothing by it. The policy is the pool's: [`PolicyKind::Bvt`] shares the CPUs out by weight,
//! [`PolicyKind::Sedf`] by reservations. The cap of a group ([`CapAccount`]) holds under either, over all CPUs.
//! `docs/scheduling.md` has the definitions, their sources and what differs from them.
//!
//! # Time
//!
//! Time is a parameter: a `u64` count of ticks of any constant rate (the hypervisor gives its TSC), that never goes
//! back and is the same on all CPUs. The queue learns what an entity used by [`CpuQueue::charge`]; where another CPU asks
//! something of the queue in between, it charges the one that runs up to then by itself. *Charge what runs before
//! anything else is told of the same moment* on its own CPU: a wake is placed by what the others have used so far.
//!
//! # What the caller does
//!
//! - A turn's end, or nothing to run: charge; where [`CpuQueue::turn_is_over`], go through [`Pool::behind`], and where
//!   [`should_pull`] says so, steal there and put here (one lock at a time); then pick. Where somebody still waits here
//!   after a turn, and [`Pool::tell_lone`] answers a CPU, have that CPU pick again.
//! - A wake: in the home queue, or moved to an idle CPU first. Where it waits afterwards, wake a CPU that
//!   [`Pool::claim_idle`] answers, if any: it steals.
//!
//! # Invariants
//!
//! - All memory is taken in [`CpuQueue::new`] and [`Pool::new`]; no operation allocates, and none can panic or loop
//!   without bound.
//! - Every operation is O(log n) in the entities of the queue, and at most O(CPUs) reads of what other queues show. Caps
//!   add O(log n) for each entity that is parked, once in a window of its cap.
//! - Arithmetic is on integers and exact: what rounding leaves is carried over, so that nothing drifts.
//! - An id that is not (or no longer) in the queue is ignored.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod admission;
mod bvt;
mod cap;
mod contention;
mod edf;
mod error;
mod heap;
mod policy;
mod pool;
mod queue;

#[cfg(test)]
mod tests;

pub use admission::{Utilisation, place};
pub use bvt::DEFAULT_WEIGHT;
pub use cap::{Cap, CapAccount, GroupId};
pub use error::{AddError, ParameterError};
pub use heap::IndexHeap;
pub use policy::{Parameters, PolicyKind, Reservation, Settings};
pub use pool::{Key, Pool, should_pull};
pub use queue::{CpuQueue, Decision, EntityId, Parcel};

/// The longest period of a reservation and window of a cap, in ticks (2^40: minutes of a TSC).
pub const MAX_PERIOD: u64 = 1 << 40;

/// The moment that never comes.
pub const NEVER: u64 = u64::MAX;
