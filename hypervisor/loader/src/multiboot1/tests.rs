use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use caisson_types::{MemoryRegion, RegionKind};
use proptest::prelude::*;

use super::*;
use crate::bytes::{u32_at, u64_at};
use crate::testing::{ELF_DATA, Image, MAP, MIB, StrictMemory, TestSegment, add_sections, elf, request};
use crate::{Kind, Module, detect};

fn put_header(image: &mut Image, at: usize, flags: u32) {
    let checksum = 0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags);
    image.u32(at, 0x1BAD_B002).u32(at + 4, flags).u32(at + 8, checksum);
}

/// An image with address fields: header, load, load end, bss end, entry.
fn flat(at: usize, fields: [u64; 5]) -> Image {
    let mut image = Image::new(0x3000);
    put_header(&mut image, at, 1 << 16);
    for (index, value) in fields.into_iter().enumerate() {
        image.u32(at + 12 + 4 * index, value as u32);
    }
    image
}

fn elf_kernel(wide: bool, entry: u64, segments: &[TestSegment]) -> Image {
    let mut image = elf(wide, entry, segments);
    put_header(&mut image, ELF_DATA - 64, 3);
    image
}

fn try_load(image: &[u8], request: &LoadRequest<'_>) -> Result<(EntryState, StrictMemory), LoadError> {
    let memory = StrictMemory::new(request, 0);
    load(image, request, &memory).map(|state| (state, memory))
}

fn refusal(image: &Image) -> LoadError {
    try_load(&image.0, &request("", &[])).err().unwrap()
}

