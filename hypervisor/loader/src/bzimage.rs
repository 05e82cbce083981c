//! Linux bzImage, by the Linux/x86 Boot Protocol (Documentation/arch/x86/boot.rst), versions 2.00 to 2.15.
//!
//! The real-mode part is skipped. A kernel that has the 64-bit entry is entered there ("64-bit Boot Protocol"), any
//! other at its 32-bit entry ("32-bit Boot Protocol"). Both find a *zero page*, `struct boot_params`, by RSI; offsets
//! into it are those of Documentation/arch/x86/zero-page.rst.
//!
//! What goes where: the protected-mode kernel at its preferred address, or, if that is taken and the kernel is
//! relocatable, at the lowest one above that suits it; zero page, page tables, descriptor table and command line in
//! one block at 64 KiB or the next free place above; the initial RAM disk as high as its header and the RAM allow.

mod header;

use caisson_types::{Gpa, GuestMemory, PAGE_SIZE};

use crate::bytes::u8_at;
use crate::entry::{self, EntryMode, EntryState, GDT_LEN, PAGE_TABLES_LEN};
use crate::place::{FOUR_GIB, Placement};
use crate::writer::Record;
use crate::{LoadError, LoadRequest};
use header::SetupHeader;

/// The zero page's address before version 2.02.
const OLD_ZERO_PAGE: u64 = 0x9_0000;
const ZERO_PAGE_LEN: usize = 4096;

// Offsets in the zero page.
const EXT_MEM_K: u64 = 0x002;
const OLD_CL_MAGIC: u64 = 0x020;
const OLD_CL_OFFSET: u64 = 0x022;
const ACPI_RSDP_ADDR: u64 = 0x070;
const EXT_RAMDISK_IMAGE: u64 = 0x0C0;
const EXT_RAMDISK_SIZE: u64 = 0x0C4;
const ALT_MEM_K: u64 = 0x1E0;
const E820_ENTRIES: u64 = 0x1E8;
const E820_TABLE: u64 = 0x2D0;
const E820_ENTRY_LEN: u64 = 20;
const E820_MAX_ENTRIES: usize = 128;

/// Offset of the 64-bit entry from the start of the protected-mode kernel.
const ENTRY64: u64 = 0x200;
/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `loadflags` that tell about the loader and not about the image: QUIET, KEEP_SEGMENTS, CAN_USE_HEAP.
const LOADER_FLAGS: u8 = 1 << 5 | 1 << 6 | 1 << 7;
/// Files joined to a RAM disk start at multiples of this, as the kernel's unpacker wants its archives.
const ARCHIVE_ALIGN: u64 = 4;

/// Whether an image has the marks of a bzImage of protocol 2.00 or later.
#[must_use]
pub fn is_bzimage(image: &[u8]) -> bool {
    header::is_present(image)
}

/// Checks the header of an image.
///
/// # Errors
/// See [`crate::check`].
pub(crate) fn check(image: &[u8]) -> Result<(), LoadError> {
    SetupHeader::parse(image).map(|_| ())
}

/// Loads a bzImage. The request's modules, joined, are its initial RAM disk.
///
/// # Errors
/// [`LoadError`], where the image is damaged, or does not fit into the guest's RAM with all that belongs to it.
pub fn load(
    image: &[u8],
    request: &LoadRequest<'_>,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    request.check()?;
    let header = SetupHeader::parse(image)?;
    let cmdline = request.cmdline.as_bytes();
    let cmdline_len = cmdline.len() as u64;
    if cmdline_len > header.cmdline_size {
        return Err(LoadError::CommandLineTooLong { len: cmdline_len, max: header.cmdline_size });
    }
    let mut placement = Placement::new(request)?;
    let kernel = place_kernel(&header, &mut placement)?;
    let block = Block::place(&header, cmdline_len + 1, &mut placement)?;
    let initrd = place_initrd(&header, request, &placement)?;

    memory.write(Gpa::new(kernel), header.kernel)?;
    memory.write(Gpa::new(block.cmdline), cmdline)?;
    memory.write(Gpa::new(block.cmdline + cmdline_len), &[0])?;
    write_initrd(request, initrd.start, memory)?;
    let zero_page = zero_page(&header, request, kernel, &block, &initrd)?;
    memory.write(Gpa::new(block.zero_page), &zero_page)?;
    let (mode, rip) = if header.entry64 {
        entry::write_page_tables(block.page_tables, memory)?;
        (EntryMode::Long64 { page_table: Gpa::new(block.page_tables) }, kernel + ENTRY64)
    } else {
        (EntryMode::Protected32, kernel)
    };
    let state = entry::enter(mode, rip, block.gdt, memory)?;
    Ok(EntryState { rsi: block.zero_page, ..state })
}

/// Takes the RAM where the protected-mode kernel is loaded and where it runs. Returns where it is loaded.
fn place_kernel(header: &SetupHeader<'_>, placement: &mut Placement<'_>) -> Result<u64, LoadError> {
    const WHAT: &str = "kernel";
    let len = header.kernel.len() as u64;
    let run = header.pref_address.unwrap_or(header.default_address);
    let run_len = header.init_size.max(len);
    let Some(alignment) = header.alignment else {
        // It unpacks itself from its fixed load address to the address that it runs at.
        let load = header.default_address;
        let start = load.min(run);
        let too_far = LoadError::BadField { field: "pref_address", value: run };
        let end = run.checked_add(run_len).filter(|&end| end <= FOUR_GIB).ok_or(too_far)?;
        placement.claim(WHAT, start, end.max(load + len) - start)?;
        return Ok(load);
    };
    let preferred = run.checked_add(run_len).is_some_and(|end| end <= FOUR_GIB)
        && placement.claim(WHAT, run, run_len).is_ok();
    if preferred {
        return Ok(run);
    }
    placement.place_low(WHAT, run_len, alignment, run, FOUR_GIB)
}

