//! Instruction lengths: plain and prefixed encodings, page crossings, wraparound, and code that has changed.
#![allow(clippy::unwrap_used, clippy::panic)]

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{LengthError, Opcode, instruction_end};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::SegmentRegister;

const PLAIN: &[(Opcode, &[u8])] = &[
    (Opcode::Cpuid, &[0x0f, 0xa2]),
    (Opcode::Rdmsr, &[0x0f, 0x32]),
    (Opcode::Wrmsr, &[0x0f, 0x30]),
    (Opcode::Hypercall, &[0x0f, 0x01, 0xd9]),
    (Opcode::Hypercall, &[0x0f, 0x01, 0xc1]),
    (Opcode::Hlt, &[0xf4]),
    (Opcode::Pause, &[0xf3, 0x90]),
    (Opcode::Xsetbv, &[0x0f, 0x01, 0xd1]),
    (Opcode::Rdpmc, &[0x0f, 0x33]),
    (Opcode::CacheFlush, &[0x0f, 0x08]),
    (Opcode::CacheFlush, &[0x0f, 0x09]),
    (Opcode::CacheFlush, &[0xf3, 0x0f, 0x09]),
    (Opcode::Control, &[0x0f, 0x22, 0xe0]),
    (Opcode::Control, &[0x0f, 0x20, 0xc3]),
    (Opcode::Control, &[0x0f, 0x06]),
    (Opcode::Control, &[0x0f, 0x01, 0xf0]),
    (Opcode::Control, &[0x0f, 0x01, 0xe0]),
    (Opcode::Debug, &[0x0f, 0x23, 0xf8]),
    (Opcode::Debug, &[0x0f, 0x21, 0x38]),
    (Opcode::PortIo, &[0xe4, 0x60]),
    (Opcode::PortIo, &[0xee]),
    (Opcode::PortIo, &[0xf3, 0x6c]),
    (Opcode::Int, &[0xcd, 0x80]),
    (Opcode::Int, &[0xcc]),
    (Opcode::Rdtsc, &[0x0f, 0x31]),
    (Opcode::Rdtsc, &[0x0f, 0x01, 0xf9]),
    (Opcode::Invlpg, &[0x0f, 0x01, 0x38]),
    (Opcode::Any, &[0x90]),
];

/// The instructions at `rip` of flat protected mode, for which the answer is the RIP behind them.
fn at(rip: u64, bytes: &[u8], expected: Opcode) -> Result<u64, LengthError> {
    let mut ram = vec![0; 0x4000];
    let memory = SliceMemory::new(&mut ram);
    memory.write(Gpa::new(rip), bytes).unwrap();
    let mut vcpu = FakeVcpu::protected();
    vcpu.rip = rip;
    instruction_end(&vcpu, &memory, expected)
}

#[test]
fn plain_prefixed_and_page_crossing() {
    for &(opcode, bytes) in PLAIN {
        let len = bytes.len() as u64;
        assert_eq!(at(0x1000, bytes, opcode), Ok(0x1000 + len), "{opcode:?}");
        for offset in 0..4 {
            let rip = 0x1fff - offset;
            assert_eq!(at(rip, bytes, opcode), Ok(rip + len), "{opcode:?} at {rip:#x}");
        }
        // A segment prefix means nothing to any of them.
        let prefixed = [&[0x3e], bytes].concat();
        assert_eq!(at(0x1000, &prefixed, opcode), Ok(0x1001 + len), "3e {opcode:?}");
    }
}

#[test]
fn the_hardware_has_the_first_word() {
    let mut ram = [0; 16];
    let mut vcpu = FakeVcpu::protected();
    vcpu.next_rip = Some(77);
    assert_eq!(instruction_end(&vcpu, &SliceMemory::new(&mut ram), Opcode::Cpuid), Ok(77));
}

#[test]
fn changed_and_unmapped_code() {
    assert_eq!(at(0x1000, &[0x0f, 0xa2], Opcode::Rdmsr), Err(LengthError::Different));
    assert_eq!(at(0x1000, &[0x0f, 0x0a], Opcode::Rdmsr), Err(LengthError::Different));
    let mut ram = vec![0; 0x1000];
    let memory = SliceMemory::new(&mut ram);
    // The tables say "not present".
    let mut vcpu = FakeVcpu::long(0);
    vcpu.rip = 0x5000;
    assert_eq!(instruction_end(&vcpu, &memory, Opcode::Cpuid), Err(LengthError::Unreadable));
}

#[test]
fn rip_wraps_with_its_register() {
    let mut ram = vec![0; 0x2_0000];
    let memory = SliceMemory::new(&mut ram);
    // 32-bit code whose base brings the end of the segment to 0x1000.
    let mut vcpu = FakeVcpu::protected();
    vcpu.segments[SegmentRegister::Cs as usize].base = 0x1001;
    vcpu.rip = 0xffff_ffff;
    memory.write(Gpa::new(0x1000), &[0x0f, 0xa2]).unwrap();
    assert_eq!(instruction_end(&vcpu, &memory, Opcode::Cpuid), Ok(1));
    // 16-bit code goes on past 64 KiB, where the segment's limit stops it.
    let mut vcpu = FakeVcpu::real();
    vcpu.rip = 0xffff;
    memory.write(Gpa::new(0xffff), &[0xf4]).unwrap();
    assert_eq!(instruction_end(&vcpu, &memory, Opcode::Hlt), Ok(0x1_0000));
}
