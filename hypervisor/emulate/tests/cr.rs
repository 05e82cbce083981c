//! Operands of accesses to control and debug registers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use caisson_emulate::cr::{operand, set_operand};
use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{CrAccess, DrAccess, StepError, decode_cr, decode_dr};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::{Gpr, SegmentRegister};
use common::{CR3, FEATURES, identity};

const CODE: u64 = 0x8000;

fn decode64(code: &[u8]) -> Result<(CrAccess, u64), StepError> {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    memory.write(Gpa::new(CODE), code).unwrap();
    memory.write(Gpa::new(0x3_0000), &[0x0b, 0x80]).unwrap();
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.rip = CODE;
    vcpu.gprs.set(Gpr::Rbx, 0x3_0000);
    decode_cr(&mut vcpu, &memory, &FEATURES)
}

#[test]
fn control_registers() {
    let cases: &[(&[u8], CrAccess)] = &[
        (&[0x0f, 0x22, 0xe0], CrAccess::Write { register: 4, gpr: Gpr::Rax }),
        (&[0x41, 0x0f, 0x22, 0xc7], CrAccess::Write { register: 0, gpr: Gpr::R15 }),
        (&[0x44, 0x0f, 0x22, 0xc3], CrAccess::Write { register: 8, gpr: Gpr::Rbx }),
        (&[0xf0, 0x0f, 0x22, 0xc3], CrAccess::Write { register: 8, gpr: Gpr::Rbx }),
        (&[0x0f, 0x20, 0xd9], CrAccess::Read { register: 3, gpr: Gpr::Rcx }),
        // The mod field is ignored: no displacement follows.
        (&[0x0f, 0x22, 0x20], CrAccess::Write { register: 4, gpr: Gpr::Rax }),
        (&[0x0f, 0x06], CrAccess::Clts),
        (&[0x0f, 0x01, 0xf3], CrAccess::Lmsw(0)),
        (&[0x0f, 0x01, 0x33], CrAccess::Lmsw(0x800b)),
        (&[0x0f, 0x01, 0xe2], CrAccess::Smsw { gpr: Gpr::Rdx, size: 4 }),
        (&[0x48, 0x0f, 0x01, 0xe2], CrAccess::Smsw { gpr: Gpr::Rdx, size: 8 }),
    ];
    for &(code, access) in cases {
        assert_eq!(decode64(code), Ok((access, CODE + code.len() as u64)), "{code:02x?}");
    }
    let Err(StepError::Unhandleable(bytes)) = decode64(&[0x0f, 0xa2]) else { panic!("CPUID is no access") };
    assert_eq!(bytes.as_slice(), [0x0f, 0xa2]);
}

#[test]
fn new_values() {
    let mut vcpu = FakeVcpu::protected();
    vcpu.cr0 = 0x6000_0019;
    vcpu.gprs.set(Gpr::Rdx, 0xffff_ffff_8000_0011);
    let write = CrAccess::Write { register: 0, gpr: Gpr::Rdx };
    assert_eq!(write.new_cr0(&vcpu), Some(0x8000_0011));
    assert_eq!(write.new_cr4(&vcpu), None);
    assert_eq!(CrAccess::Write { register: 4, gpr: Gpr::Rdx }.new_cr4(&vcpu), Some(0x8000_0011));
    // LMSW: four bits, and PE stays.
    assert_eq!(CrAccess::Lmsw(0xfff6).new_cr0(&vcpu), Some(0x6000_0017));
    assert_eq!(CrAccess::Clts.new_cr0(&vcpu), Some(0x6000_0011));
    let long = FakeVcpu { gprs: vcpu.gprs, ..FakeVcpu::long(CR3) };
    assert_eq!(write.new_cr0(&long), Some(0xffff_ffff_8000_0011));
    // Reads clear the upper half outside 64-bit mode.
    set_operand(&mut vcpu, Gpr::Rdx, 0x2345_6789_0000_0001);
    assert_eq!(operand(&vcpu, Gpr::Rdx), vcpu.gprs.get(Gpr::Rdx));
}

#[test]
fn debug_registers() {
    let mut ram = vec![0; 0x1_0000];
    let memory = SliceMemory::new(&mut ram);
    let mut vcpu = FakeVcpu::real();
    vcpu.segments[SegmentRegister::Cs as usize].base = CODE;
    vcpu.rip = 0x10;
    let go = |code: &[u8]| {
        memory.write(Gpa::new(CODE + 0x10), code).unwrap();
        decode_dr(&vcpu, &memory, &FEATURES)
    };
    let access = |register, write, gpr| Ok((DrAccess { register, write, gpr }, 0x13));
    assert_eq!(go(&[0x0f, 0x23, 0xf8]), access(7, true, Gpr::Rax));
    assert_eq!(go(&[0x0f, 0x21, 0xf7]), access(6, false, Gpr::Rdi));
    assert!(go(&[0x0f, 0x20, 0xc0]).is_err());
}
