//! The loader's multiboot2 structure as a [`BootInfo`].

use arrayvec::{ArrayString, ArrayVec};
use multiboot2::{
    BootInformation, BootInformationHeader, ElfSectionExt, ElfSectionType, FramebufferType, MemoryAreaType,
};

use crate::info::{Area, AreaKind, BootInfo, Module, Range, Screen, ScreenKind, Symbols};

/// Copies everything of use out of the structure at physical address `structure`.
///
/// A structure that cannot be read yields an empty memory map, which the caller refuses with a message; there is no
/// console yet to say more.
///
/// # Safety
/// The structure must be mapped at its physical address and must not change.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
pub(crate) unsafe fn boot_info(structure: u64) -> BootInfo {
    let mut info = BootInfo {
        command_line: ArrayString::new(),
        areas: ArrayVec::new(),
        modules: ArrayVec::new(),
        rsdp: None,
        screen: None,
        symbols: None,
        structure: Range { start: structure, end: structure },
    };
    // SAFETY: promised by the caller.
    let Ok(loader) = (unsafe { BootInformation::load(structure as *const BootInformationHeader) }) else {
        return info;
    };
    info.structure.end = structure + loader.total_size() as u64;
    if let Some(Ok(line)) = loader.command_line_tag().map(|tag| tag.cmdline()) {
        info.command_line = truncated(line);
    }
    if let Some(map) = loader.memory_map_tag() {
        info.areas.extend(map.memory_areas().iter().take(info.areas.capacity()).map(|area| Area {
            range: Range { start: area.start_address(), end: area.end_address() },
            kind: match area.typ() {
                MemoryAreaType::Available => AreaKind::Usable,
                MemoryAreaType::AcpiAvailable => AreaKind::Acpi,
                _ => AreaKind::Reserved,
            },
        }));
    }
    info.modules.extend(loader.module_tags().take(info.modules.capacity()).map(|module| Module {
        range: Range {
            start: u64::from(module.start_address()),
            end: u64::from(module.end_address()).max(u64::from(module.start_address())),
        },
        name: truncated(module.cmdline().unwrap_or("")),
    }));
    // The tag holds a copy of the root pointer: its address is the tag's, behind the eight bytes of its header.
    info.rsdp = loader
        .rsdp_v2_tag()
        .map(|tag| core::ptr::from_ref(tag) as u64 + 8)
        .or_else(|| loader.rsdp_v1_tag().map(|tag| core::ptr::from_ref(tag) as u64 + 8));
    info.screen = screen(&loader);
    info.symbols = symbols(&loader);
    info
}

fn truncated<const N: usize>(text: &str) -> ArrayString<N> {
    let mut kept = ArrayString::new();
    for c in text.chars() {
        if kept.try_push(c).is_err() {
            break;
        }
    }
    kept
}

fn screen(loader: &BootInformation<'_>) -> Option<Screen> {
    let tag = loader.framebuffer_tag()?.ok()?;
    let kind = match tag.buffer_type().ok()? {
        FramebufferType::Text => ScreenKind::Text,
        FramebufferType::RGB { red, green, blue } => {
            ScreenKind::Rgb { red: red.position, green: green.position, blue: blue.position }
        }
        FramebufferType::Indexed { .. } => return None,
    };
    Some(Screen {
        address: tag.address(),
        pitch: tag.pitch(),
        width: tag.width(),
        height: tag.height(),
        bits_per_pixel: tag.bpp(),
        kind,
    })
}

/// The symbol table, and the string table that it names.
fn symbols(loader: &BootInformation<'_>) -> Option<Symbols> {
    let tag = loader.elf_sections_tag()?;
    let table = tag.sections().find(|s| s.section_type() == ElfSectionType::LinkerSymbolTable)?;
    let names = tag.sections().nth(table.sh_link as usize)?;
    let range = |start: u64, size: u64| Range { start, end: start.saturating_add(size) };
    (table.sh_addr != 0 && names.sh_addr != 0).then(|| Symbols {
        symbols: range(table.sh_addr, table.sh_size),
        names: range(names.sh_addr, names.sh_size),
    })
}
