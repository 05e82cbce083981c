//! The physical machine: everything below virtualisation that touches hardware.
//!
//! `unsafe` stands here, each block with its reason; the interfaces are safe to use. Two rules hold it together:
//!
//! - Interrupts are off on a CPU except where [`cpu::wait_for_interrupt`] and [`cpu::take_interrupts`] open them.
//!   Handlers set bits of the CPU's own data ([`percpu`]) and touch nothing else, so that no lock is ever taken by
//!   one.
//! - RAM is reached through the direct map ([`memory`]), whose frames each have one owner. Guest frames are never
//!   behind a Rust reference: they are copied from and to.

#![no_std]
#![allow(unsafe_code)]

extern crate alloc;

pub mod acpi;
// On a host no processor is started.
#[cfg_attr(not(target_os = "none"), allow(dead_code, unused_imports))]
pub mod ap;
pub mod apic;
pub mod clock;
pub mod context;
pub mod cpu;
pub mod crash;
pub mod device;
pub mod exit_device;
pub mod gdt;
pub mod ioapic;
pub mod iommu;
pub mod ipi;
pub mod memory;
pub mod paging;
pub mod pci;
pub mod percpu;
pub mod pic;
pub mod power;
pub mod random;
pub mod screen;
pub mod serial;
// On a host there are no stubs that call it: only the tests of other modules run there.
#[cfg_attr(not(target_os = "none"), allow(dead_code, unused_imports))]
pub mod trap;
