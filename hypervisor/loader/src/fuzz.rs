//! Entry points for fuzz targets: any image in, no panic out, and no write that leaves the guest's free RAM.

use alloc::vec;

use caisson_types::{Gpa, GuestMemory, MemoryError, MemoryRegion, RegionKind, SliceMemory};

use crate::{Kind, LoadRequest, Module};

const MIB: u64 = 1 << 20;
const RAM_LEN: u64 = 8 * MIB;
const RESERVED_LEN: u64 = 0x500;

/// Loads `data` as a bzImage.
pub fn drive_bzimage(data: &[u8]) {
    drive(Kind::Linux, data);
}

/// Loads `data` as a PVH ELF.
pub fn drive_pvh(data: &[u8]) {
    drive(Kind::Pvh, data);
}

/// Loads `data` as a multiboot1 kernel.
pub fn drive_multiboot1(data: &[u8]) {
    drive(Kind::Multiboot1, data);
}

/// Loads an image into a guest of 8 MiB, with modules.
fn drive(kind: Kind, image: &[u8]) {
    let memory_map = [
        MemoryRegion::new(Gpa::new(0), 0x9_FC00, RegionKind::Ram),
        MemoryRegion::new(Gpa::new(0xF_0000), 0x1_0000, RegionKind::Reserved),
        MemoryRegion::new(Gpa::new(MIB), RAM_LEN - MIB, RegionKind::Ram),
    ];
    let modules = [Module { data: &[1; 5000], cmdline: "first" }, Module { data: &[2; 3], cmdline: "" }];
    let request = LoadRequest {
        modules: &modules,
        cmdline: "console=ttyS0",
        memory_map: &memory_map,
        reserved: &[(Gpa::new(0), RESERVED_LEN)],
        rsdp: Some(Gpa::new(0xF_0000)),
    };
    let mut ram = vec![0; RAM_LEN as usize];
    let memory = Guarded(SliceMemory::new(&mut ram));
    let _ = crate::detect(image);
    if let Ok(state) = crate::load_as(kind, image, &request, &memory) {
        assert!(state.rip < RAM_LEN && state.gdt.base + u64::from(state.gdt.limit) < RAM_LEN);
    }
}

/// Memory where only free RAM may be written.
struct Guarded<'a>(SliceMemory<'a>);

impl GuestMemory for Guarded<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.0.read(gpa, buf)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let (start, end) = (gpa.as_u64(), gpa.as_u64() + data.len() as u64);
        let free = |from, to| from <= start && end <= to;
        assert!(
            data.is_empty() || free(RESERVED_LEN, 0x9_FC00) || free(MIB, RAM_LEN),
            "{start:#x}..{end:#x} is not free RAM"
        );
        self.0.write(gpa, data)
    }

    fn compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<bool, MemoryError> {
        self.0.compare_exchange_u32(gpa, current, new)
    }

    fn compare_exchange_u64(&self, gpa: Gpa, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange_u64(gpa, current, new)
    }
}
