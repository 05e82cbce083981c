//! PCI functions that a domain owns.
//!
//! [`probe`] tells what a function is, from its configuration space: its base address registers, and the capabilities that
//! Caisson has to know. A domain that owns functions sees them through a [`Bus`] of [`View`]s: at the host's addresses, with
//! the host's contents, but for what is not its own to decide:
//!
//! - base address registers tell where the firmware has put the function's registers, and take only the values that sizing
//!   writes; the real ones never change, but that they are set again after a reset;
//! - messages of interrupts (MSI, MSI-X) are the domain's in its view, and Caisson's in the hardware ([`Hardware::route`]);
//! - capabilities that reach beyond the function, such as address translation services and virtual functions, are not there;
//! - bridges and what is the mainboard's ([`Function::is_mainboard`]) can be read and not written.
//!
//! What functions decode is checked first ([`settle`]): nobody reaches memory or ports that something else has a part in. Of the
//! rest an owner reaches whole pages by itself ([`Layout`]).
//!
//! Beside them it finds one that is Caisson's own ([`Own`]), to talk to Caisson through.
//!
//! Everything that a domain writes is hostile. No access fails, blocks or takes longer than its function has registers.
//!
//! Manuals: PCI Local Bus Specification 3.0 (chapter 6), PCI Express Base Specification 4.0 (chapter 7), PCI-to-PCI Bridge
//! Architecture Specification 1.2.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
mod bars;
mod bridges;
mod bus;
mod capabilities;
mod function;
mod layout;
mod message;
mod own;
mod owners;
mod registers;
mod reset;
mod view;

pub use address::{Address, ConfigSpace};
pub use bars::{Bar, BarKind};
pub use bridges::open_bridges;
pub use bus::{Bus, EXPRESS_FUNCTION_BYTES, PORTS};
pub use function::{Function, HeaderKind, Msi, Msix, Power, probe, scan};
pub use layout::{Collision, Layout, Reserved, settle};
pub use message::{Message, Source};
pub use own::{OWN_BYTES, OWN_ID, Own};
pub use owners::{Choice, OwnerError, Owners};
pub use reset::{LONGEST, Method, Reset, Step, Tally};
pub use view::{Hardware, LINES, LineMode, Role, View};

#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
#[cfg(test)]
mod tests;
