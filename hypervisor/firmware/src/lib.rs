//! What firmware would leave in a guest's memory: the memory map, ACPI tables, an MP table and the BIOS data area.
//!
//! There is no firmware in the virtual machine. A guest is started by its loader in the mode that its boot protocol
//! names, and finds here what a PC's firmware would have told it. It finds no BIOS services: the interrupt vector table
//! is zero, and so a real-mode guest that calls the BIOS runs into nowhere.
//!
//! The addresses below 1 MiB:
//!
//! | from | holds |
//! |---|---|
//! | `0x400` | BIOS data area |
//! | `0x9FC00` | extended BIOS data area, 1 KiB |
//! | `0xE0000` | RSDP (as old kernels search for it), then the other ACPI tables |
//! | `0xF0000` | MP floating pointer and configuration table |
//!
//! The tables tell of the devices of `caisson-devices` and take their addresses from there.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acpi;
mod bda;
mod layout;
mod map;
mod mp;
mod real;
mod tables;

pub use layout::{
    DEFAULT_HOLE, EcamRange, GuestLayout, IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS, LayoutError, MAX_VIRTIO,
    PRIVATE_GRANULE, RealMachine, SourceOverride, VIRTIO_ADDRESS, virtio_pin,
};
pub use real::real_memory_map;
pub use tables::{Blob, InstallError, RSDP, Tables, build, install};
