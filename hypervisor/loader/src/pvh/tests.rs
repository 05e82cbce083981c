use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::bytes::{u32_at, u64_at};
use crate::testing::{MAP, MIB, StrictMemory, TestSegment, add_sections, elf, request};
use crate::{Kind, Module, detect};

/// A kernel at 16 MiB, linked at the top of the address space if it is wide.
fn kernel(wide: bool) -> Vec<u8> {
    let code = TestSegment {
        kind: 1,
        virtual_address: if wide { 0xFFFF_FFFF_8100_0000 } else { 0xC100_0000 },
        physical_address: 16 * MIB,
        data: vec![0x90; 5000],
        memory_size: 0x1_0000,
    };
    let entry = (16 * MIB as u32 + 0x100).to_le_bytes();
    let entry = if wide { [entry, [0; 4]].concat() } else { entry.to_vec() };
    elf(wide, 0, &[code, TestSegment::note(b"Xen\0", 18, &entry)]).0
}

fn try_load(
    image: &[u8],
    request: &LoadRequest<'_>,
    fill: u8,
) -> Result<(EntryState, StrictMemory), LoadError> {
    let memory = StrictMemory::new(request, fill);
    load(image, request, &memory).map(|state| (state, memory))
}

#[test]
fn kernels_of_both_classes_enter_with_start_information() {
    for wide in [false, true] {
        let image = kernel(wide);
        assert_eq!(detect(&image), Some(Kind::Pvh));
        let modules = [Module { data: &[1; 5000], cmdline: "first" }, Module { data: &[2; 3], cmdline: "" }];
        let request = request("root=/dev/vda", &modules);
        let (state, memory) = try_load(&image, &request, 0xCC).unwrap();
        assert_eq!((state.mode, state.rip), (EntryMode::Protected32, 16 * MIB + 0x100));
        assert_eq!((state.cr0(), state.cr3(), state.cr4(), state.efer()), (0x11, 0, 0, 0));
        assert_eq!(memory.bytes(16 * MIB, 5000), vec![0x90; 5000]);
        assert_eq!(memory.bytes(16 * MIB + 5000, 0x1_0000 - 5000), vec![0; 0x1_0000 - 5000]);
        assert_eq!(memory.bytes(16 * MIB + 0x1_0000, 1), [1], "the first module follows the kernel");

        let info = memory.bytes(state.rbx, START_INFO_LEN);
        let word = |at| u32_at(&info, at).unwrap();
        let address = |at| u64_at(&info, at).unwrap();
        assert_eq!((word(0), word(4), word(8), word(12)), (0x336E_C578, 1, 0, 2));
        assert_eq!(memory.text(address(24)), b"root=/dev/vda");
        assert_eq!(address(32), 0xF_0000);
        assert_eq!((word(48), word(52)), (4, 0));
        let regions = memory.bytes(address(40), 4 * 24);
        for (index, region) in MAP.iter().enumerate() {
            let at = 24 * index as u64;
            assert_eq!(u64_at(&regions, at), Some(region.start.as_u64()));
            assert_eq!(u64_at(&regions, at + 8), Some(region.len));
            assert_eq!(u64_at(&regions, at + 16), Some(u64::from(region.kind.e820_type())));
        }
        let list = memory.bytes(address(16), 2 * 32);
        let entry = |at| u64_at(&list, at).unwrap();
        assert_eq!((entry(8), entry(40)), (5000, 3));
        assert_eq!(memory.bytes(entry(0), 5000), [1; 5000]);
        assert_eq!(memory.bytes(entry(32), 3), [2; 3]);
        assert_eq!(memory.text(entry(16)), b"first");
        assert_eq!(memory.text(entry(48)), b"");
        assert_eq!((entry(0) % 4096, entry(32) % 4096), (0, 0));
        StrictMemory::assert_apart(&[
            ("kernel", 16 * MIB, 0x1_0000),
            ("info", state.rbx, START_INFO_LEN as u64),
            ("list", address(16), 64),
            ("regions", address(40), 96),
            ("gdt", state.gdt.base, GDT_LEN),
            ("cmdline", address(24), 14),
            ("module text", entry(16), 7),
            ("first", entry(0), 5000),
            ("second", entry(32), 3),
        ]);
    }
}

#[test]
fn the_note_may_be_in_a_section_alone() {
    let note = TestSegment::note(b"Xen\0", 18, &(16 * MIB as u32).to_le_bytes()).data;
    for wide in [false, true] {
        let mut image = elf(wide, 0, &[TestSegment::load(16 * MIB, &[0x90; 16], 16)]);
        assert!(!is_pvh(&image.0));
        add_sections(&mut image, &[(7, 0, &note, note.len() as u64)]);
        let (state, _) = try_load(&image.0, &request("", &[]), 0).unwrap();
        assert_eq!(state.rip, 16 * MIB);
    }
}

