//! What the loader tells, as one structure of Caisson's own.
//!
//! Everything is copied out of the loader's memory at once; what stays there (modules, symbol table) is named by its
//! physical address and listed by [`BootInfo::loader_memory`], so that the frame allocator leaves it alone.

use arrayvec::{ArrayString, ArrayVec};

/// Most memory-map entries that are kept.
pub(crate) const MAX_AREAS: usize = 256;
/// Most modules that are kept.
pub(crate) const MAX_MODULES: usize = 16;
/// Longest boot command line in bytes.
pub(crate) const MAX_COMMAND_LINE: usize = 1024;

/// A range of host-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// What a range of the machine's memory map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AreaKind {
    /// Free RAM.
    Usable,
    /// RAM that holds ACPI tables.
    Acpi,
    /// Anything else.
    Reserved,
}

/// An entry of the machine's memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: AreaKind,
}

/// A file that the loader put into memory.
#[derive(Clone, Debug)]
pub struct Module {
    /// Where.
    pub range: Range,
    /// The words behind the file's name in the loader's configuration.
    pub name: ArrayString<64>,
}

/// How the frame buffer shows a pixel or a character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScreenKind {
    /// EGA text: two bytes a cell.
    Text,
    /// Pixels of `bits_per_pixel` with their colours at these bit positions.
    Rgb {
        /// Lowest bit of red.
        red: u8,
        /// Lowest bit of green.
        green: u8,
        /// Lowest bit of blue.
        blue: u8,
    },
}

/// The screen that the loader left on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Host-physical address of the first cell or pixel.
    pub address: u64,
    /// Bytes in a line.
    pub pitch: u32,
    /// Cells or pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits in a cell or pixel.
    pub bits_per_pixel: u8,
    /// What is shown.
    pub kind: ScreenKind,
}

/// Caisson's own symbol table, which GRUB loads with the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbols {
    /// ELF64 symbols.
    pub symbols: Range,
    /// Their names.
    pub names: Range,
}

/// Everything that the loader tells.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// The words behind Caisson's name in the loader's configuration.
    pub command_line: ArrayString<MAX_COMMAND_LINE>,
    /// The machine's memory map, as the firmware gave it: in any order, may overlap.
    pub areas: ArrayVec<Area, MAX_AREAS>,
    /// The files that were loaded beside the image.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// Host-physical address of the ACPI root pointer (of the loader's copy), if the machine has one.
    pub rsdp: Option<u64>,
    /// The screen, if any.
    pub screen: Option<Screen>,
    /// Caisson's own symbols, if the loader kept them.
    pub symbols: Option<Symbols>,
    /// The loader's structure itself.
    pub structure: Range,
}

impl BootInfo {
    /// What the loader left in memory that is still in use.
    pub fn loader_memory(&self) -> impl Iterator<Item = Range> + '_ {
        let symbols = self.symbols.iter().flat_map(|s| [s.symbols, s.names]);
        self.modules.iter().map(|m| m.range).chain(symbols).chain([self.structure])
    }

    /// The value of `key` in the command line's `key=value` words; the last one counts.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.command_line.split_ascii_whitespace().rev().find_map(|word| {
            let (name, value) = word.split_once('=')?;
            (name == key).then_some(value)
        })
    }

    /// Whether `word` stands alone in the command line.
    #[must_use]
    pub fn flag(&self, word: &str) -> bool {
        self.command_line.split_ascii_whitespace().any(|w| w == word)
    }
}
