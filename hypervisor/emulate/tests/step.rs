//! Instructions on a device: results, flags, addressing forms, faults and crossings.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{Done, SUPPORTED, StepError, step};
use caisson_hwvirt::NestedFault;
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::exception::page_fault;
use caisson_x86::{Exception, Gpr, Rflags, SegmentRegister};
use common::{Bus, CR3, DEVICE, FEATURES, Seen, fault, identity};

/// Where the code is.
const CODE: u64 = 0x8000;

/// Runs `code` in 64-bit mode after `setup`; gives the result, the vCPU and the bus.
fn run64(
    code: &[u8],
    setup: impl FnOnce(&mut FakeVcpu, &mut Bus, &SliceMemory<'_>),
    at: u64,
    write: bool,
) -> (Result<Done, StepError>, FakeVcpu, Bus) {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    memory.write(Gpa::new(CODE), code).unwrap();
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    let mut bus = Bus::new();
    setup(&mut vcpu, &mut bus, &memory);
    let result = step(&mut vcpu, &memory, &mut bus, fault(at, write), &FEATURES);
    (result, vcpu, bus)
}

#[test]
fn what_linux_compiles_register_accesses_to() {
    // mov eax, [rdi+0xb0]
    let (done, vcpu, bus) = run64(
        &[0x8b, 0x87, 0xb0, 0, 0, 0],
        |vcpu, bus, _| {
            vcpu.gprs.set(Gpr::Rdi, DEVICE);
            vcpu.gprs.set(Gpr::Rax, u64::MAX);
            bus.put(0xb0, 4, 0x1234_5678);
        },
        DEVICE + 0xb0,
        false,
    );
    assert_eq!(done, Ok(Done::Completed));
    assert_eq!((vcpu.gprs.get(Gpr::Rax), vcpu.rip), (0x1234_5678, CODE + 6));
    assert_eq!(bus.seen, [Seen::Read(DEVICE + 0xb0, 4)]);
    // mov [rdi+rcx*4-8], r9d
    let (done, vcpu, bus) = run64(
        &[0x44, 0x89, 0x4c, 0x8f, 0xf8],
        |vcpu, _, _| {
            vcpu.gprs.set(Gpr::Rdi, DEVICE);
            vcpu.gprs.set(Gpr::Rcx, 4);
            vcpu.gprs.set(Gpr::R9, 0xffff_ffff_8765_4321);
        },
        DEVICE + 8,
        true,
    );
    assert_eq!((done, vcpu.rip), (Ok(Done::Completed), CODE + 5));
    assert_eq!(bus.seen, [Seen::Write(DEVICE + 8, 4, 0x8765_4321)]);
    // mov dword [rip+disp], imm32, which needs the length behind the immediate
    let displacement = (DEVICE + 0x300 - (CODE + 10)) as u32;
    let code = [&[0xc7, 0x05][..], &displacement.to_le_bytes(), &[1, 2, 3, 4]].concat();
    let (done, vcpu, bus) = run64(&code, |_, _, _| {}, DEVICE + 0x300, true);
    assert_eq!((done, vcpu.rip), (Ok(Done::Completed), CODE + 10));
    assert_eq!(bus.seen, [Seen::Write(DEVICE + 0x300, 4, 0x0403_0201)]);
}

#[test]
fn a_32_bit_address_in_64_bit_code() {
    // mov r8, [ecx-8], whose base has more bits than count
    let (done, vcpu, bus) = run64(
        &[0x67, 0x4c, 0x8b, 0x41, 0xf8],
        |vcpu, bus, _| {
            vcpu.gprs.set(Gpr::Rcx, 0xffff_0000_0000_0000 | (DEVICE + 0x10));
            bus.put(8, 8, 0x1122_3344_5566_7788);
        },
        DEVICE + 8,
        false,
    );
    assert_eq!((done, vcpu.rip), (Ok(Done::Completed), CODE + 5));
    assert_eq!(vcpu.gprs.get(Gpr::R8), 0x1122_3344_5566_7788);
    assert_eq!(bus.seen, [Seen::Read(DEVICE + 8, 8)]);
}

#[test]
fn everything_that_is_claimed() {
    for claim in SUPPORTED {
        let (done, vcpu, bus) = run64(
            claim.example,
            |vcpu, _, _| {
                vcpu.gprs.set(Gpr::Rdi, DEVICE + 0x20);
                vcpu.gprs.set(Gpr::Rsi, DEVICE + 0x40);
                vcpu.gprs.set(Gpr::Rsp, 0x2_0000);
                vcpu.gprs.set(Gpr::Rcx, 3);
            },
            DEVICE + 0x20,
            true,
        );
        let end = CODE + claim.example.len() as u64;
        assert_eq!((done, vcpu.rip), (Ok(Done::Completed), end), "{}", claim.mnemonic);
        assert!(!bus.seen.is_empty(), "{} left the device alone", claim.mnemonic);
        assert!(claim.sizes.iter().all(|size| matches!(size, 1 | 2 | 4 | 8)), "{}", claim.mnemonic);
    }
}

const CF: u64 = Rflags::CF.bits();
const PF: u64 = Rflags::PF.bits();
const AF: u64 = Rflags::AF.bits();
const ZF: u64 = Rflags::ZF.bits();
const SF: u64 = Rflags::SF.bits();
const OF: u64 = Rflags::OF.bits();

/// One instruction with its memory operand at [RDI] in the device.
struct Try {
    code: &'static [u8],
    /// The device's 8 bytes, RAX, RCX and the arithmetic flags, before and after.
    before: (u64, u64, u64, u64),
    after: (u64, u64, u64, u64),
}

#[test]
fn results_and_flags() {
    let big = 0x8877_6655_4433_2211;
    let tries = [
        // mov, in all widths; 32 bits clear the upper half, fewer do not.
        Try { code: &[0x8a, 0x07], before: (big, u64::MAX, 0, 0), after: (big, 0xffff_ffff_ffff_ff11, 0, 0) },
        Try { code: &[0x8a, 0x27], before: (big, 0, 0, 0), after: (big, 0x1100, 0, 0) },
        Try { code: &[0x66, 0x8b, 0x07], before: (big, 0, 0, 0), after: (big, 0x2211, 0, 0) },
        Try { code: &[0x8b, 0x07], before: (big, u64::MAX, 0, 0), after: (big, 0x4433_2211, 0, 0) },
        Try { code: &[0x48, 0x8b, 0x07], before: (big, 0, 0, 0), after: (big, big, 0, 0) },
        Try { code: &[0x88, 0x27], before: (0, 0xabcd, 0, 0), after: (0xab, 0xabcd, 0, 0) },
        Try {
            code: &[0x66, 0xc7, 0x07, 0x34, 0x12],
            before: (big, 0, 0, 0),
            after: (0x8877_6655_4433_1234, 0, 0, 0),
        },
        Try {
            code: &[0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff],
            before: (0, 0, 0, 0),
            after: (u64::MAX, 0, 0, 0),
        },
        Try { code: &[0x66, 0x8c, 0x17], before: (0, 0, 0, 0), after: (8, 0, 0, 0) },
        // Extensions.
        Try {
            code: &[0x48, 0x0f, 0xb7, 0x07],
            before: (0xfedc, u64::MAX, 0, 0),
            after: (0xfedc, 0xfedc, 0, 0),
        },
        Try { code: &[0x0f, 0xbe, 0x07], before: (0x80, u64::MAX, 0, 0), after: (0x80, 0xffff_ff80, 0, 0) },
        Try { code: &[0x66, 0x0f, 0xbe, 0x07], before: (0x80, 0, 0, 0), after: (0x80, 0xff80, 0, 0) },
        Try {
            code: &[0x48, 0x63, 0x07],
            before: (0x8000_0000, 0, 0, 0),
            after: (0x8000_0000, 0xffff_ffff_8000_0000, 0, 0),
        },
        Try { code: &[0x0f, 0x38, 0xf0, 0x07], before: (big, 0, 0, 0), after: (big, 0x1122_3344, 0, 0) },
        Try {
            code: &[0x66, 0x0f, 0x38, 0xf1, 0x07],
            before: (0, 0x1234, 0, 0),
            after: (0x3412, 0x1234, 0, 0),
        },
        // Arithmetic both ways round.
        Try { code: &[0x00, 0x07], before: (0xff, 1, 0, 0), after: (0, 1, 0, CF | ZF | AF | PF) },
        Try {
            code: &[0x03, 0x07],
            before: (0x7fff_ffff, 1, 0, CF),
            after: (0x7fff_ffff, 0x8000_0000, 0, OF | SF | AF | PF),
        },
        Try { code: &[0x11, 0x07], before: (1, 2, 0, CF), after: (4, 2, 0, 0) },
        Try { code: &[0x48, 0x1b, 0x07], before: (0, 0, 0, CF), after: (0, u64::MAX, 0, CF | SF | AF | PF) },
        Try {
            code: &[0x48, 0x83, 0x2f, 0x01],
            before: (0, 0, 0, 0),
            after: (u64::MAX, 0, 0, CF | SF | AF | PF),
        },
        Try {
            code: &[0x81, 0x0f, 0, 0, 0, 0x80],
            before: (1, 0, 0, CF | OF),
            after: (0x8000_0001, 0, 0, SF),
        },
        Try { code: &[0x80, 0x27, 0x0f], before: (0xf0, 0, 0, CF), after: (0, 0, 0, ZF | PF) },
        Try { code: &[0x33, 0x07], before: (5, 5, 0, 0), after: (5, 0, 0, ZF | PF) },
        Try { code: &[0x3b, 0x07], before: (6, 5, 0, 0), after: (6, 5, 0, CF | SF | AF | PF) },
        Try { code: &[0x83, 0x3f, 0x05], before: (5, 0, 0, 0), after: (5, 0, 0, ZF | PF) },
        Try { code: &[0xf6, 0x07, 0x80], before: (0x80, 0, 0, CF), after: (0x80, 0, 0, SF) },
        Try { code: &[0xf7, 0x17], before: (0, 0, 0, CF), after: (0xffff_ffff, 0, 0, CF) },
        Try { code: &[0xf7, 0x1f], before: (1, 0, 0, 0), after: (0xffff_ffff, 0, 0, CF | SF | AF | PF) },
        Try { code: &[0xfe, 0x07], before: (0xff, 0, 0, CF), after: (0, 0, 0, CF | ZF | AF | PF) },
        Try { code: &[0xff, 0x0f], before: (0x8000_0000, 0, 0, 0), after: (0x7fff_ffff, 0, 0, OF | AF | PF) },
        // Exchanges; LOCK changes nothing.
        Try { code: &[0x87, 0x07], before: (3, 7, 0, ZF), after: (7, 3, 0, ZF) },
        Try { code: &[0xf0, 0x0f, 0xc1, 0x07], before: (3, 7, 0, 0), after: (10, 3, 0, PF) },
        Try { code: &[0xf0, 0x0f, 0xb1, 0x0f], before: (3, 3, 9, 0), after: (9, 3, 9, ZF | PF) },
        Try { code: &[0x0f, 0xb1, 0x0f], before: (4, 3, 9, 0), after: (4, 4, 9, CF | SF | AF | PF) },
        // Shifts by 1, CL and an immediate.
        Try { code: &[0xd1, 0x27], before: (0x8000_0001, 0, 0, 0), after: (2, 0, 0, CF | OF) },
        Try { code: &[0xd3, 0x2f], before: (0x10, 0, 4, 0), after: (1, 0, 4, 0) },
        Try { code: &[0xc0, 0x3f, 0x01], before: (0x82, 0, 0, 0), after: (0xc1, 0, 0, SF) },
        Try { code: &[0xd0, 0x17], before: (0x80, 0, 0, 0), after: (0, 0, 0, CF | OF) },
        // Single bits: from a register (also below the operand), and by an immediate.
        Try { code: &[0x0f, 0xa3, 0x0f], before: (1 << 35, 0, 35, 0), after: (1 << 35, 0, 35, CF) },
        Try { code: &[0x0f, 0xba, 0x2f, 0x25], before: (0, 0, 0, CF), after: (1 << 5, 0, 0, 0) },
        Try {
            code: &[0x48, 0x0f, 0xb3, 0x0f],
            before: (u64::MAX, 0, 63, 0),
            after: (u64::MAX >> 1, 0, 63, CF),
        },
        Try { code: &[0x66, 0x0f, 0xbb, 0x4f, 0x02], before: (0, 0, 0xfff1, 0), after: (2, 0, 0xfff1, 0) },
        // Conditions.
        Try { code: &[0x0f, 0x94, 0x07], before: (0xff, 0, 0, ZF), after: (1, 0, 0, ZF) },
        Try { code: &[0x0f, 0x94, 0x07], before: (0xff, 0, 0, 0), after: (0, 0, 0, 0) },
        Try { code: &[0x0f, 0x4c, 0x07], before: (9, u64::MAX, 0, SF), after: (9, 9, 0, SF) },
        Try { code: &[0x0f, 0x4c, 0x07], before: (9, u64::MAX, 0, 0), after: (9, 0xffff_ffff, 0, 0) },
    ];
    for Try { code, before, after } in tries {
        let (done, vcpu, bus) = run64(
            code,
            |vcpu, bus, _| {
                vcpu.gprs.set(Gpr::Rdi, DEVICE + 0x100);
                vcpu.gprs.set(Gpr::Rax, before.1);
                vcpu.gprs.set(Gpr::Rcx, before.2);
                vcpu.rflags = 2 | before.3 | Rflags::RF.bits();
                bus.put(0x100, 8, before.0);
            },
            DEVICE + 0x100,
            true,
        );
        assert_eq!(done, Ok(Done::Completed), "{code:02x?}");
        let now = (bus.get(0x100, 8), vcpu.gprs.get(Gpr::Rax), vcpu.gprs.get(Gpr::Rcx), vcpu.rflags);
        assert_eq!(now, (after.0, after.1, after.2, 2 | after.3), "{code:02x?}: {now:x?}");
        assert_eq!(vcpu.rip, CODE + code.len() as u64);
    }
}

#[test]
fn push_and_pop() {
    // push qword [rdi]
    let (done, vcpu, bus) = run64(
        &[0xff, 0x37],
        |vcpu, bus, _| {
            vcpu.gprs.set(Gpr::Rdi, DEVICE);
            vcpu.gprs.set(Gpr::Rsp, DEVICE + 0x108);
            bus.put(0, 8, 0x1234_5678_9abc_def0);
        },
        DEVICE,
        false,
    );
    assert_eq!((done, vcpu.gprs.get(Gpr::Rsp)), (Ok(Done::Completed), DEVICE + 0x100));
    assert_eq!(bus.get(0x100, 8), 0x1234_5678_9abc_def0);
    // pop qword [rsp+0x10] counts from the incremented RSP.
    let (done, vcpu, bus) = run64(
        &[0x8f, 0x44, 0x24, 0x10],
        |vcpu, bus, _| {
            vcpu.gprs.set(Gpr::Rsp, DEVICE + 0x100);
            bus.put(0x100, 8, 77);
        },
        DEVICE + 0x100,
        false,
    );
    assert_eq!((done, vcpu.gprs.get(Gpr::Rsp)), (Ok(Done::Completed), DEVICE + 0x108));
    assert_eq!(bus.get(0x118, 8), 77);
    // A destination that faults leaves RSP alone.
    let (result, vcpu, _) = run64(
        &[0x8f, 0x07],
        |vcpu, _, _| {
            vcpu.gprs.set(Gpr::Rdi, 1 << 40);
            vcpu.gprs.set(Gpr::Rsp, DEVICE + 0x100);
        },
        DEVICE + 0x100,
        false,
    );
    let expected = Exception::page_fault(page_fault::WRITE, 1 << 40);
    assert_eq!((result, vcpu.gprs.get(Gpr::Rsp)), (Err(StepError::Exception(expected)), DEVICE + 0x100));
    // A 16-bit stack wraps within its segment.
    let mut ram = vec![0; 0x2_0000];
    let memory = SliceMemory::new(&mut ram);
    memory.write(Gpa::new(CODE), &[0x67, 0xff, 0x33]).unwrap();
    let mut vcpu = FakeVcpu::real();
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rsp, 0xabcd_0000);
    vcpu.gprs.set(Gpr::Rbx, 0x9000);
    vcpu.segments[SegmentRegister::Ds as usize].base = 0x10_0000;
    let mut bus = Bus::new();
    let done = step(&mut vcpu, &memory, &mut bus, fault(0x10_9000, false), &FEATURES);
    assert_eq!((done, vcpu.gprs.get(Gpr::Rsp)), (Ok(Done::Completed), 0xabcd_fffe));
    assert_eq!(memory.read_u16(Gpa::new(0xfffe)), Ok(0xffff));
}

