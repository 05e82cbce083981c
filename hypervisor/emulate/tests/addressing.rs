//! Every addressing form of ModRM and SIB in 16-, 32- and 64-bit code, through the hand decoder and the full
//! one, against the tables of SDM vol. 2, section 2.1.5; and what segmentation makes of the offsets.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{Done, StepError, step};
use caisson_types::{Gpa, GuestMemory, SliceMemory};
use caisson_x86::{Attributes, Exception, Gpr, SegmentRegister};
use common::{Bus, CR3, FEATURES, Seen, fault, identity};

const CODE: u64 = 0x8000;

/// Registers that keep every sum of two of them, times 8, beyond RAM and below 4 GiB, all different.
fn registers(vcpu: &mut FakeVcpu) {
    for (number, gpr) in Gpr::ALL.into_iter().enumerate() {
        vcpu.gprs.set(gpr, 0x0010_0000 + 0x0012_3459 * (number as u64 + 1));
    }
}

/// The only address that the bus saw.
fn address(vcpu: &mut FakeVcpu, memory: &SliceMemory<'_>, code: &[u8]) -> u64 {
    memory.write(Gpa::new(CODE), code).unwrap();
    vcpu.rip = CODE;
    let mut bus = Bus::new();
    // A fault at another address than the operand's makes the emulator go through the tables.
    let done = step(vcpu, memory, &mut bus, fault(0xf000_0fff, false), &FEATURES);
    assert_eq!((done, vcpu.rip), (Ok(Done::Completed), CODE + code.len() as u64), "{code:02x?}");
    match bus.seen[..] {
        [Seen::Read(gpa, 1 | 2 | 4)] => gpa,
        ref seen => panic!("{code:02x?}: {seen:x?}"),
    }
}

/// Offset and default segment of a 32- or 64-bit ModRM form, and its bytes after the opcode.
struct Form {
    bytes: Vec<u8>,
    base: Option<u8>,
    index: Option<(u8, u32)>,
    displacement: i64,
    rip: bool,
}

/// All forms with ModRM (and SIB) for a REX prefix with these bits.
fn forms(rex: u8, long: bool) -> Vec<Form> {
    let (b, x) = ((rex & 1) << 3, (rex & 2) << 2);
    let mut forms = Vec::new();
    for mode in 0..3u8 {
        for rm in 0..8u8 {
            for sib in 0..=255u8 {
                if rm != 4 && sib != 0 {
                    continue;
                }
                let mut bytes = vec![mode << 6 | rm];
                let (mut base, mut index, mut rip) = (Some(rm | b), None, false);
                let mut size = [0, 1, 4][usize::from(mode)];
                if rm == 4 {
                    bytes.push(sib);
                    base = Some(sib & 7 | b);
                    if sib & 7 == 5 && mode == 0 {
                        (base, size) = (None, 4);
                    }
                    let number = sib >> 3 & 7 | x;
                    index = (number != 4).then_some((number, u32::from(sib >> 6)));
                } else if rm == 5 && mode == 0 {
                    (base, size, rip) = (None, 4, long);
                }
                let displacement: i64 = [0, -0x13, 0, 0, 0x0311_2233][size];
                bytes.extend(&displacement.to_le_bytes()[..size]);
                forms.push(Form { bytes, base, index, displacement, rip });
            }
        }
    }
    forms
}

fn offset(form: &Form, vcpu: &FakeVcpu, length: usize) -> u64 {
    let register = |number| vcpu.gprs.get(Gpr::from_encoding(number));
    let base = form.base.map_or(0, register);
    let index = form.index.map_or(0, |(number, shift)| register(number) << shift);
    let rip = if form.rip { CODE + length as u64 } else { 0 };
    base.wrapping_add(index).wrapping_add(form.displacement as u64).wrapping_add(rip)
}

