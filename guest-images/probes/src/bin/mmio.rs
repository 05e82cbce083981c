//! Instructions on devices in memory space. Each one that the emulator claims ([`SUPPORTED`]) runs on RAM, where the CPU
//! executes it, and on a device that holds the same; registers, flags and memory must be the same afterwards. Then every
//! way to form the address, accesses across the border between RAM and nothing, and fetches from nothing.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};

use caisson_emulate::{SUPPORTED, Supported};
use caisson_probes::apic::register::{INITIAL_COUNT, LVT_TIMER, VERSION};
use caisson_probes::paging::{P, Page, U, W, map};
use caisson_probes::trap::vector::UD;
use caisson_probes::{Regs, Shared, apic, check, check_eq, cpu, gdt, probe, run, trap};

probe!("mmio", run_probe);

/// Guest-physical addresses behind which there is nothing.
const NOTHING: usize = 0x6000_0000;
/// A register of the local APIC that keeps 32 bits.
const KEEPS: usize = apic::PAGE + INITIAL_COUNT as usize;
const ARITHMETIC: u64 = 0x8d5;
const CARRY: u64 = 1;

/// The table's crate links an allocator that nothing here asks.
struct Nothing;

// SAFETY: no memory is ever handed out.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;

static RAM: Shared<Page> = Shared::new(Page([0xff; 4096]));

fn run_probe() {
    apic::write(LVT_TIMER, apic::MASKED);
    let mut forms = 0;
    // Sandy Bridge and Ivy Bridge do not have it.
    let movbe = cpu::cpuid(1, 0)[2] & 1 << 22 != 0;
    for instruction in SUPPORTED.iter().filter(|known| movbe || known.mnemonic != "MOVBE") {
        for &size in instruction.sizes {
            forms += u64::from(same_on_nothing(instruction, size));
            if size == 4 {
                same_on_register(instruction);
            }
        }
    }
    check!(forms > 100, "forms of instructions: {}", forms);
    addresses();
    other_sizes_of_addresses();
    borders();
    fetches();
}

/// The example with another size of its memory operand: 66, REX.W, or the opcode for bytes.
fn sized(instruction: &Supported, size: u8) -> ([u8; 8], usize) {
    let mut code = [0; 8];
    let mut used = 0;
    let mut push = |byte: u8| {
        code[used] = byte;
        used += 1;
    };
    let example = instruction.example;
    let prefixes = example.iter().take_while(|byte| matches!(byte, 0xf2 | 0xf3)).count();
    let opcode = prefixes + example[prefixes..].iter().take_while(|byte| matches!(byte, 0x0f | 0x48)).count();
    // These name the size of their source, or have one size.
    let zero_extends = matches!(instruction.mnemonic, "MOVZX" | "MOVSX");
    let fixed = zero_extends || matches!(instruction.mnemonic, "SETcc" | "MOVSXD" | "PUSH" | "POP");
    let stack = matches!(instruction.mnemonic, "PUSH" | "POP");
    if size == 2 && (!fixed || stack) {
        push(0x66);
    }
    example[..prefixes].iter().for_each(|&byte| push(byte));
    if size == 8 && !fixed {
        push(0x48);
    }
    for (index, &byte) in example.iter().enumerate().skip(prefixes) {
        let byte = match index == opcode {
            true if zero_extends && size == 2 => byte + 1,
            true if !fixed && size == 1 => byte - 1,
            _ => byte,
        };
        push(byte);
    }
    (code, used)
}

/// Runs the instruction with its memory at `address`; PUSH is followed by POP RDX, POP preceded by PUSH RAX.
fn execute(instruction: &Supported, size: u8, address: usize, mut regs: Regs) -> Result<Regs, trap::Trap> {
    let (code, len) = sized(instruction, size);
    let mut whole = [0x90; 10];
    whole[1..=len].copy_from_slice(&code[..len]);
    match instruction.mnemonic {
        "POP" => whole[0] = 0x50,
        "PUSH" => whole[len + 1] = 0x5a,
        _ => {}
    }
    (regs.rdi, regs.rsi) = (address as u64, address as u64);
    run(&whole, &mut regs)?;
    regs.rdi = regs.rdi.wrapping_sub(address as u64);
    regs.rsi = regs.rsi.wrapping_sub(address as u64);
    Ok(regs)
}

/// Flags that the manuals leave undefined after it, and so are no business of ours.
fn undefined(instruction: &Supported) -> u64 {
    match instruction.mnemonic {
        "AND" | "OR" | "XOR" | "TEST" | "SHL" | "SHR" | "SAR" => 0x10,
        // OF, SF, AF, PF; ZF is unchanged.
        "BT" | "BTS" | "BTR" | "BTC" => 0x894,
        _ => 0,
    }
}

const START: &[(u64, u64)] = &[(5, 2), (0x8000_0001, 3), (0xffff_ffff_ffff_ffff, 2), (7, 0x8d7)];