#[test]
fn accesses_that_leave_ram_are_split_there() {
    // mov [rdi], rax across the end of RAM at 0x40000: 3 bytes of RAM, 5 of nothing.
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    memory.write(Gpa::new(CODE), &[0x48, 0x89, 0x07, 0x48, 0x8b, 0x0f]).unwrap();
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rdi, 0x3_fffd);
    vcpu.gprs.set(Gpr::Rax, 0x8877_6655_4433_2211);
    let mut bus = Bus::new();
    let done = step(&mut vcpu, &memory, &mut bus, fault(0x4_0000, true), &FEATURES);
    assert_eq!(done, Ok(Done::Completed));
    let mut tail = [0; 3];
    memory.read(Gpa::new(0x3_fffd), &mut tail).unwrap();
    assert_eq!(tail, [0x11, 0x22, 0x33]);
    assert_eq!(bus.seen, [Seen::Write(0x4_0000, 4, 0x7766_5544), Seen::Write(0x4_0004, 1, 0x88)]);
    // And back: what is not there reads all ones.
    let done = step(&mut vcpu, &memory, &mut bus, fault(0x4_0000, false), &FEATURES);
    assert_eq!((done, vcpu.gprs.get(Gpr::Rcx)), (Ok(Done::Completed), 0xffff_ffff_ff33_2211));
    // An unaligned access within a page stays one.
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rdi, DEVICE + 3);
    bus.seen.clear();
    assert_eq!(step(&mut vcpu, &memory, &mut bus, fault(DEVICE + 3, true), &FEATURES), Ok(Done::Completed));
    assert_eq!(bus.seen, [Seen::Write(DEVICE + 3, 8, 0x8877_6655_4433_2211)]);
}

