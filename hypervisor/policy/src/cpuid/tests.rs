//! The table over two recorded hosts, and over whatever a host might say.

use proptest::prelude::*;

use super::*;
use caisson_x86::Xcr0;

/// A line of a dump: leaf, subleaf, EAX, EBX, ECX, EDX.
type Line = (u32, u32, u32, u32, u32, u32);

/// QEMU 7.2, `-accel tcg -cpu EPYC`, one CPU, recorded by running CPUID; leaves of zeros are left out.
const EPYC: &[Line] = &[
    (0x0, 0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x1, 0, 0x0080_0f12, 0x0000_0800, 0xf6d8_320b, 0x078b_fbfd),
    (0x5, 0, 0, 0, 3, 0),
    (0x6, 0, 4, 0, 0, 0),
    (0x7, 0, 0, 0x0098_01a9, 0, 0),
    (0xb, 0, 0, 1, 0x100, 0),
    (0xb, 1, 0, 1, 0x201, 0),
    (0xd, 0, 7, 0x240, 0x340, 0),
    (0xd, 1, 5, 0x340, 0, 0),
    (0xd, 2, 0x100, 0x240, 0, 0),
    (0x8000_0000, 0, 0x8000_001e, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x8000_0001, 0, 0x0080_0f12, 0, 0x75, 0x2dd3_fbfd),
    (0x8000_0002, 0, 0x2044_4d41, 0x4359_5045, 0x6f72_5020, 0x7373_6563),
    (0x8000_0003, 0, 0x0000_726f, 0, 0, 0),
    (0x8000_0005, 0, 0x01ff_01ff, 0x01ff_01ff, 0x2008_0140, 0x4004_0140),
    (0x8000_0006, 0, 0, 0x4200_4200, 0x0200_6140, 0x0040_8140),
    (0x8000_0008, 0, 0x3028, 0, 0, 0),
    (0x8000_000a, 0, 1, 0x10, 0, 1),
    (0x8000_001d, 0, 0x121, 0x01c0_003f, 0x3f, 1),
    (0x8000_001d, 1, 0x122, 0x00c0_003f, 0xff, 1),
    (0x8000_001d, 2, 0x43, 0x01c0_003f, 0x3ff, 0),
    (0x8000_001d, 3, 0x163, 0x03c0_003f, 0x1fff, 6),
];

