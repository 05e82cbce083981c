//! One serial line for all consoles.
//!
//! [`Mux`] stands between the machine's serial line, the guests' serial ports and Caisson's log. Where several consoles
//! are shown, each line carries its owner's name; a selected one is shown raw, and gets what is typed. `Ctrl-A c` goes to
//! the next: all, each guest with a console, Caisson's log. `Ctrl-A a` sends a Ctrl-A to the guest. `Ctrl-A t` shows a table
//! of where the time goes ([`Top`]) in place of any console, `Ctrl-A d` asks for the trace, `Ctrl-A ?` lists the keys.
//!
//! A guest writes into a [`Ring`] of its own, and touches nothing that others use; the CPU of the serial line takes what
//! has come, of each guest its part ([`Mux::take_output`]).
//!
//! Invariants. Output is bounded: guests may fill [`OUTPUT_BYTES`] less [`RESERVED_BYTES`], and less half of that with what
//! a guest said just before its end; what has no room stays in the rings, and guests wait when these are full. Only
//! Caisson's own words use the rest. Where several are shown, nothing that a guest writes can move the cursor or
//! pass for another's line ([`Filter`]). After [`Mux::add_guest`] no guest's byte allocates.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod filter;
mod history;
mod keys;
mod mux;
mod ring;
mod table;
mod top;

#[cfg(test)]
mod tests;

pub use filter::Filter;
pub use history::{HISTORY_BYTES, Piece};
pub use mux::{
    INPUT_BYTES, LINE_BYTES, LOG_NAME, Mux, OUTPUT_BYTES, RESERVED_BYTES, Shown, TAKEN_AT_ONCE, log_prefix,
};
pub use ring::{RING_BYTES, Ring};
pub use top::{DomainSnapshot, Snapshot, Top, VcpuSnapshot};