/// On a page of nothing, which reads as all ones, and on RAM full of ones.
fn same_on_nothing(instruction: &Supported, size: u8) -> bool {
    for &(rax, rflags) in START {
        // A bit offset reaches beyond the operand: it is taken within.
        let rax = if instruction.mnemonic.starts_with("BT") { rax & 7 } else { rax };
        let start = Regs { rax, rcx: 3, rdx: 0x5555, rflags, ..Regs::default() };
        RAM.set(Page([0xff; 4096]));
        let (ram, device) = (RAM.address(), NOTHING + 0x40);
        let mask = ARITHMETIC & !undefined(instruction);
        let flags = |regs: Regs| Regs { rflags: regs.rflags & mask, ..regs };
        let on_ram = execute(instruction, size, ram + 0x40, start).map(flags);
        let on_nothing = execute(instruction, size, device, start).map(flags);
        check!(on_ram.is_ok(), "{} of {} bytes on RAM: {:x?}", instruction.mnemonic, size, on_ram);
        check_eq!(on_nothing, on_ram, "{} of {} bytes, RAX {:#x}", instruction.mnemonic, size, rax);
    }
    true
}

/// On a register of the local APIC, which keeps what is written.
fn same_on_register(instruction: &Supported) {
    if matches!(instruction.mnemonic, "MOVS" | "CMPS" | "STOS" | "LODS" | "SCAS") {
        return;
    }
    for &(rax, rflags) in START {
        for value in [0, 1, 5, 0x8000_0001, 0x7fff_ffff, 0x1234_5678] {
            let rax = if instruction.mnemonic.starts_with("BT") { rax & 31 } else { rax };
            let start =
                Regs { rax, rcx: 3, rdx: 0x5555, rflags: rflags & !CARRY | rax & CARRY, ..Regs::default() };
            RAM.set(Page([0; 4096]));
            cpu::write32(RAM.address(), value);
            cpu::write32(KEEPS, value);
            let mask = ARITHMETIC & !undefined(instruction);
            // QWORDs of PUSH and POP do not fit the register.
            if matches!(instruction.mnemonic, "PUSH" | "POP") {
                return;
            }
            let on_ram = execute(instruction, 4, RAM.address(), start);
            let on_register = execute(instruction, 4, KEEPS, start);
            let flags = |regs: Regs| Regs { rflags: regs.rflags & mask, ..regs };
            check_eq!(
                on_register.map(flags),
                on_ram.map(flags),
                "{} on {:#x}, RAX {:#x}",
                instruction.mnemonic,
                value,
                rax
            );
            check_eq!(
                cpu::read32(KEEPS),
                cpu::read32(RAM.address()),
                "memory after {} on {:#x}, RAX {:#x}",
                instruction.mnemonic,
                value,
                rax
            );
        }
    }
    cpu::write32(KEEPS, 0);
}

/// MOV R8D,[…] of the local APIC's version.
fn reads_version(what: &str, code: &[u8], mut regs: Regs) {
    let expected = u64::from(cpu::read32(apic::PAGE + VERSION as usize));
    let result = run(code, &mut regs);
    check!(result.is_ok(), "{} ({:x?}): {:x?}", what, code, result);
    check_eq!(regs.r8, expected, "{} ({:x?})", what, code);
}

/// ModRM and SIB (SDM vol. 2, tables 2-2 and 2-3), every base and index but RSP.
fn addresses() {
    let target = (apic::PAGE + VERSION as usize) as u64;
    for mode in 0..3u8 {
        let displacement: u64 = [0, 0xffff_ffff_ffff_fff0, 0x1234_5670][usize::from(mode)];
        let bytes = displacement.to_le_bytes();
        let bytes = &bytes[..[0, 1, 4][usize::from(mode)]];
        for base in (0..16u8).filter(|&base| base != 4) {
            if mode == 0 && base & 7 == 5 {
                continue;
            }
            let mut regs = Regs::default();
            regs.set(base.into(), target.wrapping_sub(displacement));
            // REX.R for R8, REX.B for the base.
            let mut code = [0x44 | base >> 3, 0x8b, mode << 6 | base & 7, 0, 0, 0, 0, 0];
            let mut len = 3;
            if base & 7 == 4 {
                code[3] = 0x24;
                len = 4;
            }
            code[len..len + bytes.len()].copy_from_slice(bytes);
            reads_version("base", &code[..len + bytes.len()], regs);
            for index in (0..16u8).filter(|&index| index != 4 && index != base) {
                for scale in 0..4u8 {
                    let mut regs = Regs::default();
                    let offset = 0x1_0000_0010u64 << scale;
                    regs.set(index.into(), 0x1_0000_0010);
                    regs.set(base.into(), target.wrapping_sub(displacement).wrapping_sub(offset));
                    let rex = 0x44 | index >> 3 << 1 | base >> 3;
                    let sib = scale << 6 | (index & 7) << 3 | base & 7;
                    let mut code = [rex, 0x8b, mode << 6 | 4, sib, 0, 0, 0, 0];
                    code[4..4 + bytes.len()].copy_from_slice(bytes);
                    reads_version("base and index", &code[..4 + bytes.len()], regs);
                }
            }
        }
    }
}

