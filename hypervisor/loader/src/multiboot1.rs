//! Kernels by the Multiboot Specification, version 0.6.96.
//!
//! An image with address fields in its header is loaded by them; any other must be ELF, of 32 or 64 bits, and is loaded
//! by its program headers at their physical addresses. Either way the kernel is entered in 32-bit protected mode with
//! RAX = 0x2BADB002 and RBX at the *boot information* (section 3.3).
//!
//! What the boot information has: memory sizes (bit 0), command line (2), modules (3), the sections of an ELF kernel
//! where there is room for them (5), memory map (6) and the loader's name (9). What it has not, because a guest has
//! none of it: boot device, drives, BIOS configuration, APM, VBE and frame buffer. A header that asks for a video mode
//! is given none, which its bits say.
//!
//! The command line is handed over as it is, without the image's name in front, as GRUB 2 does and the specification
//! asks for. Kernels that skip a first word unless the loader is GRUB 2 (Xen is one) need such a word in it.
//!
//! What goes where: the boot information with its tables and strings at 64 KiB or the next free place above; modules
//! from the kernel's end on, each on a page boundary, whether the header asks for that or not; sections after them.

mod header;

use caisson_types::{Gpa, GuestMemory};

use crate::elf::{self, Elf};
use crate::entry::{self, EntryMode, EntryState, GDT_LEN};
use crate::place::{Ascending, FOUR_GIB, Placement};
use crate::writer::{Record, Writer};
use crate::{LoadError, LoadRequest};
use header::{Flat, Header};

/// RAX at the entry.
const LOADER_MAGIC: u64 = 0x2BAD_B002;
/// Bytes of the boot information, up to the frame buffer's colours.
const INFO_LEN: usize = 116;
const MODULE_LEN: usize = 16;
/// A memory map entry, its leading size included.
const REGION_LEN: usize = 24;
const LOADER_NAME: &str = "Caisson";

// `flags` of the boot information.
const HAS_MEMORY: u64 = 1 << 0;
const HAS_CMDLINE: u64 = 1 << 2;
const HAS_MODULES: u64 = 1 << 3;
const HAS_SECTIONS: u64 = 1 << 5;
const HAS_MEMORY_MAP: u64 = 1 << 6;
const HAS_LOADER_NAME: u64 = 1 << 9;

/// Whether an image has a multiboot1 header.
#[must_use]
pub fn is_multiboot1(image: &[u8]) -> bool {
    Header::find(image).is_some()
}

/// Checks the headers of an image.
///
/// # Errors
/// See [`crate::check`].
pub(crate) fn check(image: &[u8]) -> Result<(), LoadError> {
    Kernel::parse(&Header::parse(image)?, image).map(|_| ())
}

/// Loads a multiboot1 kernel.
///
/// # Errors
/// [`LoadError`], where the image is damaged or demands what is not there, or does not fit into the guest's RAM with
/// all that belongs to it.
pub fn load(
    image: &[u8],
    request: &LoadRequest<'_>,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    request.check()?;
    let header = Header::parse(image)?;
    let mut placement = Placement::new(request)?;
    let kernel = Kernel::parse(&header, image)?;
    kernel.claim(&mut placement)?;
    let info = Info::place(request, &mut placement)?;
    let mut places = Ascending::modules(&placement, request, kernel.end())?;

    kernel.write(memory)?;
    info.write_modules(request, &mut places, memory)?;
    let sections = match &kernel {
        Kernel::Elf { elf, .. } => write_sections(elf, places, memory)?,
        Kernel::Flat { .. } => None,
    };
    info.write(request, sections, memory)?;
    let state = entry::enter(EntryMode::Protected32, kernel.entry(), info.gdt, memory)?;
    Ok(EntryState { rax: LOADER_MAGIC, rbx: info.start, ..state })
}