#[test]
fn forms_of_64_bit_code() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    let mut vcpu = FakeVcpu::long(CR3);
    vcpu.segments[SegmentRegister::Fs as usize].base = 0x4000_0000;
    // The bases of the other segments mean nothing.
    vcpu.segments[SegmentRegister::Ds as usize].base = 0x7777_0000;
    for rex in 0x40..0x44u8 {
        for form in forms(rex, true) {
            // 8A is left to the full decoder, 8B is not.
            for opcode in [0x8a, 0x8b] {
                for prefix in [&[][..], &[0x67], &[0x64], &[0x2e]] {
                    registers(&mut vcpu);
                    // The upper halves count, unless the address has 32 bits.
                    if prefix == [0x67] {
                        Gpr::ALL.into_iter().for_each(|gpr| {
                            let value = vcpu.gprs.get(gpr) | 0xdead_0000_0000_0000;
                            vcpu.gprs.set(gpr, value);
                        });
                    }
                    let code = [prefix, &[rex, opcode], &form.bytes].concat();
                    let mut expected = offset(&form, &vcpu, code.len());
                    match prefix {
                        [0x67] => expected &= 0xffff_ffff,
                        [0x64] => expected += 0x4000_0000,
                        _ => {}
                    }
                    assert_eq!(address(&mut vcpu, &memory, &code), expected, "{code:02x?}");
                }
            }
        }
    }
}

#[test]
fn forms_of_32_bit_code() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    let mut vcpu = FakeVcpu::protected();
    let bases = [0x1000_0000, 0, 0x2000_0000, 0x3000_0000, 0x4000_0000, 0x5000_0000];
    for (segment, base) in vcpu.segments.iter_mut().zip(bases) {
        segment.base = base;
    }
    for form in forms(0, false) {
        for opcode in [0x8a, 0x8b] {
            for (prefix, segment) in
                [(&[][..], None), (&[0x26], Some(0)), (&[0x36], Some(2)), (&[0x65], Some(5))]
            {
                registers(&mut vcpu);
                let code = [prefix, &[opcode], &form.bytes].concat();
                let default = if matches!(form.base, Some(4 | 5)) { 2 } else { 3 };
                let base = bases[segment.unwrap_or(default)];
                let expected = (offset(&form, &vcpu, code.len()) + base) & 0xffff_ffff;
                assert_eq!(address(&mut vcpu, &memory, &code), expected, "{code:02x?}");
            }
        }
    }
}

#[test]
fn forms_of_16_bit_code() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    let names: [(&[Gpr], usize); 8] = [
        (&[Gpr::Rbx, Gpr::Rsi], 3),
        (&[Gpr::Rbx, Gpr::Rdi], 3),
        (&[Gpr::Rbp, Gpr::Rsi], 2),
        (&[Gpr::Rbp, Gpr::Rdi], 2),
        (&[Gpr::Rsi], 3),
        (&[Gpr::Rdi], 3),
        (&[Gpr::Rbp], 2),
        (&[Gpr::Rbx], 3),
    ];
    let bases = [0x10_0000, 0, 0x20_0000, 0x30_0000, 0x40_0000, 0x50_0000];
    for protected in [false, true] {
        let mut vcpu = if protected { FakeVcpu::protected() } else { FakeVcpu::real() };
        for (segment, base) in vcpu.segments.iter_mut().zip(bases) {
            segment.base = base;
        }
        for mode in 0..3u8 {
            for (rm, (summands, default)) in names.into_iter().enumerate() {
                registers(&mut vcpu);
                let direct = mode == 0 && rm == 6;
                let size = if direct { 2 } else { usize::from(mode) };
                let displacement: i64 = [0, -0x13, 0x5432][size];
                let prefix: &[u8] = if protected { &[0x67] } else { &[] };
                let modrm = [0x8a, mode << 6 | rm as u8];
                let code = [prefix, &modrm, &displacement.to_le_bytes()[..size]].concat();
                let sum: u64 = if direct { 0 } else { summands.iter().map(|&gpr| vcpu.gprs.get(gpr)).sum() };
                let segment = if direct { 3 } else { default };
                let expected = bases[segment] + (sum.wrapping_add(displacement as u64) & 0xffff);
                assert_eq!(address(&mut vcpu, &memory, &code), expected, "{code:02x?}");
            }
        }
    }
}

#[test]
fn absolute_addresses() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    let mut vcpu = FakeVcpu::long(CR3);
    let code = [0xa1, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0];
    assert_eq!(address(&mut vcpu, &memory, &code), 0x1122_3344);
    assert_eq!(address(&mut vcpu, &memory, &[0x67, 0xa0, 0x44, 0x33, 0x22, 0x91]), 0x9122_3344);
    let mut vcpu = FakeVcpu::protected();
    assert_eq!(address(&mut vcpu, &memory, &[0xa1, 0x44, 0x33, 0x22, 0x91]), 0x9122_3344);
    let mut vcpu = FakeVcpu::real();
    vcpu.segments[SegmentRegister::Es as usize].base = 0xf_0000;
    assert_eq!(address(&mut vcpu, &memory, &[0x26, 0xa1, 0x44, 0xb3]), 0xf_b344);
}

