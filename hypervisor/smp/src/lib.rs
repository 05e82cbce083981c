//! What the CPUs say to each other, as protocols without hardware.
//!
//! | file | protocol |
//! |---|---|
//! | `pending.rs` | the word of each CPU in which others leave what it is to look at, and the interrupt that follows |
//! | `call.rs` | a function that all other CPUs call, before the caller goes on |
//! | `beacon.rs` | who sleeps and where somebody waits: nobody waits beside an idle CPU |
//! | `place.rs` | in which CPU's queue an entity is, and which CPU holds its registers |
//! | `handover.rs` | wake, block, move and withdraw an entity, over a run queue for each CPU |
//! | `shoot.rs` | a domain's second-stage tables have changed: no CPU goes on with what it has cached of them |
//!
//! Everything is generic over the sending of an interrupt and over what a queue holds, so that the hypervisor runs the very
//! code that the models run. The models are in `models.rs`: `loom` runs them in every order that the memory model of C11
//! allows, by `RUSTFLAGS="--cfg loom" cargo test -p caisson-smp --release --lib loom_`.
//!
//! Invariants. No function waits for a CPU that may wait for this one; none allocates; none holds two queues' locks. Where
//! two CPUs must see one another's store, each stores, executes a sequentially consistent fence, then loads.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod beacon;
mod call;
mod handover;
#[cfg(all(test, loom))]
mod models;
pub mod pending;
mod place;
mod shoot;
mod sync;

pub use beacon::{Beacon, before_looking_for_idle};
pub use call::{Callee, Calls};
pub use handover::{
    Cpus, Queue, Woken, block, idle, interrupt, offer, put_to_wake, take_over, wake, withdraw,
};
pub use pending::Pending;
pub use place::Place;
pub use shoot::{Changes, Seen, shoot_down};
