//! The fuzz target's entry: a vCPU, its tables, its code and an exit made of arbitrary bytes, through
//! everything in this crate.

use caisson_hwvirt::{Direction, IoExit, NestedFault, VcpuState};
use caisson_types::{Gpa, GuestMemory, Gva, SliceMemory};
use caisson_x86::{Attributes, Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentRegister};

use crate::cr::{CrAccess, operand, set_operand};
use crate::testing::FakeVcpu;
use crate::{
    Access, AccessKind, Done, IoBus, LengthError, MmioBus, Opcode, PagingFeatures, STRING_BOUND, StepError,
    decode_cr, decode_dr, fetch_translate, instruction_end, step, string_io, translate,
};

/// Bytes of the guest's RAM.
const RAM: usize = 0x1_0000;
/// Where the tables are that map all of the RAM to itself, before the input changes them.
const TABLES: u64 = 0x8000;

/// Bytes that end in zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// An address that is often interesting: in RAM, at a page's end, or anywhere.
    fn address(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => self.word(),
            1 => self.word() % RAM as u64,
            2 => ((self.word() % RAM as u64) | 0xff0) + u64::from(self.byte() % 16),
            _ => 0xfee0_0000 | self.word() & 0xfff,
        }
    }
}

/// A bus that counts, and holds what is promised about accesses against them.
struct Counter {
    accesses: u32,
    value: u64,
}

impl Counter {
    fn access(&mut self, gpa: Gpa, size: u8) {
        assert!(matches!(size, 1 | 2 | 4 | 8) && gpa.page_offset() + u64::from(size) <= 4096);
        self.accesses += 1;
    }
}

impl MmioBus for Counter {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        self.access(gpa, size);
        self.value
    }
    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.access(gpa, size);
        assert!(size == 8 || value >> (size * 8) == 0);
    }
}

impl IoBus for Counter {
    fn port_read(&mut self, _port: u16, size: u8) -> u32 {
        assert!(matches!(size, 1 | 2 | 4));
        self.value as u32
    }
    fn port_write(&mut self, _port: u16, size: u8, value: u32) -> bool {
        assert!(matches!(size, 1 | 2 | 4) && (size == 4 || value >> (size * 8) == 0));
        self.value & 0xf != 1
    }
}

/// Runs everything on what `data` describes.
///
/// # Panics
/// Where a promise of this crate is broken, which is what a fuzzer looks for.
pub fn drive(data: &[u8]) {
    let mut input = Input(data);
    let mut bytes = [0; RAM];
    let mut vcpu = vcpu(&mut input);
    let features = PagingFeatures {
        physical_bits: input.byte(),
        gigabyte_pages: input.byte() & 1 != 0,
        pkru: input.word() as u32,
    };
    let fault = NestedFault {
        gpa: Gpa::new(input.address()),
        write: input.byte() & 1 != 0,
        fetch: input.byte() & 15 == 1,
        present: input.byte() & 1 != 0,
        page_walk: input.byte() & 15 == 1,
    };
    let io = io_exit(&mut input);
    let opcode = OPCODES[usize::from(input.byte()) % OPCODES.len()];
    let linear = Gva::new(input.address());
    let memory = SliceMemory::new(&mut bytes);
    map_ram(&vcpu, &memory);
    for _ in 0..input.byte() % 8 {
        let _ = memory.write_u64(Gpa::new(input.address()), input.word());
    }
    let code = fetch_translate(&vcpu, &memory, Gva::new(vcpu.rip));
    let _ = memory.write(code.unwrap_or(Gpa::new(0)), &input.0[..input.0.len().min(15)]);

    check_walk(&vcpu, &memory, linear, &features);
    check_length(&vcpu, &memory, opcode);
    check_step(&vcpu, &memory, fault, &features);
    let mut copy = vcpu.clone();
    let mut bus = Counter { accesses: 0, value: u64::MAX };
    match string_io(&mut copy, &memory, &mut bus, &io, &features) {
        Ok(Done::Completed) => {}
        _ => assert_eq!(copy.rip, vcpu.rip),
    }
    let before = vcpu.clone();
    if let Ok((access, _)) = decode_cr(&mut vcpu, &memory, &features) {
        check_cr(access, &vcpu);
    }
    let _ = decode_dr(&vcpu, &memory, &features);
    assert_eq!(vcpu, before);
}

