//! What a guest sees of the CPU, as data: its CPUID leaves, its MSRs, the bits that it may set in control registers,
//! and the clock that Caisson shares with it.
//!
//! One rule stands behind all of it: *what the CPU has and Caisson can carry, and nothing that lets a guest see or
//! touch what it should not*. A CPUID bit, an MSR or a control-register bit that no table names is hidden, answered
//! with #GP, or reserved. So a new CPU's new feature stays invisible until someone has thought about it and written
//! the row.
//!
//! - [`cpuid`]: the table made for a domain when it is created, and the look-up on the exit path;
//! - [`limits`]: what follows from that table for CR0, CR4, EFER, XCR0 and the physical-address width;
//! - [`msr`]: the class of every MSR, and the registers that are plain storage;
//! - [`pvclock`]: the KVM clock's arithmetic and structures, which are Caisson's own clock for the domain too;
//! - [`steal`]: KVM's record of stolen time and of who is preempted.
//!
//! Pure: nothing here executes CPUID, RDMSR or any other privileged instruction, and nothing allocates.

#![no_std]
#![forbid(unsafe_code)]

use core::fmt;

pub mod cpuid;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod limits;
pub mod msr;
pub mod pvclock;
pub mod steal;

pub use cpuid::{CpuidResult, CpuidSetup, CpuidTable, Dynamic, HostCaps, Paravirt, Topology, Vendor};
pub use limits::Limits;
pub use msr::{Effect, MsrClass, MsrSetup, MsrState};
pub use steal::StealTime;

/// The guest did what real hardware answers with #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

impl fmt::Display for GeneralProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest used a register or value that this virtual CPU does not have: it gets #GP(0)")
    }
}
