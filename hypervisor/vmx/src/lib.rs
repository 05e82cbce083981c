//! Intel VT-x behind the contract of `caisson-hwvirt` (SDM vol. 3, chapters 24 to 29).
//!
//! | file | what |
//! |---|---|
//! | `apic.rs` | the virtual local APIC: its page, delivery out of it, what of it exits |
//! | `caps.rs` | capability MSRs: what every control is set to |
//! | `enable.rs` | turning VMX on, what every vCPU shares: controls, MSR bitmap, host state |
//! | `vmcs.rs` | VMREAD, VMWRITE, which VMCS is current, registers cached between entry and exit |
//! | `vcpu.rs` | a vCPU: VMCS, registers, [`caisson_hwvirt::VcpuState`] |
//! | `run.rs` | the world switch and what an exit needs at once |
//! | `event.rs` | injection, windows, NMI blocking |
//! | `control.rs` | CR0 and CR4 between guest, mask and shadow |
//! | `context.rs` | SYSCALL MSRs, CR2, DR6: what is swapped at a vCPU switch |
//! | `msr.rs` | MSRs that the VMCS or the switch carries |
//! | `log.rs` | the log of pages that the guest has written |
//! | `vpid.rs` | virtual-processor ids, INVVPID and INVEPT |
//!
//! The files carry the names of the `svm` crate's where they do the same. Nothing here allocates, logs or locks once a
//! vCPU runs.

#![no_std]
#![allow(unsafe_code)]

extern crate alloc;

mod apic;
mod backstop;
mod caps;
mod context;
mod control;
mod enable;
mod event;
mod log;
mod msr;
mod run;
mod vcpu;
mod vmcs;
mod vpid;

pub use enable::Vmx;
pub use vcpu::VmxVcpu;