#[test]
fn a_fault_on_the_second_page_leaves_the_first_alone() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    // The 2 MiB page behind the device's is not there.
    let next = (DEVICE >> 21) + 1;
    identity(&memory, Some(next));
    memory.write(Gpa::new(CODE), &[0x48, 0x89, 0x07]).unwrap();
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rdi, (next << 21) - 3);
    let mut bus = Bus::new();
    let result = step(&mut vcpu, &memory, &mut bus, fault((next << 21) - 3, true), &FEATURES);
    let expected = Exception::page_fault(page_fault::WRITE, next << 21);
    assert_eq!(result, Err(StepError::Exception(expected)));
    assert_eq!((bus.seen, vcpu.rip), (vec![], CODE));
}

#[test]
fn code_at_the_edge_of_what_is_mapped() {
    let mut ram = vec![0; 0x20_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, Some(1));
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.gprs.set(Gpr::Rdi, DEVICE);
    // A whole instruction up to the edge.
    memory.write(Gpa::new(0x1f_fffe), &[0x8b, 0x07]).unwrap();
    vcpu.rip = 0x1f_fffe;
    let mut bus = Bus::new();
    assert_eq!(step(&mut vcpu, &memory, &mut bus, fault(DEVICE, false), &FEATURES), Ok(Done::Completed));
    assert_eq!(vcpu.rip, 0x20_0000);
    // One that goes on beyond it.
    memory.write(Gpa::new(0x1f_fffe), &[0x8b, 0x87]).unwrap();
    vcpu.rip = 0x1f_fffe;
    let result = step(&mut vcpu, &memory, &mut bus, fault(DEVICE, false), &FEATURES);
    let expected = Exception::page_fault(page_fault::FETCH, 0x20_0000);
    assert_eq!(result, Err(StepError::Exception(expected)));
    // What the hardware saved is used, mapped or not.
    vcpu.fetched[..6].copy_from_slice(&[0x8b, 0x87, 4, 0, 0, 0]);
    vcpu.fetched_len = 6;
    assert_eq!(step(&mut vcpu, &memory, &mut bus, fault(DEVICE + 4, false), &FEATURES), Ok(Done::Completed));
    assert_eq!(vcpu.rip, 0x20_0004);
}

