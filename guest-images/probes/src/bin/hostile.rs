//! A storm of what a guest should not do, seeded by the command line (`seed=N steps=N`): random MSRs, ports, memory
//! without memory, control and debug registers, page tables, virtualisation instructions, IRET frames, code that changes
//! itself, and random bytes as code. Every exception is caught and the storm goes on; at the end the probe is well. With
//! `wild=1` it takes no care of itself and may end in any way that ends this guest alone.

#![no_std]
#![no_main]

use caisson_probes::paging::{ADDRESS, P, Page, U, W, entry, map, root};
use caisson_probes::trap::vector::{DB, GP, NMI, UD};
use caisson_probes::{
    Frame, Regs, Shared, apic, check, check_eq, cpu, gdt, number, probe, random::Random, run, say, trap,
};

probe!("hostile", run_probe);

/// The actions by name, and how many exceptions the storm has seen.
const ACTIONS: &[fn(&mut Random, bool)] = &[
    read_msr,
    write_msr,
    read_port,
    write_port,
    string_port,
    memory,
    control,
    debug,
    page_tables,
    virtualisation,
    interrupts,
    returns,
    self_modifying,
    jumps,
    random_code,
];
/// DR7.GD: an access to a debug register is #DB.
const GENERAL_DETECT: u64 = 1 << 13;
/// A window of user pages for random code: one of code, one of stack and data.
const WINDOW: usize = 0x5000_0000;

static TICKS: Shared<u64> = Shared::new(0);
static CODE: Shared<Page> = Shared::new(Page::ZERO);
static DATA: Shared<Page> = Shared::new(Page::ZERO);
static TABLE: Shared<Page> = Shared::new(Page::ZERO);
static ROOT: Shared<Page> = Shared::new(Page::ZERO);

fn run_probe() {
    let (steps, wild) = (number("steps", 4000), number("wild", 0) != 0);
    let mut random = Random::new(number("seed", 1));
    for vector in 32..=255 {
        trap::handle(vector, apic::count_and_eoi as trap::Handler);
    }
    trap::handle(NMI, watchdog as trap::Handler);
    // The probe itself is the supervisor's; the window is everybody's.
    confine();
    map(WINDOW, CODE.address() as u64 | P | W | U);
    map(WINDOW + 4096, DATA.address() as u64 | P | W | U);
    for step in 0..steps {
        if step % 16 == 0 {
            recover();
        }
        let action = random.pick(ACTIONS);
        action(&mut random, wild);
    }
    recover();
    cpu::outb(0x43, 0x30);
    apic::io_route(2, 0, 1 << 16);
    check_eq!(cpu::cpuid(0x4000_0000, 0)[1], u32::from_le_bytes(*b"KVMK"), "CPUID after the storm");
    let exceptions: u64 = (0..32).map(trap::count).sum();
    say!("{} steps survived, {} exceptions", steps, exceptions);
}

/// All of the first 4 GiB, as it was at the start, in another part of the address space.
const EVERYTHING: u64 = 0x80_0000_0000;

/// Leaves the first 4 GiB to the probe's own memory and the APICs, for the supervisor: QEMU reads the frame of a user's
/// IRET with the supervisor's rights, and a stack without memory ends the guest.
fn confine() {
    for megabyte in (0..4096usize).step_by(2) {
        let slot = entry(megabyte << 20, 2);
        cpu::write64(entry(EVERYTHING as usize | megabyte << 20, 2), cpu::read64(slot));
        let own = matches!(megabyte, 0..4 | 0xfec | 0xfee);
        cpu::write64(slot, if own { cpu::read64(slot) & !U } else { 0 });
    }
    cpu::set_cr3(cpu::cr3());
}

/// Brings back what the storm may have changed and the probe relies on: debug registers, the system-call entries, the
/// console, the watchdog.
fn recover() {
    cpu::set_dr7(0x400);
    for msr in [0xc000_0080u32, 0xc000_0082, 0x174, 0x1d9] {
        let _ = cpu::try_wrmsr(msr, if msr == 0xc000_0080 { 0xd00 } else { 0 });
    }
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        cpu::outb(0x3f8 + register, value);
    }
    let _ = cpu::try_wrmsr(apic::BASE_MSR, apic::PAGE as u64 | 1 << 8);
    let _ = cpu::try_wrmsr(apic::BASE_MSR, apic::PAGE as u64 | apic::ENABLE | 1 << 8);
    apic::enable();
    // The 8254 as an NMI of 100 Hz, by the I/O APIC.
    apic::io_route(2, 0, 0x400);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        cpu::outb(port, value);
    }
    TICKS.set(0);
}