/// The block of everything that the kernel needs beside itself and its RAM disk. The zero page is its lowest part:
/// kernels before 2.10 unpack themselves through the RAM below it.
struct Block {
    zero_page: u64,
    page_tables: u64,
    gdt: u64,
    cmdline: u64,
}

impl Block {
    fn place(
        header: &SetupHeader<'_>,
        cmdline_len: u64,
        placement: &mut Placement<'_>,
    ) -> Result<Self, LoadError> {
        const WHAT: &str = "boot parameters";
        let tables = if header.entry64 { PAGE_TABLES_LEN } else { 0 };
        let len = ZERO_PAGE_LEN as u64 + tables + GDT_LEN + cmdline_len;
        let zero_page = if header.version < 0x202 {
            placement.place_low(WHAT, len, PAGE_SIZE, OLD_ZERO_PAGE, FOUR_GIB)?
        } else {
            placement.place_block(WHAT, len)?
        };
        let page_tables = zero_page + ZERO_PAGE_LEN as u64;
        let gdt = page_tables + tables;
        Ok(Self { zero_page, page_tables, gdt, cmdline: gdt + GDT_LEN })
    }
}

/// Where the RAM disk is. Without one, both are 0.
struct Initrd {
    start: u64,
    len: u64,
}

fn place_initrd(
    header: &SetupHeader<'_>,
    request: &LoadRequest<'_>,
    placement: &Placement<'_>,
) -> Result<Initrd, LoadError> {
    let len = request.modules.iter().fold(0u64, |len, module| {
        len.next_multiple_of(ARCHIVE_ALIGN).saturating_add(module.data.len() as u64)
    });
    if len == 0 {
        return Ok(Initrd { start: 0, len: 0 });
    }
    let find = |below| placement.highest(len, PAGE_SIZE, below);
    let mut start = find(header.initrd_end);
    if start.is_none() && header.above_4g {
        start = find(u64::MAX);
    }
    let start = start.ok_or(LoadError::NoRoom { what: "initial RAM disk", len })?;
    Ok(Initrd { start, len })
}

fn write_initrd(request: &LoadRequest<'_>, start: u64, memory: &impl GuestMemory) -> Result<(), LoadError> {
    let mut at = start;
    for module in request.modules {
        let padding = at.next_multiple_of(ARCHIVE_ALIGN) - at;
        memory.fill_zero(Gpa::new(at), padding)?;
        memory.write(Gpa::new(at + padding), module.data)?;
        at += padding + module.data.len() as u64;
    }
    Ok(())
}

fn zero_page(
    header: &SetupHeader<'_>,
    request: &LoadRequest<'_>,
    kernel: u64,
    block: &Block,
    initrd: &Initrd,
) -> Result<[u8; ZERO_PAGE_LEN], LoadError> {
    if request.memory_map.len() > E820_MAX_ENTRIES {
        return Err(LoadError::BadMemoryMap);
    }
    let mut page = Record::<ZERO_PAGE_LEN>::new();
    page.put(header::START, header.raw);
    let loadflags = u8_at(&page.0, header::LOADFLAGS).unwrap_or(0);
    page.put(header::LOADFLAGS, &[loadflags & !LOADER_FLAGS]);
    page.put(header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    page.put(header::EXT_LOADER_VER, &[0, 0]);
    page.u32(header::CODE32_START, kernel);
    page.u32(header::HARDWARE_SUBARCH, 0);
    page.put(header::SETUP_DATA, &[0; 8]);
    if header.version < 0x202 {
        page.put(OLD_CL_MAGIC, &0xA33F_u16.to_le_bytes());
        page.put(OLD_CL_OFFSET, &((block.cmdline - block.zero_page) as u16).to_le_bytes());
    } else {
        page.u32(header::CMD_LINE_PTR, block.cmdline);
    }
    page.u32(header::RAMDISK_IMAGE, initrd.start);
    page.u32(header::RAMDISK_SIZE, initrd.len);
    page.u32(EXT_RAMDISK_IMAGE, initrd.start >> 32);
    page.u32(EXT_RAMDISK_SIZE, initrd.len >> 32);
    if let Some(rsdp) = request.rsdp {
        page.put(ACPI_RSDP_ADDR, &rsdp.as_u64().to_le_bytes());
    }
    // For kernels that know no memory map: KiB of RAM from 1 MiB on.
    let extended_kib = request.ram_from(1 << 20) >> 10;
    page.put(EXT_MEM_K, &(extended_kib.min(0xFC00) as u16).to_le_bytes());
    page.u32(ALT_MEM_K, extended_kib.min(u64::from(u32::MAX)));
    page.put(E820_ENTRIES, &[request.memory_map.len() as u8]);
    for (region, at) in request.memory_map.iter().zip((E820_TABLE..).step_by(E820_ENTRY_LEN as usize)) {
        page.put(at, &region.start.as_u64().to_le_bytes());
        page.put(at + 8, &region.len.to_le_bytes());
        page.u32(at + 16, u64::from(region.kind.e820_type()));
    }
    Ok(page.0)
}

#[cfg(test)]
mod tests;
