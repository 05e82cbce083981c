//! String instructions: elements, directions, address sizes, the bound, faults in the middle; INS and OUTS.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{Done, STRING_BOUND, StepError, step, string_io};
use caisson_hwvirt::{Direction, IoExit};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::exception::page_fault;
use caisson_x86::{Exception, Gpr, Rflags, SegmentRegister};
use common::{Bus, CR3, DEVICE, FEATURES, Seen, fault, identity};

const CODE: u64 = 0x8000;
const BUFFER: u64 = 0x3_0000;
const BOUND: u64 = STRING_BOUND as u64;

fn vcpu64(rsi: u64, rdi: u64, rcx: u64) -> FakeVcpu {
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rsi, rsi);
    vcpu.gprs.set(Gpr::Rdi, rdi);
    vcpu.gprs.set(Gpr::Rcx, rcx);
    vcpu
}

/// RSI, RDI and RCX.
fn indices(vcpu: &FakeVcpu) -> (u64, u64, u64) {
    (vcpu.gprs.get(Gpr::Rsi), vcpu.gprs.get(Gpr::Rdi), vcpu.gprs.get(Gpr::Rcx))
}

fn with_ram(hole: Option<u64>, size: usize, code: &[u8], test: impl FnOnce(&SliceMemory<'_>)) {
    let mut ram = vec![0; size];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, hole);
    memory.write(Gpa::new(CODE), code).unwrap();
    test(&memory);
}

#[test]
fn rep_movs_stops_at_the_bound_and_goes_on() {
    with_ram(None, 0x4_0000, &[0xf3, 0x48, 0xa5], |memory| {
        for i in 0..100 {
            memory.write_u64(Gpa::new(BUFFER + i * 8), i).unwrap();
        }
        let mut vcpu = vcpu64(BUFFER, DEVICE, 100);
        vcpu.shadow = true;
        let mut bus = Bus::new();
        let go = |vcpu: &mut FakeVcpu, bus: &mut Bus| {
            let to = vcpu.gprs.get(Gpr::Rdi);
            step(vcpu, memory, bus, fault(to, true), &FEATURES)
        };
        assert_eq!(go(&mut vcpu, &mut bus), Ok(Done::Partial));
        let left = 100 - BOUND;
        assert_eq!((vcpu.rip, vcpu.shadow), (CODE, false));
        assert_eq!(indices(&vcpu), (BUFFER + BOUND * 8, DEVICE + BOUND * 8, left));
        assert_eq!(go(&mut vcpu, &mut bus), Ok(Done::Completed));
        assert_eq!(vcpu.rip, CODE + 3);
        assert_eq!(indices(&vcpu), (BUFFER + 800, DEVICE + 800, 0));
        assert!((0..100).all(|i| bus.get(i * 8, 8) == i));
        // Nothing is left to do.
        vcpu.rip = CODE;
        assert_eq!(go(&mut vcpu, &mut bus), Ok(Done::Completed));
        assert_eq!(bus.seen.len(), 100);
    });
}

