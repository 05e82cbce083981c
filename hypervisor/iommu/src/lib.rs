//! IOMMUs: what memory each device reaches.
//!
//! A machine has some *units*, each with devices behind it. A *DMA domain* is an address space for devices: tables that say
//! which memory is where, and who may write it. A device is *attached* to one domain, or blocked. Two vendors make units,
//! [`Vtd`] (Intel) and [`AmdVi`] (AMD), behind one contract, [`Unit`]; [`Iommus`] is all units of a machine with their domains,
//! and [`Iommu`] the same without a vendor's name. The tables are those of [`caisson_stage2`], in two more formats.
//!
//! # Invariants
//!
//! - **From [`Iommus::enable`] on, what nobody attached reaches nothing**, but for memory that the firmware has reserved for
//!   it, which devices find in every domain.
//! - **When [`Iommu::unmap`] or [`Iommu::detach`] has returned `Ok`, no device uses what it took away**: the units say that
//!   they have forgotten it, and tables are freed only then.
//! - **Nothing waits without end.** A unit that does not answer within [`PATIENCE`] is broken: that call and all later ones
//!   fail, and what the unit may still use is never used again.
//!
//! Manuals: Intel Virtualization Technology for Directed I/O 4.1 (legacy mode), AMD I/O Virtualization Technology (IOMMU)
//! Specification 3.10.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "fuzzing"))]
extern crate std;

mod amdvi;
mod bytes;
mod dmar;
mod domains;
mod ivrs;
mod place;
mod unit;
mod vtd;

#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use core::fmt;

pub use amdvi::AmdVi;
pub use dmar::{DeviceScope, Dmar, Drhd, ReservedRegion};
pub use domains::{Iommu, Iommus};
pub use ivrs::{Ivhd, IvhdDevices, Ivmd, Ivrs};
pub use place::{Bridge, BridgeKind, Coverage, DeviceRange, Reserved, requesters};
pub use unit::{
    Error, Fault, FaultKind, Hardware, INTERRUPTS, Interrupt, Memory, Message, PATIENCE, Sender, Shape, Tag,
    Unit,
};
pub use vtd::Vtd;

/// An ACPI table that contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// It is another table.
    Signature,
    /// It is shorter than it says.
    Truncated,
    /// Its bytes have the wrong sum.
    Checksum,
    /// A structure in it is shorter or longer than what it is part of.
    Length,
    /// An address in it is impossible.
    Address,
    /// A range of devices in it has no start or no end.
    Range,
    /// It names no unit.
    NoUnit,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "another table stands in its place",
            Self::Truncated => "it is shorter than it says",
            Self::Checksum => "its checksum is wrong",
            Self::Length => "a structure in it has an impossible length",
            Self::Address => "an address in it is impossible",
            Self::Range => "a range of devices in it has no start or no end",
            Self::NoUnit => "it names no unit",
        })
    }
}
