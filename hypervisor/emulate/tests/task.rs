//! Task switches: what is saved, loaded and refused (SDM vol. 3, chapter 8).

#![allow(clippy::unwrap_used)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{PagingFeatures, TaskError, TaskRequest, switch_task};
use caisson_hwvirt::vmx::{EntryState, SegmentState, check_entry};
use caisson_hwvirt::{TaskSwitchSource, VcpuState};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::vmx::{EventInfo, Interruptibility};
use caisson_x86::{
    Attributes, DescriptorTable, Exception, ExceptionKind, Gpr, Gprs, Rflags, Segment, SegmentRegister,
};
use common::FEATURES;
use proptest::prelude::*;

const RAM: usize = 0x1_0000;
const GDT: u64 = 0x1000;
const LDT: u64 = 0x1800;
/// The old task, the new one, and one of 16 bits.
const OLD: u64 = 0x2000;
const NEW: u64 = 0x2ff0;
const NARROW: u64 = 0x2200;
const STACK: u64 = 0x5000;

/// Selectors.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD_TASK: u16 = 0x18;
const NEW_TASK: u16 = 0x20;
const NARROW_TASK: u16 = 0x28;
const LOCAL: u16 = 0x30;
const USER_CODE: u16 = 0x3b;
const USER_DATA: u16 = 0x43;
/// Free for a test.
const SPARE: u16 = 0x48;

const fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24) << 56
}

struct Lab<'a> {
    vcpu: FakeVcpu,
    memory: SliceMemory<'a>,
}

impl<'a> Lab<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        let mut vcpu = FakeVcpu::protected();
        vcpu.tables[0] = DescriptorTable { base: GDT, limit: 0x57 };
        for (register, segment) in vcpu.segments.iter_mut().enumerate() {
            segment.selector = if register == SegmentRegister::Cs as usize { CODE } else { DATA };
        }
        vcpu.set_segment(
            SegmentRegister::Tr,
            Segment { selector: OLD_TASK, attributes: Attributes::TSS_BUSY, limit: 0x67, base: OLD },
        );
        vcpu.set_segment(SegmentRegister::Ldtr, Segment::default());
        for number in 0..8 {
            vcpu.set_gpr(Gpr::from_encoding(number), 0x1111_1111 * u64::from(number + 1));
        }
        vcpu.rip = 0x700;
        vcpu.debug[1] = 0x7ff;
        vcpu.shadow = true;
        let lab = Self { vcpu, memory: SliceMemory::new(bytes) };
        for (selector, descriptor) in [
            (CODE, descriptor(0, 0xf_ffff, 0x9a, 0xc)),
            (DATA, descriptor(0, 0xf_ffff, 0x92, 0xc)),
            (OLD_TASK, descriptor(OLD, 0x67, 0x8b, 0)),
            (NEW_TASK, descriptor(NEW, 0x67, 0x89, 0)),
            (NARROW_TASK, descriptor(NARROW, 0x2b, 0x81, 0)),
            (LOCAL, descriptor(LDT, 0xf, 0x82, 0)),
            (USER_CODE, descriptor(0, 0xf_ffff, 0xfa, 0xc)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xf2, 0xc)),
        ] {
            lab.set(selector, descriptor);
        }
        lab.memory.write_u64(Gpa::new(LDT + 8), descriptor(0x100, 0xff, 0x92, 4)).unwrap();
        lab.task(
            NEW,
            &[(0x24, 2), (0x20, 0x900), (0x38, STACK as u32), (0x4c, CODE.into()), (0x50, DATA.into())],
        );
        for offset in [0x48, 0x54, 0x58, 0x5c] {
            lab.task(NEW, &[(offset, DATA.into())]);
        }
        for (index, value) in
            [0x900, 2, 1, 2, 3, 4, 0x5000, 6, 7, 8, DATA, CODE, DATA, DATA, 0].into_iter().enumerate()
        {
            lab.memory.write(Gpa::new(NARROW + 0xe + 2 * index as u64), &value.to_le_bytes()).unwrap();
        }
        lab
    }

    fn set(&self, selector: u16, descriptor: u64) {
        self.memory.write_u64(Gpa::new(GDT + u64::from(selector & !7)), descriptor).unwrap();
    }

    fn access(&self, selector: u16) -> u8 {
        (self.memory.read_u64(Gpa::new(GDT + u64::from(selector & !7))).unwrap() >> 40) as u8
    }

    fn task(&self, base: u64, words: &[(u64, u32)]) {
        for &(offset, value) in words {
            self.memory.write_u32(Gpa::new(base + offset), value).unwrap();
        }
    }

    fn word(&self, at: u64) -> u32 {
        self.memory.read_u32(Gpa::new(at)).unwrap()
    }

    fn switch(&mut self, selector: u16, source: TaskSwitchSource) -> Result<bool, TaskError> {
        let request = TaskRequest { selector, source, return_rip: 0x702, error_code: None, external: false };
        self.request(&request)
    }

    fn request(&mut self, request: &TaskRequest) -> Result<bool, TaskError> {
        let result = switch_task(&mut self.vcpu, &self.memory, request, &FEATURES);
        assert_eq!(check_entry(&entry(&self.vcpu)), None, "{result:?}");
        result
    }
}

