//! One serial line for all consoles.
//!
//! [`Mux`] stands between the machine's serial line, the guests' serial ports and Caisson's log. Where several consoles
//! are shown, each line carries its owner's name; a selected one is shown raw, and gets what is typed. `Ctrl-A c` goes to
//! the next: all, each guest with a console, Caisson's log. `Ctrl-A a` sends a Ctrl-A to the guest. `Ctrl-A t` shows a table
//! of where the time goes ([`Top`]) in place of any console, `Ctrl-A d` asks for the trace, `Ctrl-A ?` lists the keys.
//!
//! Invariants. Output is bounded: guests may fill [`OUTPUT_BYTES`] less [`RESERVED_BYTES`], and are told to wait then;
//! only Caisson's own words use the rest. Where several are shown, nothing that a guest writes can move the cursor or
//! pass for another's line ([`Filter`]). After [`Mux::add_guest`] no guest's byte allocates.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod filter;
mod keys;
mod mux;
mod table;
mod top;

#[cfg(test)]
mod tests;

pub use filter::Filter;
pub use mux::{INPUT_BYTES, LINE_BYTES, LOG_NAME, Mux, OUTPUT_BYTES, RESERVED_BYTES, Shown, log_prefix};
pub use top::{DomainSnapshot, Snapshot, Top, VcpuSnapshot};
