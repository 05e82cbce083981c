//! ELF kernels with a PVH entry, by Xen's "x86/HVM direct boot ABI" (docs/misc/pvh.markdown and
//! public/arch-x86/hvm/start_info.h in Xen's sources).
//!
//! The note `XEN_ELFNOTE_PHYS32_ENTRY` gives the physical address of a 32-bit entry; segments are loaded at their
//! physical addresses. RBX points to `struct hvm_start_info`, version 1, with the memory map. It lies with all strings
//! in one block at 64 KiB or the next free place above; modules follow the kernel, each on a page boundary. Linux takes
//! the first module for its initial RAM disk and no other.

use caisson_types::{Gpa, GuestMemory};

use crate::elf::{self, Elf};
use crate::entry::{self, EntryMode, EntryState, GDT_LEN};
use crate::place::{Ascending, FOUR_GIB, Placement};
use crate::writer::{Record, Writer};
use crate::{LoadError, LoadRequest};

/// The owner of the note.
const OWNER: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit of the "E" set.
const START_MAGIC: u64 = 0x336E_C578;
const START_INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const REGION_LEN: usize = 24;

/// Whether an image is an ELF file with a PVH entry.
#[must_use]
pub fn is_pvh(image: &[u8]) -> bool {
    elf::is_elf(image) && Elf::parse(image).is_ok_and(|elf| entry_note(&elf).is_some())
}

/// The entry of a 4-byte note (32-bit kernels) or an 8-byte note (64-bit kernels).
fn entry_note(elf: &Elf<'_>) -> Option<u64> {
    let content = elf.note(OWNER, PHYS32_ENTRY)?;
    match *content {
        [a, b, c, d] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
        [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

/// The image's headers, and its entry.
fn parse(image: &[u8]) -> Result<(Elf<'_>, u64), LoadError> {
    let elf = Elf::parse(image)?;
    let rip = entry_note(&elf).ok_or(LoadError::NotThis("PVH ELF"))?;
    Ok((elf, rip))
}

fn check_entry(elf: &Elf<'_>, rip: u64) -> Result<(), LoadError> {
    if rip >= FOUR_GIB || !elf.holds(rip) { Err(LoadError::BadEntry(rip)) } else { Ok(()) }
}

/// Checks the headers of an image.
///
/// # Errors
/// See [`crate::check`].
pub(crate) fn check(image: &[u8]) -> Result<(), LoadError> {
    let (elf, rip) = parse(image)?;
    elf.check()?;
    check_entry(&elf, rip)
}

/// Loads an ELF kernel by its PVH entry.
///
/// # Errors
/// [`LoadError`], where the image is damaged, or does not fit into the guest's RAM with all that belongs to it.
pub fn load(
    image: &[u8],
    request: &LoadRequest<'_>,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    request.check()?;
    let (elf, rip) = parse(image)?;
    let mut placement = Placement::new(request)?;
    elf.claim(&mut placement)?;
    check_entry(&elf, rip)?;
    let info = Info::place(request, &mut placement)?;
    let modules = Ascending::modules(&placement, request, elf.end(FOUR_GIB))?;

    elf.write(memory)?;
    info.write(request, modules, memory)?;
    let state = entry::enter(EntryMode::Protected32, rip, info.gdt, memory)?;
    Ok(EntryState { rbx: info.start, ..state })
}

/// The block of start information, tables and strings.
struct Info {
    start: u64,
    modules: u64,
    regions: u64,
    gdt: u64,
    text: u64,
}

impl Info {
    fn place(request: &LoadRequest<'_>, placement: &mut Placement<'_>) -> Result<Self, LoadError> {
        let modules = START_INFO_LEN as u64;
        let regions = modules + request.modules.len() as u64 * MODULE_LEN as u64;
        let gdt = regions + request.memory_map.len() as u64 * REGION_LEN as u64;
        let text = gdt + GDT_LEN;
        let text_len = (request.cmdline.len() as u64 + 1).saturating_add(request.module_text_len());
        let len = text.saturating_add(text_len);
        let start = placement.place_block("start information", len)?;
        Ok(Self {
            start,
            modules: start + modules,
            regions: start + regions,
            gdt: start + gdt,
            text: start + text,
        })
    }

    fn write<M: GuestMemory>(
        &self,
        request: &LoadRequest<'_>,
        mut places: Ascending<'_, '_>,
        memory: &M,
    ) -> Result<(), LoadError> {
        let mut text = Writer::new(memory, self.text);
        let cmdline = text.text(request.cmdline)?;
        let mut entries = Writer::new(memory, self.modules);
        for module in request.modules {
            let at = places.module(module)?;
            memory.write(Gpa::new(at), module.data)?;
            let cmdline = text.text(module.cmdline)?;
            let mut entry = Record::<MODULE_LEN>::new();
            entry.u64(0, at).u64(8, module.data.len() as u64).u64(16, cmdline);
            entries.put(&entry.0)?;
        }
        let mut entries = Writer::new(memory, self.regions);
        for region in request.memory_map {
            let mut entry = Record::<REGION_LEN>::new();
            entry
                .u64(0, region.start.as_u64())
                .u64(8, region.len)
                .u32(16, u64::from(region.kind.e820_type()));
            entries.put(&entry.0)?;
        }
        let mut info = Record::<START_INFO_LEN>::new();
        let module_list = if request.modules.is_empty() { 0 } else { self.modules };
        info.u32(0, START_MAGIC)
            .u32(4, 1)
            .u32(12, request.modules.len() as u64)
            .u64(16, module_list)
            .u64(24, cmdline)
            .u64(32, request.rsdp.map_or(0, Gpa::as_u64))
            .u64(40, self.regions)
            .u32(48, request.memory_map.len() as u64);
        memory.write(Gpa::new(self.start), &info.0)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