fn other_sizes_of_addresses() {
    let target = (apic::PAGE + VERSION as usize) as u64;
    let version = u64::from(cpu::read32(target as usize));
    // No base: SIB without base, 32 bits sign-extended, seen through a page of its own.
    map(0x7_0000, apic::PAGE as u64 | P | W | U);
    reads_version("disp32", &[0x44, 0x8b, 0x04, 0x25, 0x30, 0, 7, 0], Regs::default());
    reads_version(
        "address size 32",
        &[0x67, 0x44, 0x8b, 0x07],
        Regs { rdi: target | 7 << 40, ..Regs::default() },
    );
    cpu::wrmsr(0xc000_0100, 0x1000);
    reads_version("FS", &[0x64, 0x44, 0x8b, 0x07], Regs { rdi: target - 0x1000, ..Regs::default() });
    cpu::wrmsr(0xc000_0100, 0);
    // MOV EAX, moffs64; XCHG with R8.
    let mut code = [0xa1, 0, 0, 0, 0, 0, 0, 0, 0, 0x49, 0x90];
    code[1..9].copy_from_slice(&target.to_le_bytes());
    reads_version("moffs64", &code, Regs::default());
    // RIP-relative, to the page of nothing.
    let mut code = [0x44, 0x8b, 0x05, 0, 0, 0, 0];
    code[3..].copy_from_slice(&((NOTHING - run::code_base() - 7) as u32).to_le_bytes());
    let mut regs = Regs::default();
    check!(run(&code, &mut regs).is_ok(), "RIP-relative");
    check_eq!(regs.r8, 0xffff_ffff, "RIP-relative");
    // 32-bit code: moffs32, and 16-bit addressing [BX+SI+30H]; both end at UD2.
    let [a, b, c, d] = (target as u32).to_le_bytes();
    for (what, code) in [
        ("moffs32", &[0xa1, a, b, c, d, 0x0f, 0x0b][..]),
        ("16-bit addressing", &[0x67, 0x8b, 0x40, 0x30, 0x0f, 0x0b][..]),
    ] {
        map(0x8000, apic::PAGE as u64 | P | W | U);
        let mut regs = Regs { rbx: 0xffff_7f00, rsi: 0x5555_0100, ..Regs::default() };
        let trap = run::try_user(code, &mut regs, gdt::USER_CODE32);
        check_eq!((trap.vector, regs.rax), (UD, version), "{}", what);
    }
    // LOCK, where it is allowed and where not.
    let mut regs = Regs { rdi: NOTHING as u64, rax: 1, ..Regs::default() };
    check!(run(&[0xf0, 0x01, 0x07], &mut regs).is_ok(), "LOCK ADD on nothing");
    check_eq!(regs.rflags & ARITHMETIC, 0x55, "flags of LOCK ADD on ones");
    let refused = run(&[0xf0, 0x89, 0x07], &mut regs);
    check_eq!(refused.map_err(|trap| trap.vector), Err(UD), "LOCK MOV on nothing");
}

/// Two pages in a row, RAM and nothing, in both orders.
fn borders() {
    let window = 0x80_0000_0000usize;
    let ram = RAM.address();
    for (first, second) in [(ram, NOTHING), (NOTHING, ram)] {
        map(window, first as u64 | P | W);
        map(window + 4096, second as u64 | P | W);
        for below in 1..8 {
            RAM.set(Page([0x5a; 4096]));
            let at = window + 4096 - below;
            let mut expected = [0x5a; 8];
            let nothing = if first == ram { below..8 } else { 0..below };
            expected[nothing.clone()].fill(0xff);
            check_eq!(cpu::read64(at), u64::from_le_bytes(expected), "read across a border");
            cpu::write64(at, 0x0807_0605_0403_0201);
            for (index, byte) in (1..=8).enumerate() {
                let want = if nothing.contains(&index) { 0xff } else { byte };
                check_eq!(cpu::read8(at + index), want, "byte {} after a write across a border", index);
            }
            check_eq!(
                cpu::read8(window + if first == ram { 4080 } else { 4096 + 16 }),
                0x5a,
                "RAM beside it"
            );
        }
    }
    // A page that is not there behind nothing: the fault comes before anything is written.
    map(window, ram as u64 | P | W);
    map(window + 4096, NOTHING as u64 | P | W);
    map(window + 8192, 0);
    let at = (window + 8190) as u64;
    let trap = run(&[0x48, 0x89, 0x07], &mut Regs { rdi: at, ..Regs::default() })
        .map_err(|trap| (trap.vector, trap.cr2));
    check_eq!(trap, Err((trap::vector::PF, (window + 8192) as u64)), "a write from nothing into no page");
}

/// Ones are no instruction.
fn fetches() {
    let trap = run(&[0xff, 0xe7], &mut Regs { rdi: NOTHING as u64, ..Regs::default() });
    check_eq!(trap.map_err(|trap| (trap.vector, trap.rip)), Err((UD, NOTHING as u64)), "a jump to nothing");
    let trap = run(&[0xff, 0xe7], &mut Regs { rdi: apic::PAGE as u64 + 0x30, ..Regs::default() });
    check!(trap.is_err(), "a jump into the local APIC");
}
