//! Definitions of the x86-64 architecture that Caisson's other crates share: registers, segments, exceptions, MSRs,
//! CPUID feature bits, the VMCB and exit codes of AMD-V (in [`svm`]), and the VMCS and exit reasons of VT-x (in [`vmx`]).
//!
//! Pure: numbers and layouts, no instruction is executed here. "SDM" is the Intel 64 and IA-32 Architectures Software
//! Developer's Manual, "APM" the AMD64 Architecture Programmer's Manual.

#![no_std]
#![forbid(unsafe_code)]

mod apic_page;
pub mod control;
pub mod exception;
pub mod msr;
mod names;
mod register;
mod segment;
pub mod svm;
pub mod vmx;

pub use apic_page::{ApicPage, TopVectors};
pub use control::{Cr0, Cr4, Efer, Rflags, Xcr0};
pub use exception::{Exception, ExceptionKind, Vector};
pub use register::{Gpr, Gprs};
pub use segment::{Attributes, CpuMode, DescriptorTable, Segment, SegmentRegister};
