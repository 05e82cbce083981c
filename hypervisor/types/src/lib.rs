//! The words that every other crate of Caisson speaks: addresses of three kinds that cannot be mixed up, page
//! sizes, ids, guest memory as a trait and as pieces, and virtual time.
//!
//! Pure: no `unsafe`, no hardware, no allocation.

#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod extent;
mod id;
mod memory;
mod region;
mod time;

pub use addr::{Gpa, Gva, Hpa, PAGE_SIZE, PageSize};
pub use extent::{Extent, granted};
pub use id::{DomainId, VcpuId};
pub use memory::{GuestMemory, MemoryError, SliceMemory};
pub use region::{MemoryRegion, RegionKind};
pub use time::{Instant, Moment, TICKS_NEVER, ticks_at};
