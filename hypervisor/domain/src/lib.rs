//! Domains and their vCPUs, above the hardware and below the scheduler.
//!
//! A [`Domain`] is what its vCPUs share: memory, chipset, CPUID table, clock, the routing of interrupts. A
//! [`VirtualCpu`] is one vCPU: the hardware's part (`V`, a [`caisson_hwvirt::Vcpu`]), its local APIC and MSRs. The run
//! loop of the core is, for each vCPU,
//!
//! ```text
//! loop { vcpu.prepare(domain, host);  let raw = vcpu.hw.run();  vcpu.answer(domain, host, raw) }
//! ```
//!
//! [`VirtualCpu::prepare`] puts waiting events into the hardware, [`VirtualCpu::answer`] is the dispatcher: one match, a
//! module a class of exit (`exit/`). Pure: generic over the hardware and over guest memory, so that both run on any host
//! in tests.
//!
//! Invariants: the exit path allocates nothing, logs nothing, and takes no lock but the chipset's, which is the
//! domain's own. What a guest does wrong is answered as hardware would, or ends that guest alone ([`Ended`]).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod build;
mod clock;
mod domain;
mod door;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod interrupt;
mod paravirt;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
#[cfg(test)]
mod tests;
mod vcpu;
mod virtio;

pub use build::{BuildError, Image, Module, load};
pub use clock::{DomainClock, TscScale};
pub use domain::{CPU_APIC_KHZ, Domain, DomainSetup, Host};
pub use vcpu::{Ended, KillReason, Outcome, Readiness, RunState, VirtualCpu};
pub use virtio::{VirtioDevice, description};
