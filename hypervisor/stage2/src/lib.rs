//! Stage-2 page tables: what a guest takes for physical memory, mapped to the machine's; for its CPUs, and for its
//! devices.
//!
//! One engine, [`Stage2`], over four formats: [`Npt`] (AMD APM vol. 2, 15.25 "Nested Paging") and [`Ept`]
//! (Intel SDM vol. 3, 29.3 "The Extended Page Table Mechanism") for CPUs, [`AmdVi`] and [`Vtd`] for IOMMUs. All are
//! trees of 4 KiB tables with 512 entries of 8 bytes, 3 to 5 levels deep; the format says what the entries' bits mean. Table pages are
//! reached through [`TableMemory`], so that the engine is pure and can be tested against a memory that
//! remembers every write.
//!
//! # Invariants
//!
//! - **No intermediate state shows a wrong mapping.** Other CPUs may walk the tables at any time. A new table is
//!   filled before it is linked, and each change to what is linked is one 64-bit write, after which every page
//!   translates as before the operation or as after it, never to anything else. So a large leaf is split without
//!   being taken away in between: x86 allows either translation until the flush, and both are the same where the
//!   operation changes nothing.
//! - **An operation that fails has changed nothing.** All tables that it needs are counted and allocated before the
//!   first write to a linked table.
//! - **No table but the root is empty**; a table is unlinked as soon as its last entry goes.
//! - **An unlinked table is not reused before the flush.** CPUs cache pointers to tables. Unlinked tables are kept
//!   until [`Stage2::flushed`] says that the returned [`Flush`] was carried out on every CPU.
//! - Accessed and dirty bits are never lost: where they cannot be kept exactly (new and split leaves) they are set.
//!
//! # What is left to the machine
//!
//! Scrubbing tables that are freed if free memory is to read as zero (they hold what they held), carrying out
//! the flush, and synchronisation: changes take `&mut`, and a walk that runs beside a change sees each entry
//! before or after its write if [`TableMemory`] reads and writes whole words. Intel processors on which a
//! change of an instruction page's size may end in a machine check (INTEL-SA-00210) need
//! [`Config::largest_leaf`] to be 4 KiB.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod amdvi;
mod cut;
mod ept;
mod error;
mod format;
mod harvest;
mod map;
mod npt;
mod resize;
mod stage2;
mod table;
mod vtd;
mod writes;

#[cfg(any(test, feature = "fuzzing"))]
mod model;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzzing"))]
pub use model::drive;

pub use amdvi::AmdVi;
pub use ept::Ept;
pub use error::Error;
pub use format::{Format, MemoryType, Permissions};
pub use harvest::Trace;
pub use npt::Npt;
pub use stage2::{Config, Flush, Levels, Stage2, Translation};
pub use table::{ENTRIES, TableMemory};
pub use vtd::Vtd;
pub use writes::{CHUNK_BYTES, Marks, WriteLog};
