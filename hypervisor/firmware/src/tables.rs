//! All the pieces, each at its address, and their way into guest memory.

use alloc::vec::Vec;
use core::fmt;

use caisson_types::{Gpa, GuestMemory, MemoryError};

use crate::map::{EBDA, EXTENDED, FIRMWARE};
use crate::{GuestLayout, LayoutError, acpi, bda, mp};

/// Where the ACPI root pointer is: for boot protocols that name it, and where kernels search for it.
pub const RSDP: Gpa = Gpa::new(FIRMWARE);

/// Where the MP floating pointer is, in the range that kernels search.
const MP_POINTER: u64 = 0xF_0000;

/// A piece of what firmware leaves in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// Its name: an ACPI signature, or what it is.
    pub name: &'static str,
    /// Its guest-physical address.
    pub gpa: Gpa,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Everything that firmware leaves in a guest's memory. The pieces lie in ranges that the memory map does not offer as
/// RAM (but for the BIOS data area at 0x400), and do not overlap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables {
    /// The pieces.
    pub blobs: Vec<Blob>,
}

/// Why the tables did not get into a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstallError {
    /// The description is wrong.
    Layout(LayoutError),
    /// Guest memory does not reach where a piece belongs.
    Memory(MemoryError),
}

impl From<LayoutError> for InstallError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<MemoryError> for InstallError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(error) => error.fmt(f),
            Self::Memory(error) => write!(f, "cannot place the firmware tables: {error}"),
        }
    }
}

impl Tables {
    /// Copies the pieces into guest memory.
    ///
    /// # Errors
    /// [`MemoryError`] where a piece's place is not RAM.
    pub fn install<M: GuestMemory>(&self, memory: &M) -> Result<(), MemoryError> {
        self.blobs.iter().try_for_each(|blob| memory.write(blob.gpa, &blob.bytes))
    }
}

/// Makes what firmware would leave in the memory of the machine `layout`.
///
/// # Errors
/// [`LayoutError`] for a description that is none of a machine.
pub fn build(layout: &GuestLayout<'_>) -> Result<Tables, LayoutError> {
    layout.check()?;
    let mut blobs = Vec::new();
    let mut add = |name, address, bytes| blobs.push(Blob { name, gpa: Gpa::new(address), bytes });
    add("BIOS data area", bda::BDA, bda::bios_data_area());
    add("extended BIOS data area", EBDA, bda::extended_bios_data_area());
    let mut acpi_end = FIRMWARE;
    let (acpi_start, room) =
        layout.real.map_or((FIRMWARE, MP_POINTER - FIRMWARE), |real| (real.acpi.0.as_u64(), real.acpi.1));
    for table in acpi::tables(layout, acpi_start) {
        acpi_end = acpi_end.max(table.address + table.bytes.len() as u64);
        add(table.name, table.address, table.bytes);
    }
    if layout.real.is_some() && acpi_end - acpi_start > room {
        return Err(LayoutError::NoRoomForAcpi(acpi_end - acpi_start - room));
    }
    let mp_table = MP_POINTER + 16;
    let configuration = mp::configuration_table(layout);
    let mp_end = mp_table + configuration.len() as u64;
    add("MP floating pointer", MP_POINTER, mp::floating_pointer(mp_table as u32));
    add("MP configuration table", mp_table, configuration);
    if layout.real.is_none() && acpi_end > MP_POINTER || mp_end > EXTENDED {
        return Err(LayoutError::TooManyVcpus(layout.apic_ids.len()));
    }
    Ok(Tables { blobs })
}

/// Makes the tables for `layout` and copies them into `memory`. Answers where the ACPI root pointer is.
///
/// # Errors
/// [`InstallError`] when the description is wrong or memory does not reach that far.
pub fn install<M: GuestMemory>(layout: &GuestLayout<'_>, memory: &M) -> Result<Gpa, InstallError> {
    build(layout)?.install(memory)?;
    Ok(layout.real.map_or(RSDP, |real| real.acpi.0))
}

/// The byte that makes the sum of `bytes` and itself zero.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

#[cfg(test)]
mod tests;
