use alloc::vec::Vec;

use caisson_types::{Gpa, MemoryRegion, RegionKind};
use proptest::prelude::*;

use super::*;
use crate::Module;
use crate::bytes::{slice, u16_at, u32_at, u64_at};
use crate::testing::{Image, MAP, MIB, StrictMemory, request};

const KERNEL_LEN: usize = 0x5000;

/// An image with two sectors of setup code, of the given version.
fn image(version: u16) -> Image {
    let mut image = Image::new(3 * 512 + KERNEL_LEN);
    image.0[0x1F1..0x290].fill(0);
    image
        .put(0x1F1, &[2])
        .u32(0x1F4, KERNEL_LEN as u32 / 16)
        .u16(0x1FE, 0xAA55)
        .put(0x200, &[0xEB, 0x6A])
        .put(0x202, b"HdrS")
        .u16(0x206, version)
        .put(0x211, &[0x81])
        .u32(0x22C, 0x7FFF_FFFF)
        .u32(0x230, 0x20_0000)
        .put(0x234, &[1])
        .u32(0x238, 2047)
        .u64(0x250, 0xDEAD)
        .u64(0x258, 16 * MIB)
        .u32(0x260, 0x80_0000);
    if version >= 0x20C {
        image.u16(0x236, 3);
    }
    image
}

struct Loaded {
    state: EntryState,
    memory: StrictMemory,
    page: Vec<u8>,
}

fn try_load(image: &[u8], request: &LoadRequest<'_>) -> Result<Loaded, LoadError> {
    let memory = StrictMemory::new(request, 0);
    let state = load(image, request, &memory)?;
    let page = memory.bytes(state.rsi, 4096);
    Ok(Loaded { state, memory, page })
}

fn field(page: &[u8], at: u64) -> u64 {
    u64::from(u32_at(page, at).unwrap())
}

#[test]
fn a_modern_kernel_enters_in_64_bit_mode() {
    let image = image(0x20F);
    let modules = [Module { data: &[1, 2, 3, 4, 5], cmdline: "" }, Module { data: &[6; 100], cmdline: "" }];
    let request = request("console=ttyS0", &modules);
    let Loaded { state, memory, page } = try_load(&image.0, &request).unwrap();

    assert_eq!(memory.bytes(16 * MIB, KERNEL_LEN), image.0[3 * 512..]);
    assert_eq!(state.rip, 16 * MIB + 0x200);
    let EntryMode::Long64 { page_table } = state.mode else { panic!("not 64-bit") };
    assert_eq!((state.cr0(), state.cr4(), state.efer()), (0x8000_0011, 0x20, 0x500));
    assert_eq!(state.cr3(), page_table.as_u64());
    assert_eq!((state.code.selector, state.data.selector), (0x10, 0x18));

    assert_eq!(u16_at(&page, 0x206), Some(0x20F));
    assert_eq!(page[0x1EF], 0, "sentinel");
    assert_eq!((page[0x210], page[0x211]), (0xFF, 0x01));
    assert_eq!(field(&page, 0x214), 16 * MIB);
    assert_eq!(u64_at(&page, 0x250), Some(0));
    assert_eq!(u64_at(&page, 0x070), Some(0xF_0000));
    assert_eq!(memory.text(field(&page, 0x228)), b"console=ttyS0");
    let initrd = field(&page, 0x218);
    assert_eq!(initrd, 63 * MIB - 4096);
    assert_eq!(field(&page, 0x21C), 108);
    assert_eq!(memory.bytes(initrd, 10), [1, 2, 3, 4, 5, 0, 0, 0, 6, 6]);
    assert_eq!((field(&page, 0x0C0), field(&page, 0x0C4)), (0, 0));
    assert_eq!(page[0x1E8], 4);
    for (index, region) in MAP.iter().enumerate() {
        let at = 0x2D0 + 20 * index as u64;
        assert_eq!(u64_at(&page, at), Some(region.start.as_u64()));
        assert_eq!(u64_at(&page, at + 8), Some(region.len));
        assert_eq!(u32_at(&page, at + 16), Some(region.kind.e820_type()));
    }
    StrictMemory::assert_apart(&[
        ("kernel", 16 * MIB, 0x80_0000),
        ("zero page", state.rsi, 4096),
        ("page tables", page_table.as_u64(), PAGE_TABLES_LEN),
        ("gdt", state.gdt.base, GDT_LEN),
        ("cmdline", field(&page, 0x228), 14),
        ("initrd", initrd, 108),
    ]);
}

#[test]
fn page_tables_map_four_gib_onto_themselves() {
    let image = image(0x20F);
    let Loaded { state, memory, .. } = try_load(&image.0, &request("", &[])).unwrap();
    let entry = |table: u64, index: u64| u64_at(&memory.bytes(table + index * 8, 8), 0).unwrap();
    for address in [0, 0x1F_FFFF, 0x20_0000, 16 * MIB, 3 << 30, FOUR_GIB - 1] {
        let pointers = entry(state.cr3(), address >> 39 & 511) & !0xFFF;
        let directory = entry(pointers, address >> 30 & 511) & !0xFFF;
        let page = entry(directory, address >> 21 & 511);
        assert_eq!(page, address & !0x1F_FFFF | 0x83);
    }
    assert_eq!(entry(entry(state.cr3(), 0) & !0xFFF, 4), 0);
    assert_eq!(entry(state.gdt.base, 2), 0x00AF_9B00_0000_FFFF);
    assert_eq!(entry(state.gdt.base, 3), 0x00CF_9300_0000_FFFF);
}