fn with(test: impl FnOnce(&mut Lab<'_>)) {
    let mut bytes = vec![0; RAM];
    test(&mut Lab::new(&mut bytes));
}

/// The vCPU's state as an entry of VT-x would check it.
fn entry(vcpu: &FakeVcpu) -> EntryState {
    EntryState {
        cr0: vcpu.cr0 | 0x20,
        cr0_fixed: (0x20, 0xffff_ffff),
        cr3: vcpu.cr3,
        cr4: vcpu.cr4 | 0x2000,
        cr4_fixed: (0x2000, u64::MAX),
        long_mode: false,
        efer: vcpu.efer,
        pat: 0x0007_0406_0007_0406,
        debugctl: 0,
        dr7: vcpu.debug[1],
        sysenter_esp: 0,
        sysenter_eip: 0,
        segments: vcpu.segments.map(|segment| SegmentState {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            rights: segment.attributes.into(),
        }),
        gdtr: vcpu.tables[0],
        idtr: vcpu.tables[1],
        rip: vcpu.rip,
        rflags: vcpu.rflags,
        activity: 0,
        interruptibility: Interruptibility::empty(),
        pending_debug: 0,
        event: EventInfo::NONE,
        virtual_nmis: true,
        link_pointer: u64::MAX,
        pdptes: [0; 4],
        physical_bits: 48,
    }
}

fn fault(kind: ExceptionKind, error_code: u16) -> Exception {
    Exception { kind, error_code: error_code.into(), address: 0 }
}

#[test]
fn a_jump_leaves_the_old_task_for_good() {
    with(|lab| {
        lab.task(NEW, &[(0x28, 0xaaaa_0001), (0x44, 0xaaaa_0008), (0x60, LOCAL.into()), (0x54, 0x0c)]);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(false));
        // Out: EIP behind the instruction, flags, registers, selectors.
        assert_eq!((lab.word(OLD + 0x20), lab.word(OLD + 0x24)), (0x702, 2));
        let saved: Vec<_> = (0..8).map(|n| lab.word(OLD + 0x28 + 4 * n)).collect();
        assert_eq!(saved, (1..=8).map(|n| 0x1111_1111 * n).collect::<Vec<_>>());
        let selectors: Vec<_> = (0..6).map(|n| lab.word(OLD + 0x48 + 4 * n) as u16).collect();
        assert_eq!(selectors, [DATA, CODE, DATA, DATA, DATA, DATA]);
        // In.
        assert_eq!((lab.vcpu.rip, lab.vcpu.rflags, lab.vcpu.cpl), (0x900, 2, 0));
        assert_eq!((lab.vcpu.gpr(Gpr::Rax), lab.vcpu.gpr(Gpr::Rdi)), (0xaaaa_0001, 0xaaaa_0008));
        let cs = lab.vcpu.segment(SegmentRegister::Cs);
        assert_eq!((cs.selector, cs.attributes, cs.limit), (CODE, Attributes::CODE32, u32::MAX));
        let ldtr = lab.vcpu.segment(SegmentRegister::Ldtr);
        assert_eq!((ldtr.selector, ldtr.base, ldtr.limit), (LOCAL, LDT, 0xf));
        assert_eq!(lab.vcpu.segment(SegmentRegister::Ds).base, 0x100, "out of the new task's LDT");
        let tr = lab.vcpu.segment(SegmentRegister::Tr);
        assert_eq!((tr.selector, tr.base, tr.attributes), (NEW_TASK, NEW, Attributes::TSS_BUSY));
        // Who is busy; segments in use; no back link, no NT.
        assert_eq!((lab.access(OLD_TASK), lab.access(NEW_TASK)), (0x89, 0x8b));
        assert_eq!((lab.access(CODE), lab.access(DATA), lab.access(USER_CODE)), (0x9b, 0x93, 0xfa));
        assert_eq!(lab.word(NEW), 0);
        assert_eq!(lab.vcpu.cr0 & 8, 8, "CR0.TS");
        assert_eq!(lab.vcpu.debug[1], 0x6aa, "DR7 without its local half");
        assert!(!lab.vcpu.shadow);
    });
}

