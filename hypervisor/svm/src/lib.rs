//! AMD-V behind the contract of `caisson-hwvirt` (APM vol. 2, chapter 15).
//!
//! | file | what |
//! |---|---|
//! | `enable.rs` | turning SVM on, what every vCPU shares: permission maps, host save area |
//! | `vcpu.rs` | a vCPU: VMCB, registers, [`caisson_hwvirt::VcpuState`] |
//! | `run.rs` | the world switch and what an exit needs at once |
//! | `event.rs` | injection, windows, NMI blocking |
//! | `msr.rs` | MSRs that the VMCB or the switch carries |
//! | `asid.rs` | address-space ids |
//!
//! What is swapped at a vCPU switch is `caisson_machine::context`. Nothing here allocates, logs or locks once a vCPU runs.

#![no_std]
#![allow(unsafe_code)]

extern crate alloc;

mod asid;
mod enable;
mod event;
mod msr;
mod run;
mod vcpu;

pub use enable::Svm;
pub use vcpu::SvmVcpu;