#[test]
fn what_cannot_be_right_is_refused() {
    let with = |segments: &[TestSegment], entry: u32| {
        let note = TestSegment::note(b"Xen\0", 18, &entry.to_le_bytes());
        let mut all = vec![note];
        all.extend(segments.iter().map(|s| TestSegment { data: s.data.clone(), ..*s }));
        try_load(&elf(true, 0, &all).0, &request("", &[]), 0).err().unwrap()
    };
    let good = TestSegment::load(16 * MIB, &[0x90; 16], 0x1000);
    assert_eq!(with(&[], 0), LoadError::NoSegments);
    let outside = with(&[TestSegment { memory_size: 0x1001, ..good_copy(&good) }], 17 * MIB as u32);
    assert_eq!(outside, LoadError::BadEntry(17 * MIB));
    let large = with(&[TestSegment::load(16 * MIB, &[0; 16], 15)], 16 * MIB as u32);
    assert!(matches!(large, LoadError::BadField { field: "p_filesz", .. }));
    let hole = with(&[TestSegment::load(0x9_F000, &[0; 16], 0x1000)], 0x9_F000);
    assert!(matches!(hole, LoadError::OutsideRam { .. }));
    let reserved = with(&[TestSegment::load(0, &[0; 16], 16)], 0);
    assert!(matches!(reserved, LoadError::Overlap { .. }));
    let twice = with(&[good_copy(&good), TestSegment::load(16 * MIB + 0xFFF, &[0; 1], 1)], 16 * MIB as u32);
    assert!(matches!(twice, LoadError::Overlap { .. }));
    let many: Vec<_> = (0..65).map(|n| TestSegment::load((16 + n) * 4096, &[0], 1)).collect();
    assert_eq!(with(&many, 0), LoadError::TooManySegments);
    let wrap = with(&[TestSegment::load(u64::MAX - 4, &[0; 16], 16)], 0);
    assert!(matches!(wrap, LoadError::OutsideRam { .. }));
    let no_note = elf(true, 0, &[good_copy(&good)]).0;
    assert_eq!(try_load(&no_note, &request("", &[]), 0).err(), Some(LoadError::NotThis("PVH ELF")));
    assert_eq!(try_load(b"MZ", &request("", &[]), 0).err(), Some(LoadError::NotThis("ELF")));
}

/// The check without a guest tells what it can of an image, and no more.
#[test]
fn images_are_checked_without_a_guest() {
    let image = kernel(true);
    assert_eq!(crate::check(None, &image), Ok(Kind::Pvh));
    assert_eq!(crate::check(Some(Kind::Pvh), &image), Ok(Kind::Pvh));
    assert_eq!(crate::check(Some(Kind::Linux), &image), Err(LoadError::NotThis("Linux bzImage")));
    assert_eq!(crate::check(Some(Kind::Multiboot1), &image), Err(LoadError::NotThis("multiboot1")));
    assert_eq!(crate::check(None, &image[..image.len() - 5000]), Err(LoadError::Truncated("segment")));
    assert_eq!(crate::check(None, &image[..0x50]), Err(LoadError::Truncated("program header table")));
    assert_eq!(crate::check(None, &image[..0x30]), Err(LoadError::Truncated("ELF header")));
    assert_eq!(crate::check(None, b"#!/bin/sh\n"), Err(LoadError::UnknownImage));
    assert_eq!(crate::check(None, &[]), Err(LoadError::UnknownImage));
    for (at, value, field) in
        [(4, 3, "ELF class"), (5, 2, "ELF data encoding"), (16, 1, "e_type"), (18, 0xB7, "e_machine")]
    {
        let mut other = image.clone();
        other[at] = value;
        let error = crate::check(None, &other).unwrap_err();
        assert_eq!(error, LoadError::BadField { field, value: u64::from(value) });
        assert!(
            crate::load(&other, &request("", &[]), &StrictMemory::new(&request("", &[]), 0)) == Err(error)
        );
    }
    let plain = elf(true, 0, &[TestSegment::load(16 * MIB, &[0x90; 16], 16)]).0;
    assert_eq!(crate::check(None, &plain), Err(LoadError::PlainElf));
    let nowhere =
        elf(true, 0, &[TestSegment::load(1 << 40, &[0; 16], 16), TestSegment::note(b"Xen\0", 18, &[0; 4])]);
    assert_eq!(crate::check(None, &nowhere.0), Err(LoadError::BadEntry(0)));
    let far = elf(true, 0, &[TestSegment::load(0, &[0; 16], 16), TestSegment::note(b"Xen\0", 18, &[0; 4])]);
    assert_eq!(crate::check(None, &far.0), Ok(Kind::Pvh), "where a guest's RAM is does not matter here");
}

/// Each field that is refused says what would be accepted.
#[test]
fn a_bad_field_is_told_with_what_is_accepted() {
    let line = alloc::format!("{}", LoadError::BadField { field: "e_machine", value: 0xB7 });
    assert_eq!(
        line,
        "the image's e_machine is 0xb7, where 0x3 (80386) or 0x3e (x86-64) is accepted; build it again"
    );
}

fn good_copy(segment: &TestSegment) -> TestSegment {
    TestSegment { data: segment.data.clone(), ..*segment }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_header_panics_or_writes_outside_ram(
        wide in any::<bool>(),
        patches in prop::collection::vec((0usize..180, any::<u8>()), 0..6),
        note in prop::collection::vec((0usize..60, any::<u8>()), 0..3),
    ) {
        let mut image = kernel(wide);
        for (at, byte) in patches {
            image[at] = byte;
        }
        let end = image.len() - 60;
        for (at, byte) in note {
            image[end + at] = byte;
        }
        let modules = [Module { data: &[7; 5000], cmdline: "m" }];
        let _ = try_load(&image, &request("x", &modules), 0);
    }
}