/// The result of `mov eax, [ebx]` (or of a store there) with DS as given.
fn access(attributes: u16, limit: u32, offset: u64, store: bool) -> Result<Done, StepError> {
    let mut ram = vec![0; 0x1_0000];
    let memory = SliceMemory::new(&mut ram);
    memory.write(Gpa::new(CODE), &[if store { 0x89 } else { 0x8b }, 0x03]).unwrap();
    let mut vcpu = FakeVcpu::protected();
    vcpu.rip = CODE;
    let ds = &mut vcpu.segments[SegmentRegister::Ds as usize];
    (ds.attributes, ds.limit) = (Attributes(attributes), limit);
    vcpu.gprs.set(Gpr::Rbx, offset);
    step(&mut vcpu, &memory, &mut Bus::new(), fault(0xf000_0fff, store), &FEATURES)
}

#[test]
fn segment_limits_and_types() {
    let refused = Err(StepError::Exception(Exception::GENERAL_PROTECTION));
    let fine = Ok(Done::Completed);
    let (data, read_only, code, execute_only, down16, down32) = (0xc93, 0xc91, 0xc9b, 0xc99, 0x097, 0x497);
    assert_eq!(access(data, 0xfff, 0xffc, true), fine);
    assert_eq!(access(data, 0xfff, 0xffd, true), refused);
    assert_eq!(access(data, 0xffff_ffff, 0xffff_fffc, false), fine);
    assert_eq!(access(data, 0xffff_ffff, 0xffff_fffd, false), refused);
    assert_eq!(access(read_only, 0xfff, 0, false), fine);
    assert_eq!(access(read_only, 0xfff, 0, true), refused);
    assert_eq!(access(code, 0xfff, 0, false), fine);
    assert_eq!(access(code, 0xfff, 0, true), refused);
    assert_eq!(access(execute_only, 0xfff, 0, false), refused);
    assert_eq!(access(down16, 0xfff, 0xfff, false), refused);
    assert_eq!(access(down16, 0xfff, 0x1000, true), fine);
    assert_eq!(access(down16, 0xfff, 0xfffd, false), refused);
    assert_eq!(access(down32, 0xfff, 0xfffd, false), fine);
    // A null selector.
    assert_eq!(access(0, 0xffff_ffff, 0, false), refused);
}

#[test]
fn the_stack_segment_raises_its_own_fault() {
    let mut ram = vec![0; 0x1_0000];
    let memory = SliceMemory::new(&mut ram);
    memory.write(Gpa::new(CODE), &[0x8b, 0x45, 0x00]).unwrap();
    let mut vcpu = FakeVcpu::protected();
    vcpu.rip = CODE;
    vcpu.segments[SegmentRegister::Ss as usize].limit = 0xfff;
    vcpu.gprs.set(Gpr::Rbp, 0x1000);
    let result = step(&mut vcpu, &memory, &mut Bus::new(), fault(0xf000_0fff, false), &FEATURES);
    assert_eq!(result, Err(StepError::Exception(Exception::STACK)));
}

#[test]
fn addresses_must_be_canonical() {
    let mut ram = vec![0; 0x4_0000];
    let memory = SliceMemory::new(&mut ram);
    identity(&memory, None);
    let go = |code: &[u8], value: u64| {
        memory.write(Gpa::new(CODE), code).unwrap();
        let mut vcpu = FakeVcpu::long(CR3);
        vcpu.rip = CODE;
        vcpu.gprs.set(Gpr::Rbx, value);
        vcpu.gprs.set(Gpr::Rbp, value);
        step(&mut vcpu, &memory, &mut Bus::new(), fault(0xf000_0fff, false), &FEATURES)
    };
    let gp = Err(StepError::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(go(&[0x8b, 0x03], 0x0000_8000_0000_0000), gp);
    // The last byte is beyond the edge.
    assert_eq!(go(&[0x8b, 0x03], 0x0000_7fff_ffff_fffd), gp);
    assert_eq!(go(&[0x8b, 0x45, 0], 0x0000_8000_0000_0000), Err(StepError::Exception(Exception::STACK)));
    let last = 0x0000_7fff_ffff_fffc;
    assert_eq!(go(&[0x8b, 0x03], last), Err(StepError::Exception(Exception::page_fault(0, last))));
}