#[test]
fn elf_kernels_of_both_classes_enter_with_boot_information() {
    for wide in [false, true] {
        let segments = [
            TestSegment::load(MIB, &[1; 100], 0x2000),
            TestSegment::load(0x8000, &[2; 100], 100),
            TestSegment::load(0x1_0000, &[3; 100], 100),
        ];
        let image = elf_kernel(wide, MIB + 4, &segments);
        assert_eq!(detect(&image.0), Some(Kind::Multiboot1));
        let modules = [Module { data: &[4; 4097], cmdline: "one 1" }, Module { data: &[], cmdline: "" }];
        let request = request("kernel args", &modules);
        let memory = StrictMemory::new(&request, 0xCC);
        let state = load(&image.0, &request, &memory).unwrap();
        assert_eq!((state.mode, state.rip), (EntryMode::Protected32, MIB + 4));
        assert_eq!((state.rax, state.cr0()), (0x2BAD_B002, 0x11));
        assert_eq!(memory.bytes(MIB, 101), [[1; 100].as_slice(), &[0]].concat());
        assert_eq!(memory.bytes(MIB + 0x1FFF, 1), [0]);
        assert_eq!(memory.bytes(0x8000, 100), [2; 100]);
        assert_eq!(memory.bytes(0x1_0000, 100), [3; 100]);

        let info = memory.bytes(state.rbx, INFO_LEN);
        let field = |at| u64::from(u32_at(&info, at).unwrap());
        assert_eq!(field(0), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
        assert_eq!((field(4), field(8)), (0x9_FC00 >> 10, 62 << 10));
        assert_eq!(memory.text(field(16)), b"kernel args");
        assert_eq!(memory.text(field(64)), b"Caisson");
        assert_eq!((field(20), field(44)), (2, 4 * 24));
        let list = memory.bytes(field(24), 32);
        let word = |at| u64::from(u32_at(&list, at).unwrap());
        assert_eq!((word(0), word(4)), (MIB + 0x2000, MIB + 0x3001));
        assert_eq!(memory.bytes(word(0), 4097), [4; 4097]);
        assert_eq!(memory.text(word(8)), b"one 1");
        assert_eq!((word(16), word(20)), (MIB + 0x4000, MIB + 0x4000));
        assert_eq!(memory.text(word(24)), b"");
        let map = memory.bytes(field(48), 96);
        for (index, region) in MAP.iter().enumerate() {
            let at = 24 * index as u64;
            assert_eq!(u32_at(&map, at), Some(20));
            assert_eq!(u64_at(&map, at + 4), Some(region.start.as_u64()));
            assert_eq!(u64_at(&map, at + 12), Some(region.len));
            assert_eq!(u32_at(&map, at + 20), Some(region.kind.e820_type()));
        }
        StrictMemory::assert_apart(&[
            ("segment", MIB, 0x2000),
            ("low segment", 0x8000, 100),
            ("segment at the usual place", 0x1_0000, 100),
            ("info", state.rbx, INFO_LEN as u64),
            ("list", field(24), 32),
            ("map", field(48), 96),
            ("gdt", state.gdt.base, GDT_LEN),
            ("cmdline", field(16), 12),
            ("name", field(64), 8),
            ("module text", word(8), 7),
            ("module", word(0), 4097),
        ]);
    }
}

#[test]
fn a_virtual_entry_is_translated_and_a_physical_one_taken() {
    let high = TestSegment {
        kind: 1,
        virtual_address: 0xFFFF_FFFF_8010_0000,
        physical_address: MIB,
        data: vec![0x90; 64],
        memory_size: 64,
    };
    let segments = [high];
    for entry in [0xFFFF_FFFF_8010_0008, MIB + 8] {
        let image = elf_kernel(true, entry, &segments);
        assert_eq!(try_load(&image.0, &request("", &[])).unwrap().0.rip, MIB + 8);
    }
    assert_eq!(refusal(&elf_kernel(true, MIB + 64, &segments)), LoadError::BadEntry(MIB + 64));
}

#[test]
fn sections_outside_segments_are_loaded_and_found() {
    for wide in [false, true] {
        let mut image = elf_kernel(wide, MIB, &[TestSegment::load(MIB, &[1; 100], 100)]);
        let sections: [(u32, u64, &[u8], u64); 4] =
            [(1, MIB, &[1; 100], 100), (2, 0, &[5; 48], 48), (8, 0, &[], 4096), (3, 0, b"\0names\0", 7)];
        add_sections(&mut image, &sections);
        let (state, memory) = try_load(&image.0, &request("", &[])).unwrap();
        let info = memory.bytes(state.rbx, INFO_LEN);
        let field = |at| u64::from(u32_at(&info, at).unwrap());
        assert_ne!(field(0) & 1 << 5, 0);
        let entry_len = if wide { 64 } else { 40 };
        assert_eq!((field(28), field(32), field(40)), (5, entry_len, 4));
        let table = memory.bytes(field(36), 5 * entry_len as usize);
        let address = |index: u64| {
            let at = index * entry_len;
            if wide { u64_at(&table, at + 16).unwrap() } else { u64::from(u32_at(&table, at + 12).unwrap()) }
        };
        assert_eq!((address(0), address(1), address(3)), (0, MIB, 0));
        assert_eq!(memory.bytes(address(2), 48), [5; 48]);
        assert_eq!(memory.bytes(address(4), 7), *b"\0names\0");
        StrictMemory::assert_apart(&[
            ("segment", MIB, 100),
            ("symbols", address(2), 48),
            ("names", address(4), 7),
            ("table", field(36), 5 * entry_len),
        ]);
    }
}

#[test]
fn sections_without_room_are_left_out() {
    let mut image = elf_kernel(true, MIB, &[TestSegment::load(MIB, &[1; 100], 100)]);
    add_sections(&mut image, &[(2, 0, &[5; 48], 48)]);
    let map = [
        MemoryRegion::new(Gpa::new(0), 0x9_0000, RegionKind::Ram),
        MemoryRegion::new(Gpa::new(MIB), 100, RegionKind::Ram),
    ];
    let request = LoadRequest { memory_map: &map, ..request("", &[]) };
    let (state, memory) = try_load(&image.0, &request).unwrap();
    assert_eq!(u32_at(&memory.bytes(state.rbx, 4), 0).unwrap() & 1 << 5, 0);
    // A module goes below the kernel where nothing is free above it.
    let modules = [Module { data: &[9; 8], cmdline: "" }];
    let (state, memory) = try_load(&image.0, &LoadRequest { modules: &modules, ..request }).unwrap();
    let list = u64::from(u32_at(&memory.bytes(state.rbx + 24, 4), 0).unwrap());
    assert_eq!(u32_at(&memory.bytes(list, 4), 0), Some(0x1000));
}

#[test]
fn address_fields_fix_the_image_in_memory() {
    let load = 2 * MIB;
    // The header is 0x80 into the loaded part, which starts 0x100 into the image.
    let image = flat(0x180, [load + 0x80, load, load + 0x200, load + 0x1000, load + 0x10]);
    let (state, memory) = try_load(&image.0, &request("", &[])).unwrap();
    assert_eq!(state.rip, load + 0x10);
    assert_eq!(memory.bytes(load, 0x200), image.0[0x100..0x300]);
    assert_eq!(memory.bytes(load + 0x200, 0xE00), vec![0; 0xE00]);
    assert!(memory.was_written(load + 0xFFF) && !memory.was_written(load + 0x1000));

    // Without a load end all the rest of the image is loaded, without a bss end nothing follows it.
    let image = flat(0, [0x6000, 0x6000, 0, 0, 0x6000]);
    let (state, memory) = try_load(&image.0, &request("", &[])).unwrap();
    assert_eq!(state.rip, 0x6000);
    assert_eq!(memory.bytes(0x6000, 0x3000), image.0);
    assert!(!memory.was_written(0x9000));
}

#[test]
fn address_fields_that_cannot_be_right_are_refused() {
    let at = 2 * MIB;
    for (fields, name) in [
        ([at, at + 1, 0, 0, at], "load_addr"),
        ([at + 0x104, at, 0, 0, at], "header_addr"),
        ([at, at, at - 1, 0, at], "load_end_addr"),
        ([at, at, at + 0x100, at + 0xFF, at], "bss_end_addr"),
    ] {
        assert!(matches!(refusal(&flat(0x100, fields)), LoadError::BadField { field, .. } if field == name));
    }
    assert!(matches!(refusal(&flat(0x100, [at, at, at + 0x2F01, 0, at])), LoadError::Truncated(_)));
    assert_eq!(refusal(&flat(0x100, [at, at, at, 0, at])), LoadError::NoSegments);
    assert!(matches!(refusal(&flat(0x100, [at, at, 0, 0, at - 1])), LoadError::BadEntry(_)));
    assert!(matches!(refusal(&flat(0x100, [0, 0, 0, 0, 0])), LoadError::Overlap { .. }));
    assert!(matches!(refusal(&flat(0x100, [64 * MIB; 5])), LoadError::NoSegments));
    let outside = flat(0x100, [63 * MIB - 16, 63 * MIB - 16, 0, 0, 63 * MIB - 16]);
    assert!(matches!(refusal(&outside), LoadError::OutsideRam { .. }));
}

#[test]
fn the_header_is_found_by_the_rules() {
    let mut image = Image(vec![0; 0x4000]);
    assert!(!is_multiboot1(&image.0));
    put_header(&mut image, 8192 - 12, 0);
    assert!(is_multiboot1(&image.0));
    let not_elf = refusal(&image);
    assert!(matches!(not_elf, LoadError::NotThis(_)));
    let mut image = Image(vec![0; 0x4000]);
    put_header(&mut image, 8192 - 8, 0);
    put_header(&mut image, 6, 0);
    assert!(!is_multiboot1(&image.0));
    put_header(&mut image, 4, 1 << 3 | 1 << 17);
    assert_eq!(refusal(&image), LoadError::UnknownFlags(1 << 3));
    let mut image = Image(vec![0; 0x4000]);
    put_header(&mut image, 8192 - 28, 1 << 16);
    assert_eq!(refusal(&image), LoadError::Truncated("multiboot header"));
}

#[test]
fn any_number_of_modules_goes_around_what_is_there() {
    let segments = [TestSegment::load(MIB, &[1], 1), TestSegment::load(MIB + 0x3000, &[1], 0x1000)];
    let image = elf_kernel(false, MIB, &segments);
    let content: Vec<[u8; 4]> = (0..2000u32).map(u32::to_le_bytes).collect();
    let names: Vec<String> = (0..2000).map(|n| alloc::format!("module {n}")).collect();
    let modules: Vec<_> =
        content.iter().zip(&names).map(|(data, cmdline)| Module { data, cmdline }).collect();
    let reserved = [(Gpa::new(0), 0x1000), (Gpa::new(MIB + 0x8000), 0x1001)];
    let request = LoadRequest { reserved: &reserved, ..request("", &modules) };
    let (state, memory) = try_load(&image.0, &request).unwrap();
    let list = u64::from(u32_at(&memory.bytes(state.rbx + 24, 4), 0).unwrap());
    let entries = memory.bytes(list, 2000 * 16);
    let mut last = 0;
    for (index, name) in names.iter().enumerate() {
        let word = |at| u64::from(u32_at(&entries, 16 * index as u64 + at).unwrap());
        assert!(word(0) > last && word(0) % 4096 == 0);
        last = word(0);
        assert_eq!(memory.bytes(word(0), 4), content[index]);
        assert_eq!(memory.text(word(8)), name.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_elf_header_panics_or_writes_outside_ram(
        wide in any::<bool>(),
        patches in prop::collection::vec((0usize..180, any::<u8>()), 0..6),
        sections in prop::collection::vec((0usize..320, any::<u8>()), 0..4),
    ) {
        let mut image = elf_kernel(wide, MIB, &[TestSegment::load(MIB, &[1; 100], 200)]);
        add_sections(&mut image, &[(2, 0, &[5; 48], 48), (3, 0, b"names", 5), (1, MIB, &[], 100)]);
        let end = image.0.len();
        for (at, byte) in patches {
            image.0[at] = byte;
        }
        for (at, byte) in sections {
            image.0[end - 1 - at] = byte;
        }
        let modules = [Module { data: &[7; 5000], cmdline: "m" }];
        let _ = try_load(&image.0, &request("x", &modules));
    }

    #[test]
    fn no_address_fields_panic_or_write_outside_ram(fields in prop::array::uniform5(prop_oneof![
        0u64..0x5000, MIB..MIB + 0x5000, Just(0u64), any::<u32>().prop_map(u64::from)
    ]), at in 0usize..2000) {
        let _ = try_load(&flat(at * 4, fields).0, &request("x", &[]));
    }
}