fn check_walk(vcpu: &FakeVcpu, memory: &SliceMemory<'_>, linear: Gva, features: &PagingFeatures) {
    let fast = fetch_translate(vcpu, memory, linear);
    for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
        for access in [Access::explicit(kind, vcpu), Access::implicit(kind)] {
            let full = translate(vcpu, memory, linear, access, features);
            // A bit that the walk sets may be part of another of its entries, where the tables lie within each
            // other.
            let again = fetch_translate(vcpu, memory, linear);
            if let (Some(fast), Ok(full), true) = (fast, full, again == fast) {
                assert_eq!(fast, full);
            }
        }
    }
}

fn check_length(vcpu: &FakeVcpu, memory: &SliceMemory<'_>, opcode: Opcode) {
    match instruction_end(vcpu, memory, opcode) {
        Ok(next) => {
            let length = next.wrapping_sub(vcpu.rip) & 0xffff_ffff;
            assert!(vcpu.next_rip.is_some() || (1..=15).contains(&length));
        }
        Err(LengthError::Unreadable | LengthError::Different) => {}
    }
}

fn check_step(vcpu: &FakeVcpu, memory: &SliceMemory<'_>, fault: NestedFault, features: &PagingFeatures) {
    let mut after = vcpu.clone();
    let mut bus = Counter { accesses: 0, value: 0x8877_6655_4433_2211 };
    match step(&mut after, memory, &mut bus, fault, features) {
        Ok(Done::Completed) => {}
        Ok(Done::Retry) | Err(StepError::Unhandleable(_)) => {
            assert_eq!(bus.accesses, 0);
            assert_eq!(&after, vcpu);
        }
        Ok(Done::Partial) | Err(StepError::Exception(_)) => assert_eq!(after.rip, vcpu.rip),
    }
    // Two operands, each of two parts of at most four pieces, an element.
    assert!(bus.accesses <= STRING_BOUND * 16);
}

fn check_cr(access: CrAccess, vcpu: &FakeVcpu) {
    let (cr0, cr4) = (access.new_cr0(vcpu), access.new_cr4(vcpu));
    assert!(cr0.is_none() || cr4.is_none());
    if let CrAccess::Read { gpr, .. } = access {
        assert_eq!((cr0, cr4), (None, None));
        let mut after = vcpu.clone();
        set_operand(&mut after, gpr, u64::MAX);
        assert!(matches!(operand(&after, gpr), u64::MAX | 0xffff_ffff));
    }
    if let (CrAccess::Lmsw(_), Some(cr0)) = (access, cr0) {
        assert!(cr0 & Cr0::PE.bits() >= vcpu.cr0() & Cr0::PE.bits(), "LMSW left protected mode");
    }
}

const OPCODES: [Opcode; 16] = [
    Opcode::Cpuid,
    Opcode::Rdmsr,
    Opcode::Wrmsr,
    Opcode::Hypercall,
    Opcode::Hlt,
    Opcode::Pause,
    Opcode::Xsetbv,
    Opcode::Rdpmc,
    Opcode::CacheFlush,
    Opcode::Control,
    Opcode::Debug,
    Opcode::PortIo,
    Opcode::Int,
    Opcode::Rdtsc,
    Opcode::Invlpg,
    Opcode::Any,
];

fn io_exit(input: &mut Input<'_>) -> IoExit {
    let flags = input.byte();
    let number = usize::from(input.byte());
    IoExit {
        port: input.word() as u16,
        size: [1, 2, 4, flags][number % 4],
        direction: if flags & 1 != 0 { Direction::In } else { Direction::Out },
        string: true,
        repeat: flags & 2 != 0,
        address_bits: [0, 16, 32, 64][number >> 2 & 3],
        segment: (flags & 4 != 0).then_some(SegmentRegister::Es),
        next_rip: (flags & 8 != 0).then_some(0x1234),
    }
}