/// Ends a snippet that has seen eight ticks.
fn watchdog(frame: &mut Frame) {
    if TICKS.bump() >= 8 && trap::is_catching() {
        TICKS.set(0);
        frame.end_snippet();
    }
}

/// Runs a snippet; whatever ends it is fine.
fn attempt(code: &[u8], mut regs: Regs) -> Result<Regs, trap::Trap> {
    TICKS.set(0);
    run(code, &mut regs).map(|()| regs)
}

fn some_msr(random: &mut Random) -> u32 {
    let near = [0, 0x10, 0x174, 0x1d9, 0x200, 0x250, 0x400, 0x480, 0x600, 0x6e0, 0x800, 0xc80];
    let high = [0x4b56_4d00, 0xc000_0080, 0xc000_0100, 0xc001_0000, 0xc001_0110, 0xc001_1020];
    let base = if random.below(2) == 0 { random.pick(&near) } else { random.pick(&high) };
    base + random.below(0x20) as u32
}

fn read_msr(random: &mut Random, _: bool) {
    let number = if random.below(4) == 0 { random.any() as u32 } else { some_msr(random) };
    if let Err(trap) = cpu::try_rdmsr(number) {
        check_eq!((trap.vector, trap.error), (GP, 0), "RDMSR of {:#x}", number);
    }
}

fn write_msr(random: &mut Random, wild: bool) {
    let number = some_msr(random);
    // These send INIT to this very CPU, write into memory, or move the code's own ground.
    let harmful = matches!(number, 0x830 | 0x4b56_4d00..=0x4b56_4d0f | 0xc000_0080 | 0x10 | 0x3b);
    if harmful && !wild {
        return;
    }
    let value = random.edgy();
    if let Err(trap) = cpu::try_wrmsr(number, value) {
        check_eq!((trap.vector, trap.error), (GP, 0), "WRMSR of {:#x}, {:#x}", number, value);
    }
}

/// A port; not one whose writes end the machine or garble the console, unless that is wanted.
fn some_port(random: &mut Random, wild: bool) -> u16 {
    let known = [
        0x00, 0x20, 0x40, 0x60, 0x70, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xcf0, 0xcf8, 0x4d0, 0x3f0, 0x600, 0x620,
    ];
    loop {
        let port = match random.below(3) {
            0 => random.any() as u16,
            _ => random.pick(&known) + random.below(16) as u16,
        };
        let harmful =
            matches!(port, 0x3f5..=0x3ff | 0x601..=0x605 | 0xcf6..=0xcf9 | 0x61..=0x64 | 0x8f..=0x92);
        if wild || !harmful {
            return port;
        }
    }
}

const IN: [&[u8]; 3] = [&[0xec], &[0x66, 0xed], &[0xed]];
const OUT: [&[u8]; 3] = [&[0xee], &[0x66, 0xef], &[0xef]];
const STRING: [&[u8]; 4] = [&[0xf3, 0x6c], &[0xf3, 0x6d], &[0xf3, 0x6e], &[0xf3, 0x66, 0x6f]];

fn read_port(random: &mut Random, _: bool) {
    let regs = Regs { rdx: random.any() & 0xffff, ..Regs::default() };
    check!(attempt(random.pick(&IN), regs).is_ok(), "IN from {:#x}", regs.rdx);
}

fn write_port(random: &mut Random, wild: bool) {
    let regs = Regs { rdx: some_port(random, wild).into(), rax: random.any(), ..Regs::default() };
    check!(attempt(random.pick(&OUT), regs).is_ok(), "OUT to {:#x}", regs.rdx);
}

fn string_port(random: &mut Random, wild: bool) {
    let data = DATA.address() as u64;
    let at = match random.below(4) {
        0 => random.edgy(),
        1 => EVERYTHING | (0xd000_0000 + random.below(1 << 20)),
        _ => data + random.below(1024),
    };
    // Anything else may be the probe's own memory.
    let at = if wild || (data..data + 1024).contains(&at) || at & EVERYTHING != 0 { at } else { data };
    let regs = Regs {
        rdx: some_port(random, wild).into(),
        rcx: random.below(300),
        rsi: at,
        rdi: at,
        rflags: 2 | random.below(2) << 10,
        ..Regs::default()
    };
    let _ = attempt(random.pick(&STRING), regs);
}