#[test]
fn a_call_comes_back() {
    with(|lab| {
        let before = lab.vcpu.clone();
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Call), Ok(false));
        assert_eq!((lab.access(OLD_TASK), lab.access(NEW_TASK)), (0x8b, 0x8b));
        assert_eq!(lab.word(NEW) as u16, OLD_TASK, "the back link");
        assert_eq!(lab.vcpu.rflags, 2 | Rflags::NT.bits());
        let link = lab.word(NEW) as u16;
        assert_eq!(lab.switch(link, TaskSwitchSource::Return), Ok(false));
        assert_eq!((lab.access(OLD_TASK), lab.access(NEW_TASK)), (0x8b, 0x89));
        assert_eq!(lab.word(NEW + 0x24), 2, "NT is clear in what was saved");
        assert_eq!((lab.vcpu.rip, lab.vcpu.rflags), (0x702, 2));
        assert_eq!(lab.vcpu.gprs, before.gprs);
        for register in 0..6 {
            assert_eq!(lab.vcpu.segments[register].selector, before.segments[register].selector);
        }
    });
}

#[test]
fn sixteen_bits_have_less() {
    with(|lab| {
        assert_eq!(lab.switch(NARROW_TASK, TaskSwitchSource::Call), Ok(false));
        assert_eq!((lab.vcpu.gpr(Gpr::Rax), lab.vcpu.gpr(Gpr::Rsp)), (0xffff_0001, 0xffff_5000));
        assert_eq!(lab.vcpu.segment(SegmentRegister::Fs).selector, 0);
        assert!(!lab.vcpu.segment(SegmentRegister::Gs).attributes.present());
        assert_eq!(lab.vcpu.segment(SegmentRegister::Tr).attributes, Attributes(0x83));
        lab.vcpu.set_gpr(Gpr::Rbx, 0x7777_8888);
        assert_eq!(lab.switch(OLD_TASK, TaskSwitchSource::Return), Ok(false));
        // IP and BX; the words around what is saved are left alone.
        assert_eq!(lab.word(NARROW + 0xc) >> 16, 0x702);
        assert_eq!(lab.word(NARROW + 0x18) & 0xffff, 0x8888);
        assert_eq!(lab.word(NARROW) as u16, OLD_TASK);
    });
}

