//! What a kernel is loaded with.

use caisson_types::{Gpa, MemoryRegion, RegionKind};

use crate::LoadError;

/// A file that goes with the kernel: a piece of the initial RAM disk for Linux, a module for PVH and multiboot1.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The file's content.
    pub data: &'a [u8],
    /// The module's command line. Linux has none for its initial RAM disk and does not see it.
    pub cmdline: &'a str,
}

/// What a kernel is loaded with.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest<'a> {
    /// The files that go with the kernel, in their order. Linux gets them joined, each aligned to 4 bytes.
    pub modules: &'a [Module<'a>],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The guest's memory map as the kernel shall see it: sorted by address, without overlap.
    pub memory_map: &'a [MemoryRegion],
    /// Ranges of RAM (first byte, length) where nothing may be put, such as tables of the firmware inside RAM.
    pub reserved: &'a [(Gpa, u64)],
    /// The ACPI root pointer. Kernels whose protocol has no place for it search for it below 1 MiB.
    pub rsdp: Option<Gpa>,
}

impl LoadRequest<'_> {
    /// Checks what all loaders depend on.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let lines = core::iter::once(self.cmdline).chain(self.modules.iter().map(|module| module.cmdline));
        for line in lines {
            if line.as_bytes().contains(&0) {
                return Err(LoadError::CommandLineHasZero);
            }
        }
        let mut free = 0;
        for region in self.memory_map {
            let start = region.start.as_u64();
            if start < free || start.checked_add(region.len).is_none() {
                return Err(LoadError::BadMemoryMap);
            }
            free = region.end().as_u64();
        }
        Ok(())
    }

    /// Bytes of RAM from `start` to the first address that is not RAM.
    pub(crate) fn ram_from(&self, start: u64) -> u64 {
        let mut end = start;
        for region in self.memory_map.iter().filter(|region| region.kind == RegionKind::Ram) {
            if region.start.as_u64() <= end && region.end().as_u64() > end {
                end = region.end().as_u64();
            }
        }
        end - start
    }

    /// Bytes of all modules' command lines, each with a terminating zero.
    pub(crate) fn module_text_len(&self) -> u64 {
        self.modules.iter().map(|module| module.cmdline.len() as u64 + 1).fold(0, u64::saturating_add)
    }
}