/// Reads and writes where there is no RAM, by instructions good and bad.
fn memory(random: &mut Random, wild: bool) {
    const CODE: [&[u8]; 16] = [
        &[0x8a, 0x07],
        &[0x8b, 0x07],
        &[0x48, 0x8b, 0x07],
        &[0x88, 0x07],
        &[0x89, 0x07],
        &[0x48, 0x89, 0x07],
        &[0xf0, 0x0f, 0xb1, 0x07],
        &[0xff, 0x07],
        &[0x0f, 0xab, 0x07],
        &[0xf3, 0xa4],
        &[0xf3, 0x48, 0xab],
        &[0x87, 0x07],
        &[0x0f, 0xc1, 0x07],
        &[0xd1, 0x27],
        &[0x48, 0xf7, 0x17],
        &[0x0f, 0xb6, 0x07],
    ];
    // The emulator does not have these: they may end the guest.
    const BAD: [&[u8]; 5] =
        [&[0x0f, 0x28, 0x07], &[0xd9, 0x07], &[0xff, 0x17], &[0x0f, 0xc7, 0x0f], &[0xff, 0x27]];
    let address = match random.below(4) {
        0 => 0xfec0_0000 + random.below(0x1000),
        1 => 0xfee0_0000 + random.below(0x300),
        2 => 0xc000_0000 + random.below(0x1000_0000),
        _ => 0x100_0000 + random.below(0xb000_0000),
    };
    let code = if wild && random.below(8) == 0 { random.pick(&BAD) } else { random.pick(&CODE) };
    let address = EVERYTHING | address;
    let regs = Regs {
        rdi: address,
        rsi: address ^ 0x800,
        rcx: random.below(600),
        rax: random.any() & 31,
        ..Regs::default()
    };
    let _ = attempt(code, regs);
}

fn control(random: &mut Random, wild: bool) {
    let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
    // All but PG, WP, ET and PE.
    let free = if wild { !0 } else { 0x6004_000e & !(1 << 29) };
    let _ = cpu::try_set_cr0(cr0 ^ random.edgy() & free);
    cpu::set_cr0(cr0);
    // All but PAE, SMEP and SMAP (the probe's pages are the supervisor's, so that those are fine too), PCIDE, LA57.
    let free = if wild { !0 } else { !(1 << 5 | 1 << 12 | 1 << 17) };
    let _ = cpu::try_set_cr4(cr4 ^ random.edgy() & free);
    cpu::set_cr4(cr4);
    let _ = cpu::try_set_cr8(random.below(20));
    cpu::set_cr8(0);
    cpu::set_cr2(random.any());
}

fn debug(random: &mut Random, wild: bool) {
    let writes = [cpu::try_set_dr0, cpu::try_set_dr1, cpu::try_set_dr2, cpu::try_set_dr3, cpu::try_set_dr6];
    let _ = random.pick(&writes)(random.edgy());
    // Single steps, and breakpoints that the probe's own code would run into only by chance; not GD, which the next access
    // to a debug register would.
    let regs = Regs { rflags: 2 | random.below(2) << 8, ..Regs::default() };
    let _ =
        cpu::try_set_dr7(if wild { random.any() } else { 0x400 | random.edgy() & !(GENERAL_DETECT | 0xff) });
    let _ = attempt(&[0x90, 0x0f, 0xa2, 0xe4, 0x80, 0xcc], regs);
    cpu::set_dr7(0x400);
    let trap = attempt(&[0xf1], regs);
    check!(trap.is_err_and(|trap| matches!(trap.vector, DB | UD)), "INT1");
}

/// A root whose entries but the first are random, as are those of the table that some lead to. What they map is read only:
/// it can be the probe itself.
fn page_tables(random: &mut Random, _: bool) {
    let (table, new_root) = (TABLE.address(), ROOT.address());
    for index in 0..512 {
        let (one, two) = (random.edgy(), random.edgy());
        let address = match random.below(4) {
            0 => table as u64,
            1 => 0xd000_0000,
            _ => one & ADDRESS | 1 << 32,
        };
        cpu::write64(table + index * 8, address | two & !ADDRESS | P);
        cpu::write64(new_root + index * 8, table as u64 | one & !ADDRESS & !(1 << 7) | P);
    }
    cpu::write64(new_root, cpu::read64(root()));
    let cr3 = cpu::cr3();
    cpu::set_cr3(new_root as u64);
    for _ in 0..8 {
        let address = (1 << 39) + random.below(1 << 46);
        let _ = attempt(&[0x8b, 0x07], Regs { rdi: address, ..Regs::default() });
    }
    cpu::set_cr3(cr3);
}

