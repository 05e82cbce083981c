//! Instructions on a device: results, flags, addressing forms, faults and crossings.
#![allow(clippy::unwrap_used)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{Done, StepError, step};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::Gpr;
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