#[test]
fn code_where_nothing_is() {
    let fetch = NestedFault { fetch: true, ..fault(DEVICE, false) };
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = DEVICE;
    let result = step(&mut vcpu, &memory, &mut Bus::new(), fetch, &FEATURES);
    assert_eq!(result, Err(StepError::Exception(Exception::UNDEFINED)));
    // Page tables where nothing is: their entries are all ones.
    vcpu.cr3 = 0x5000_0000;
    let walk = NestedFault { page_walk: true, ..fault(0x5000_0000, false) };
    let result = step(&mut vcpu, &memory, &mut Bus::new(), walk, &FEATURES);
    let code = page_fault::PRESENT | page_fault::RESERVED | page_fault::FETCH;
    assert_eq!(result, Err(StepError::Exception(Exception::page_fault(code, DEVICE))));
}

#[test]
fn what_is_not_executed_is_handed_back() {
    // push rax; nop; movups [rdi], xmm0; call [rdi]; mov ds, [rdi]; fldcw [rdi]; vmovdqu [rdi], ymm0
    let unhandled: [&[u8]; 7] = [
        &[0x50],
        &[0x90],
        &[0x0f, 0x11, 0x07],
        &[0xff, 0x17],
        &[0x8e, 0x1f],
        &[0xd9, 0x2f],
        &[0xc5, 0xfe, 0x7f, 0x07],
    ];
    for code in unhandled {
        let (result, vcpu, bus) = run64(code, |vcpu, _, _| vcpu.gprs.set(Gpr::Rdi, DEVICE), DEVICE, true);
        let Err(StepError::Unhandleable(bytes)) = result else { panic!("{code:02x?}: {result:?}") };
        // Of a vector instruction, what follows comes along: the decoder does not know its length.
        let vector = code[0] == 0xc5;
        assert!(bytes.as_slice() == code || (vector && bytes.as_slice().starts_with(code)), "{bytes}");
        assert_eq!((bus.seen, vcpu.rip), (vec![], CODE));
    }
    // LOCK where the CPU refuses it.
    let (result, ..) = run64(&[0xf0, 0x8b, 0x07], |_, _, _| {}, DEVICE, false);
    assert_eq!(result, Err(StepError::Exception(Exception::UNDEFINED)));
}

