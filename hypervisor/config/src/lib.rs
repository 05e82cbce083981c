//! The config blob: what domains a machine runs, with the kernels and modules that they start from, in one file.
//!
//! A TOML text (module `source`, host only) is compiled by `build` into a blob, which the boot loader hands to the
//! hypervisor as a multiboot2 module. [`Blob::parse`] is the one gate: host tools and hypervisor call the same code,
//! and what it lets through has been checked to the last byte. It borrows from the blob and never allocates.
//!
//! # Format, version 6
//!
//! All integers are little-endian. Offsets of payloads count from the start of the blob, offsets of text from the
//! start of the text section. Everything reserved is zero.
//!
//! | part | size | content |
//! |---|---|---|
//! | header | 96 | [magic](MAGIC), version, lengths, counts, machine settings, SHA-256 |
//! | domain records | 124 each | one per domain, in the order of their start |
//! | module records | 16 each | all modules of domain 0, then those of domain 1, … |
//! | payload records | 64 each | name, offset, length, SHA-256 of each payload |
//! | pool records | 32 each | one per CPU pool |
//! | device records | 24 each | all devices of domain 0 that another domain serves, then those of domain 1, … |
//! | text | as counted | names, command lines and parameters, UTF-8, not terminated |
//! | padding | to 4096 | zeros |
//! | payloads | each padded to 4096 | in the order of their records, without gaps |
//!
//! | header at | type | field |
//! |---|---|---|
//! | 0 | 8 bytes | magic, `CAISSON` and byte 0x1A |
//! | 8 | u32 | version, 6 |
//! | 12 | u32 | pools |
//! | 16 | u64 | bytes in the whole blob, a multiple of 4096 |
//! | 24 | u64 | bytes before the first payload, a multiple of 4096 |
//! | 32 | 4 × u32 | domains, modules, payloads, bytes of text |
//! | 48 | u8 | console shown after boot: 0 all, 1 Caisson's log, 2 a domain |
//! | 49 | u8 | log level: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace |
//! | 50 | u16 | reserved |
//! | 52 | u32 | the domain whose console is shown, or 0 |
//! | 56 | u32 | devices |
//! | 60 | u32 | reserved |
//! | 64 | 32 bytes | SHA-256 of all bytes before the first payload, these 32 taken as zeros |
//!
//! | domain record at | type | field |
//! |---|---|---|
//! | 0 | text | name |
//! | 8 | text | command line of the kernel |
//! | 16 | u64 | bytes of memory |
//! | 24 | u16 | vCPUs |
//! | 26 | u8 | loader: 0 by the image, 1 Linux bzImage, 2 PVH, 3 multiboot1 |
//! | 27 | u8 | console: 0 none, 1 serial |
//! | 28 | 3 × u8 | on power-off, on reboot, on crash: 0 destroy, 1 restart |
//! | 31 | u8 | 1: with a source of random numbers that Caisson serves, 0: without |
//! | 32 | u32 | restarts before the domain is destroyed after all; 0xffff_ffff for no limit |
//! | 36 | u32 | payload of the kernel |
//! | 40 | 2 × u32 | first module record, number of module records |
//! | 48 | text | CPUs that it may run on; empty: all of its pool |
//! | 56 | text | CPUs where it should run; empty: no preference |
//! | 64 | u32 | weight |
//! | 68 | u32 | cap in percent of a CPU, or 0 |
//! | 72 | 2 × u32 | warp and its limit, in µs |
//! | 80 | 2 × u32 | period and slice of the reservation in µs, or 0 |
//! | 88 | u16 | pool |
//! | 90 | u8 | extra time beside the reservation: 0 no, 1 yes |
//! | 91 | u8 | reserved |
//! | 92 | u32 | kHz of the TSC; 0 for the host's |
//! | 96 | u32 | privileges, a bit each: 0 events, 1 control, 2 io-backend |
//! | 100 | 2 × u32 | first device record, number of device records |
//! | 108 | text | PCI functions of the machine that it owns: addresses such as `0000:00:03.0`, rising, between them commas; `all`; empty: none |
//! | 116 | u64 | bytes of memory, the last ones, that no other domain sees |
//!
//! | pool record at | type | field |
//! |---|---|---|
//! | 0 | text | name |
//! | 8 | text | CPUs; empty, in the pool `default` only: all that no other has |
//! | 16 | u32 | quantum in µs; 0: the pool is the machine's, and no more than its name is told |
//! | 20 | u8 | policy: 0 BVT, 1 SEDF |
//! | 21 | 11 bytes | reserved |
//!
//! | device record at | type | field |
//! |---|---|---|
//! | 0 | u32 | virtio device type: 1 network, 2 disk, 3 port, 4 entropy, 26 share |
//! | 4 | u32 | the domain that serves it, an earlier one; 0xffff_ffff for one that the blob does not describe |
//! | 8 | text | parameters for that domain: lines `key=value`, each ended by a newline, at most 1024 bytes |
//! | 16 | text | the name of a domain that the blob does not describe; empty: the one that makes this one |
//!
//! A *text* is two u32: offset and length. A module record is a payload number, a reserved u32 and a text, the
//! module's command line. A payload record is offset and length (u64), the text of its name, a reserved u64 and the
//! SHA-256 of its bytes.
//!
//! The checksums tell damage, not malice: who can write the blob decides what the machine runs.
//!
//! # Invariants
//!
//! - A [`Blob`] that exists satisfies every rule; its accessors cannot fail.
//! - No part overlaps another, no gap lies between payloads, no byte goes unchecked: a blob with any bit flipped, any
//!   byte removed or any byte added is refused.
//! - Every refusal is one line that names field and value and says what to change.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(feature = "build", test))]
extern crate alloc;
#[cfg(feature = "build")]
extern crate std;