/// A vCPU in one of the modes, the rest of it arbitrary.
fn vcpu(input: &mut Input<'_>) -> FakeVcpu {
    let mode = input.byte();
    let mut vcpu = match mode % 4 {
        0 => FakeVcpu::real(),
        1 => FakeVcpu::protected(),
        _ => FakeVcpu::long(TABLES),
    };
    vcpu.cr3 = TABLES;
    let noise = input.word();
    let cr4 = Cr4::PSE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
    vcpu.cr4 |= noise & cr4.bits();
    if mode % 4 == 1 && mode & 16 != 0 {
        vcpu.cr0 |= Cr0::PG.bits();
        vcpu.cr4 |= noise & Cr4::PAE.bits();
    }
    if mode % 4 == 3 {
        vcpu.cr4 |= noise & Cr4::LA57.bits();
    }
    vcpu.cr0 ^= noise >> 24 & (Cr0::WP | Cr0::AM).bits();
    vcpu.efer ^= noise >> 8 & Efer::NXE.bits();
    vcpu.rflags = input.word() & 0x3f_ffff | 2;
    if mode % 4 != 1 || mode & 32 == 0 {
        vcpu.rflags &= !Rflags::VM.bits();
    }
    vcpu.cpl = if mode & 64 != 0 { 3 } else { 0 };
    for gpr in Gpr::ALL {
        vcpu.gprs.set(gpr, input.address());
    }
    vcpu.rip = input.address();
    if mode & 128 != 0 {
        for segment in &mut vcpu.segments {
            let noise = input.word();
            *segment = Segment {
                selector: noise as u16,
                attributes: Attributes(noise as u16 & 0xfff),
                limit: (noise >> 16) as u32,
                base: input.address(),
            };
        }
    }
    if input.byte() & 15 == 1 {
        vcpu.fetched_len = usize::from(input.byte() % 16);
        vcpu.fetched.fill_with(|| input.byte());
    }
    vcpu
}

/// Writes tables that map the RAM, or more, to itself in the vCPU's paging mode.
fn map_ram(vcpu: &FakeVcpu, memory: &SliceMemory<'_>) {
    let put = |at: u64, value: u64| {
        let _ = memory.write_u64(Gpa::new(at), value);
    };
    if vcpu.cr0() & Cr0::PG.bits() == 0 {
        return;
    }
    let long = vcpu.efer() & Efer::LMA.bits() != 0;
    if !long && vcpu.cr4() & Cr4::PAE.bits() == 0 {
        let _ = memory.write_u32(Gpa::new(TABLES), TABLES as u32 + 0x1007);
        for page in 0..1024 {
            let _ = memory.write_u32(Gpa::new(TABLES + 0x1000 + page * 4), ((page as u32) << 12) | 7);
        }
        return;
    }
    let levels = match (long, vcpu.cr4() & Cr4::LA57.bits() != 0) {
        (false, _) => 2,
        (true, false) => 3,
        (true, true) => 4,
    };
    for level in 0..levels {
        let flags = if level == 0 && !long { 1 } else { 7 };
        put(TABLES + level * 0x1000, (TABLES + (level + 1) * 0x1000) | flags);
    }
    for page in 0..512 {
        put(TABLES + levels * 0x1000 + page * 8, (page << 12) | 7);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes(data in prop::collection::vec(any::<u8>(), 0..600)) {
            drive(&data);
        }

        /// Plain values around arbitrary code, so that it is reached.
        #[test]
        fn arbitrary_code(seed: Vec<u8>, mode: u8, code: [u8; 15]) {
            let mut data = std::vec![mode];
            data.extend(seed.iter().take(8).chain([0; 8].iter()).take(8));
            data.extend([0; 8]);
            // Sixteen registers and RIP in RAM.
            for (number, byte) in seed.iter().chain(&[3; 17]).take(17).enumerate() {
                data.push(if number == 16 { 1 } else { byte % 4 });
                data.extend([0, 0, 0, 0, 0, 0, *byte, number as u8]);
                if byte % 4 == 2 && number != 16 {
                    data.push(*byte);
                }
            }
            data.extend(std::vec![0; 64]);
            data.extend(code);
            drive(&data);
        }
    }
}