#[test]
fn a_relocatable_kernel_goes_elsewhere_when_its_place_is_taken() {
    let image = image(0x20F);
    let reserved = [(Gpa::new(20 * MIB), 1)];
    let request = LoadRequest { reserved: &reserved, ..request("", &[]) };
    let Loaded { state, .. } = try_load(&image.0, &request).unwrap();
    assert_eq!(state.rip, 22 * MIB + 0x200);
}

#[test]
fn older_kernels_enter_in_32_bit_mode_at_one_mib() {
    for version in [0x200, 0x201, 0x202, 0x203, 0x204] {
        let image = image(version);
        let modules = [Module { data: &[7; 9], cmdline: "" }];
        let Loaded { state, memory, page } = try_load(&image.0, &request("old", &modules)).unwrap();
        assert_eq!((state.mode, state.rip), (EntryMode::Protected32, MIB));
        assert_eq!((state.cr0(), state.cr4(), state.efer()), (0x11, 0, 0));
        assert_eq!(memory.bytes(MIB, KERNEL_LEN), image.0[3 * 512..]);
        let cmdline = if version < 0x202 {
            assert_eq!(state.rsi, 0x9_0000);
            assert_eq!(u16_at(&page, 0x20), Some(0xA33F));
            state.rsi + u64::from(u16_at(&page, 0x22).unwrap())
        } else {
            field(&page, 0x228)
        };
        assert_eq!(memory.text(cmdline), b"old");
        let too_long = "x".repeat(256);
        assert!(matches!(
            try_load(&image.0, &request(&too_long, &[])),
            Err(LoadError::CommandLineTooLong { len: 256, max: 255 })
        ));
    }
    // Relocatable since 2.05, and with a preferred address since 2.10.
    assert_eq!(try_load(&image(0x209).0, &request("", &[])).unwrap().state.rip, MIB);
    assert_eq!(try_load(&image(0x20A).0, &request("", &[])).unwrap().state.rip, 16 * MIB);
}

#[test]
fn a_zimage_is_loaded_low() {
    let mut image = image(0x202);
    image.put(0x211, &[0]);
    assert_eq!(try_load(&image.0, &request("", &[])).unwrap().state.rip, 0x1000);
}

#[test]
fn the_ram_disk_stays_below_its_limit() {
    let mut image = image(0x20F);
    image.u32(0x22C, 0xFF_FFFF);
    let modules = [Module { data: &[7; 8192], cmdline: "" }];
    let page = try_load(&image.0, &request("", &modules)).unwrap().page;
    assert_eq!(field(&page, 0x218), 16 * MIB - 8192);
    // With the limit in the hole, only a kernel that takes RAM disks anywhere gets one.
    image.u32(0x22C, 0xFFF);
    let page = try_load(&image.0, &request("", &modules)).unwrap().page;
    assert_eq!(field(&page, 0x218), 63 * MIB - 8192);
    image.u16(0x236, 1);
    assert!(matches!(try_load(&image.0, &request("", &modules)), Err(LoadError::NoRoom { .. })));
}

#[test]
fn what_cannot_be_right_is_refused() {
    let request = request("", &[]);
    let refusal = |change: &dyn Fn(&mut Image)| {
        let mut image = image(0x20F);
        change(&mut image);
        try_load(&image.0, &request).err().unwrap()
    };
    assert_eq!(refusal(&|i| i.0.truncate(0x202)), LoadError::NotThis("Linux bzImage"));
    assert_eq!(refusal(&|i| i.0.truncate(0x208)), LoadError::Truncated("setup header"));
    assert_eq!(refusal(&|i| i.0.truncate(3 * 512)), LoadError::Truncated("protected-mode kernel"));
    assert_eq!(refusal(&|i| i.0.truncate(3 * 512 + 0x4FF0)), LoadError::Truncated("protected-mode kernel"));
    assert!(matches!(
        refusal(&|i| {
            i.u16(0x206, 0x300);
        }),
        LoadError::BadField { value: 0x300, .. }
    ));
    assert!(matches!(
        refusal(&|i| {
            i.u32(0x230, 3);
        }),
        LoadError::BadField { value: 3, .. }
    ));
    assert!(matches!(
        refusal(&|i| {
            i.u32(0x260, u32::MAX);
        }),
        LoadError::NoRoom { what: "kernel", .. }
    ));
    assert!(matches!(
        refusal(&|i| {
            i.u64(0x258, u64::MAX);
        }),
        LoadError::NoRoom { .. }
    ));
    let fixed = |i: &mut Image| {
        i.put(0x234, &[0]).u64(0x258, u64::MAX);
    };
    assert!(matches!(refusal(&fixed), LoadError::BadField { field: "pref_address", .. }));
    let many = [MemoryRegion::new(Gpa::new(0), 0, RegionKind::Reserved); 129];
    let mut map = many.to_vec();
    map.extend(MAP);
    let request = LoadRequest { memory_map: &map, ..request };
    assert_eq!(try_load(&image(0x20F).0, &request).err(), Some(LoadError::BadMemoryMap));
}

#[test]
fn a_short_header_has_no_later_fields() {
    let mut image = image(0x20F);
    image.put(0x201, &[0x33]); // ends after relocatable_kernel
    let Loaded { state, page, .. } = try_load(&image.0, &request("", &[])).unwrap();
    assert_eq!((state.mode, state.rip), (EntryMode::Protected32, MIB));
    assert_eq!(slice(&page, 0x235, 0x3B), Some([0; 0x3B].as_slice()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_header_panics_or_writes_outside_ram(patches in prop::collection::vec((0x1F1usize..0x270, any::<u8>()), 0..6)) {
        let mut image = image(0x20F);
        for (at, byte) in patches {
            image.0[at] = byte;
        }
        let modules = [Module { data: &[7; 5000], cmdline: "" }];
        let _ = try_load(&image.0, &request("console=ttyS0", &modules));
    }
}