#[test]
fn atomic_accesses_to_ram_are_left_to_the_cpu() {
    for code in [&[0x87, 0x07][..], &[0xf0, 0x0f, 0xc1, 0x07], &[0xf0, 0x0f, 0xb1, 0x0f], &[0xf0, 0xff, 0x07]]
    {
        let (done, vcpu, bus) = run64(
            code,
            |vcpu, _, _| {
                vcpu.gprs.set(Gpr::Rdi, 0x3_0008);
                vcpu.gprs.set(Gpr::Rax, 5);
            },
            DEVICE,
            true,
        );
        assert_eq!((done, vcpu.rip, bus.seen), (Ok(Done::Retry), CODE, vec![]), "{code:02x?}");
        assert_eq!(vcpu.gprs.get(Gpr::Rax), 5);
    }
}

#[test]
fn rom_is_read_from_memory_and_written_to_the_bus() {
    // Stage 2 maps the page, but not for writing: or dword [rdi], 1
    let refused = NestedFault { present: true, ..fault(0x3_0010, true) };
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    memory.write(Gpa::new(CODE), &[0x83, 0x0f, 0x01]).unwrap();
    memory.write_u32(Gpa::new(0x3_0010), 0x40).unwrap();
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rdi, 0x3_0010);
    let mut bus = Bus::new();
    assert_eq!(step(&mut vcpu, &memory, &mut bus, refused, &FEATURES), Ok(Done::Completed));
    assert_eq!(bus.seen, [Seen::Write(0x3_0010, 4, 0x41)]);
    assert_eq!(memory.read_u32(Gpa::new(0x3_0010)), Ok(0x40));
}
