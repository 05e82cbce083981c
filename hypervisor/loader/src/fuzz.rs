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
    let _ = crate::check(None, image);
    let checked = crate::check(Some(kind), image);
    if let Ok(state) = crate::load_as(kind, image, &request, &memory) {
        assert_eq!(checked, Ok(kind), "what can be loaded passes the check");
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

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        self.0.is_ram(gpa, len)
    }

    fn compare_exchange_u32(&self, gpa: Gpa, current: u32, new: u32) -> Result<bool, MemoryError> {
        self.0.compare_exchange_u32(gpa, current, new)
    }

    fn compare_exchange_u64(&self, gpa: Gpa, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange_u64(gpa, current, new)
    }

    fn swap_u8(&self, gpa: Gpa, new: u8) -> Result<u8, MemoryError> {
        self.0.swap_u8(gpa, new)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Bytes with the marks of each kind of image at their places, so that something is looked at.
    fn images() -> impl Strategy<Value = Vec<u8>> {
        let marks: [&[(usize, &[u8])]; 4] = [
            &[],
            &[(0x1FE, &[0x55, 0xAA]), (0x202, b"HdrS"), (0x206, &[0x0F, 2])],
            &[(0, b"\x7FELF\x02\x01\x01"), (16, &[2, 0, 62, 0]), (54, &[56, 0])],
            &[(0, &[0x02, 0xB0, 0xAD, 0x1B, 0, 0, 1, 0, 0xFE, 0x4F, 0x51, 0xE4])],
        ];
        (prop::collection::vec(any::<u8>(), 0..2048), 0..marks.len()).prop_map(move |(mut image, kind)| {
            for &(at, mark) in marks[kind] {
                if let Some(place) = image.get_mut(at..at + mark.len()) {
                    place.copy_from_slice(mark);
                }
            }
            image
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_image_panics(image in images()) {
            drive_bzimage(&image);
            drive_pvh(&image);
            drive_multiboot1(&image);
        }
    }
}
