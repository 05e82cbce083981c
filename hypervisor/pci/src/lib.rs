//! PCI functions that a domain owns.
//!
//! [`probe`] tells what a function is, from its configuration space: its base address registers, and the capabilities that
//! Caisson has to know. A domain that owns functions sees them through a [`Bus`] of [`View`]s: at the host's addresses, with
//! the host's contents, but for what is not its own to decide:
//!
//! - base address registers tell where the firmware has put the function's registers, and take only the values that sizing
//!   writes; the real ones never change;
//! - messages of interrupts (MSI, MSI-X) are the domain's in its view, and Caisson's in the hardware ([`Hardware::route`]);
//! - capabilities that reach beyond the function, such as address translation services and virtual functions, are not there;
//! - chipset functions (host and ISA bridges) can be read and not written; bridges keep their bus numbers and windows.
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
mod bus;
mod function;
mod message;
mod own;
mod registers;
mod view;

pub use address::{Address, ConfigSpace};
pub use bus::{Bus, EXPRESS_FUNCTION_BYTES, PORTS};
pub use function::{Bar, BarKind, Function, HeaderKind, Msi, Msix, direct_memory, probe, scan};
pub use message::{Message, Source};
pub use own::{OWN_BYTES, OWN_ID, Own};
pub use view::{Hardware, LINES, LineMode, View};

#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
#[cfg(test)]
mod tests;
