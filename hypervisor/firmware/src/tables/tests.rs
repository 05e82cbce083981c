use super::*;
use caisson_types::SliceMemory;
use proptest::prelude::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
}

fn named<'a>(tables: &'a Tables, name: &str) -> &'a Blob {
    tables.blobs.iter().find(|blob| blob.name == name).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

fn ids(count: u32) -> Vec<u32> {
    (0..count).collect()
}

/// What must hold of every machine's tables.
fn check(layout: &GuestLayout<'_>) -> Tables {
    let tables = build(layout).unwrap();
    let mut ranges: Vec<(u64, u64)> =
        tables.blobs.iter().map(|b| (b.gpa.as_u64(), b.gpa.as_u64() + b.bytes.len() as u64)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "pieces do not overlap");
    for blob in &tables.blobs {
        let reserved = layout.memory_map().any(|region| {
            region.kind == caisson_types::RegionKind::Reserved
                && region.start <= blob.gpa
                && blob.gpa.as_u64() + blob.bytes.len() as u64 <= region.start.as_u64() + region.len
        });
        assert!(reserved || blob.name == "BIOS data area", "{} is where the guest allocates", blob.name);
        if blob.name.len() == 4 {
            assert_eq!(&blob.bytes[..4], blob.name.as_bytes());
            assert_eq!(word(&blob.bytes, 4), blob.bytes.len() as u64);
            assert!(blob.name == "FACS" || sum(&blob.bytes) == 0, "{} has a wrong sum", blob.name);
        }
    }
    tables
}

#[test]
fn pointers_lead_from_the_root_to_every_table() {
    let tables = check(&GuestLayout::new(128 << 20, &ids(2)));
    let address = |name| named(&tables, name).gpa.as_u64();
    let rsdp = named(&tables, "RSD PTR");
    assert_eq!(rsdp.gpa, RSDP);
    assert_eq!((sum(&rsdp.bytes[..20]), sum(&rsdp.bytes), rsdp.bytes.len(), rsdp.bytes[15]), (0, 0, 36, 2));
    assert_eq!((word(&rsdp.bytes, 16), word(&rsdp.bytes, 24)), (address("RSDT"), address("XSDT")));
    let (rsdt, xsdt) = (&named(&tables, "RSDT").bytes, &named(&tables, "XSDT").bytes);
    assert_eq!((word(rsdt, 36), word(rsdt, 40), rsdt.len()), (address("FACP"), address("APIC"), 44));
    assert_eq!((word(xsdt, 36), word(xsdt, 44), xsdt.len()), (address("FACP"), address("APIC"), 52));
    let fadt = &named(&tables, "FACP").bytes;
    assert_eq!(
        (word(fadt, 36), word(fadt, 40), word(fadt, 140)),
        (address("FACS"), address("DSDT"), address("DSDT"))
    );
    assert_eq!(address("FACS") % 64, 0);
    let pointer = named(&tables, "MP floating pointer");
    assert_eq!(word(&pointer.bytes, 4), address("MP configuration table"));
}

/// Offsets are those of ACPI 6.5, table 5.9.
#[test]
fn the_fixed_table_names_the_ports_of_the_devices() {
    use caisson_devices::{pm, reset};
    let tables = check(&GuestLayout::new(128 << 20, &ids(1)));
    let fadt = &named(&tables, "FACP").bytes;
    assert_eq!(fadt.len(), 276);
    assert_eq!(fadt[46], pm::SCI_IRQ);
    assert_eq!(
        (word(fadt, 48), fadt[52], fadt[53]),
        (u64::from(pm::SMI_CMD), pm::ACPI_ENABLE, pm::ACPI_DISABLE)
    );
    assert_eq!((word(fadt, 56), word(fadt, 64)), (u64::from(pm::PM1A_EVENT), u64::from(pm::PM1A_CONTROL)));
    assert_eq!((word(fadt, 76), word(fadt, 80)), (u64::from(pm::TIMER), u64::from(pm::GPE0)));
    assert_eq!(fadt[88..96], [4, 2, 0, 4, 4, 0, 0, 0]);
    assert_eq!(fadt[108], 0x32);
    assert_eq!(fadt[109..111], [0b0101, 0]);
    // Not hardware-reduced; a reset register; a 32-bit timer.
    assert_eq!(word(fadt, 112) & (1 << 20 | 1 << 10 | 1 << 8), 1 << 10 | 1 << 8);
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((word(fadt, 120), fadt[128]), (u64::from(reset::CONTROL), reset::CONTROL_RESET));
}

