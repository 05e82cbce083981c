//! A good state of each mode passes; each check names its field.

use super::*;

fn segment(rights: u32) -> SegmentState {
    SegmentState { selector: 0x10, base: 0, limit: u32::MAX, rights: AccessRights(rights) }
}

/// A 64-bit guest.
fn long() -> EntryState {
    let mut segments = [segment(0xc093); 8];
    segments[SegmentRegister::Cs as usize] = segment(0xa09b);
    segments[SegmentRegister::Ldtr as usize] = segment(AccessRights::UNUSABLE);
    segments[SegmentRegister::Tr as usize] = SegmentState { limit: 0x67, ..segment(0x8b) };
    EntryState {
        cr0: 0x8000_0031,
        cr0_fixed: (0x8000_0021, 0xffff_ffff),
        cr3: 0x1000,
        cr4: 0x2020,
        cr4_fixed: (0x2000, 0x0037_27ff),
        long_mode: true,
        efer: 0x500,
        pat: 0x0007_0406_0007_0406,
        debugctl: 0,
        dr7: 0x400,
        sysenter_esp: 0,
        sysenter_eip: 0,
        segments,
        gdtr: DescriptorTable::default(),
        idtr: DescriptorTable::default(),
        rip: 0xffff_8000_0000_0000,
        rflags: 2,
        activity: 0,
        interruptibility: Interruptibility::empty(),
        pending_debug: 0,
        event: EventInfo::NONE,
        virtual_nmis: true,
        link_pointer: u64::MAX,
        pdptes: [0; 4],
        physical_bits: 40,
    }
}

/// A guest after INIT.
fn real() -> EntryState {
    let data = SegmentState { selector: 0, base: 0, limit: 0xffff, rights: AccessRights(0x93) };
    let mut segments = [data; 8];
    segments[SegmentRegister::Cs as usize] =
        SegmentState { selector: 0xf000, base: 0xffff_0000, rights: AccessRights(0x9b), ..data };
    segments[SegmentRegister::Ldtr as usize].rights = AccessRights(0x82);
    segments[SegmentRegister::Tr as usize].rights = AccessRights(0x8b);
    EntryState { cr0: 0x30, cr4: 0x2000, long_mode: false, efer: 0, segments, rip: 0xfff0, ..long() }
}

#[test]
fn good_states_pass() {
    assert_eq!(check_entry(&long()), None);
    assert_eq!(check_entry(&real()), None);
    // Null segments in 64-bit mode, with the privilege level of user code in SS.
    let mut user = long();
    for register in [0, 2, 3, 4, 5] {
        user.segments[register] = segment(AccessRights::UNUSABLE | 0x60);
    }
    user.segments[1] = segment(0xa0fb);
    assert_eq!(check_entry(&user), None);
    let mut v86 = real();
    v86.cr0 |= 1;
    v86.rflags |= 1 << 17;
    for s in &mut v86.segments[..6] {
        *s = SegmentState { selector: 0x123, base: 0x1230, limit: 0xffff, rights: AccessRights(0xf3) };
    }
    assert_eq!(check_entry(&v86), None);
}

#[test]
fn each_check_names_its_field() {
    type Change = fn(&mut EntryState);
    let table: &[(Change, &str)] = &[
        (|s| s.cr0 &= !0x20, "CR0: a bit that must be 1"),
        (|s| s.cr0 |= 1 << 40, "CR0: a bit that must be 0"),
        (|s| s.cr0 &= !1, "CR0: paging without"),
        (|s| s.cr4 &= !0x2000, "CR4: a bit that must be 1"),
        (|s| s.cr4 |= 1 << 30, "CR4: a bit that must be 0"),
        (|s| s.cr4 &= !0x20, "IA-32e mode without PAE"),
        (|s| s.cr3 = 1 << 40, "CR3"),
        (|s| s.dr7 = 1 << 32, "DR7"),
        (|s| s.debugctl = 1 << 20, "DEBUGCTL"),
        (|s| s.sysenter_eip = 1 << 63, "SYSENTER_EIP"),
        (|s| s.pat = 2, "PAT"),
        (|s| s.efer |= 1 << 12, "EFER: a reserved"),
        (|s| s.efer = 0x100, "EFER: LMA is not"),
        (|s| s.efer = 0x400, "EFER: paging"),
        (|s| s.segments[7].selector = 4, "TR selector"),
        (|s| s.segments[4].base = 1 << 63, "FS base"),
        (|s| s.segments[1].base = 1 << 32, "CS base"),
        (|s| s.segments[3].base = 1 << 32, "DS base"),
        (|s| s.segments[1].rights = AccessRights(0xa093 | 0x60), "CS access rights: the privilege"),
        (|s| s.segments[1].rights = AccessRights(0xa098), "CS access rights: the type"),
        (|s| s.segments[1].rights = AccessRights(0xe09b), "64-bit code with D"),
        (|s| s.segments[1].limit = 0xffff_0000, "CS limit"),
        (|s| s.segments[2].rights = AccessRights(0xc091), "SS access rights: the type"),
        (|s| s.segments[0].rights = AccessRights(0xc092), "ES access rights"),
        (|s| s.segments[5].limit = 0x1_0000, "GS limit"),
        (|s| s.segments[7].rights = AccessRights(0x89), "TR access rights: the type"),
        (|s| s.segments[7].rights = AccessRights(0x1_008b), "TR access rights: not"),
        (|s| s.segments[6].rights = AccessRights(0x83), "LDTR access rights"),
        (|s| s.gdtr.base = 1 << 60, "GDTR base"),
        (|s| s.idtr.base = 1 << 60, "IDTR base"),
        (|s| s.segments[1].rights = AccessRights(0xc09b), "RIP"),
        (|s| s.rflags = 0, "RFLAGS: a reserved"),
        (|s| s.rflags |= 1 << 17, "virtual-8086"),
        (|s| s.event = EventInfo(0x8000_0041), "injected with IF clear"),
        (|s| s.activity = 4, "activity state"),
        (|s| s.interruptibility = Interruptibility::STI, "the shadow of STI with IF clear"),
        (|s| s.interruptibility = Interruptibility::SMI, "SMIs"),
        (
            |s| {
                s.interruptibility = Interruptibility::NMI;
                s.event = EventInfo(0x8000_0202);
            },
            "an NMI while NMIs are blocked",
        ),
        (
            |s| {
                s.interruptibility = Interruptibility::MOV_SS;
                s.rflags |= 1 << 8;
            },
            "single step is not RFLAGS.TF",
        ),
        (|s| s.pending_debug = 1 << 5, "pending debug exceptions: a reserved"),
        (|s| s.link_pointer = 0, "link pointer"),
    ];
    for (index, (change, text)) in table.iter().enumerate() {
        let mut state = long();
        change(&mut state);
        let refusal = check_entry(&state);
        assert!(refusal.is_some_and(|r| r.check.contains(text)), "{index} {text}: {refusal:?}");
    }
}

#[test]
fn pae_tables_are_checked_in_pae_paging_only() {
    let mut state = real();
    state.pdptes[2] = 0x1003;
    assert_eq!(check_entry(&state), None);
    state.cr0 |= 0x8000_0001;
    state.cr4 |= 0x20;
    assert_eq!(check_entry(&state).map(|r| r.value), Some(0x1003));
}