#[test]
fn an_exception_brings_its_error_code() {
    with(|lab| {
        let request = TaskRequest {
            selector: NEW_TASK,
            source: TaskSwitchSource::Call,
            return_rip: 0x700,
            error_code: Some(0xabcd),
            external: true,
        };
        assert_eq!(lab.request(&request), Ok(false));
        assert_eq!(lab.vcpu.gpr(Gpr::Rsp), STACK - 4);
        assert_eq!(lab.word(STACK - 4), 0xabcd);
        assert_eq!(lab.word(OLD + 0x20), 0x700, "the fault's own instruction");
    });
    // 16 bits, and a stack that wraps within its 64 KiB.
    with(|lab| {
        lab.set(SPARE, descriptor(0, 0xffff, 0x92, 0));
        lab.memory.write(Gpa::new(NARROW + 0x26), &SPARE.to_le_bytes()).unwrap();
        lab.memory.write(Gpa::new(NARROW + 0x1a), &[0, 0]).unwrap();
        let (selector, source) = (NARROW_TASK, TaskSwitchSource::Call);
        let error_code = Some(0x1234);
        let request = TaskRequest { selector, source, return_rip: 0, error_code, external: true };
        assert_eq!(lab.request(&request), Ok(false));
        assert_eq!(lab.vcpu.gpr(Gpr::Rsp), 0xffff_fffe);
        assert_eq!(lab.word(0xfffc) >> 16, 0x1234);
    });
    // No room: the new task's own fault, which tells of the outer event.
    with(|lab| {
        lab.set(SPARE, descriptor(0, 0xf, 0x92, 4));
        lab.task(NEW, &[(0x50, SPARE.into())]);
        let (selector, source) = (NEW_TASK, TaskSwitchSource::Call);
        let request = TaskRequest { selector, source, return_rip: 0, error_code: Some(0), external: true };
        assert_eq!(lab.request(&request), Err(TaskError::After(fault(ExceptionKind::StackFault, 1))));
        assert_eq!(lab.vcpu.rip, 0x900);
    });
}

#[test]
fn the_trap_flag_is_told() {
    with(|lab| {
        lab.task(NEW, &[(0x64, 1)]);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(true));
    });
}

#[test]
fn a_task_may_run_in_virtual_8086_mode() {
    with(|lab| {
        lab.task(NEW, &[(0x24, 0x2_0202), (0x4c, 0x1234), (0x50, 0x300), (0x20, 5)]);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(false));
        assert_eq!((lab.vcpu.cpl, lab.vcpu.rip), (3, 5));
        let cs = lab.vcpu.segment(SegmentRegister::Cs);
        assert_eq!((cs.base, cs.limit, cs.attributes), (0x1_2340, 0xffff, Attributes(0xf3)));
    });
}

#[test]
fn a_task_may_run_in_user_mode() {
    with(|lab| {
        for offset in [0x48, 0x50, 0x54, 0x58, 0x5c] {
            lab.task(NEW, &[(offset, USER_DATA.into())]);
        }
        lab.task(NEW, &[(0x4c, USER_CODE.into())]);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(false));
        assert_eq!(lab.vcpu.cpl, 3);
        assert_eq!(lab.vcpu.segment(SegmentRegister::Ss).attributes.dpl(), 3);
    });
}

