//! The contract between Caisson and the virtualisation hardware of either vendor.
//!
//! A backend (the `svm` crate; `vmx` next to it) turns the CPU's raw exit into one neutral [`Exit`], and gives access
//! to the guest's registers through [`VcpuState`]. The core answers each exit by changing that state. No vendor's word
//! leaks above this crate.
//!
//! Pure: the traits and the data; the raw-exit decoders are here as well ([`svm`], [`vmx`]), so that golden tables can
//! be tested on any host.

#![no_std]
#![forbid(unsafe_code)]

mod backend;
mod class;
mod event;
mod exit;
mod state;
pub mod svm;
pub mod vmx;

pub use backend::{
    ApicPlace, Backend, EnableError, InterruptWindow, MsrPassthrough, Policy, Refusal, Vcpu, VcpuSetup,
    WriteTrace,
};
pub use class::ExitClass;
pub use event::Event;
pub use exit::{DebugAccess, Direction, Exit, IoExit, NestedFault, TaskSwitch, TaskSwitchSource};
pub use state::VcpuState;