/// A kernel by its headers, which agree with the image.
enum Kernel<'a> {
    Flat { flat: Flat<'a>, entry: u64 },
    Elf { elf: Elf<'a>, entry: u64 },
}

impl<'a> Kernel<'a> {
    fn parse(header: &Header, image: &'a [u8]) -> Result<Self, LoadError> {
        if let Some(addresses) = header.addresses {
            let flat = addresses.resolve(image)?;
            if flat.len == 0 {
                return Err(LoadError::NoSegments);
            }
            let entry = addresses.entry;
            let inside = entry.checked_sub(flat.start).is_some_and(|offset| offset < flat.len);
            return if inside { Ok(Self::Flat { flat, entry }) } else { Err(LoadError::BadEntry(entry)) };
        }
        if !elf::is_elf(image) {
            return Err(LoadError::NotThis("multiboot1 (neither address fields nor ELF)"));
        }
        let elf = Elf::parse(image)?;
        elf.check()?;
        // By ELF the entry is a virtual address; kernels that run elsewhere than they are loaded often give the
        // physical one.
        let entry = elf.physical(elf.entry).or(elf.holds(elf.entry).then_some(elf.entry));
        match entry {
            Some(entry) if entry < FOUR_GIB => Ok(Self::Elf { elf, entry }),
            _ => Err(LoadError::BadEntry(elf.entry)),
        }
    }

    fn claim(&self, placement: &mut Placement<'_>) -> Result<(), LoadError> {
        match self {
            Self::Flat { flat, .. } => placement.claim("kernel", flat.start, flat.len),
            Self::Elf { elf, .. } => elf.claim(placement),
        }
    }

    fn entry(&self) -> u64 {
        match *self {
            Self::Flat { entry, .. } | Self::Elf { entry, .. } => entry,
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Flat { flat, .. } => flat.start.saturating_add(flat.len),
            Self::Elf { elf, .. } => elf.end(FOUR_GIB),
        }
    }

    fn write(&self, memory: &impl GuestMemory) -> Result<(), LoadError> {
        match self {
            Self::Elf { elf, .. } => elf.write(memory),
            Self::Flat { flat, .. } => {
                memory.write(Gpa::new(flat.start), flat.data)?;
                let data_len = flat.data.len() as u64;
                let data_end = flat.start.wrapping_add(data_len);
                Ok(memory.fill_zero(Gpa::new(data_end), flat.len.saturating_sub(data_len))?)
            }
        }
    }
}

/// Where an ELF kernel's section headers are.
struct Sections {
    table: u64,
    count: u64,
    entry_len: u64,
    names: u64,
}

/// Writes the section header table, and the content of each section that is in no segment, with its address put into
/// its header. `None`, with nothing that the kernel would find, when the image has no sections or RAM has no room.
fn write_sections(
    elf: &Elf<'_>,
    places: Ascending<'_, '_>,
    memory: &impl GuestMemory,
) -> Result<Option<Sections>, LoadError> {
    const WHAT: &str = "sections";
    let Some(headers) = elf.section_table() else { return Ok(None) };
    let table_len = headers.bytes.len() as u64;
    let align_of = |align: u64| if align.is_power_of_two() && align <= 4096 { align } else { 16 };
    let rehearse = || -> Option<u64> {
        let mut places = places;
        let table = places.place(WHAT, table_len, 16).ok()?;
        for section in elf.sections() {
            if let Some(data) = elf.unplaced(&section) {
                places.place(WHAT, data.len() as u64, align_of(section.align)).ok()?;
            }
        }
        Some(table)
    };
    let Some(table) = rehearse() else { return Ok(None) };
    memory.write(Gpa::new(table), headers.bytes)?;
    let mut places = places;
    places.place(WHAT, table_len, 16)?;
    for (section, header) in elf.sections().zip((table..).step_by(headers.entry_len)) {
        let Some(data) = elf.unplaced(&section) else { continue };
        let at = places.place(WHAT, data.len() as u64, align_of(section.align))?;
        memory.write(Gpa::new(at), data)?;
        let (offset, address, len) = elf.section_address_field(at);
        memory.write(Gpa::new(header + offset), address.get(..len).unwrap_or_default())?;
    }
    Ok(Some(Sections {
        table,
        count: table_len / headers.entry_len as u64,
        entry_len: headers.entry_len as u64,
        names: u64::from(elf.section_names),
    }))
}

/// The block of boot information, tables and strings.
struct Info {
    start: u64,
    modules: u64,
    regions: u64,
    gdt: u64,
    cmdline: u64,
    name: u64,
    module_text: u64,
}

impl Info {
    fn place(request: &LoadRequest<'_>, placement: &mut Placement<'_>) -> Result<Self, LoadError> {
        let modules = INFO_LEN.next_multiple_of(16) as u64;
        let regions = modules + request.modules.len() as u64 * MODULE_LEN as u64;
        let gdt = regions + request.memory_map.len() as u64 * REGION_LEN as u64;
        let cmdline = gdt + GDT_LEN;
        let name = cmdline + request.cmdline.len() as u64 + 1;
        let module_text = name + LOADER_NAME.len() as u64 + 1;
        let len = module_text.saturating_add(request.module_text_len());
        let start = placement.place_block("boot information", len)?;
        Ok(Self {
            start,
            modules: start + modules,
            regions: start + regions,
            gdt: start + gdt,
            cmdline: start + cmdline,
            name: start + name,
            module_text: start + module_text,
        })
    }

    fn write_modules<M: GuestMemory>(
        &self,
        request: &LoadRequest<'_>,
        places: &mut Ascending<'_, '_>,
        memory: &M,
    ) -> Result<(), LoadError> {
        let mut entries = Writer::new(memory, self.modules);
        let mut text = Writer::new(memory, self.module_text);
        for module in request.modules {
            let start = places.module(module)?;
            memory.write(Gpa::new(start), module.data)?;
            let mut entry = Record::<MODULE_LEN>::new();
            entry.u32(0, start).u32(4, start + module.data.len() as u64).u32(8, text.text(module.cmdline)?);
            entries.put(&entry.0)?;
        }
        Ok(())
    }

    fn write<M: GuestMemory>(
        &self,
        request: &LoadRequest<'_>,
        sections: Option<Sections>,
        memory: &M,
    ) -> Result<(), LoadError> {
        Writer::new(memory, self.cmdline).text(request.cmdline)?;
        Writer::new(memory, self.name).text(LOADER_NAME)?;
        let mut entries = Writer::new(memory, self.regions);
        for region in request.memory_map {
            let mut entry = Record::<REGION_LEN>::new();
            entry
                .u32(0, REGION_LEN as u64 - 4)
                .u64(4, region.start.as_u64())
                .u64(12, region.len)
                .u32(20, u64::from(region.kind.e820_type()));
            entries.put(&entry.0)?;
        }
        let lower_kib = (request.ram_from(0) >> 10).min(640);
        let upper_kib = (request.ram_from(1 << 20) >> 10).min(u64::from(u32::MAX));
        let mut flags = HAS_MEMORY | HAS_CMDLINE | HAS_MODULES | HAS_MEMORY_MAP | HAS_LOADER_NAME;
        let mut info = Record::<INFO_LEN>::new();
        info.u32(4, lower_kib)
            .u32(8, upper_kib)
            .u32(16, self.cmdline)
            .u32(20, request.modules.len() as u64)
            .u32(24, self.modules)
            .u32(44, (request.memory_map.len() * REGION_LEN) as u64)
            .u32(48, self.regions)
            .u32(64, self.name);
        if let Some(sections) = sections {
            flags |= HAS_SECTIONS;
            info.u32(28, sections.count)
                .u32(32, sections.entry_len)
                .u32(36, sections.table)
                .u32(40, sections.names);
        }
        info.u32(0, flags);
        memory.write(Gpa::new(self.start), &info.0)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