/// What is found out before anything changes.
#[test]
fn what_the_old_task_is_told() {
    use ExceptionKind::{GeneralProtection, InvalidTss, SegmentNotPresent};
    let call = TaskSwitchSource::Call;
    let back = TaskSwitchSource::Return;
    let table = [
        (0, 0, call, GeneralProtection),
        (0x58, 0, call, GeneralProtection),
        (0x58, 0, back, InvalidTss),
        (NEW_TASK | 4, 0, call, GeneralProtection),
        (OLD_TASK, 0, call, GeneralProtection),
        (NEW_TASK, 0, back, InvalidTss),
        (CODE, 0, call, GeneralProtection),
        (SPARE, descriptor(NEW, 0x67, 0x09, 0), call, SegmentNotPresent),
        (SPARE, descriptor(NEW, 0x66, 0x89, 0), call, InvalidTss),
        (SPARE, descriptor(NEW, 0x2a, 0x81, 0), call, InvalidTss),
        (SPARE, descriptor(NEW, 0x67, 0x8b, 0), TaskSwitchSource::Jump, GeneralProtection),
        (SPARE, descriptor(NEW, 0x67, 0x99, 0), call, GeneralProtection),
    ];
    for (selector, descriptor, source, kind) in table {
        with(|lab| {
            if descriptor != 0 {
                lab.set(selector, descriptor);
            }
            let before = lab.vcpu.clone();
            let expected = TaskError::Before(fault(kind, selector & !3));
            assert_eq!(lab.switch(selector, source), Err(expected), "{selector:#x} {source:?}");
            assert_eq!(lab.vcpu, before);
        });
    }
    // TR itself too short to save to.
    with(|lab| {
        lab.vcpu.segments[SegmentRegister::Tr as usize].limit = 0x5e;
        let expected = TaskError::Before(fault(InvalidTss, OLD_TASK));
        assert_eq!(lab.switch(NEW_TASK, call), Err(expected));
    });
}

/// Table 8-1: the checks of the new task's segments.
#[test]
fn what_the_new_task_is_told() {
    use ExceptionKind::{InvalidTss, SegmentNotPresent, StackFault};
    let (ldt, es, cs, ss, gs) = (0x60, 0x48, 0x4c, 0x50, 0x5c);
    let table = [
        // Offset in the TSS, selector, the descriptor of `SPARE`.
        (ldt, 0x0c, 0, InvalidTss),
        (ldt, DATA, 0, InvalidTss),
        (ldt, SPARE, descriptor(LDT, 0xf, 0x02, 0), InvalidTss),
        (ldt, 0x58, 0, InvalidTss),
        (cs, 0, 0, InvalidTss),
        (cs, 0x58, 0, InvalidTss),
        (cs, DATA, 0, InvalidTss),
        (cs, CODE | 1, 0, InvalidTss),
        (cs, SPARE, descriptor(0, 0xffff, 0xba, 4), InvalidTss),
        // Conforming, and more privileged than its selector allows.
        (cs, SPARE, descriptor(0, 0xffff, 0xbe, 4), InvalidTss),
        (cs, SPARE, descriptor(0, 0xffff, 0x1a, 4), SegmentNotPresent),
        (ss, 0, 0, InvalidTss),
        (ss, CODE, 0, InvalidTss),
        (ss, DATA | 3, 0, InvalidTss),
        (ss, USER_DATA, 0, InvalidTss),
        (ss, SPARE, descriptor(0, 0xffff, 0x90, 4), InvalidTss),
        (ss, SPARE, descriptor(0, 0xffff, 0x12, 4), StackFault),
        (es, 0x58, 0, InvalidTss),
        (es, 0x0c, 0, InvalidTss),
        (es, NEW_TASK, 0, InvalidTss),
        (gs, SPARE, descriptor(0, 0xffff, 0x98, 4), InvalidTss),
        (gs, SPARE, descriptor(0, 0xffff, 0x12, 4), SegmentNotPresent),
        (gs, DATA | 3, 0, InvalidTss),
    ];
    for (offset, selector, descriptor, kind) in table {
        for external in [false, true] {
            with(|lab| {
                if descriptor != 0 {
                    lab.set(SPARE, descriptor);
                }
                lab.task(NEW, &[(offset, selector.into())]);
                let (source, return_rip) = (TaskSwitchSource::Call, 0x700);
                let request =
                    TaskRequest { selector: NEW_TASK, source, return_rip, error_code: Some(0), external };
                let code = selector & !3 | u16::from(external);
                let expected = TaskError::After(fault(kind, code));
                assert_eq!(lab.request(&request), Err(expected), "{offset:#x} {selector:#x}");
                // The new task's registers and selectors are there, and it is the busy one.
                assert_eq!((lab.vcpu.rip, lab.vcpu.gpr(Gpr::Rsp)), (0x900, STACK));
                assert_eq!(lab.vcpu.segment(SegmentRegister::Tr).selector, NEW_TASK);
                assert_eq!(lab.word(OLD + 0x20), 0x700);
            });
        }
    }
    // A null selector is no data segment, and no fault.
    with(|lab| {
        lab.task(NEW, &[(es, 3), (gs, 0)]);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(false));
        assert!(!lab.vcpu.segment(SegmentRegister::Es).attributes.present());
        assert_eq!(lab.vcpu.segment(SegmentRegister::Es).selector, 3);
    });
}