mod admission;
mod blob;
#[cfg(feature = "build")]
mod build;
mod cpus;
mod error;
mod functions;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod layout;
mod pools;
mod private;
mod rules;
mod schedule;
mod settings;
mod show;
#[cfg(feature = "build")]
pub mod source;
#[cfg(test)]
mod tests;
mod virtio;

pub use blob::{Blob, DeviceBackend, Domain, MAX_LATER_TABLES, Module, Payload, VirtioDevice};
#[cfg(feature = "build")]
pub use build::{BuildError, build};
pub use cpus::{CpuList, CpuSet, MAX_CPU};
pub use error::{BlobError, Field, NamedFile, Reason, Size, Time};
pub use functions::{FunctionList, Functions, MAX_FUNCTIONS, PciAddress};
pub use layout::{MAGIC, VERSION};
pub use pools::{
    DEFAULT_POOL, MAX_CAP, MAX_POOLS, MAX_TIME, MAX_WEIGHT, MIN_TIME, Pool, QUANTUM, RESERVABLE, WARP_PERIOD,
};
pub use private::{MIN_SHARED, PRIVATE_GRANULE, PrivateReason};
pub use rules::{
    ADDRESS_OVERHEAD, MAX_CMDLINE, MAX_DOMAINS, MAX_MEMORY, MAX_MODULES, MAX_NAME, MAX_REFERENCE,
    MAX_TSC_KHZ, MAX_VCPUS, MEMORY_GRANULE, MIN_MEMORY, MIN_TSC_KHZ, MachineLimits, RESERVED_NAMES,
};
pub use schedule::CAP_WINDOW;
pub use settings::{
    Console, Contract, DeviceKind, DiskFormat, LoaderKind, LogLevel, MachineSettings, OnExit, OnExitAction,
    PoolPolicy, Purpose, ReservedTime, SelectedConsole,
};
pub use show::{Show, show};
pub use virtio::{
    DeviceReason, MAX_DEVICES, MAX_INTERFACE, MAX_LABEL, MAX_PARAMETERS, MAX_PATH, MAX_QUEUES, MAX_SERIAL,
    MAX_VLAN, MIN_RATE, PRIVILEGE_WORDS,
};

/// Payloads start at multiples of this many bytes, so that they can be mapped where they lie.
pub const PAYLOAD_ALIGN: u64 = 4096;
