//! Event channels: how a domain says "look" to another one, and Caisson to a domain.
//!
//! A domain has a table of numbered *ports*. A port is free; *unbound*, offered to one named domain; *bound* to a port of
//! another domain; bound to a *source* of Caisson's; or *closed by its peer*. An event is one bit: pending or not. Its
//! bearer is a page that the domain shares with Caisson, in which the domain finds what is pending and masks what it does
//! not want to hear of, without leaving the guest; one interrupt is enough for all that comes before it looks. `docs/events.md`
//! explains the protocol with pictures, `caisson_abi::events` has the layout.
//!
//! | file | what |
//! |---|---|
//! | `page.rs` | the shared page: both sides' steps |
//! | `name.rs` | names of ports that are never used twice |
//! | `port.rs` | a port's state word and its changes |
//! | `table.rs` | a domain's ports |
//! | `registry.rs` | all domains: the operations |
//! | `models.rs` | the protocols under every interleaving, by `loom` |
//! | `model.rs`, `fuzz.rs` | a plain model of the same, and what is held against it |
//!
//! # Who waits for whom
//!
//! Sending takes no lock: an event has to get through while others make and close ports, and a domain that makes and closes
//! its own without end must not slow down who sends to it. A send looks at its own port (three loads), looks at the peer's
//! table (a shared count, so that the table stays), pins the peer's port (an atomic add), finds there its own name, sets the
//! pending bit, and takes pin and look back. It has no loop, waits for nobody, and allocates nothing. Short locks for each
//! domain were the alternative: then two tables have to be locked one after the other or in an order, a spinning lock is
//! unfair, and the domain whose lock it is decides how often it is taken.
//!
//! What changes a port is a compare-and-exchange on one word. Only closing waits, for the pins of sends that are under way
//! and know the port yet, and leaving, for the looks at the domain's table: both are held for some dozen instructions by CPUs
//! that wait for nobody meanwhile. Nobody holds a pin while it waits, nor takes a look at a table by waiting: a table that is
//! coming or going counts as none. So there is no order of locks to keep.
//!
//! # Invariants
//!
//! - **Authority is kept here**, not in the page: who may send is decided by the sender's own port and by the receiver's,
//!   each of which must name the other. What a domain writes to its page can only change its own interrupts.
//! - **A name is used once**: a port's life has a serial number, and who comes with another one is refused. So an event of
//!   an old connection never shows in a new one, nor in another domain.
//! - **Closing is final**: when it returns, nobody sets the port's bit for its old life any more.
//! - **A peer's end is told once**: by whoever changes the survivor's port from bound to closed, which is one
//!   compare-and-exchange.
//! - No operation panics, whatever it is given. Joining allocates; nothing else does.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod error;
#[cfg(all(any(test, feature = "fuzzing"), not(all(test, loom))))]
pub mod fuzz;
#[cfg(all(any(test, feature = "fuzzing"), not(all(test, loom))))]
mod model;
#[cfg(all(test, loom))]
mod models;
mod name;
mod page;
mod port;
mod registry;
mod sync;
mod table;
#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "tests' helpers")]
mod tests;

pub use error::{Error, JoinError};
pub use name::{MAX_DOMAINS, Name};
pub use page::{Page, Word, consumer};
pub use registry::{Left, Registry};