/// Identity tables of 4 KiB pages for the first 64 KiB at `directory`.
fn paging(lab: &Lab<'_>, directory: u64, missing: Option<u64>) {
    lab.task(directory, &[(0, (directory as u32 + 0x1000) | 7)]);
    for page in 0..16 {
        let entry = if missing == Some(page) { 0 } else { (page as u32) << 12 | 7 };
        lab.task(directory + 0x1000, &[(4 * page, entry)]);
    }
}

#[test]
fn pages_that_are_missing() {
    const DIRECTORY: u64 = 0x8000;
    const OTHER: u64 = 0xa000;
    // The new TSS spans pages 2 and 3; the old one is on page 2.
    for (missing, address, error) in [(2, NEW, 0), (3, 0x3000, 0), (1, GDT + 0x20, 0)] {
        with(|lab| {
            paging(lab, DIRECTORY, Some(missing));
            (lab.vcpu.cr0, lab.vcpu.cr3) = (0x8000_0001, DIRECTORY);
            lab.vcpu.cpl = 3;
            let before = lab.vcpu.clone();
            let expected = TaskError::Before(Exception::page_fault(error, address));
            assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Err(expected));
            assert_eq!(lab.vcpu, before, "supervisor accesses, and nothing has changed");
            assert_eq!((lab.access(OLD_TASK), lab.access(NEW_TASK)), (0x8b, 0x89));
        });
    }
    // Another space, which lacks the GDT: the new task's fault.
    with(|lab| {
        paging(lab, DIRECTORY, None);
        paging(lab, OTHER, Some(1));
        (lab.vcpu.cr0, lab.vcpu.cr3) = (0x8000_0001, DIRECTORY);
        lab.task(NEW, &[(0x1c, OTHER as u32)]);
        let expected = TaskError::After(Exception::page_fault(0, GDT + 8));
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Err(expected));
        assert_eq!(lab.vcpu.cr3, OTHER);
    });
    // A read-only TSS is written all the same unless CR0.WP is set.
    with(|lab| {
        paging(lab, DIRECTORY, None);
        lab.task(DIRECTORY + 0x1000, &[(8, 0x2000 | 5)]);
        (lab.vcpu.cr0, lab.vcpu.cr3) = (0x8001_0001, DIRECTORY);
        lab.task(NEW, &[(0x1c, DIRECTORY as u32)]);
        let expected = TaskError::Before(Exception::page_fault(3, OLD + 0x20));
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Err(expected));
        lab.vcpu.cr0 &= !(1 << 16);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Ok(false));
    });
}

#[test]
fn bad_page_directory_pointers_are_refused() {
    const DIRECTORY: u64 = 0x8000;
    const POINTERS: u32 = 0xc000;
    with(|lab| {
        paging(lab, DIRECTORY, None);
        // PAE tables at 0xd000: one 2 MiB page.
        lab.memory.write_u64(Gpa::new(0xd000), 0x87).unwrap();
        lab.memory.write_u64(Gpa::new(POINTERS.into()), 0xd001).unwrap();
        (lab.vcpu.cr0, lab.vcpu.cr3, lab.vcpu.cr4) = (0x8000_0001, POINTERS.into(), 0x20);
        lab.task(NEW, &[(0x1c, POINTERS + 0x20)]);
        lab.memory.write_u64(Gpa::new(u64::from(POINTERS) + 0x38), 0xd003).unwrap();
        let expected = TaskError::After(Exception::GENERAL_PROTECTION);
        assert_eq!(lab.switch(NEW_TASK, TaskSwitchSource::Jump), Err(expected));
    });
}

