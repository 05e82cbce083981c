//! The legacy devices of a PC, as a guest finds them behind its I/O ports: pure state machines on virtual time.
//!
//! Invariants:
//! - A device never asks for the time; it is told, and a time earlier than one told before changes nothing.
//! - Every port and every value is legal input. Nothing here panics, allocates or loops longer than its registers
//!   are many.
//! - A port with nothing behind it reads all ones and ignores writes.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod rate;

pub mod chipset;
pub mod pci;
pub mod pit;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod uart;

pub use chipset::{Chipset, Effect};
pub use pci::PciConfig;
pub use pit::Pit;
pub use pm::PowerManagement;
pub use reset::ResetControl;
pub use rtc::Rtc;
pub use uart::Uart;
