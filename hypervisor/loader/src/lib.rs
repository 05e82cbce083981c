//! Guest loaders: they put a kernel and what belongs to it into guest RAM, and say in which state the boot vCPU enters
//! it.
//!
//! | kind | specification | entry |
//! |---|---|---|
//! | [`bzimage`] | The Linux/x86 Boot Protocol, versions 2.00 to 2.15 | 64-bit where the kernel has it, or 32-bit |
//! | [`pvh`] | Xen x86/HVM direct boot ABI (PVH), ELF32 and ELF64 | 32-bit |
//! | [`multiboot1`] | Multiboot Specification 0.6.96, ELF32, ELF64, a.out kludge | 32-bit |
//!
//! An image is as hostile as the guest that it becomes. Invariants:
//!
//! - Only the guest's RAM is written, and of that nothing that the request reserves.
//! - No two parts overlap: segments, modules, tables and strings are placed against one list of what is taken.
//! - Time and stack are bounded by the lengths of image and request, whatever the image's headers say.
//! - Nothing panics and nothing is allocated.
//!
//! A failed load may have written to the guest's memory; the domain must not be started.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fuzzing"))]
extern crate alloc;

mod bytes;
pub mod bzimage;
mod elf;
mod entry;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod multiboot1;
mod place;
pub mod pvh;
mod request;
#[cfg(test)]
mod testing;
mod writer;

use caisson_types::GuestMemory;

pub use entry::{EntryMode, EntryState};
pub use error::LoadError;
pub use request::{LoadRequest, Module};

/// The most segments that an image may have. Linux has about five.
pub const MAX_SEGMENTS: usize = 64;

/// The protocols by which a kernel can be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A Linux bzImage.
    Linux,
    /// An ELF image with a PVH entry.
    Pvh,
    /// A multiboot1 kernel.
    Multiboot1,
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux bzImage",
            Self::Pvh => "PVH ELF",
            Self::Multiboot1 => "multiboot1",
        })
    }
}

/// What kind of image this is, by what it announces. An ELF image with both a PVH entry and a multiboot1 header is
/// taken for PVH, which is made for virtual machines.
#[must_use]
pub fn detect(image: &[u8]) -> Option<Kind> {
    if bzimage::is_bzimage(image) {
        Some(Kind::Linux)
    } else if pvh::is_pvh(image) {
        Some(Kind::Pvh)
    } else if multiboot1::is_multiboot1(image) {
        Some(Kind::Multiboot1)
    } else {
        None
    }
}

/// What kind of image this is, or why it is none that can be loaded.
fn recognise(image: &[u8]) -> Result<Kind, LoadError> {
    match detect(image) {
        Some(kind) => Ok(kind),
        None if elf::is_elf(image) => {
            // A note that the image does not hold any more is no note: what is missing has more to say.
            elf::Elf::parse(image)?.check()?;
            Err(LoadError::PlainElf)
        }
        None => Err(LoadError::UnknownImage),
    }
}

/// Checks what can be known of an image without a guest: that it is of the given kind, or of any, and that its headers
/// agree with each other and with its length. What passes here can fail to load only for want of RAM where it belongs.
///
/// # Errors
/// What the loader of that kind would say; see [`load`].
pub fn check(kind: Option<Kind>, image: &[u8]) -> Result<Kind, LoadError> {
    let kind = kind.map_or_else(|| recognise(image), Ok)?;
    match kind {
        Kind::Linux => bzimage::check(image)?,
        Kind::Pvh => pvh::check(image)?,
        Kind::Multiboot1 => multiboot1::check(image)?,
    }
    Ok(kind)
}

/// Loads an image of the kind that [`detect`] finds.
///
/// # Errors
/// [`LoadError::UnknownImage`] or [`LoadError::PlainElf`] where it finds none, what is wrong with the headers of an ELF
/// file that is damaged, else what the loader of that kind says.
pub fn load(
    image: &[u8],
    request: &LoadRequest<'_>,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    load_as(recognise(image)?, image, request, memory)
}

/// Loads an image of the given kind.
///
/// # Errors
/// What the loader of that kind says; [`LoadError::NotThis`] where the image is of another kind.
pub fn load_as(
    kind: Kind,
    image: &[u8],
    request: &LoadRequest<'_>,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    match kind {
        Kind::Linux => bzimage::load(image, request, memory),
        Kind::Pvh => pvh::load(image, request, memory),
        Kind::Multiboot1 => multiboot1::load(image, request, memory),
    }
}
