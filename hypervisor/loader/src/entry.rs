//! The state in which a vCPU enters a kernel.

use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Attributes, Cr0, Cr4, DescriptorTable, Efer, Segment};

use crate::LoadError;

/// The mode in which a kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryMode {
    /// 32-bit protected mode without paging.
    Protected32,
    /// 64-bit mode with 4-level paging.
    Long64 {
        /// The root of page tables that map at least the first 4 GiB onto themselves, for CR3.
        page_table: Gpa,
    },
}

/// The state of the boot vCPU as a kernel's protocol asks for it. Registers that are not named are 0; RFLAGS is 2
/// (interrupts off); IDTR has limit 0; LDTR is not present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// The CPU's mode.
    pub mode: EntryMode,
    /// The first instruction.
    pub rip: u64,
    /// RAX: the loader's magic number for multiboot1.
    pub rax: u64,
    /// RBX: the start or boot information for PVH and multiboot1.
    pub rbx: u64,
    /// RSI: the zero page for Linux.
    pub rsi: u64,
    /// CS: flat.
    pub code: Segment,
    /// DS, ES, FS, GS and SS: flat.
    pub data: Segment,
    /// TR: an empty task-state segment.
    pub task: Segment,
    /// GDTR: a table with the descriptors of `code` and `data`, so that the kernel may load them again.
    pub gdt: DescriptorTable,
}

impl EntryState {
    /// CR0 at the entry.
    #[must_use]
    pub fn cr0(&self) -> u64 {
        let protected = Cr0::PE.bits() | Cr0::ET.bits();
        match self.mode {
            EntryMode::Protected32 => protected,
            EntryMode::Long64 { .. } => protected | Cr0::PG.bits(),
        }
    }

    /// CR3 at the entry.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        match self.mode {
            EntryMode::Protected32 => 0,
            EntryMode::Long64 { page_table } => page_table.as_u64(),
        }
    }

    /// CR4 at the entry.
    #[must_use]
    pub fn cr4(&self) -> u64 {
        match self.mode {
            EntryMode::Protected32 => 0,
            EntryMode::Long64 { .. } => Cr4::PAE.bits(),
        }
    }

    /// EFER at the entry.
    #[must_use]
    pub fn efer(&self) -> u64 {
        match self.mode {
            EntryMode::Protected32 => 0,
            EntryMode::Long64 { .. } => Efer::LME.bits() | Efer::LMA.bits(),
        }
    }
}

/// The selector of the code segment: `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// The selector of the data segments: `__BOOT_DS` of the Linux boot protocol.
const DATA_SELECTOR: u16 = 0x18;

/// Bytes of the global descriptor table: two empty descriptors, code and data.
pub(crate) const GDT_LEN: u64 = 4 * 8;

/// Writes the global descriptor table to `gdt` and returns the state for an entry there, registers still 0.
pub(crate) fn enter(
    mode: EntryMode,
    rip: u64,
    gdt: u64,
    memory: &impl GuestMemory,
) -> Result<EntryState, LoadError> {
    let code_attributes = match mode {
        EntryMode::Protected32 => Attributes::CODE32,
        EntryMode::Long64 { .. } => Attributes::CODE64,
    };
    let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    let code = flat(CODE_SELECTOR, code_attributes);
    let data = flat(DATA_SELECTOR, Attributes::DATA32);
    let mut table = [0; GDT_LEN as usize];
    for segment in [code, data] {
        let at = usize::from(segment.selector);
        if let Some(entry) = table.get_mut(at..at + 8) {
            entry.copy_from_slice(&flat_descriptor(segment.attributes).to_le_bytes());
        }
    }
    memory.write(Gpa::new(gdt), &table)?;
    Ok(EntryState {
        mode,
        rip,
        rax: 0,
        rbx: 0,
        rsi: 0,
        code,
        data,
        task: Segment { selector: 0, attributes: Attributes::TSS_BUSY, limit: 0x67, base: 0 },
        gdt: DescriptorTable { base: gdt, limit: GDT_LEN as u16 - 1 },
    })
}

/// The descriptor of a segment from 0 to 4 GiB (APM vol. 2, section 4.7).
const fn flat_descriptor(attributes: Attributes) -> u64 {
    let low = attributes.0 as u64 & 0xFF;
    let high = attributes.0 as u64 >> 8 & 0xF;
    high << 52 | 0xF << 48 | low << 40 | 0xFFFF
}

/// Bytes of page tables that map the first 4 GiB: a root, a table below it and four below that.
pub(crate) const PAGE_TABLES_LEN: u64 = 6 * 4096;

/// Writes page tables to `root`, a page boundary, that map the first 4 GiB onto themselves by 2 MiB pages
/// (APM vol. 2, section 5.3.3).
pub(crate) fn write_page_tables(root: u64, memory: &impl GuestMemory) -> Result<(), LoadError> {
    const TABLE: u64 = 0x3; // present, writable
    const LARGE_PAGE: u64 = 0x83; // present, writable, 2 MiB
    let pointers = root + 4096;
    let directories = root + 2 * 4096;
    memory.fill_zero(Gpa::new(root), 2 * 4096)?;
    memory.write_u64(Gpa::new(root), pointers | TABLE)?;
    for gib in 0..4 {
        let directory = directories + gib * 4096;
        memory.write_u64(Gpa::new(pointers + gib * 8), directory | TABLE)?;
        let mut entries = [0; 4096];
        for (entry, index) in entries.chunks_exact_mut(8).zip(0u64..) {
            let page = (gib << 30 | index << 21) | LARGE_PAGE;
            entry.copy_from_slice(&page.to_le_bytes());
        }
        memory.write(Gpa::new(directory), &entries)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_that_every_kernel_knows() {
        assert_eq!(flat_descriptor(Attributes::CODE32), 0x00CF_9B00_0000_FFFF);
        assert_eq!(flat_descriptor(Attributes::CODE64), 0x00AF_9B00_0000_FFFF);
        assert_eq!(flat_descriptor(Attributes::DATA32), 0x00CF_9300_0000_FFFF);
    }
}