/// Instructions of both vendors' virtualisation, and others that this machine does not have: #UD, or #GP for those that
/// check more first.
fn virtualisation(random: &mut Random, _: bool) {
    const CODE: [&[u8]; 21] = [
        &[0x0f, 0x01, 0xd8],
        &[0x0f, 0x01, 0xda],
        &[0x0f, 0x01, 0xdb],
        &[0x0f, 0x01, 0xdc],
        &[0x0f, 0x01, 0xdd],
        &[0x0f, 0x01, 0xde],
        &[0x0f, 0x01, 0xdf],
        &[0x0f, 0x01, 0xc2],
        &[0x0f, 0x01, 0xc3],
        &[0x0f, 0x01, 0xc4],
        &[0xf3, 0x0f, 0xc7, 0x37],
        &[0x0f, 0xc7, 0x37],
        &[0x0f, 0x78, 0xc1],
        &[0x0f, 0x79, 0xc1],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xcf],
        &[0x0f, 0x01, 0xfd],
        &[0x66, 0x0f, 0x38, 0x80, 0x07],
        &[0x66, 0x0f, 0x38, 0x81, 0x07],
    ];
    let code = random.pick(&CODE);
    let regs = Regs { rax: random.edgy(), rcx: random.edgy(), rdi: DATA.address() as u64, ..Regs::default() };
    match attempt(code, regs) {
        Err(trap) => check!(matches!(trap.vector, UD | GP), "{:x?}: {:x?}", code, trap),
        Ok(_) => check!(false, "{:x?} raises an exception", code),
    }
    // Hypercalls with any number, of either vendor's instruction.
    let _ = attempt(&[0x0f, 0x01, 0xd9], Regs { rax: random.edgy(), rbx: random.edgy(), ..regs });
    let _ = attempt(&[0x0f, 0x01, 0xc1], Regs { rax: random.edgy(), rbx: random.edgy(), ..regs });
}

fn interrupts(random: &mut Random, _: bool) {
    let vector = random.any() as u8;
    let _ = attempt(&[0xcd, vector], Regs::default());
    apic::send(0, 0x4_4000 | random.any() as u32 & 0xff);
    let _ = attempt(&[0xfb, 0x90, 0x90, 0xfa], Regs::default());
}

/// IRETQ with a random frame: RIP and RSP where nothing can be hurt, selectors and flags of any kind.
fn returns(random: &mut Random, _: bool) {
    let selector = |random: &mut Random| match random.below(3) {
        0 => {
            random.pick(&[gdt::CODE64, gdt::DATA, gdt::CODE32, gdt::TASK, gdt::USER_CODE32, gdt::USER_CODE64])
        }
        _ => random.any() as u16,
    };
    cpu::write64(CODE.address(), 0x0b0f_0b0f_0b0f_0b0f);
    let rip = if random.below(2) == 0 { WINDOW as u64 } else { random.edgy() | 1 << 63 };
    // PUSH R8 to R12; IRETQ.
    let regs = Regs {
        r8: selector(random).into(),
        r9: WINDOW as u64 + 8000,
        r10: random.edgy() & 0x3f_7cd7,
        r11: selector(random).into(),
        r12: rip,
        ..Regs::default()
    };
    let code = [0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x53, 0x41, 0x54, 0x48, 0xcf];
    let _ = attempt(&code, regs);
}

/// `MOV [RIP],AL` over the operand of the MOV CL that follows.
fn self_modifying(random: &mut Random, _: bool) {
    let rax = random.below(256);
    let ended = attempt(&[0x88, 0x05, 1, 0, 0, 0, 0xb1, 0x55], Regs { rax, ..Regs::default() });
    check_eq!(ended.map(|regs| regs.rcx), Ok(rax), "code that changes itself");
}

fn jumps(random: &mut Random, _: bool) {
    let rdi = match random.below(4) {
        0 => random.edgy() | 1 << 62,
        1 => EVERYTHING | (0xfee0_0000 + random.below(4096)),
        2 => EVERYTHING | (0xfec0_0000 + random.below(4096)),
        _ => EVERYTHING | (0xd000_0000 + random.below(1 << 24)),
    };
    let trap = attempt(&[0xff, 0xe7], Regs { rdi, ..Regs::default() });
    check!(trap.is_err(), "a jump to {:#x}", rdi);
}

/// Random bytes in user mode, of all its kinds, where only the window can be hurt.
fn random_code(random: &mut Random, _: bool) {
    for index in 0..8 {
        cpu::write64(CODE.address() + index * 8, random.any());
    }
    let cs = random.pick(&[gdt::USER_CODE64, gdt::USER_CODE32]);
    let mut regs = Regs { rflags: 2 | random.below(2) << 9, ..Regs::default() };
    for register in [0, 1, 2, 3, 5, 6, 7] {
        regs.set(register, if random.below(2) == 0 { WINDOW as u64 + 4096 } else { random.edgy() });
    }
    TICKS.set(0);
    let _ = run::enter(WINDOW, &mut regs, cs, gdt::USER_DATA, WINDOW as u64 + 8000);
}