#[test]
fn directions_and_address_sizes() {
    // std; 32-bit addresses (67): the counter and the indices are ECX, ESI and EDI, whose upper halves go.
    with_ram(None, 0x4_0000, &[0xf3, 0x67, 0x66, 0xa5], |memory| {
        let high = 0xaaaa_aaaa_0000_0000;
        let mut vcpu = vcpu64(high | (DEVICE + 6), high | (DEVICE + 0x106), high | 3);
        vcpu.rflags |= Rflags::DF.bits();
        let mut bus = Bus::new();
        bus.put(2, 8, 0x8877_6655_4433_2211);
        let done = step(&mut vcpu, memory, &mut bus, fault(DEVICE + 6, false), &FEATURES);
        assert_eq!(done, Ok(Done::Completed));
        assert_eq!(indices(&vcpu), (DEVICE, DEVICE + 0x100, 0));
        assert_eq!(bus.get(0x102, 6), 0x6655_4433_2211);
    });
    // 16-bit registers keep what is above them; the destination is in ES, a prefix moves the source.
    let mut ram = vec![0; 0x1_0000];
    let memory = SliceMemory::new(&mut ram);
    memory.write(Gpa::new(CODE), &[0x26, 0xf3, 0xa4]).unwrap();
    let mut vcpu = FakeVcpu::real();
    vcpu.rip = CODE;
    vcpu.segments[SegmentRegister::Es as usize].base = DEVICE - 0xff00;
    vcpu.gprs.set(Gpr::Rsi, 0xbbbb_ff00);
    vcpu.gprs.set(Gpr::Rdi, 0xcccc_ff80);
    vcpu.gprs.set(Gpr::Rcx, 0xdddd_0010);
    let mut bus = Bus::new();
    bus.put(0, 8, u64::MAX);
    let done = step(&mut vcpu, &memory, &mut bus, fault(DEVICE, false), &FEATURES);
    assert_eq!(done, Ok(Done::Completed));
    assert_eq!(indices(&vcpu), (0xbbbb_ff10, 0xcccc_ff90, 0xdddd_0000));
    assert_eq!((bus.get(0x80, 8), bus.get(0x88, 8)), (u64::MAX, 0));
}

#[test]
fn comparisons_end_on_zf() {
    // repne scasb for a byte of the device.
    with_ram(None, 0x4_0000, &[0xf2, 0xae], |memory| {
        let mut vcpu = vcpu64(0, DEVICE, 50);
        vcpu.gprs.set(Gpr::Rax, 0x5a);
        let mut bus = Bus::new();
        bus.put(9, 1, 0x5a);
        let done = step(&mut vcpu, memory, &mut bus, fault(DEVICE, false), &FEATURES);
        assert_eq!((done, vcpu.rip), (Ok(Done::Completed), CODE + 2));
        assert_eq!(indices(&vcpu), (0, DEVICE + 10, 40));
        assert_ne!(vcpu.rflags & Rflags::ZF.bits(), 0);
    });
    // repe cmpsd: [rsi] - [rdi]
    with_ram(None, 0x4_0000, &[0xf3, 0xa7], |memory| {
        let mut vcpu = vcpu64(BUFFER, DEVICE, 50);
        let mut bus = Bus::new();
        bus.put(8, 4, 1);
        let done = step(&mut vcpu, memory, &mut bus, fault(DEVICE, false), &FEATURES);
        assert_eq!(done, Ok(Done::Completed));
        assert_eq!(indices(&vcpu), (BUFFER + 12, DEVICE + 12, 47));
        assert_eq!(vcpu.rflags & (Rflags::ZF | Rflags::CF).bits(), Rflags::CF.bits());
    });
}

#[test]
fn a_fault_in_the_middle_leaves_the_elements_before_it() {
    // The 2 MiB page behind 0x200000 is not there; the source ends there.
    with_ram(Some(1), 0x20_0000, &[0xf3, 0xa4], |memory| {
        let mut vcpu = vcpu64(0x1f_fffa, DEVICE, 20);
        let mut bus = Bus::new();
        let result = step(&mut vcpu, memory, &mut bus, fault(DEVICE, true), &FEATURES);
        assert_eq!(result, Err(StepError::Exception(Exception::page_fault(0, 0x20_0000))));
        assert_eq!(indices(&vcpu), (0x20_0000, DEVICE + 6, 14));
        assert_eq!((vcpu.rip, bus.seen.len()), (CODE, 6));
    });
}

fn io(direction: Direction, size: u8, repeat: bool) -> IoExit {
    IoExit {
        port: 0x1f0,
        size,
        direction,
        string: true,
        repeat,
        address_bits: 0,
        segment: None,
        next_rip: None,
    }
}