#[test]
fn the_apic_table_has_every_cpu_once() {
    let cpus = [0, 1, 254, 255, 256, 70_000];
    let layout = GuestLayout::new(128 << 20, &cpus);
    let tables = check(&GuestLayout { ioapic_id: 9, ..layout });
    let madt = &named(&tables, "APIC").bytes;
    assert_eq!((word(madt, 36), word(madt, 40)), (0xFEE0_0000, 1));
    let (mut at, mut found, mut kinds) = (44, Vec::new(), Vec::new());
    while at < madt.len() {
        match madt[at] {
            0 => found.push((u64::from(madt[at + 2]), u64::from(madt[at + 3]))),
            9 => found.push((word(madt, at + 12), word(madt, at + 4))),
            1 => assert_eq!((madt[at + 2], word(madt, at + 4), word(madt, at + 8)), (9, 0xFEC0_0000, 0)),
            _ => {}
        }
        kinds.push(madt[at]);
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(at, madt.len());
    assert_eq!(found, (0..).zip(cpus.map(u64::from)).collect::<Vec<_>>());
    assert_eq!(kinds, [0, 0, 0, 1, 9, 9, 9, 2, 2, 4, 10]);
}

#[test]
fn hundreds_of_cpus_fit_and_too_many_are_refused() {
    check(&GuestLayout::new(128 << 20, &ids(1024)));
    let many = ids(4000);
    assert_eq!(build(&GuestLayout::new(128 << 20, &many)), Err(LayoutError::TooManyVcpus(4000)));
}

/// A Memory32Fixed and an Extended Interrupt descriptor for each device (ACPI 6.5, sections 6.4.3.4 and 6.4.3.6).
#[test]
fn the_dsdt_names_the_virtio_devices() {
    let layout = GuestLayout { virtio: 10, ..GuestLayout::new(128 << 20, &[0]) };
    let tables = check(&layout);
    let dsdt = &named(&tables, "DSDT").bytes;
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!((count(b"LNRO0005"), count(b"VR00"), count(b"VR09"), count(b"VR0A")), (10, 1, 1, 0));
    for index in 0..10u32 {
        let mut page = Vec::from([0x86, 9, 0, 1]);
        page.extend((0xFEB0_0000 + 0x1000 * index).to_le_bytes());
        page.extend(0x1000u32.to_le_bytes());
        // Consumer, edge-triggered, active high, shared.
        page.extend([0x89, 6, 0, 0b0_1011, 1, (16 + index % 8) as u8, 0, 0, 0]);
        assert_eq!(count(&page), 1, "device {index}");
    }
    let none = check(&GuestLayout::new(128 << 20, &ids(1)));
    assert!(!named(&none, "DSDT").bytes.windows(8).any(|window| window == b"LNRO0005"));
}

/// Each processor says that it sleeps by HLT (ACPI 6.5, section 8.4.1.1): one package with a generic register descriptor of
/// functional fixed hardware, all of its fields 0.
#[test]
fn the_dsdt_names_the_idle_state() {
    let tables = check(&GuestLayout::new(128 << 20, &ids(3)));
    let dsdt = &named(&tables, "DSDT").bytes;
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!((count(b"_CST"), count(b"ACPI0007")), (3, 3));
    // ResourceTemplate () { Register (FFixedHW, 0, 0, 0) }, C1, 10 us, 1000 mW.
    let register = [&[0x82, 12, 0, 0x7f][..], &[0; 11], &[0x79, 0]].concat();
    let state = [&register[..], &[0x01, 0x0a, 10, 0x0b, 0xe8, 3]].concat();
    assert_eq!(count(&state), 1);
}

#[test]
fn installing_writes_every_piece() {
    let mut ram = alloc::vec![0xAA; 2 << 20];
    let layout = GuestLayout::new(2 << 20, &[0]);
    {
        let memory = SliceMemory::new(&mut ram);
        assert_eq!(install(&layout, &memory), Ok(RSDP));
    }
    for blob in build(&layout).unwrap().blobs {
        let start = blob.gpa.as_u64() as usize;
        assert_eq!(ram[start..start + blob.bytes.len()], blob.bytes);
    }
    let mut short = alloc::vec![0; 0xF_0000];
    assert!(matches!(install(&layout, &SliceMemory::new(&mut short)), Err(InstallError::Memory(_))));
    assert!(matches!(
        install(&GuestLayout::new(0, &[0]), &SliceMemory::new(&mut short)),
        Err(InstallError::Layout(_))
    ));
}

proptest! {
    #[test]
    fn every_machine_has_sound_tables(
        pages in 512u64..1 << 22, hole in 512u64..0xFEB01, virtio in 0..=crate::MAX_VIRTIO, cpus in proptest::collection::btree_set(any::<u32>(), 1..40), ioapic_id in 0u8..16,
    ) {
        let apic_ids: Vec<u32> = cpus.into_iter().filter(|&id| id != u32::MAX).chain([]).collect();
        prop_assume!(!apic_ids.is_empty());
        check(&GuestLayout { ram: pages * 4096, private: 0, hole: hole * 4096, apic_ids: &apic_ids, ioapic_id, virtio, real: None });
    }
}