/// Bytes that make up a GDT and tasks now and then.
fn memory() -> impl Strategy<Value = Vec<u8>> {
    let access = prop_oneof![
        Just(0x89u8),
        Just(0x8b),
        Just(0x81),
        Just(0x83),
        Just(0x82),
        Just(0x9a),
        Just(0x92),
        Just(0xfa),
        Just(0xf2),
        Just(0x9e),
        any::<u8>()
    ];
    let entry = (any::<u32>(), access, any::<u8>(), 0u64..0x1000);
    (proptest::collection::vec(entry, 11), proptest::collection::vec(any::<u8>(), 0x400)).prop_map(
        |(entries, noise)| {
            let mut bytes = vec![0; RAM];
            for (index, (limit, access, flags, base)) in entries.into_iter().enumerate() {
                let word = descriptor(0x2000 + base, u64::from(limit), access.into(), u64::from(flags & 15));
                bytes[GDT as usize + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
            }
            for (at, byte) in noise.into_iter().enumerate() {
                // Selectors of the table, mostly.
                let byte = if at % 2 == 1 { byte & 1 } else { byte & 0x5b };
                bytes[0x2000 + at] = byte;
                bytes[0x2400 + at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the guest's tables hold: either nothing changes, or the CPU would take the state at an entry.
    #[test]
    fn the_state_is_always_good_for_an_entry(
        mut bytes in memory(),
        selector in 0u16..0x60,
        source in 0usize..3,
        old_base in 0x2000u64..0x2800,
        narrow in any::<bool>(),
        error_code in proptest::option::of(any::<u32>()),
        pae in any::<bool>(),
        flags in any::<u32>(),
    ) {
        let pristine = bytes.clone();
        let mut vcpu = FakeVcpu::protected();
        vcpu.gprs = Gprs::default();
        vcpu.cr4 = if pae { 0x20 } else { 0 };
        vcpu.rflags = u64::from(flags) & 0x7fd5 | 2;
        vcpu.tables[0] = DescriptorTable { base: GDT, limit: 0x57 };
        let attributes = if narrow { Attributes(0x83) } else { Attributes::TSS_BUSY };
        vcpu.set_segment(SegmentRegister::Tr, Segment { selector: 0x18, attributes, limit: 0x67, base: old_base });
        vcpu.set_segment(SegmentRegister::Ldtr, Segment::default());
        let before = vcpu.clone();
        let source = [TaskSwitchSource::Call, TaskSwitchSource::Jump, TaskSwitchSource::Return][source];
        let request = TaskRequest { selector, source, return_rip: 1, error_code, external: true };
        let features = PagingFeatures { physical_bits: 40, ..FEATURES };
        let result = switch_task(&mut vcpu, &SliceMemory::new(&mut bytes), &request, &features);
        match result {
            Err(TaskError::Before(_) | TaskError::Retry) => {
                prop_assert_eq!(&vcpu, &before);
                prop_assert_eq!(&bytes, &pristine);
            }
            Ok(_) | Err(TaskError::After(_)) => {
                prop_assert_eq!(check_entry(&entry(&vcpu)), None, "{:?}", result);
                prop_assert_eq!(vcpu.segment(SegmentRegister::Tr).selector, selector);
                let cpl = vcpu.segment(SegmentRegister::Ss).attributes.dpl();
                prop_assert_eq!(cpl, vcpu.cpl);
            }
        }
    }
}