#[test]
fn ins_and_outs() {
    // rep insd
    with_ram(None, 0x4_0000, &[0xf3, 0x6d], |memory| {
        let mut vcpu = vcpu64(0, BUFFER, 100);
        let mut bus = Bus::new();
        let exit = io(Direction::In, 4, true);
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Partial));
        assert_eq!(indices(&vcpu), (0, BUFFER + BOUND * 4, 100 - BOUND));
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Completed));
        assert_eq!((vcpu.rip, bus.seen.len()), (CODE + 2, 100));
        assert_eq!(memory.read_u32(Gpa::new(BUFFER + 99 * 4)), Ok(100));
    });
    // outsb through FS, once, with the hardware's details; RCX does not count.
    with_ram(None, 0x4_0000, &[0x64, 0x6e], |memory| {
        let mut vcpu = vcpu64(0x10, 0, 7);
        vcpu.segments[SegmentRegister::Fs as usize].base = BUFFER;
        memory.write(Gpa::new(BUFFER + 0x10), &[0xee]).unwrap();
        let mut bus = Bus::new();
        let exit = IoExit {
            address_bits: 64,
            segment: Some(SegmentRegister::Fs),
            next_rip: Some(0x1234),
            ..io(Direction::Out, 1, false)
        };
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Completed));
        assert_eq!((vcpu.rip, indices(&vcpu)), (0x1234, (0x11, 0, 7)));
        // The decoder finds the same.
        let mut vcpu = vcpu64(0x10, 0, 7);
        vcpu.segments[SegmentRegister::Fs as usize].base = BUFFER;
        let exit = io(Direction::Out, 1, false);
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Completed));
        assert_eq!(vcpu.rip, CODE + 2);
        assert_eq!(bus.seen, [Seen::Out(0x1f0, 1, 0xee); 2]);
    });
}

#[test]
fn outs_stops_at_the_element_that_is_not_taken() {
    // rep outsw
    with_ram(None, 0x4_0000, &[0xf3, 0x66, 0x6f], |memory| {
        let mut vcpu = vcpu64(BUFFER, 0, 5);
        let mut bus = Bus::new();
        let exit = io(Direction::Out, 2, true);
        let mut done = 0;
        for room in [0, 2, 0, 1] {
            bus.room = room;
            assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Partial));
            done += room as u64;
            assert_eq!((indices(&vcpu), vcpu.rip), ((BUFFER + done * 2, 0, 5 - done), CODE));
        }
        bus.room = usize::MAX;
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Completed));
        assert_eq!((indices(&vcpu), vcpu.rip, bus.seen.len()), ((BUFFER + 10, 0, 0), CODE + 3, 5));
    });
}

#[test]
fn ins_finds_its_place_before_it_asks_the_port() {
    with_ram(Some(1), 0x20_0000, &[0xf3, 0x66, 0x6d], |memory| {
        let mut vcpu = vcpu64(0, 0x1f_fffd, 10);
        let mut bus = Bus::new();
        let exit = io(Direction::In, 2, true);
        let result = string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES);
        // The second element crosses into the missing page.
        let expected = Exception::page_fault(page_fault::WRITE, 0x20_0000);
        assert_eq!(result, Err(StepError::Exception(expected)));
        assert_eq!((indices(&vcpu), vcpu.rip), ((0, 0x1f_ffff, 9), CODE));
        assert_eq!(bus.seen, [Seen::In(0x1f0, 2)]);
    });
}

#[test]
fn other_code_than_the_exit_said() {
    with_ram(None, 0x4_0000, &[0x90], |memory| {
        let mut vcpu = vcpu64(0, BUFFER, 1);
        let mut bus = Bus::new();
        let exit = io(Direction::In, 1, false);
        assert_eq!(string_io(&mut vcpu, memory, &mut bus, &exit, &FEATURES), Ok(Done::Retry));
        assert_eq!((vcpu.rip, bus.seen.len()), (CODE, 0));
    });
}