/// A server CPU of Intel's with AVX-512, PKU, SGX, PT, RDT, VMX, TSX and CET: made up from the SDM.
const XEON: &[Line] = &[
    (0x0, 0, 0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
    (0x1, 0, 0x0006_06a6, 0x0540_0800, 0x7fff_fbff, 0xbfeb_fbff),
    (0x2, 0, 0x00fe_ff01, 0xf0, 0, 0),
    (0x4, 0, 0x7c00_4121, 0x02c0_003f, 0x3f, 0),
    (0x4, 1, 0x7c00_4122, 0x01c0_003f, 0x3f, 0),
    (0x4, 2, 0x7c00_4143, 0x04c0_003f, 0x3ff, 0),
    (0x4, 3, 0x7c0f_c163, 0x02c0_003f, 0xdfff, 4),
    (0x5, 0, 0x40, 0x40, 3, 0x1120),
    (0x6, 0, 0x0000_07f7, 2, 9, 0),
    (0x7, 0, 2, 0xf3bf_ffff, 0xfbff_7ffe, 0xfc18_c432),
    (0x7, 1, 0x0000_0c30, 0, 0, 0),
    (0x7, 2, 0, 0, 0, 0x3f),
    (0xa, 0, 0x0830_0805, 0, 0xf, 0x8604),
    (0xb, 0, 1, 2, 0x100, 5),
    (0xb, 1, 6, 0x40, 0x201, 5),
    (0xd, 0, 0x2ff, 0xa88, 0xa88, 0),
    (0xd, 1, 0x1f, 0x988, 0x3900, 0),
    (0xd, 2, 0x100, 0x240, 0, 0),
    (0xd, 3, 0x40, 0x3c0, 0, 0),
    (0xd, 4, 0x40, 0x400, 0, 0),
    (0xd, 5, 0x40, 0x440, 0, 0),
    (0xd, 6, 0x200, 0x480, 0, 0),
    (0xd, 7, 0x400, 0x680, 0, 0),
    (0xd, 9, 8, 0xa80, 0, 0),
    (0xf, 0, 0, 0x6f, 0, 2),
    (0x10, 0, 0, 0xa, 0, 0),
    (0x12, 0, 0x403, 1, 0, 0x381f),
    (0x14, 0, 1, 0xf, 7, 0),
    (0x15, 0, 2, 0xa8, 0x017d_7840, 0),
    (0x16, 0, 0x834, 0xd48, 0x64, 0),
    (0x8000_0000, 0, 0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0, 0, 0, 0x121, 0x2c10_0800),
    (0x8000_0006, 0, 0, 0, 0x0100_6040, 0),
    (0x8000_0007, 0, 0, 0, 0, 0x100),
    (0x8000_0008, 0, 0x392e, 0, 0, 0),
];

fn find(lines: &[Line], leaf: u32, subleaf: u32) -> CpuidResult {
    let line = lines.iter().find(|l| l.0 == leaf && (l.1 == subleaf));
    line.map_or(CpuidResult::ZERO, |l| CpuidResult::new(l.2, l.3, l.4, l.5))
}

pub(crate) fn epyc(leaf: u32, subleaf: u32) -> CpuidResult {
    find(EPYC, leaf, subleaf)
}

pub(crate) fn xeon(leaf: u32, subleaf: u32) -> CpuidResult {
    find(XEON, leaf, subleaf)
}

pub(crate) fn setup(vcpus: u16) -> CpuidSetup {
    CpuidSetup {
        caps: HostCaps {
            physical_bits: 40,
            xcr0: u64::MAX,
            spec_ctrl: false,
            tsc_aux: true,
            arch_capabilities: false,
            xsaves: true,
        },
        topology: Topology::cores(vcpus),
        paravirt: Paravirt::BASE,
        tsc_khz: 2_500_000,
        apic_khz: 1_000_000,
    }
}

const VCPU: Dynamic = Dynamic { xcr0: 7, cr4: 0, apic_id: 1, apic_enabled: true };

fn bit(value: u32, bit: u32) -> bool {
    value >> bit & 1 != 0
}

#[test]
fn epyc_shows_what_caisson_carries() {
    let t = CpuidTable::build(&setup(1), epyc);
    assert_eq!(t.vendor(), Vendor::Amd);
    let l0 = t.lookup(0, 0, &VCPU);
    assert_eq!((l0.eax, l0.ebx), (0xd, 0x6874_7541));
    let l1 = t.lookup(1, 0, &VCPU);
    assert_eq!(l1.eax, 0x0080_0f12);
    assert_eq!(l1.ebx, 0x0101_0800);
    // The host's, less MONITOR and OSXSAVE, with x2APIC, TSC deadline and the hypervisor bit.
    assert_eq!(l1.ecx, 0xf6d8_320b & !(1 << 3 | 1 << 27) | 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(l1.edx, 0x078b_fbfd);
    assert!(bit(t.lookup(1, 0, &Dynamic { cr4: Cr4::OSXSAVE.bits(), ..VCPU }).ecx, 27));
    assert!(!bit(t.lookup(1, 0, &Dynamic { apic_enabled: false, ..VCPU }).edx, 9));
    assert!(!bit(t.lookup(0x8000_0001, 0, &Dynamic { apic_enabled: false, ..VCPU }).edx, 9));
    assert_eq!(t.lookup(5, 0, &VCPU), CpuidResult::ZERO);
    assert_eq!(t.lookup(6, 0, &VCPU), CpuidResult::new(4, 0, 0, 0));
    // The host's, with TSC_ADJUST; and it announces no invariant TSC either.
    assert_eq!(t.lookup(7, 0, &VCPU).ebx, 0x0098_01a9 | 1 << 1);
    assert_eq!((epyc(0x8000_0007, 0).edx, t.lookup(0x8000_0007, 0, &VCPU).edx), (0, 1 << 8));
    let x1 = t.lookup(0x8000_0001, 0, &VCPU);
    assert_eq!(x1.ecx, 0x75 & !4 | 1 << 9, "SVM hidden, OSVW there");
    assert_eq!(x1.edx, 0x2dd3_fbfd & !(1 << 19));
    assert_eq!(t.lookup(0x8000_0002, 0, &VCPU), epyc(0x8000_0002, 0));
    assert_eq!(t.lookup(0x8000_0008, 0, &VCPU).eax, 0x3028);
    assert_eq!(t.lookup(0x8000_000a, 0, &VCPU), CpuidResult::ZERO);
    assert_eq!(t.lookup(0x8000_001e, 0, &VCPU), CpuidResult::ZERO, "without TopologyExtensions");
}

#[test]
fn xeon_hides_what_caisson_does_not_carry() {
    let t = CpuidTable::build(&setup(4), xeon);
    assert_eq!(t.vendor(), Vendor::Intel);
    assert_eq!(t.lookup(0, 0, &VCPU).eax, 0xd);
    let l1 = t.lookup(1, 0, &VCPU);
    for hidden in [2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18, 27] {
        assert!(!bit(l1.ecx, hidden), "ECX bit {hidden}");
    }
    for hidden in [18, 21, 22, 29, 31] {
        assert!(!bit(l1.edx, hidden), "EDX bit {hidden}");
    }
    assert_eq!(l1.ebx, 0x0104_0800);
    let l7 = t.lookup(7, 0, &Dynamic { cr4: Cr4::PKE.bits(), ..VCPU });
    for hidden in [2, 4, 11, 12, 14, 15, 25] {
        assert!(!bit(l7.ebx, hidden), "leaf 7 EBX bit {hidden}");
    }
    assert!(bit(l7.ebx, 16) && bit(l7.ecx, 3) && bit(l7.ecx, 4) && bit(l7.ecx, 22));
    for hidden in [26, 27, 29, 31, 20, 24] {
        assert!(!bit(l7.edx, hidden), "leaf 7 EDX bit {hidden}");
    }
    assert_eq!(t.lookup(7, 1, &VCPU).eax, 0xc30);
    assert_eq!(t.lookup(7, 2, &VCPU).edx, 1 << 5);
    assert_eq!(t.lookup(7, 3, &VCPU), CpuidResult::ZERO);
    assert_eq!(t.lookup(0xa, 0, &VCPU), CpuidResult::ZERO);
    assert_eq!(t.lookup(0x8000_0007, 0, &VCPU).edx, 0x100);
    assert_eq!(t.lookup(0x8000_0008, 0, &VCPU), CpuidResult::new(0x3928, 0, 0, 0));
}

#[test]
fn topology_is_the_guests() {
    let t = CpuidTable::build(&setup(4), xeon);
    assert_eq!(t.lookup(0xb, 0, &VCPU), CpuidResult::new(0, 1, 0x100, 1));
    assert_eq!(t.lookup(0xb, 1, &VCPU), CpuidResult::new(2, 4, 0x201, 1));
    assert_eq!(t.lookup(0xb, 7, &VCPU), CpuidResult::new(0, 0, 7, 1));
    assert_eq!(t.lookup(4, 0, &VCPU).eax, 0x121 | 3 << 26);
    assert_eq!(t.lookup(4, 3, &VCPU).eax, 0x163 | 3 << 14 | 3 << 26);
    assert_eq!(t.lookup(4, 4, &VCPU), CpuidResult::ZERO);
    let zen = |leaf, subleaf| {
        let mut r = epyc(leaf, subleaf);
        if leaf == 0x8000_0001 {
            r.ecx |= 1 << 22;
        }
        r
    };
    let mut smt = setup(6);
    smt.topology.threads_per_core = 2;
    let t = CpuidTable::build(&smt, zen);
    let vcpu = Dynamic { apic_id: 5, ..VCPU };
    assert_eq!(t.lookup(0x8000_001e, 0, &vcpu), CpuidResult::new(5, 0x102, 0, 0));
    assert_eq!(t.lookup(0x8000_001d, 2, &vcpu).eax, 0x43 | 1 << 14);
    assert_eq!(t.lookup(0x8000_001d, 3, &vcpu).eax, 0x163 | 5 << 14);
    assert_eq!(t.lookup(0x8000_0008, 0, &vcpu).ecx, 5 | 3 << 12);
    assert!(bit(t.lookup(0x8000_0001, 0, &vcpu).ecx, 1), "CmpLegacy");
    assert!(bit(t.lookup(1, 0, &vcpu).edx, 28), "HTT");
}

/// What Linux reads of the topology, leaf by leaf, for each size of guest on both vendors: one package, as many cores as
/// there are vCPUs, ids that are unique and fit the widths that are told.
#[test]
fn every_size_of_guest_has_one_package_of_its_vcpus() {
    let server = |leaf, subleaf| {
        let mut r = epyc(leaf, subleaf);
        if leaf == 0x8000_0001 {
            r.ecx |= 1 << 22;
        }
        r
    };
    // A CPU of Intel's with leaf 1FH.
    let client = |leaf, subleaf| match leaf {
        0 => CpuidResult { eax: 0x1f, ..xeon(0, 0) },
        _ => xeon(leaf, subleaf),
    };
    for vcpus in 1..=64_u16 {
        let n = u32::from(vcpus);
        let width = n.next_power_of_two().trailing_zeros();
        let amd = CpuidTable::build(&setup(vcpus), server);
        let intel = CpuidTable::build(&setup(vcpus), client);
        for apic_id in 0..n {
            let vcpu = Dynamic { apic_id, ..VCPU };
            for (table, leaf) in [(&amd, 0xb), (&intel, 0xb), (&intel, 0x1f)] {
                assert_eq!(table.lookup(leaf, 0, &vcpu), CpuidResult::new(0, 1, 0x100, apic_id), "{n}");
                assert_eq!(table.lookup(leaf, 1, &vcpu), CpuidResult::new(width, n, 0x201, apic_id), "{n}");
                assert_eq!(table.lookup(leaf, 2, &vcpu), CpuidResult::new(0, 0, 2, apic_id), "{n}");
                assert_eq!(apic_id >> width, 0, "all are in package 0");
            }
            for table in [&amd, &intel] {
                let leaf = table.lookup(1, 0, &vcpu);
                assert_eq!(leaf.ebx >> 24, apic_id);
                assert_eq!(bit(leaf.edx, 28), n > 1, "HTT");
            }
            assert_eq!(amd.lookup(1, 0, &vcpu).ebx >> 16 & 0xff, n);
            assert_eq!(intel.lookup(1, 0, &vcpu).ebx >> 16 & 0xff, 1 << width);
            // AMD: threads of the package, bits of the id, and a core id of its own on node 0.
            assert_eq!(amd.lookup(0x8000_0008, 0, &vcpu).ecx, (n - 1) | width << 12);
            assert_eq!(bit(amd.lookup(0x8000_0001, 0, &vcpu).ecx, 1), n > 1, "CmpLegacy");
            assert_eq!(amd.lookup(0x8000_001e, 0, &vcpu), CpuidResult::new(apic_id, apic_id, 0, 0));
            assert_eq!(intel.lookup(0x8000_0008, 0, &vcpu).ecx, 0);
            // Ids that share a cache: one core's for levels 1 and 2, the package's for level 3.
            for (table, leaf) in [(&amd, 0x8000_001d), (&intel, 4)] {
                for subleaf in 0..4 {
                    let eax = table.lookup(leaf, subleaf, &vcpu).eax;
                    let sharing = (eax >> 14 & 0xfff) + 1;
                    let expected = if eax >> 5 & 7 < 3 { 1 } else { n };
                    assert_eq!(sharing.next_power_of_two(), expected.next_power_of_two(), "{n} {subleaf}");
                    assert_eq!(eax >> 26, if leaf == 4 { (1 << width) - 1 } else { 0 }, "cores");
                }
            }
        }
    }
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let t = CpuidTable::build(&setup(1), xeon);
    let with = |xcr0| Dynamic { xcr0, ..VCPU };
    assert_eq!(t.lookup(0xd, 0, &with(1)), CpuidResult::new(0x2e7, 576, 0xa88, 0));
    assert_eq!(t.lookup(0xd, 0, &with(7)).ebx, 832);
    assert_eq!(t.lookup(0xd, 0, &with(0x2e7)).ebx, 0xa88);
    assert_eq!(t.lookup(0xd, 1, &with(0x207)), CpuidResult::new(0xf, 576 + 0x100 + 8, 0, 0));
    assert_eq!(t.lookup(0xd, 3, &with(7)), CpuidResult::ZERO, "MPX");
    assert_eq!(t.lookup(0xd, 9, &with(7)), CpuidResult::new(8, 0xa80, 0, 0));
    assert_eq!(t.lookup(0xd, 62, &with(7)), CpuidResult::ZERO);
    // XSAVES is the backend's to allow.
    let mut without = setup(1);
    without.caps.xsaves = false;
    let t = CpuidTable::build(&without, xeon);
    assert_eq!(t.lookup(0xd, 1, &with(0x207)), CpuidResult::new(7, 576 + 0x100 + 8, 0, 0));
    // Without AVX-512's state its instructions go too, and without XSAVE everything that builds on it.
    let mut narrow = setup(1);
    narrow.caps.xcr0 = 0x67;
    let t = CpuidTable::build(&narrow, xeon);
    assert_eq!(t.lookup(0xd, 0, &with(7)), CpuidResult::new(7, 832, 832, 0));
    assert!(!bit(t.lookup(7, 0, &VCPU).ebx, 16) && bit(t.lookup(7, 0, &VCPU).ebx, 5));
    narrow.caps.xcr0 = 1;
    let t = CpuidTable::build(&narrow, xeon);
    assert_eq!(t.lookup(0xd, 0, &with(7)), CpuidResult::ZERO);
    assert_eq!(t.lookup(1, 0, &VCPU).ecx & (1 << 12 | 1 << 26 | 1 << 28 | 1 << 29), 0);
    assert_eq!(t.limits().xcr0, 0);
}

#[test]
fn leaves_outside_follow_the_vendor() {
    let intel = CpuidTable::build(&setup(1), xeon);
    let highest = intel.lookup(0xd, 1, &VCPU);
    for leaf in [0xe, 0x15, 0x1f, 0x20, 0x8000_0009, 0x8000_0021, 0x8000_0022, 0xc000_0000, u32::MAX] {
        assert_eq!(intel.lookup(leaf, 1, &VCPU), highest, "{leaf:#x}");
    }
    let amd = CpuidTable::build(&setup(1), epyc);
    for leaf in [0xe, 0x15, 0x20, 0x8000_001f, 0x8000_0021, 0x8000_0022, 0xc000_0000, u32::MAX] {
        assert_eq!(amd.lookup(leaf, 1, &VCPU), CpuidResult::ZERO, "{leaf:#x}");
    }
    for leaf in [0x4000_0002, 0x4000_0011, 0x4000_00ff, 0x4000_0102, 0x4fff_ffff] {
        assert_eq!(intel.lookup(leaf, 0, &VCPU), CpuidResult::ZERO, "{leaf:#x}");
    }
}

#[test]
fn hypervisor_leaves() {
    let t = CpuidTable::build(&setup(1), epyc);
    let base = t.lookup(KVM_LEAF, 0, &VCPU);
    assert_eq!(base, CpuidResult::new(0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d));
    assert_eq!(t.lookup(KVM_LEAF + 1, 0, &VCPU).eax, 1 << 24 | 1 << 6 | 1 << 3 | 1 << 1);
    assert_eq!(t.lookup(KVM_LEAF + 0x10, 0, &VCPU), CpuidResult::new(2_500_000, 1_000_000, 0, 0));
    let own = t.lookup(CAISSON_LEAF, 0, &VCPU);
    assert_eq!((own.eax, own.ebx.to_le_bytes()), (CAISSON_LEAF + 1, *b"Cais"));
    assert_eq!(t.lookup(CAISSON_LEAF + 1, 0, &VCPU).eax, ABI_VERSION);
}

#[test]
fn paravirtual_features_fit_the_number_of_vcpus() {
    let eax = |vcpus: u16| {
        let with = CpuidSetup { paravirt: Paravirt::of(vcpus.into()), ..setup(vcpus) };
        let leaf = CpuidTable::build(&with, epyc).lookup(KVM_LEAF + 1, 0, &VCPU);
        assert_eq!((leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0), "no hints");
        leaf.eax
    };
    let alone = 1 << 24 | 1 << 6 | 1 << 5 | 1 << 3 | 1 << 1;
    assert_eq!(eax(1), alone);
    for vcpus in [2, 64] {
        assert_eq!(eax(vcpus), alone | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 13);
    }
}

#[test]
fn speculation_controls_come_with_their_msrs() {
    let mut with = setup(1);
    with.caps.spec_ctrl = true;
    with.caps.arch_capabilities = true;
    let t = CpuidTable::build(&with, xeon);
    let edx = t.lookup(7, 0, &VCPU).edx;
    assert!([26, 27, 29, 31].iter().all(|&b| bit(edx, b)));
    assert!(!bit(edx, 28) && !bit(edx, 30));
    with.caps.tsc_aux = false;
    let t = CpuidTable::build(&with, xeon);
    assert!(!bit(t.lookup(7, 0, &VCPU).ecx, 22), "RDPID");
    assert!(!bit(t.lookup(0x8000_0001, 0, &VCPU).edx, 27), "RDTSCP");
}

#[test]
fn the_policy_is_well_formed() {
    let mut before: Option<(u32, u32, u32)> = None;
    for word in words() {
        let subleaf = match word.subleaves {
            Subleaves::All => 0,
            Subleaves::Only(n) | Subleaves::From(n) => n,
        };
        let at = (word.leaf, subleaf, word.register as u32);
        assert!(before.is_none_or(|b| b < at), "{at:x?} after {before:x?}");
        before = Some(at);
        let mut next = 0;
        for field in word.fields {
            assert!(field.first >= next && field.last >= field.first && field.last < 32, "{}", field.name);
            assert!(!field.name.is_empty() && field.reason.len() > 8, "{}", field.name);
            next = field.last + 1;
        }
    }
    let all = words().flat_map(|w| w.fields).count();
    assert!(all > 200, "{all}");
}

proptest! {
    /// Whatever the host says: no panic, and nothing that is hidden comes through.
    #[test]
    fn hidden_stays_hidden(seed: u32, leaf: u32, subleaf in 0_u32..20, vcpus: u16, xcr0: u64, cr4: u64) {
        let host = |leaf: u32, subleaf: u32| {
            let x = |n: u32| (leaf ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(n).wrapping_mul(subleaf * 2 + 3);
            CpuidResult::new(x(1) | 0x1f, x(2), x(3), x(5))
        };
        let t = CpuidTable::build(&setup(vcpus), host);
        let vcpu = Dynamic { xcr0, cr4, apic_id: seed, apic_enabled: true };
        let _ = t.lookup(leaf, subleaf, &vcpu);
        for leaf in (0..0xd).chain(0x8000_0000..0x8000_0021) {
            if leaf > t.lookup(0, 0, &vcpu).eax && leaf < 0x8000_0000 || leaf > t.lookup(0x8000_0000, 0, &vcpu).eax {
                continue;
            }
            let got = t.lookup(leaf, subleaf, &vcpu);
            for register in [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx] {
                let named = words().filter(|w| w.leaf == leaf && w.register == register);
                let named = named.filter(|w| w.subleaves.contains(subleaf));
                let shown = named.flat_map(|w| w.fields).filter(|f| f.rule != Rule::Hide);
                let mask = shown.fold(0, |mask, f| mask | f.mask());
                prop_assert_eq!(got.get(register) & !mask, 0, "leaf {:#x} {:?}", leaf, register);
            }
        }
    }

    /// The size of the area in use never passes the announced one.
    #[test]
    fn xsave_sizes_are_bounded(xcr0: u64) {
        let t = CpuidTable::build(&setup(1), xeon);
        let area = t.lookup(0xd, 0, &Dynamic { xcr0: xcr0 & t.limits().xcr0, ..VCPU });
        prop_assert!(area.ebx <= area.ecx);
        prop_assert_eq!(u64::from(area.eax), t.limits().xcr0 & !(Xcr0::BNDREGS | Xcr0::BNDCSR).bits());
    }
}
